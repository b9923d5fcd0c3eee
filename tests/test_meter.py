"""The meter against known answers: a model whose parts sleep, and that takes memory of known size for a moment.

Times are at least what was slept. Above, they are held to bounds that no busy machine should reach.
"""

import json
import stat
import sys
from dataclasses import replace

import psutil
import pytest
import slow_process as slow

from tinymusician_core.journal import Journal
from tinymusician_core.measure import bench_report, machine, rounds
from tinymusician_core.measure.bench import measure
from tinymusician_core.measure.rounds import Setting, bench, turns
from tinymusician_core.records import Cancelled, ModelError, SamplingSpec
from tinymusician_core.worker import Worker, child_environment

PROMPT = "a calm piano waltz"
SPEC = SamplingSpec(seconds=2, seed=3)
RATE_HZ = 25  # steps for a second of sound
SLACK_MS = 20_000
MB = 2**20


@pytest.fixture(scope="module")
def slowed(tiny_family, tmp_path_factory):
    """What is measured of the tiny student when every part of it sleeps."""
    python = tmp_path_factory.mktemp("slow") / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{slow.__file__}" "$3"\n')
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        return measure(str(tiny_family / "student"), PROMPT, SPEC, runs=2, threads=1)


@pytest.fixture(scope="module")
def quick(tiny_family):
    """The same, wide awake."""
    return measure(str(tiny_family / "student"), PROMPT, SPEC, runs=2, threads=1)


def between(value: float, low: float, slack: float = SLACK_MS) -> bool:
    """Whether a time is at least `low`, but for a clock's grain, and no more than `slack` above."""
    return 0.999 * low <= value <= low + slack


def test_each_stage_takes_what_its_part_sleeps(slowed):
    steps, pieces = slowed.process.runs[0].timing.steps, 1 + 2  # half a second of sound first, then one each
    stages = slowed.figures.stages_ms
    assert between(stages["text"], 1000 * slow.TEXT_S)
    assert between(stages["lm"], 1000 * slow.STEP_S * steps)
    assert between(stages["codec"], 1000 * slow.CODEC_S * pieces)
    assert steps >= 2 * RATE_HZ


def test_a_step_and_the_whole_take_what_the_parts_sleep(slowed):
    figures, steps = slowed.figures, slowed.process.runs[0].timing.steps
    assert between(figures.ms_per_step, 1000 * slow.STEP_S, SLACK_MS / steps)
    slept_s = slow.TEXT_S + slow.STEP_S * steps + 3 * slow.CODEC_S
    assert between(1000 * figures.total_s, 1000 * slept_s, 3 * SLACK_MS)
    assert figures.x_realtime <= 2 / (0.999 * slept_s)


def test_the_first_sound_takes_the_text_some_steps_and_one_piece_and_not_the_rest(slowed):
    figures = slowed.figures
    least = slow.TEXT_S + slow.STEP_S * 0.5 * RATE_HZ + slow.CODEC_S
    assert 999 * least <= figures.first_sound_ms
    for run in slowed.process.runs:
        rest = 2 * slow.CODEC_S + slow.STEP_S * RATE_HZ
        assert run.timing.total_s - run.timing.first_sound_s >= 0.999 * rest


def test_the_warm_up_sleeps_too_and_does_not_count(slowed):
    assert slowed.figures.warm_up_s >= slow.TEXT_S + slow.STEP_S * RATE_HZ
    assert slowed.figures.runs == len(slowed.process.runs) == 2
    assert {run.made_s for run in slowed.process.runs} == {2.0}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is Linux's")
def test_memory_of_known_size_is_seen_and_loading_is_no_run(slowed, quick):
    assert quick.figures.peak_memory_bytes < 40 * MB
    more = slowed.figures.peak_memory_bytes - quick.figures.peak_memory_bytes
    assert abs(more - slow.RUN_BYTES) < 24 * MB
    assert slow.LOAD_BYTES <= slowed.figures.load_peak_bytes < slow.LOAD_BYTES + 40 * MB
    assert slowed.figures.peak_memory_bytes < slow.LOAD_BYTES


def test_weights_and_files_do_not_depend_on_speed(slowed, quick):
    for name in ("weights_bytes", "disk_bytes", "threads", "device"):
        assert getattr(slowed.figures, name) == getattr(quick.figures, name)


