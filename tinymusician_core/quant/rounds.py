"""Search, measure the whole, and repair where errors did not add up, until a plan keeps a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from ..records import Cancelled
from .against import ToBeat
from .compared import worth_trying
from .search import Budget, Choice, Fixed, ImpossibleBudget, search
from .sensitivity import OnOption, Option
from .workbench import Outcome, Workbench, keeps

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


@dataclass(frozen=True)
class Found:
    """What was searched for a budget.

    Attributes:
        aim: the budget, with the float model's time as a limit too, where that can be kept.
        rounds: every plan that was measured.
        best: the one to take.
    """

    aim: Budget
    rounds: tuple[Round, ...]
    best: Round


def closest(
    bench: Workbench,
    budget: Budget,
    on_progress: OnOption | None = None,
    should_stop: Callable[[], bool] | None = None,
    rival: ToBeat | None = None,
) -> Found:
    """The best plan for a budget, of those that are searched and of fixed ones that may be better.

    With a rival, the best of those that beat it, where any do; no fixed plan is tried then.

    Raises:
        ImpossibleBudget: no plan keeps the budget, or with `max_ms` none that does is faster than the float model.
        Cancelled: `should_stop` said so.
    """
    aim = no_slower(bench, budget)
    rounds: list[Round] = []
    best = failed = None
    try:
        rounds = rounds_of(bench, aim, on_progress, should_stop, rival)
        best = best_round(rounds, aim, budget, bench.float_ms).measured
    except ImpossibleBudget as error:
        failed = error
    ahead = [r for r in rounds if rival is not None and rival.beaten_by(r.measured) and keeps(r.measured, aim)]
    if not ahead:
        tried = [round_.schemes for round_ in rounds]
        more = worth_trying(bench, aim, partial(keeps, budget=aim), tried, best)
        if failed is not None and not more:
            raise failed
        rounds += [_measured(bench, schemes) for schemes in more]
    return Found(aim, tuple(rounds), best_round(ahead or rounds, aim, budget, bench.float_ms))


def _measured(bench: Workbench, schemes: dict[str, str]) -> Round:
    return Round(schemes, bench.foresee(schemes), bench.clock.timed("measuring", bench.measure, schemes))


def rounds_of(
    bench: Workbench,
    budget: Budget,
    on_progress: OnOption | None = None,
    should_stop: Callable[[], bool] | None = None,
    rival: ToBeat | None = None,
) -> list[Round]:
    """Search and measure until a plan keeps the budget and its errors add up; at most `ROUNDS` times.

    Where there is a rival, until a plan that keeps the budget beats it.

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
            taken = bench.clock.timed("search", _searched, choices, fixed, limits, rival, bool(rounds))
        except ImpossibleBudget:
            if not rounds:
                raise
            return rounds
        schemes = {k: v for choice in taken for k, v in choice.option.schemes.items()}
        if any(round_.schemes == schemes for round_ in rounds):
            return rounds
        now = _measured(bench, schemes)
        rounds.append(now)
        will_do = _adds_up(taken, now.measured) if rival is None else rival.beaten_by(now.measured)
        if keeps(now.measured, budget) and will_do:
            return rounds
        choices = bench.clock.timed("measuring", _in_context, bench, choices, taken, now)
        fixed, limits = _tightened(bench.fixed, fixed, limits, budget, now)
    return rounds


def _searched(
    choices: Sequence[Choice], fixed: Fixed, limits: Budget, rival: ToBeat | None, in_context: bool
) -> list[Choice]:
    """The best plan; with a rival of those whose KL is to be lower than its, where there are any."""
    if rival is not None:
        harm = (rival.measured if in_context else rival.foreseen).harm
        with suppress(ImpossibleBudget):
            return search(choices, fixed, limits, TIGHTER * harm.mean_kl())
    return search(choices, fixed, limits)


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


def _tightened(first: Fixed, fixed: Fixed, limits: Budget, budget: Budget, now: Round) -> tuple[Fixed, Budget]:
    """A step's time as it turned out, and a lower limit of error, where the plan went beyond them; what was foreseen of
    a plan is by the `first` fixed costs in every round."""
    if budget.max_ms is not None and now.measured.step_ms > budget.max_ms:
        fixed = replace(fixed, step_s=first.step_s + (now.measured.step_ms - now.foreseen.step_ms) / 1e3)
    worst = max(now.measured.harm.mean_kl(), now.measured.harm.codec)
    if budget.max_kl is not None and worst > budget.max_kl:
        limits = replace(limits, max_kl=limits.max_kl * TIGHTER * budget.max_kl / worst)
    return fixed, limits
