"""From a budget to a plan: measure the options, search, measure the whole, and repair where errors did not add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..pipeline import Pipeline
from ..records import Cancelled
from .apply import Recipe
from .compared import Compared, compared
from .recover import Recovered
from .search import Budget, Choice, Fixed, ImpossibleBudget, search
from .sensitivity import OnOption, Option
from .trial import Harm
from .workbench import Outcome, Tokens, Workbench

ROUNDS = 5
ADDS_UP = 0.1  # of the measured harm: closer than that, what schemes do alone is taken to add up
IN_CONTEXT = 24  # options that are measured anew beside the others of their plan
TIGHTER = 0.98
NO_SLOWER = 0.95  # of the float model's time: what is foreseen, and what is measured, may be off by as much


@dataclass(frozen=True)
class Round:
    """A plan that was tried: the scheme of every module, what was foreseen of it, and what it was."""

    schemes: dict[str, str]
    foreseen: Outcome
    measured: Outcome


@dataclass(frozen=True, eq=False)
class Adapted:
    """The plan that a budget led to, with all that was measured on the way.

    Attributes:
        recipe: how to write it.
        best: the round whose plan it is; `rounds` has them all.
        held_out: its harm on tokens that neither the rounding nor the search has seen.
        compared: other plans beside it, where they were asked for.
        aim: the budget that was searched for: with the float model's time as a limit too, where that can be kept.
        recovered: what a recovery of the plan came to, where there was one; `note` says it in words.
        pace: a sentence where the limit of time was lowered, or where the plan is not surely faster than the float.
    """

    budget: Budget
    aim: Budget
    bench: Workbench
    recipe: Recipe
    best: Round
    rounds: tuple[Round, ...]
    held_out: Harm
    compared: tuple[Compared, ...]
    recovered: Recovered | None = None
    note: str = ""
    pace: str = ""

    def figures(self) -> dict:
        """The budget, what was foreseen, measured and held out, and how many plans it took, ready for JSON."""
        held_out = {"kl": self.held_out.mean_kl(), "codec_error": self.held_out.codec}
        best = {"foreseen": self.best.foreseen.as_dict(), "measured": self.best.measured.as_dict()}
        limits = {"budget": self.budget.limits, "aim": self.aim.limits}
        return {**limits, **best, "held_out": held_out, "rounds": len(self.rounds)}

    def write_report(self, folder: Path) -> None:
        """Put report.json, report.md and, where there is that, a picture and recovery.json into a folder."""
        from .report import write_report

        write_report(self, folder)
        if self.recovered is not None:
            self.recovered.write(folder)


def adapt(
    pipeline: Pipeline,
    name: str,
    on_progress: OnOption | None = None,
    should_stop: Callable[[], bool] | None = None,
    *,
    max_mb: float | None = None,
    max_ms: float | None = None,
    max_kl: float | None = None,
    data: str | Path | None = None,
    schemes: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    compare: bool = False,
) -> Adapted:
    """Search the best plan for a float model on this machine.

    Args:
        pipeline: the model, on the CPU.
        name: of the folder that it will be written to: it is in the files, and so in their size.
        on_progress, should_stop: told of, and asked before, every measurement.
        max_mb, max_ms, max_kl: the budget, see `search.Budget`.
        data: a token folder; None lets the model play the tokens itself.
        schemes: those that may be used; all that the machine can run where None.
        weights: how much each codebook counts in the mean of the KL; all alike where None.
        compare: measure other plans too, for the picture: uniform ones, the paper's, layer by layer, other sizes.

    Raises:
        ValueError: no budget, unknown schemes, weights that do not fit, or tokens that are not this model's.
        ImpossibleBudget: no plan keeps the budget, or with `max_ms` none that does is faster than the float model.
        Cancelled: `should_stop` said so; what was measured is kept for the next run.
    """
    budget = Budget(max_mb, max_ms, max_kl)
    tokens = Tokens.of(pipeline, data, on_progress, should_stop)
    bench = Workbench(pipeline, name, tokens, schemes, on_progress, should_stop, weights)
    aim = no_slower(bench, budget)
    rounds = rounds_of(bench, aim, on_progress, should_stop)
    best = best_round(rounds, aim, budget, bench.float_ms)
    held_out = bench.held_out(best.schemes)
    others = compared(bench, on_progress, should_stop) if compare else ()
    said = pace(best, aim, budget, bench.float_ms)
    recipe = bench.recipe(best.schemes)
    return Adapted(budget, aim, bench, recipe, best, tuple(rounds), held_out, tuple(others), pace=said)


def rounds_of(
    bench: Workbench,
    budget: Budget,
    on_progress: OnOption | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Round]:
    """Search and measure until a plan keeps the budget and its errors add up; at most `ROUNDS` times.

    Raises:
        ImpossibleBudget: no plan keeps the budget by what was measured before the first round.
        Cancelled: `should_stop` said so.
    """
    choices, fixed, limits = bench.choices, bench.fixed, budget
    rounds: list[Round] = []
    for done in range(ROUNDS):
        if should_stop is not None and should_stop():
            raise Cancelled(f"stopped after {done} plans; what was measured is kept")
        if on_progress is not None:
            on_progress("measuring a whole plan", done, ROUNDS)
        try:
            taken = search(choices, fixed, limits)
        except ImpossibleBudget:
            if not rounds:
                raise
            return rounds
        schemes = {k: v for choice in taken for k, v in choice.option.schemes.items()}
        if any(round_.schemes == schemes for round_ in rounds):
            return rounds
        now = Round(schemes, bench.foresee(schemes), bench.measure(schemes))
        rounds.append(now)
        if keeps(now.measured, budget) and _adds_up(taken, now.measured):
            return rounds
        choices = _in_context(bench, choices, taken, now)
        fixed, limits = _tightened(fixed, limits, budget, now)
    return rounds


def no_slower(bench: Workbench, budget: Budget) -> Budget:
    """The budget with a limit of `NO_SLOWER` of the float model's time, or the one that it has where that is lower.

    Where it has no limit of time, and no plan can keep this one, it stays as it is.

    Raises:
        ImpossibleBudget: it has a limit of time, and no plan keeps it and is faster than the float model.
    """
    least = NO_SLOWER * bench.float_ms
    limited = replace(budget, max_ms=least if budget.max_ms is None else min(budget.max_ms, least))
    try:
        search(bench.choices, bench.fixed, limited)
    except ImpossibleBudget as error:
        if budget.max_ms is None:
            return budget
        if budget.max_ms <= least or "max_ms" not in error.nearest:
            raise
        raise ImpossibleBudget(f"{_faster(bench.float_ms, limited)}; {error}", error.nearest) from error
    return limited


def _faster(float_ms: float, aim: Budget) -> str:
    return (
        f"the float model takes {float_ms:.4g} ms a step, and a plan is to take at most {NO_SLOWER:.0%} of that, "
        f"{aim.max_ms:.4g} ms"
    )


def pace(best: Round, aim: Budget, budget: Budget, float_ms: float) -> str:
    """A sentence where a limit of time was lowered, or where a plan is not surely faster than the float model."""
    if best.measured.step_ms > NO_SLOWER * float_ms:
        found = f"this one takes {best.measured.step_ms:.4g} ms a step, the float model {float_ms:.4g} ms"
        return f"no plan was found that keeps the budget and is surely faster than the float model: {found}"
    if budget.max_ms is not None and aim.max_ms < budget.max_ms:
        return f"max_ms {budget.max_ms:g} was lowered: {_faster(float_ms, aim)}"
    return ""


def keeps(outcome: Outcome, budget: Budget) -> bool:
    """Whether what was measured is within the budget."""
    figures = {
        "max_mb": outcome.disk_bytes / 1e6,
        "max_ms": outcome.step_ms,
        "max_kl": max(outcome.harm.mean_kl(), outcome.harm.codec),
    }
    return all(figures[name] <= limit for name, limit in budget.limits.items())


def best_round(rounds: Sequence[Round], aim: Budget, budget: Budget, float_ms: float) -> Round:
    """Of the rounds that keep the aim the closest to the float model, or with a limit on that the smallest.

    Where none does and the budget has no limit of time, of those that keep the budget; no slower than the float model
    if there are any such.

    Raises:
        ImpossibleBudget: none does; with a limit of time none of these is faster than the float model.
    """
    tries = [aim] if budget.max_ms is not None else [aim, replace(budget, max_ms=float_ms), budget]
    for limits in tries:
        kept = [round_ for round_ in rounds if keeps(round_.measured, limits)]
        if kept and budget.max_kl is not None:
            return min(kept, key=lambda round_: round_.measured.disk_bytes)
        if kept:
            return min(kept, key=lambda round_: round_.measured.harm.total)
    last = rounds[-1].measured
    found = f"{last.disk_bytes / 1e6:.4g} MB, {last.step_ms:.4g} ms a step and {last.harm.mean_kl():.3g} nats"
    nearest = {"max_mb": last.disk_bytes / 1e6, "max_ms": last.step_ms, "max_kl": last.harm.mean_kl()}
    lowered = budget.max_ms is not None and aim.max_ms < budget.max_ms
    raise ImpossibleBudget(
        f"{_faster(float_ms, aim) + '; ' if lowered else ''}no plan that was measured keeps the budget; "
        f"the nearest has {found}",
        {name: nearest[name] for name in budget.limits},
    )


def _adds_up(taken: Sequence[Choice], measured: Outcome) -> bool:
    expected = sum(choice.kl + choice.codec for choice in taken)
    return abs(expected - measured.harm.total) <= ADDS_UP * measured.harm.total + 1e-6


def _in_context(bench: Workbench, choices: list[Choice], taken: Sequence[Choice], now: Round) -> list[Choice]:
    """The choices with those that matter most in a plan measured anew: by what the plan gains without each."""
    most = sorted(taken, key=lambda choice: choice.kl + choice.codec, reverse=True)[:IN_CONTEXT]
    anew: dict[tuple[str, str], Choice] = {}
    for choice in most:
        if choice.kl + choice.codec > 0:
            rest = bench.judge.harm(now.schemes | dict.fromkeys(choice.option.group.modules, "fp32"))
            kl = max(0.0, now.measured.harm.mean_kl() - rest.mean_kl())
            anew[_place(choice.option)] = replace(choice, kl=kl, codec=max(0.0, now.measured.harm.codec - rest.codec))
    return [anew.get(_place(choice.option), choice) for choice in choices]


def _place(option: Option) -> tuple[str, str]:
    return option.group.name, option.scheme


def _tightened(fixed: Fixed, limits: Budget, budget: Budget, now: Round) -> tuple[Fixed, Budget]:
    """A step's time as it turned out, and a lower limit of error where the plan went beyond it."""
    if budget.max_ms is not None and now.measured.step_ms > budget.max_ms:
        fixed = replace(fixed, step_s=fixed.step_s + (now.measured.step_ms - now.foreseen.step_ms) / 1e3)
    worst = max(now.measured.harm.mean_kl(), now.measured.harm.codec)
    if budget.max_kl is not None and worst > budget.max_kl:
        limits = replace(limits, max_kl=limits.max_kl * TIGHTER * budget.max_kl / worst)
    return fixed, limits
