"""Plans to hold an adaptive one against: uniform ones, the paper's, layer after layer, adaptive ones of other sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..records import Cancelled
from .against import Against, Compared, SearchFor, hold_against, rivals
from .plan import preset
from .search import Budget, ImpossibleBudget, search
from .sensitivity import OnOption
from .workbench import Outcome, Workbench

UNIFORM = ("bf16", "fp16", "int8", "int8-weight", "int4", "int4-row", "nf4", "fp4")
INSTEAD = {"int8-weight": ("int8",), "int4-row": ("int4", "int8"), "nf4": ("int4", "int8"), "fp4": ("int4", "int8")}
SHARES = (0.2, 0.4, 0.6, 0.8)  # of the layers, from the first, that the naive plans give four bits
SIZES = (0.02, 0.1, 0.2, 0.35, 0.5, 0.7)  # of the way from the smallest plan to fp16
TRIED = 2  # fixed plans, at most, that are tried where they may be better than what was searched
SURE = 1.25  # of the measured harm: what a plan is foreseen to do may turn out less


def uniform(bench: Workbench, scheme: str) -> dict[str, str]:
    """One scheme for all linear layers and embeddings; where it cannot take one, torch's int4 or int8 in its place.

    What is neither is stored in fp16.
    """
    able = {(option.group.name, option.scheme) for option in bench.options}
    found = {}
    for option in bench.options:
        if len(option.group.modules) == 1 and option.group.name == option.group.modules[0]:
            tries = (scheme, *INSTEAD.get(scheme, ()), "fp16")
            found[option.group.name] = next(s for s in tries if (option.group.name, s) in able)
    return bench.complete(found)


def layer_order(bench: Workbench, share: float) -> dict[str, str]:
    """The naive plan: int8 for all, and int4 for a share of the decoder's layers, from the first."""
    layers = bench.pipeline.decoder.config.layers
    low = {f"decoder.layers.{i}." for i in range(round(share * layers))}
    plan = uniform(bench, "int8")
    for option in bench.options:
        if option.scheme == "int4" and option.group.name.startswith(tuple(low)):
            plan |= option.schemes
    return plan


def fixed_plans(bench: Workbench) -> dict[str, tuple[str, dict[str, str]]]:
    """Every plan that is not searched for, by its name, with its family."""
    found = {f"uniform {s}": ("uniform", uniform(bench, s)) for s in UNIFORM if s in bench.schemes}
    found["the paper's map"] = ("paper", _preset(bench, "paper"))
    found["preset fast"] = ("uniform", _preset(bench, "fast"))
    if {"int4", "int8"} <= set(bench.schemes):
        for share in SHARES:
            plan = layer_order(bench, share)
            if plan not in [other for _, other in found.values()]:
                found[f"int4 in {share:.0%} of the layers"] = ("layers", plan)
    return found


def worth_trying(
    bench: Workbench,
    budget: Budget,
    kept: Callable[[Outcome], bool],
    tried: Sequence[Mapping[str, str]],
    best: Outcome | None,
) -> list[dict[str, str]]:
    """Fixed plans that may be better within a budget than the best that was measured, the most promising first.

    What a whole plan does is the sum of what its schemes do alone only where that is little: far from the float model
    a plan of one scheme may do less than one that was searched by such sums.

    Args:
        bench: foresees them.
        budget, kept: the budget, and whether an outcome is within it.
        tried: what has been measured already.
        best: the best of that; None where nothing keeps the budget.
    """

    def rank(outcome: Outcome) -> float:
        return outcome.harm.total if budget.max_kl is None else outcome.disk_bytes

    limit = None if best is None else rank(best) * (SURE if budget.max_kl is None else 1.0)
    found = []
    for _, schemes in fixed_plans(bench).values():
        foreseen = bench.foresee(schemes)
        if schemes not in tried and kept(foreseen) and (limit is None or rank(foreseen) < limit):
            found.append((rank(foreseen), len(found), schemes))
    return [schemes for *_, schemes in sorted(found)[:TRIED]]


def plans(bench: Workbench) -> dict[str, tuple[str, dict[str, str]]]:
    """Every plan by its name, with its family: the fixed ones, and adaptive ones of several sizes."""
    found = fixed_plans(bench)
    for size_mb in sizes_mb(bench):
        try:
            taken = search(bench.choices, bench.fixed, Budget(max_mb=size_mb))
        except ImpossibleBudget:
            continue
        schemes = {k: v for choice in taken for k, v in choice.option.schemes.items()}
        found[f"adaptive {size_mb:.3g} MB"] = ("adaptive", schemes)
    return found


def sizes_mb(bench: Workbench) -> list[float]:
    """Sizes between the smallest plan and fp16."""
    least: dict[str, int] = {}
    for choice in bench.choices:
        name = choice.option.group.name
        least[name] = min(least.get(name, choice.disk_bytes), choice.disk_bytes)
    low = (sum(least.values()) + bench.fixed.disk_bytes) / 1e6
    high = bench.foresee(bench.complete({})).disk_bytes / 1e6
    return [low + share * (high - low) for share in SIZES]


def compared(
    bench: Workbench,
    search_for: SearchFor,
    on_progress: OnOption | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[tuple[Compared, ...], tuple[Against, ...]]:
    """Measure them all, and an adaptive plan for the size of each uniform one and of the paper's map.

    Args:
        bench: of the model.
        search_for: the adaptive plan for a budget.
        on_progress, should_stop: told of, and asked before, every plan.

    Returns:
        All plans, and how the adaptive ones do against fixed ones of their size.

    Raises:
        Cancelled: `should_stop` said so.
    """
    found, made, beside = plans(bench), [], []

    def tell(what: str, done: int, total: int) -> None:
        if should_stop is not None and should_stop():
            raise Cancelled(f"stopped after {done} of {total} plans to compare")
        if on_progress is not None:
            on_progress(f"comparing: {what}", done, total)

    for name, (family, schemes) in found.items():
        tell(name, len(made), len(found))
        made.append(Compared(name, family, bench.measure(schemes), bench.held_out(schemes), schemes))
    asked = list(rivals(made))
    for done, (rival, best, budgets) in enumerate(asked):
        tell(f"the size of {rival.name}", done, len(asked))
        adaptive = [plan for plan in made if plan.family == "adaptive"]
        held = hold_against(bench, search_for, rival, best, budgets, adaptive)
        if held is not None:
            beside.append(held)
            if all(held.plan.schemes != plan.schemes for plan in made):
                made.append(held.plan)
    return tuple(made), tuple(beside)


def _preset(bench: Workbench, name: str) -> dict[str, str]:
    assigned: Mapping[str, str] = preset(name, bench.pipeline.modules).assign(bench.pipeline.modules)
    return bench.complete(assigned)
