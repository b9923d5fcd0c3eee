"""From a budget to a plan with all that was measured on the way: the options, whole plans, and others beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..pipeline import Pipeline
from .against import Against, Compared, ToBeat
from .apply import Recipe
from .clock import Clock
from .compared import compared
from .recover import Recovered
from .rounds import Round, closest, pace
from .search import Budget
from .sensitivity import OnOption
from .trial import Harm
from .workbench import Tokens, Workbench


@dataclass(frozen=True, eq=False)
class Adapted:
    """The plan that a budget led to, with all that was measured on the way.

    Attributes:
        recipe: how to write it.
        best: the round whose plan it is; `rounds` has them all.
        held_out: its harm on tokens that neither the rounding nor the search has seen.
        compared: other plans beside it, where they were asked for.
        aim: the budget that was searched for: with the float model's time as a limit too, where that can be kept.
        against: adaptive plans against fixed ones of the same size, where they were asked for.
        seconds: how long it all took, and its parts, as `Clock.as_dict` has it.
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
    against: tuple[Against, ...]
    seconds: dict
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
        compare: measure other plans too, for the picture: uniform ones, the paper's, layer by layer, other sizes; and
            search an adaptive plan for the very size of each uniform one and of the paper's.

    Raises:
        ValueError: no budget, unknown schemes, weights that do not fit, or tokens that are not this model's.
        ImpossibleBudget: no plan keeps the budget, or with `max_ms` none that does is faster than the float model.
        Cancelled: `should_stop` said so; what was measured is kept for the next run.
    """
    budget, clock = Budget(max_mb, max_ms, max_kl), Clock()
    tokens = clock.timed("tokens", Tokens.of, pipeline, data, on_progress, should_stop)
    bench = Workbench(pipeline, name, tokens, schemes, on_progress, should_stop, weights, clock)
    found = closest(bench, budget, on_progress, should_stop)
    best = found.best
    held_out = clock.timed("held out", bench.held_out, best.schemes)
    others, against = (), ()
    if compare:
        look_for = partial(_best_of, bench, should_stop)
        others, against = clock.timed("comparing", compared, bench, look_for, on_progress, should_stop)
    said, recipe = pace(best, found.aim, budget, bench.float_ms), bench.packed_recipe(best.schemes)
    more = {"against": against, "seconds": clock.as_dict(), "pace": said}
    return Adapted(budget, found.aim, bench, recipe, best, found.rounds, held_out, others, **more)


def _best_of(bench: Workbench, should_stop: Callable[[], bool] | None, budget: Budget, rival: ToBeat) -> Round:
    return closest(bench, budget, None, should_stop, rival).best
