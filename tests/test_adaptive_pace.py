"""A plan is faster than the float model where a time was asked for; and its bytes are those of files."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch

import tinymusician_core as tm
from tinymusician_core.quant import adaptive, calibration, compared, cost, workbench
from tinymusician_core.quant.adaptive import adapt
from tinymusician_core.quant.apply import FILES, quantize
from tinymusician_core.quant.clock import Clock
from tinymusician_core.quant.rounds import rounds_of
from tinymusician_core.quant.schemes import to_tensors
from tinymusician_core.quant.search import Budget, Choice, Fixed, ImpossibleBudget
from tinymusician_core.quant.sensitivity import Group, Option
from tinymusician_core.quant.trial import Harm
from tinymusician_core.quant.workbench import Calls, Outcome, Pace, Tokens, Workbench
from tinymusician_core.tokens import write_tokens

FLOAT_MS, BESIDE_MS = 1.0, 0.4
BYTES = {"fp32": 4000, "fp16": 2000, "bf16": 2000, "int8": 1000, "int4": 500}
KL = {"fp32": 0.0, "fp16": 0.001, "bf16": 0.005, "int8": 0.01, "int4": 0.05}


class Bench:
    """One matrix, whose schemes take other times than are foreseen; all is in the milliseconds of a step."""

    fixed = Fixed(100, BESIDE_MS / 1e3)
    float_ms = FLOAT_MS

    def __init__(self, foreseen: dict[str, float], measured: dict[str, float] | None = None):
        self.foreseen, self.measured, self.clock = foreseen, foreseen | (measured or {}), Clock()
        group, self.judge = Group("m", ("m",)), self
        options = {name: Option(group, name, Harm((KL[name],), 0.0), ()) for name in foreseen}
        self.choices = [
            Choice(option, BYTES[name], (foreseen[name] - BESIDE_MS) / 1e3, 0.0, KL[name], 0.0)
            for name, option in options.items()
        ]

    def harm(self, schemes):
        return Harm((KL[schemes["m"]],), 0.0)

    held_out = harm

    def packed_recipe(self, schemes):
        return schemes

    def foresee(self, schemes):
        return Outcome(100 + BYTES[schemes["m"]], self.foreseen[schemes["m"]], self.harm(schemes))

    def measure(self, schemes):
        return Outcome(100 + BYTES[schemes["m"]], self.measured[schemes["m"]], self.harm(schemes))


@pytest.fixture
def found(monkeypatch):
    """A search on such a bench; there are no fixed plans beside it."""
    monkeypatch.setattr(Tokens, "of", lambda *_: None)
    monkeypatch.setattr(compared, "fixed_plans", lambda _: {})

    def search(bench: Bench, **budget):
        monkeypatch.setattr(adaptive, "Workbench", lambda *_: bench)
        return adapt(None, "q", **budget)

    return search


def test_a_generous_limit_is_brought_below_the_float_models_time(found):
    made = found(Bench({"fp32": 1.0, "fp16": 0.9, "int8": 0.7}), max_ms=10.0)
    assert made.best.schemes == {"m": "fp16"}, "the float model itself keeps ten milliseconds"
    assert (made.budget.max_ms, made.aim.max_ms) == (10.0, pytest.approx(0.95))
    assert made.figures()["aim"] == {"max_ms": pytest.approx(0.95)}
    assert made.figures()["budget"] == {"max_ms": 10.0}
    assert made.pace == (
        "max_ms 10 was lowered: the float model takes 1 ms a step, and a plan is to take at most 95% of that, 0.95 ms"
    )


def test_a_limit_below_that_stays_as_it_is(found):
    made = found(Bench({"fp32": 1.0, "fp16": 0.9, "int8": 0.7}), max_ms=0.8)
    assert made.best.schemes == {"m": "int8"}
    assert (made.aim, made.pace) == (made.budget, "")


def test_a_plan_that_turns_out_slower_is_repaired(found):
    bench = Bench({"fp32": 1.0, "fp16": 0.9, "int8": 0.7}, {"fp16": 1.05})
    for limits in ({"max_ms": 10.0}, {"max_mb": 1.0}):
        made = found(bench, **limits)
        assert [round_.schemes["m"] for round_ in made.rounds] == ["fp16", "int8"]
        assert made.best.schemes == {"m": "int8"}
        assert made.best.measured.step_ms < FLOAT_MS


def test_each_repair_is_by_how_far_the_last_plan_was_off_and_not_by_all_of_them():
    foreseen = {"fp32": 1.0, "fp16": 0.9, "bf16": 0.85, "int8": 0.8, "int4": 0.6}
    bench = Bench(foreseen, {"fp16": 0.99, "bf16": 0.96})
    tried = [round_.schemes["m"] for round_ in rounds_of(bench, Budget(max_ms=0.95))]
    assert tried == ["fp16", "bf16", "int8"]


def test_where_none_turns_out_faster_there_is_no_plan(found):
    bench = Bench({"fp32": 1.0, "fp16": 0.9, "int8": 0.7}, {"fp16": 1.05, "int8": 0.97})
    with pytest.raises(ImpossibleBudget, match="the float model takes 1 ms a step, .* no plan that was measured keeps"):
        found(bench, max_ms=10.0)
    made = found(bench, max_mb=1.0)
    assert made.best.schemes == {"m": "int8"}, "without a limit of time the faster of the two will do"
    assert made.pace == (
        "no plan was found that keeps the budget and is surely faster than the float model: "
        "this one takes 0.97 ms a step, the float model 1 ms"
    )


def test_where_none_is_foreseen_to_be_faster_it_is_said_before_any_is_measured(found, monkeypatch):
    bench = Bench({"fp32": 1.0, "fp16": 0.98, "int8": 1.2})
    monkeypatch.setattr(bench, "measure", lambda _: pytest.fail("measured"))
    with pytest.raises(ImpossibleBudget, match="at most 95% of that, 0.95 ms; max_ms 0.95 cannot be kept, 0.98 ") as no:
        found(bench, max_ms=10.0)
    assert no.value.nearest["max_ms"] == pytest.approx(0.98)
    with pytest.raises(ImpossibleBudget, match="^max_ms 0.5 cannot be kept, 0.98 milliseconds a step is the least"):
        found(bench, max_ms=0.5)
    with pytest.raises(ImpossibleBudget, match="^max_mb 0.0001 cannot be kept"):
        found(Bench({"fp32": 1.0, "fp16": 0.9}), max_ms=10.0, max_mb=0.0001)


def test_without_a_limit_of_time_the_closest_is_taken_where_none_is_faster(found):
    made = found(Bench({"fp32": 1.0, "fp16": 0.98, "int8": 1.2}), max_mb=0.0025)
    assert made.best.schemes == {"m": "fp16"}
    assert made.aim == made.budget
    assert "surely faster" in made.pace


@pytest.fixture
def student(tiny_family, monkeypatch, tmp_path):
    """The tiny student, and few and short measurements in a cache of their own."""
    monkeypatch.setenv("TINYMUSICIAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "SECONDS", 0.5)
    for name, windows in (("MOMENT_WINDOWS", 4), ("JUDGE_WINDOWS", 3), ("HELD_OUT_WINDOWS", 2)):
        monkeypatch.setattr(workbench, name, windows)
    monkeypatch.setattr(workbench, "CLIP_S", 0.5)
    for name, value in (("LEAST_S", 0.0), ("LEAST_PASSES", 2), ("CLIPS", 1)):
        monkeypatch.setattr(cost, name, value)
    return tm.load(tiny_family / "student")


@pytest.fixture
def tokens(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "validation"):
        clips = [torch.randint(0, 64, (4, 40), generator=generator) for _ in range(3)]
        write_tokens(tmp_path / "tokens", split, clips, [{"captions": ["a calm piano"], "bars": [0, 10]}] * 3)
    return tmp_path / "tokens"


def test_the_measured_size_is_that_of_files_whatever_was_foreseen(student, tokens, tmp_path, monkeypatch):
    foreseen = workbench.disk_bytes
    monkeypatch.setattr(workbench, "disk_bytes", lambda *order: foreseen(*order) + 1000)
    made = quantize(student, out_dir=tmp_path / "q", max_kl=0.5, data=tokens, schemes=["fp16", "int8", "int4"])
    written = sum((made.folder / name).stat().st_size for name in ("config.json", *FILES))
    assert made.search["measured"]["disk_bytes"] == made.disk_bytes == written
    assert made.search["foreseen"]["disk_bytes"] == written + 1000
    assert not list((tmp_path / "cache").glob("plan-*")), "what was written to be measured is gone"


def test_what_is_measured_is_what_a_plan_stores(student, tokens):
    bench = Workbench(student, "q", Tokens.of(student, tokens), ["fp16", "int8", "int4"])
    plan = bench.complete(dict.fromkeys(("decoder.heads", "decoder.layers.0.fc1", "decoder.layers.1.qkv"), "int4"))
    assert bench.written_bytes(plan) == bench.foresee(plan).disk_bytes
    kept = bench.judge.packs.stored(plan)
    assert set(kept) == {name for name, scheme in plan.items() if scheme == "int4"}
    for name, tensors in kept.items():
        wanted = to_tensors(bench.judge.packs.target(name), "int4", bench.moments[name])
        assert set(tensors) == set(wanted)
        assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)


def test_versions_of_a_model_take_turns_and_each_step_counts_at_its_quickest(student, monkeypatch):
    turns, now = [], [0.0]
    monkeypatch.setattr(cost, "CLIPS", 3)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])

    @contextmanager
    def version(name):
        turns.append(name)
        yield

    def frames(*_, **__):
        """A clip's steps: the second version's take twice as long, and one in each clip is held up."""
        for step in range(_[4]):
            now[0] += (1.0 if turns[-1] == "one" else 2.0) + 5.0 * (step == len(turns) // 2)
            yield None

    monkeypatch.setattr(cost, "frames", frames)
    monkeypatch.setattr(cost, "ENOUGH_S", 1e9)
    told = []
    versions = {name: partial(version, name) for name in ("one", "other")}
    one, other = cost.steps_in_turn(student, versions, 0.4, lambda *clip: told.append(clip))
    steps = round(0.4 * student.frame_rate_hz)
    assert (one, other) == (steps * 1.0 / (steps + 3), steps * 2.0 / (steps + 3))
    assert turns == ["one", "other"] * 3
    assert told == [(name, i, 6) for i, name in enumerate(turns)]
    turns.clear()
    monkeypatch.setattr(cost, "ENOUGH_S", 0.0)
    cost.steps_in_turn(student, versions, 0.4)
    assert turns == ["one", "other"] * 2, "two clips at least"


def test_a_plan_is_timed_as_a_share_of_the_float_models_time_when_costs_were_measured(student, tokens, monkeypatch):
    bench = Workbench(student, "q", Tokens.of(student, tokens), ["fp16", "int8"])
    monkeypatch.setattr(workbench, "steps_in_turn", lambda *_: [0.03, 0.02])
    assert bench.measure(bench.complete({})).step_ms == pytest.approx(bench.float_ms * 2 / 3)


def test_a_pace_is_that_of_steps_whose_calls_leave_the_compiled_code_or_stay():
    calls = [Calls(1e-3, 0), Calls(2e-3, 25), Calls(3e-3, 25), Calls(1.5e-3, 8)]
    seen = [2e-4 + 1.1 * each.seconds + 2e-5 * each.leaving for each in calls]
    pace = Pace.of(calls, seen)
    assert (pace.offset_s, pace.slope, pace.leaving_s) == pytest.approx((2e-4, 1.1, 2e-5))
    assert pace.step_s(Calls(4e-3, 3), floats=False) == pytest.approx(2e-4 + 4.4e-3 + 6e-5)


@pytest.mark.parametrize("seen", [[5e-4], [9e-4, 2e-4]], ids=["one", "the slower in calls the quicker"])
def test_where_calls_say_nothing_of_a_steps_time_they_count_as_they_are(seen):
    pace = Pace.of([Calls(1e-4, 2), Calls(8e-4, 2)][: len(seen)], seen)
    assert pace.leaving_s == 0.0
    assert pace.slope == 1.0
    assert pace.step_s(Calls(1e-4, 2), floats=False) >= 1e-4


def test_a_large_model_is_tried_on_fewer_and_shorter_windows_and_timed_over_shorter_clips(student, tokens, monkeypatch):
    timed = []

    def steps_in_turn(_, versions, clip_s, on_clip):
        timed.append(clip_s)
        return [0.01] * len(versions)

    monkeypatch.setattr(workbench, "steps_in_turn", steps_in_turn)
    monkeypatch.setattr(workbench, "LARGE_S", 0.8)
    shapes = []
    for many in (workbench.MANY_WEIGHTS, 1):
        monkeypatch.setattr(workbench, "MANY_WEIGHTS", many)
        for data in (None, tokens):
            drawn = workbench.Tokens.of(student, data)
            shapes.append([part.codes.shape[::2] for part in (drawn.moments, drawn.judge, drawn.held_out)])
        workbench.Workbench(student, "small", drawn, ["fp32", "fp16"])
    assert shapes[:2] == [[(4, 12), (3, 12), (2, 12)]] * 2
    assert shapes[2:] == [[(2, 20), (1, 20), (1, 20)]] * 2
    assert sorted(set(timed)) == [workbench.CLIP_S, workbench.LARGE_CLIP_S]
    assert timed == sorted(timed)
