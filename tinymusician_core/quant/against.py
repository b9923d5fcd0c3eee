"""Adaptive plans against fixed ones of the same size: which is closer to the float model, on the very same tokens.

The size is that of a plan of one scheme, or of the paper's map; the adaptive plan may have no more bytes. It is held
against the closest of all plans of one scheme that are no larger, which need not be the one that set the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ..evaluate.bootstrap import Interval, bootstrap
from ..measure.report import NOTHING, table
from .search import Budget, ImpossibleBudget
from .trial import Harm
from .workbench import Outcome, Workbench, keeps

if TYPE_CHECKING:
    from .rounds import Round

FASTER = 0.95  # of the paper's milliseconds a step: what is foreseen may be off by as much
COLUMNS = ("size of", "MB", "closest fixed plan", "ms", "KL", "codec")
COLUMNS += ("adaptive, MB", "ms", "KL", "codec", "KL apart, held out", "KL is", "held out")


@dataclass(frozen=True)
class ToBeat:
    """A fixed plan, foreseen and measured, that an adaptive one is to be closer than."""

    foreseen: Outcome
    measured: Outcome

    def beaten_by(self, outcome: Outcome) -> bool:
        """Whether a plan's KL is lower, and what it does to the model and its codec together not more."""
        mine, theirs = outcome.harm, self.measured.harm
        return mine.mean_kl() < theirs.mean_kl() and mine.total <= theirs.total


SearchFor = Callable[[Budget, ToBeat], "Round"]


@dataclass(frozen=True)
class Compared:
    """A plan beside others: its name, its family ("adaptive", "uniform", "paper", "layers"), and what it was.

    `schemes` has the scheme of every module.
    """

    name: str
    family: str
    measured: Outcome
    held_out: Harm
    schemes: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def kl(self) -> float:
        """On the tokens of the search, nats a token."""
        return self.measured.harm.mean_kl()

    def as_dict(self) -> dict:
        """Every figure by name, ready for JSON."""
        held_out = self.held_out
        harm = {"kl": held_out.mean_kl(), "kl_by_codebook": list(held_out.kl), "codec_error": held_out.codec}
        return {"name": self.name, "family": self.family, **self.measured.as_dict(), "held_out": harm}


@dataclass(frozen=True)
class Against:
    """An adaptive plan against a fixed one.

    Attributes:
        limits: what the plan was searched for, as `Budget.limits`.
        rival: the fixed plan whose figures these limits are.
        best: the closest of the fixed plans of its family that have no more bytes; the rival itself, often.
        plan: the adaptive one.
        apart: its KL minus that of `best` on tokens that the search has not seen, with an interval by halves of the
            windows, which are the same for both.
    """

    limits: dict[str, float]
    rival: Compared
    best: Compared
    plan: Compared
    apart: Interval

    @property
    def measured(self) -> str:
        """Which has the lower KL on the tokens of the search: "better", "equal", "worse", or "the same plan"."""
        if self.plan.schemes == self.best.schemes:
            return "the same plan"
        if self.plan.kl == self.best.kl:
            return "equal"
        return "better" if self.plan.kl < self.best.kl else "worse"

    @property
    def held_out(self) -> str | None:
        """The same on the others: "better", "worse", or "cannot tell"; None where there are too few windows to say."""
        if self.apart.low is None:
            return None
        return "better" if self.apart.high < 0 else "worse" if self.apart.low > 0 else "cannot tell"

    @property
    def ahead_in(self) -> dict[str, bool]:
        """Whether the plan is smaller, faster and closer than the rival that set its limits."""
        mine, theirs = self.plan.measured, self.rival.measured
        faster = mine.step_ms < theirs.step_ms
        return {"size": mine.disk_bytes < theirs.disk_bytes, "speed": faster, "kl": self.plan.kl < self.rival.kl}

    def as_dict(self) -> dict:
        """Everything by name, ready for JSON."""
        apart = {"kl": self.apart.value, "low": self.apart.low, "high": self.apart.high, "windows": self.apart.n}
        plans = {"rival": self.rival.as_dict(), "best_fixed": self.best.as_dict(), "adaptive": self.plan.as_dict()}
        verdicts = {"measured": self.measured, "held_out": self.held_out, "ahead_in": self.ahead_in}
        return {"limits": self.limits, **plans, "apart_held_out": apart, **verdicts}

    def cells(self) -> list[str]:
        """A row of the table."""
        fixed, mine = _figures(self.best), _figures(self.plan)
        low, high = self.apart.low, self.apart.high
        apart = f"{self.apart.value:+.3g}" + ("" if low is None else f" ({low:+.3g} to {high:+.3g})")
        size = f"{self.plan.measured.disk_bytes / 1e6:.3f}"
        rival = self.rival.name if "max_mb" in self.limits else f"{self.rival.name} (its KL)"
        row = [rival, f"{self.rival.measured.disk_bytes / 1e6:.3f}", self.best.name, *fixed, size, *mine]
        return [*row, apart, self.measured, self.held_out or NOTHING]


