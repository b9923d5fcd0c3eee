"""The search against trying every plan there is."""

import os
from itertools import product

import numpy as np
import pytest

from tinymusician_core.quant.search import Budget, Choice, Fixed, ImpossibleBudget, search, unprinted
from tinymusician_core.quant.sensitivity import Group, Option
from tinymusician_core.quant.trial import Harm

FIXED = Fixed(disk_bytes=500, step_s=0.002)


def make(seed, groups=5, schemes=4):
    """Random choices: dearer ones do less harm, more or less."""
    rng = np.random.default_rng(seed)
    choices = []
    for g in range(groups):
        group = Group(f"m{g}", (f"m{g}",))
        weight = float(rng.integers(1, 10))
        for s in range(schemes):
            harm = weight * 10.0 ** -(s + rng.random())
            kl, codec = (harm, 0.0) if g % 2 else (0.0, harm)
            option = Option(group, f"s{s}", Harm((kl,), codec), ())
            size, step = int(weight * 1000 * (s + rng.random())), 1e-4 * weight * float(rng.random())
            choices.append(Choice(option, size, step, float(rng.random()) * 1e-4, kl, codec))
    return choices


def every_plan(choices):
    names = list(dict.fromkeys(choice.option.group.name for choice in choices))
    return product(*([c for c in choices if c.option.group.name == name] for name in names))


def figures(plan):
    kl, codec = sum(c.kl for c in plan), sum(c.codec for c in plan)
    size = (sum(c.disk_bytes for c in plan) + FIXED.disk_bytes) / 1e6
    step = 1e3 * (sum(c.step_s for c in plan) + FIXED.step_s)
    return {"max_mb": size, "max_ms": step, "max_kl": max(kl, codec), "harm": kl + codec}


def kept(plan, limits):
    found = figures(plan)
    return all(found[name] <= limit for name, limit in limits.items())


def limits_between(choices, names, share):
    """Limits a share of the way from the least to the most of each figure."""
    all_figures = [figures(plan) for plan in every_plan(choices)]
    least = {n: min(f[n] for f in all_figures) for n in names}
    most = {n: max(f[n] for f in all_figures) for n in names}
    return {n: least[n] + share * (most[n] - least[n]) for n in names}


MIXES = [
    ("max_mb",),
    ("max_ms",),
    ("max_kl",),
    ("max_mb", "max_ms"),
    ("max_mb", "max_kl"),
    ("max_mb", "max_ms", "max_kl"),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("names", MIXES, ids="+".join)
def test_no_plan_is_better(names, seed):
    choices = make(seed)
    limits = limits_between(choices, names, 0.45)
    able = [plan for plan in every_plan(choices) if kept(plan, limits)]
    if not able:
        with pytest.raises(ImpossibleBudget):
            search(choices, FIXED, Budget(**limits))
        return
    found = search(choices, FIXED, Budget(**limits))
    assert kept(found, limits)
    goal = "max_mb" if "max_kl" in names else "harm"
    assert figures(found)[goal] <= min(figures(plan)[goal] for plan in able) * (1 + 1e-5) + 2e-6


@pytest.mark.parametrize("seed", range(4))
def test_no_plan_with_as_little_kl_of_the_language_model_is_better(seed):
    choices = make(seed)
    limits = limits_between(choices, ("max_mb",), 0.45)
    free = sum(choice.kl for choice in search(choices, FIXED, Budget(**limits)))
    most = 0.5 * (free + min(sum(c.kl for c in plan) for plan in every_plan(choices) if kept(plan, limits)))
    found = search(choices, FIXED, Budget(**limits), most)
    able = [plan for plan in every_plan(choices) if kept(plan, limits) and sum(c.kl for c in plan) <= most]
    assert kept(found, limits)
    assert sum(choice.kl for choice in found) <= most
    assert figures(found)["harm"] <= min(figures(plan)["harm"] for plan in able) * (1 + 1e-5) + 2e-6
    with pytest.raises(ImpossibleBudget):
        search(choices, FIXED, Budget(**limits), 0.0)


def test_of_equals_the_quicker_is_taken():
    group = Group("m", ("m",))
    same = [Option(group, name, Harm((0.0,), 0.0), ()) for name in ("slow", "quick")]
    choices = [Choice(same[0], 10, 2e-4, 0.0, 0.0, 0.0), Choice(same[1], 20, 1e-4, 0.0, 0.0, 0.0)]
    assert search(choices, FIXED, Budget(max_mb=1))[0].option.scheme == "quick"


@pytest.mark.parametrize("name", ["max_mb", "max_ms", "max_kl"])
def test_a_limit_that_nothing_keeps_is_named_with_the_least(name):
    choices = make(1)
    least = min(figures(plan)[name] for plan in every_plan(choices))
    with pytest.raises(ImpossibleBudget, match=f"{name} .* cannot be kept, .* is the least") as caught:
        search(choices, FIXED, Budget(**{name: 0.9 * least}))
    assert caught.value.nearest[name] == pytest.approx(least, rel=2e-3)


def test_limits_that_cannot_be_kept_together_say_how_near_each_comes():
    choices = make(2)
    tight = limits_between(choices, ("max_mb", "max_kl"), 0.0)
    limits = {name: limit * 1.01 for name, limit in tight.items()}
    with pytest.raises(ImpossibleBudget, match="no plan keeps max_mb .* and max_kl .* together; the others kept"):
        search(choices, FIXED, Budget(**limits))
    with pytest.raises(ImpossibleBudget) as caught:
        search(choices, FIXED, Budget(**limits))
    able = [figures(plan)["max_mb"] for plan in every_plan(choices) if figures(plan)["max_kl"] <= limits["max_kl"]]
    assert caught.value.nearest["max_mb"] == pytest.approx(min(able), rel=1e-5)
    able = [figures(plan)["max_kl"] for plan in every_plan(choices) if figures(plan)["max_mb"] <= limits["max_mb"]]
    assert caught.value.nearest["max_kl"] == pytest.approx(min(able), rel=2e-3)
    for name, near in caught.value.nearest.items():
        assert kept(search(choices, FIXED, Budget(**{**limits, name: 1.002 * near})), {**limits, name: 1.002 * near})


@pytest.mark.parametrize("wrong", [{}, {"max_mb": 0}, {"max_ms": -1.0}, {"max_kl": float("inf")}, {"max_mb": True}])
def test_bad_budgets_are_refused(wrong):
    with pytest.raises(ValueError, match=r"at least one of max_mb|must be a number above 0"):
        Budget(**wrong)


def test_what_the_solver_prints_past_python_is_not_seen(capfd):
    print("before")
    with unprinted():
        os.write(1, b"debugging\n")
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
