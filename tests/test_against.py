"""Adaptive plans against fixed ones of their size: who is held against whom, and what is said of it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tinymusician_core.quant import compared, rounds
from tinymusician_core.quant.against import Against, Compared, ToBeat, apart, hold_against, rivals, section, verdict
from tinymusician_core.quant.clock import Clock
from tinymusician_core.quant.rounds import Round, closest
from tinymusician_core.quant.search import Budget, ImpossibleBudget
from tinymusician_core.quant.trial import Harm
from tinymusician_core.quant.workbench import Outcome


def outcome(size, kl, codec=0.0, ms=1.0):
    return Outcome(size, ms, Harm((kl, kl), codec))


def plan(name, size, kl, family="uniform", windows=(), **more):
    held_out = Harm((kl, kl), 0.0, None, tuple(windows))
    return Compared(name, family, outcome(size, kl, **more), held_out, {"decoder.heads": name})


FIXED = [
    plan("int8", 5_000_000, 0.01),
    plan("int8-weight", 5_000_000, 0.02),
    plan("fp16", 9_000_000, 0.001),
    plan("nf4", 3_200_000, 0.3),
    plan("int4", 3_000_000, 0.2),
    plan("paper", 8_000_000, 0.004, "paper", ms=2.0),
    plan("int4 in 40% of the layers", 4_000_000, 0.1, "layers"),
]


def test_each_size_comes_once_with_the_closest_plan_that_is_no_larger():
    found = [(rival.name, best.name, [budget.limits for budget in budgets]) for rival, best, budgets in rivals(FIXED)]
    assert found == [
        ("int4", "int4", [{"max_mb": 3.0}]),
        ("nf4", "int4", [{"max_mb": 3.2}]),
        ("int8", "int8", [{"max_mb": 5.0}]),
        ("fp16", "fp16", [{"max_mb": 9.0}]),
        ("paper", "paper", [{"max_mb": 8.0, "max_ms": 1.9}, {"max_mb": 8.0}]),
        ("paper", "paper", [{"max_ms": 1.9, "max_kl": 0.004}, {"max_kl": 0.004}]),
    ]


@pytest.mark.parametrize(
    ("kl", "schemes", "word"),
    [(0.005, "mine", "better"), (0.01, "mine", "equal"), (0.01, "int8", "the same plan"), (0.02, "mine", "worse")],
)
def test_what_is_said_of_the_measured_kl(kl, schemes, word):
    mine = replace(plan("mine", 4_900_000, kl, "adaptive"), schemes={"decoder.heads": schemes})
    found = Against({"max_mb": 5.0}, FIXED[0], FIXED[0], mine, apart(replace_windows(mine), replace_windows(FIXED[0])))
    assert found.measured == word


def replace_windows(some, windows=(0.1, 0.2, 0.3, 0.4)):
    return replace(some, held_out=Harm(some.held_out.kl, 0.0, None, tuple(windows)))


def against(shifts, base=(0.1, 0.5, 0.9, 1.3, 1.7, 2.1, 2.5, 2.9)):
    """A plan whose KL is another's and some more, window by window."""
    fixed = plan("int8", 5_000_000, 0.01, windows=base)
    mine = plan("mine", 4_000_000, 0.005, "adaptive", windows=[b + s for b, s in zip(base, shifts, strict=True)])
    return Against({"max_mb": 5.0}, fixed, fixed, mine, apart(mine, fixed))


def test_windows_are_compared_in_pairs():
    sure = against([-0.01, -0.012, -0.009, -0.011, -0.01, -0.012, -0.008, -0.01])
    assert sure.held_out == "better", "far less than windows differ among themselves, but the same in each"
    assert sure.apart.value == pytest.approx(-0.01025)
    assert sure.apart.low < sure.apart.value < sure.apart.high < 0
    assert against([0.01, 0.012, 0.009, 0.011, 0.01, 0.012, 0.008, 0.01]).held_out == "worse"
    assert against([-0.3, 0.31, -0.29, 0.28, -0.3, 0.29, 0.3, -0.31]).held_out == "cannot tell"
    few = against([-0.01, -0.01, -0.01], base=(0.1, 0.2, 0.3))
    assert few.held_out is None
    assert few.cells()[-3:] == ["-0.01", "better", "\N{EN DASH}"]