def _figures(plan: Compared) -> list[str]:
    harm = plan.measured.harm
    return [f"{plan.measured.step_ms:.3f}", f"{harm.mean_kl():.3g}", f"{harm.codec:.3g}"]


def rivals(fixed: Sequence[Compared]) -> Iterator[tuple[Compared, Compared, list[Budget]]]:
    """Each fixed plan that sets limits, the closest of its family that is no larger, and what is to be searched for.

    Of plans of one scheme each size comes once. The paper's map is to be beaten in size, in speed and in KL: a plan is
    searched for within its bytes, and one within its KL, both with less time.
    """
    uniform = sorted((p for p in fixed if p.family == "uniform"), key=lambda p: (p.measured.disk_bytes, p.kl))
    best: Compared | None = None
    for i, plan in enumerate(uniform):
        first = not i or uniform[i - 1].measured.disk_bytes < plan.measured.disk_bytes
        best = plan if best is None or plan.kl < best.kl else best
        if first:
            yield plan, best, [Budget(max_mb=plan.measured.disk_bytes / 1e6)]
    for plan in (p for p in fixed if p.family == "paper"):
        size, time = plan.measured.disk_bytes / 1e6, FASTER * plan.measured.step_ms
        yield plan, plan, [Budget(max_mb=size, max_ms=time), Budget(max_mb=size)]
        if plan.kl > 0:
            yield plan, plan, [Budget(max_ms=time, max_kl=plan.kl), Budget(max_kl=plan.kl)]


def hold_against(
    bench: Workbench,
    search_for: SearchFor,
    rival: Compared,
    best: Compared,
    budgets: Sequence[Budget],
    known: Sequence[Compared] = (),
) -> Against | None:
    """Search an adaptive plan for the first of some budgets that one can keep, and compare; None where none can.

    The closest to the float model is taken of those that are closer than the best fixed one: the plan that was found,
    and what was measured before within the same budget. Where none is, and what was found has a higher KL, it is the
    best fixed plan itself.

    Args:
        bench: of the model.
        search_for: the plan for a budget that is to be closer than another.
        rival, best, budgets: as `rivals` has them.
        known: adaptive plans that were measured before.
    """
    to_beat = ToBeat(bench.foresee(best.schemes), best.measured)
    for budget in budgets:
        try:
            found = search_for(budget, to_beat)
        except ImpossibleBudget:
            continue
        plan = replace(best, family="adaptive")
        if found.measured.harm.mean_kl() <= best.kl:
            plan = Compared("", "adaptive", found.measured, bench.held_out(found.schemes), found.schemes)
        ahead = [p for p in (plan, *known) if keeps(p.measured, budget) and to_beat.beaten_by(p.measured)]
        plan = min(ahead, key=lambda p: p.measured.harm.total, default=plan)
        what = "size" if budget.max_mb is not None else "KL"
        plan = replace(plan, name=f"adaptive, {what} of {rival.name}")
        return Against(budget.limits, rival, best, plan, apart(plan, best))
    return None


def apart(plan: Compared, other: Compared) -> Interval:
    """The KL of a plan minus that of another on held-out tokens, window by window."""
    columns = (np.array(plan.held_out.windows), np.array(other.held_out.windows))
    return bootstrap(lambda mine, theirs: float(np.mean(mine - theirs)), *columns)


def verdict(found: Sequence[Against]) -> dict:
    """How often adaptive plans are closer than fixed ones of their size, and whether one beats the paper's map."""
    of_size = [each for each in found if each.rival.family == "uniform"]
    counts = dict.fromkeys(("better", "equal", "the same plan", "worse"), 0)
    for each in of_size:
        counts[each.measured] += 1
    papers = [each for each in found if each.rival.family == "paper"]
    beats = any(all(each.ahead_in.values()) for each in papers) if papers else None
    return {"sizes": len(of_size), **counts, "beats_the_papers_map_in_size_speed_and_kl": beats}


def section(found: Sequence[Against]) -> str:
    """The table with what it comes to, as Markdown."""
    said = verdict(found)
    lines = [
        f"Of {said['sizes']} sizes of plans of one scheme, the adaptive plan has the lower KL at {said['better']}, is "
        f"that plan itself at {said['the same plan']}, has an equal KL at {said['equal']}, a higher at {said['worse']}."
    ]
    beats = said["beats_the_papers_map_in_size_speed_and_kl"]
    if beats is not None:
        lines.append(f"It {'beats' if beats else 'does not beat'} the paper's map in size, speed and KL at once.")
    rows = [each.cells() for each in found]
    return "\n\n".join(["## Size by size", " ".join(lines), table(COLUMNS, rows)])