# by turns


@pytest.fixture
def setting(demo_family) -> Setting:
    return Setting(("teacher", "student"), SamplingSpec(seconds=0.5, seed=7), runs=3, rounds=2, threads=1)


@pytest.fixture
def faked(monkeypatch, quick):
    """Every process is the same one, measured before; what was asked for stands in the list."""
    asked = []

    def pretend(model, prompt, spec, runs, **_):
        asked.append((model, runs))
        process = replace(quick.process, runs=(quick.process.runs * 3)[:runs])
        return replace(quick, process=process)

    monkeypatch.setattr(rounds, "measure", pretend)
    monkeypatch.setattr(rounds, "read_bandwidth", lambda seconds: 5e9)
    monkeypatch.setattr(rounds.machine, "busy_share", lambda: 0.25)
    return asked


def test_variants_take_turns_and_all_runs_are_dealt(setting):
    order = [(turn.model, turn.round, turn.runs) for turn in turns(setting)]
    assert order == [("teacher", 0, 2), ("student", 0, 2), ("student", 1, 1), ("teacher", 1, 1)]
    assert [turn.number for turn in turns(setting)] == [1, 2, 3, 4]
    for runs, among in ((1, 5), (7, 3), (15, 5)):
        each = [turn for turn in turns(replace(setting, runs=runs, rounds=among)) if turn.model == "student"]
        assert sum(turn.runs for turn in each) == runs
        assert len(each) == min(runs, among)


def test_every_variant_is_measured_in_processes_of_its_own(setting, tmp_path):
    told = []
    found = bench(setting, tmp_path / "new" / "report", lambda turn, step: told.append((turn.number, step.stage)))
    assert [variant.model for variant in found.variants] == ["teacher", "student"]
    for variant in found.variants:
        figures = variant.figures
        assert (figures.runs, figures.processes, figures.threads) == (3, 2, 1)
        low, high = figures.spread.total_s
        assert low <= figures.total_s <= high
    assert list(dict.fromkeys(number for number, _ in told)) == [1, 2, 3, 4]
    assert {"loading", "warm-up", "lm"} <= {stage for _, stage in told}
    assert len(found.bandwidth) == 4
    assert min(found.bandwidth) > 0
    assert len(found.others) == 4
    assert all(0 <= share <= 1 for share in found.others)
    assert found.machine["torch"]


def test_a_second_call_goes_on_where_the_first_was_stopped_and_a_third_says_the_same(setting, faked, tmp_path):
    done = bench(setting, tmp_path / "whole").as_dict()
    assert len(faked) == 4
    complete = (tmp_path / "whole" / rounds.JOURNAL).read_text().splitlines(keepends=True)
    for lines in range(1, len(complete) + 1):
        folder = tmp_path / str(lines)
        folder.mkdir()
        (folder / rounds.JOURNAL).write_text("".join(complete[:lines]) + '{"torn')
        faked.clear()
        again = bench(setting, folder).as_dict()
        assert len(faked) == 5 - lines
        assert json.dumps(again, sort_keys=True) == json.dumps(done, sort_keys=True)
        assert (folder / rounds.JOURNAL).read_text() == "".join(complete)


def test_a_stop_keeps_the_processes_that_have_ended(setting, tmp_path, monkeypatch, faked):
    pretend, told = rounds.measure, []

    def stop_third(model, *order, **options):
        told.append(model)
        if len(told) == 3:
            raise Cancelled("stopped")
        return pretend(model, *order, **options)

    monkeypatch.setattr(rounds, "measure", stop_third)
    with pytest.raises(Cancelled, match="stopped after 2 of 4 processes"):
        bench(setting, tmp_path)
    assert len(Journal(tmp_path / rounds.JOURNAL)) == 1 + 2


@pytest.mark.parametrize(
    ("change", "named"),
    [({"runs": 4}, "runs 3, not 4"), ({"models": ("student",)}, "models"), ({"threads": 2}, "threads")],
)
def test_a_folder_of_other_settings_is_refused(setting, faked, tmp_path, change, named):
    bench(setting, tmp_path)
    with pytest.raises(ValueError, match=f"was measured with {named}"):
        bench(replace(setting, **change), tmp_path)