def test_the_verdict_counts_and_the_papers_map_is_beaten_only_in_all_three():
    paper = FIXED[5]
    faster = plan("mine", 7_000_000, 0.002, "adaptive", ms=1.5)
    slower = plan("mine", 7_000_000, 0.002, "adaptive", ms=2.5)
    one = against([-0.01] * 8)
    made = [one, replace(one, plan=replace(one.plan, schemes=one.best.schemes))]
    for mine, beaten in ((faster, True), (slower, False)):
        held = Against({"max_mb": 8.0, "max_ms": 1.9}, paper, paper, mine, one.apart)
        said = verdict([*made, held])
        assert {name: said[name] for name in ("sizes", "better", "the same plan", "worse")} == {
            "sizes": 2,
            "better": 1,
            "the same plan": 1,
            "worse": 0,
        }
        assert said["beats_the_papers_map_in_size_speed_and_kl"] is beaten
        text = section([*made, held])
        assert f"It {'beats' if beaten else 'does not beat'} the paper's map in size, speed and KL at once." in text
        assert "| int8 | 5.000 | int8 | 1.000 | 0.01 | 0 | 4.000 | 1.000 | 0.005 | 0 |" in text
    assert verdict(made)["beats_the_papers_map_in_size_speed_and_kl"] is None
    assert held.as_dict()["ahead_in"] == {"size": True, "speed": False, "kl": True}


def test_the_first_budget_that_can_be_kept_is_searched_for_and_no_more_than_need_be():
    asked, paper = [], replace_windows(FIXED[5])
    held_out = Harm((0.003, 0.003), 0.0, None, (0.1, 0.2, 0.3, 0.4))
    bench = SimpleNamespace(held_out=lambda schemes: held_out, foresee=lambda schemes: outcome(8_000_000, 0.005))
    kl = 0.003

    def search_for(budget, rival):
        asked.append(budget.limits)
        if budget.max_ms is not None:
            raise ImpossibleBudget("no", {})
        assert rival == ToBeat(outcome(8_000_000, 0.005), paper.measured)
        assert rival.beaten_by(outcome(7_000_000, 0.003))
        assert not rival.beaten_by(outcome(7_000_000, 0.004)), "no closer"
        assert not rival.beaten_by(outcome(7_000_000, 0.003, codec=0.01)), "closer, at the codec's cost"
        return Round({"decoder.heads": "mine"}, outcome(1, 1.0), outcome(7_000_000, kl))

    found = hold_against(bench, search_for, paper, paper, [Budget(max_mb=8.0, max_ms=1.9), Budget(max_mb=8.0)])
    assert asked == [{"max_mb": 8.0, "max_ms": 1.9}, {"max_mb": 8.0}]
    assert (found.limits, found.plan.name, found.measured) == ({"max_mb": 8.0}, "adaptive, size of paper", "better")
    assert found.apart.value == 0.0
    assert hold_against(bench, search_for, paper, paper, [Budget(max_ms=1.0)]) is None
    kl = 0.005
    found = hold_against(bench, search_for, paper, paper, [Budget(max_mb=8.0)])
    assert (found.measured, found.plan.measured, found.plan.family) == ("the same plan", paper.measured, "adaptive")
    known = [
        plan("too large", 8_100_000, 0.0001, "adaptive", windows=(0.1, 0.2, 0.3, 0.4)),
        plan("smaller", 6_000_000, 0.002, "adaptive", windows=(0.1, 0.2, 0.3, 0.4)),
        plan("further", 6_000_000, 0.0035, "adaptive", windows=(0.1, 0.2, 0.3, 0.4)),
        plan("no closer", 6_000_000, 0.004, "adaptive", windows=(0.1, 0.2, 0.3, 0.4)),
    ]
    for kl in (0.005, 0.003, 0.001):
        found = hold_against(bench, search_for, paper, paper, [Budget(max_mb=8.0)], known)
        assert found.plan.schemes == {"decoder.heads": "mine" if kl == 0.001 else "smaller"}
        assert (found.plan.name, found.measured) == ("adaptive, size of paper", "better")


class Bench:
    """Plans by one scheme, foreseen and measured as a table has it."""

    float_ms = 1.0

    def __init__(self, table):
        self.table, self.clock, self.measured = table, Clock(), []

    def foresee(self, schemes):
        return self.table[schemes["m"]][0]

    def measure(self, schemes):
        self.measured.append(schemes["m"])
        return self.table[schemes["m"]][1]


@pytest.fixture
def one_scheme(monkeypatch):
    """A bench whose search finds "searched", beside fixed plans."""

    def make(searched, /, **table):
        bench = Bench(table)
        monkeypatch.setattr(compared, "fixed_plans", lambda _: {name: ("uniform", {"m": name}) for name in table})

        def rounds_of(bench, budget, *_):
            if searched is None:
                raise ImpossibleBudget("nothing is so small", {})
            return [Round({"m": "searched"}, searched, searched)]

        monkeypatch.setattr(rounds, "rounds_of", rounds_of)
        monkeypatch.setattr(rounds, "no_slower", lambda _, budget: budget)
        return bench

    return make


def test_a_plan_of_one_scheme_that_is_better_is_taken(one_scheme):
    bench = one_scheme(
        outcome(100, 0.5),
        far=(outcome(90, 0.9), outcome(90, 0.1)),
        large=(outcome(110, 0.1), outcome(110, 0.1)),
        near=(outcome(95, 0.6), outcome(95, 0.4)),
        nearer=(outcome(96, 0.55), outcome(96, 0.45)),
        third=(outcome(96, 0.61), outcome(96, 0.2)),
    )
    found = closest(bench, Budget(max_mb=1e-4))
    assert bench.measured == ["nearer", "near"], "what may be better and keeps the budget, the most promising two"
    assert [round_.schemes["m"] for round_ in found.rounds] == ["searched", "nearer", "near"]
    assert found.best.schemes == {"m": "near"}


def test_where_nothing_may_be_better_nothing_more_is_measured(one_scheme):
    again = (outcome(100, 0.5), outcome(100, 0.5))
    bench = one_scheme(outcome(100, 0.5), worse=(outcome(90, 0.7), outcome(90, 0.1)), searched=again)
    assert closest(bench, Budget(max_mb=1e-4)).best.schemes == {"m": "searched"}
    assert bench.measured == []
    assert closest(bench, Budget(max_kl=0.8)).best.schemes == {"m": "worse"}, "it is smaller, which counts there"


def test_a_size_that_the_search_cannot_keep_may_be_a_plan_of_one_scheme(one_scheme):
    bench = one_scheme(None, only=(outcome(90, 0.9), outcome(90, 0.9)))
    assert closest(bench, Budget(max_mb=9e-5)).best.schemes == {"m": "only"}
    with pytest.raises(ImpossibleBudget, match="nothing is so small"):
        closest(bench, Budget(max_mb=8e-5))


def test_what_beats_a_rival_goes_before_what_does_less_harm_in_all(monkeypatch):
    far, near, best = outcome(90, 0.4), outcome(90, 0.3, codec=0.3), outcome(90, 0.5, codec=0.2)
    made = [Round({"m": name}, found, found) for name, found in (("far", far), ("near", near))]
    monkeypatch.setattr(rounds, "rounds_of", lambda *_: list(made))
    monkeypatch.setattr(rounds, "no_slower", lambda _, budget: budget)
    monkeypatch.setattr(compared, "fixed_plans", lambda _: {})
    assert closest(Bench({}), Budget(max_mb=1e-4), rival=ToBeat(best, outcome(90, 0.35, 0.3))).best == made[1]
    assert closest(Bench({}), Budget(max_mb=1e-4), rival=ToBeat(best, outcome(90, 0.2))).best == made[0]
    assert closest(Bench({}), Budget(max_mb=1e-4)).best == made[0]