def test_another_machine_is_refused_and_another_day_is_not(setting, faked, tmp_path, monkeypatch):
    bench(setting, tmp_path)
    here = rounds.machine.describe(None, child_environment(None))
    monkeypatch.setattr(rounds.machine, "describe", lambda threads, _: {**here, "threads": threads, "date": "tomorrow"})
    bench(setting, tmp_path)
    monkeypatch.setattr(rounds.machine, "describe", lambda threads, _: {**here, "threads": threads, "torch": "1.0"})
    with pytest.raises(ValueError, match=r"was measured with torch '2\.\d+\.\d+.*', not '1.0'; take another folder"):
        bench(setting, tmp_path)


def test_a_model_that_changes_between_its_processes_is_an_error(setting, faked, tmp_path, monkeypatch):
    pretend, hashes = rounds.measure, iter("0123")

    def change(*order, **options):
        made = pretend(*order, **options)
        loaded = replace(made.process.loaded, hash=next(hashes))
        return replace(made, process=replace(made.process, loaded=loaded))

    monkeypatch.setattr(rounds, "measure", change)
    with pytest.raises(ModelError, match="student has changed since its first process"):
        bench(setting, tmp_path)


def test_bytes_a_second_are_told_where_weights_come_from_memory(setting, faked, monkeypatch):
    monkeypatch.setattr(rounds, "cache_bytes", lambda: 1)
    for variant in bench(setting).variants:
        assert variant.gb_per_s == pytest.approx(variant.step_bytes / variant.figures.ms_per_step / 1e6)
    monkeypatch.setattr(rounds, "cache_bytes", lambda: None)
    assert {variant.gb_per_s for variant in bench(setting).variants} == {None}


def test_the_report_says_every_figure_and_the_same_figures_give_the_same_files(setting, faked, tmp_path):
    found = bench(setting, tmp_path)
    paths = bench_report.write_report(found, tmp_path)
    assert [path.name for path in paths] == ["report.json", "report.md", "speed-size.png"]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in bench_report.write_report(bench(setting, tmp_path), tmp_path)] == before
    record = json.loads(before[0])
    assert record["variants"] == json.loads(json.dumps([variant.as_dict() for variant in found.variants]))
    text = before[1].decode()
    for variant in found.variants:
        row = next(line for line in text.splitlines() if line.startswith(f"| {variant.model} |"))
        low, high = variant.figures.spread.x_realtime
        assert f"| {variant.figures.x_realtime:.2f} ({low:.2f} to {high:.2f}) |" in row
    assert "3 runs a variant in 2 fresh processes" in text
    assert f"torch {found.machine['torch']}" in text
    assert "memory bandwidth 5.0 to 5.0 GB/s" in text
    assert "other programs took 25% of the processor (25% to 25%), so a quiet machine is faster" in text
    quiet = bench_report.markdown(replace(found, others=(0.0, 0.01)))
    assert "took 0% of the processor (0% to 1%)\n" in quiet
    assert "made with" not in text
    asked = replace(found, command="tinymusician bench -o DIR")
    assert "- made with `tinymusician bench -o DIR`\n" in bench_report.markdown(asked)
    assert asked.as_dict()["command"] == "tinymusician bench -o DIR"


@pytest.mark.parametrize(("given", "said"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_the_report_says_how_the_measured_processes_wait(setting, faked, tiny_family, monkeypatch, given, said):
    """What a worker's process really has in its environment, whatever this one has."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    with Worker(str(tiny_family / "student")) as worker:
        worker.start()
        assert psutil.Process(worker.pid).environ()["OMP_WAIT_POLICY"] == said
    found = bench(setting)
    assert found.machine["omp_wait_policy"] == said
    assert f"; OMP_WAIT_POLICY={said}\n" in bench_report.markdown(found)


def test_where_openmp_decides_how_to_wait_a_report_says_so(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert machine.notes(machine.describe())[1].endswith("; OMP_WAIT_POLICY not set")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rounds": 0}, "rounds must be"),
        ({"runs": 0}, "runs must be"),
        ({"models": ("nobody",)}, "no such model: got 'nobody'"),
        ({"models": ()}, "models must be"),
        ({"prompt": " "}, "prompt is empty"),
    ],
)
def test_a_setting_that_is_not_allowed_is_one_sentence(setting, change, says):
    with pytest.raises(ValueError, match=says):
        replace(setting, **change)
