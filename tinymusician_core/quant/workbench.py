"""All that a search knows of a model on this machine: its options, and what a whole plan will be and is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
from scipy.optimize import nnls

from ..pipeline import Pipeline
from .apply import Recipe, disk_bytes, plan_record, write
from .cachefile import cache_folder
from .calibration import Calibration, from_folder, sampled
from .clock import Clock
from .cost import CostTable, steps_in_turn
from .plan import Plan
from .schemes import SCHEMES, unavailable
from .search import Budget, Choice, Fixed
from .sensitivity import OnOption, Option, ShortWay, sensitivities
from .size import json_bytes, most_bytes
from .trial import Harm, Judge, inputs_of, tried

MOMENT_WINDOWS, JUDGE_WINDOWS, HELD_OUT_WINDOWS = 48, 16, 16
MANY_WEIGHTS = 2**25  # from here on a decoder is large
FEWER, LARGE_S = (2, 4, 4), 3.0  # how many times fewer windows it is tried on, and of how many seconds each
CLIP_S, LARGE_CLIP_S = 4.0, 1.0  # of music that steps are timed over
PACE_SCHEMES = ("fp16", "int8", "int8-weight", "int4", "int4-row")
MIXED = 3  # plans of several of these that are timed too
SLACK_BYTES = 96  # what JSON and a header have around their entries, at most


@dataclass(frozen=True, eq=False)
class Tokens:
    """Windows of tokens for three ends: the inputs' moments, the judgement of schemes, and a check on neither."""

    moments: Calibration
    judge: Calibration
    held_out: Calibration

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        data: str | Path | None,
        on_progress: OnOption | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Tokens:
        """From a token folder's splits train and validation, or where there is none from what the model plays.

        Raises:
            ValueError: the folder has no such tokens, or they are not this model's.
            Cancelled: `should_stop` said so.
        """
        counts, seconds = (MOMENT_WINDOWS, JUDGE_WINDOWS, HELD_OUT_WINDOWS), None
        if is_large(pipeline):
            counts, seconds = [max(1, n // less) for n, less in zip(counts, FEWER, strict=True)], LARGE_S
        if data is not None:
            splits = ("train", "train", "validation")
            parts = [from_folder(pipeline, data, split, i, counts[i], seconds) for i, split in enumerate(splits)]
            return cls(*parts)

        def report(done: int, total: int) -> None:
            if on_progress is not None:
                on_progress("playing to itself", done, total)

        whole = sampled(pipeline, 0, sum(counts), report, should_stop, seconds)
        first, second = counts[0], counts[0] + counts[1]
        return cls(whole.part(0, first), whole.part(first, second), whole.part(second, sum(counts)))


def is_large(pipeline: Pipeline) -> bool:
    """Whether a decoder has so many weights that it is tried on fewer windows, with one scheme a matrix, and timed over
    shorter clips."""
    config = pipeline.decoder.config
    return config.layers * config.width * (8 * config.width + 2 * config.ffn) >= MANY_WEIGHTS


@dataclass(frozen=True)
class Outcome:
    """What a plan is, foreseen or measured; `step_ms` is None where it was not measured."""

    disk_bytes: int
    step_ms: float | None
    harm: Harm

    def as_dict(self) -> dict:
        """Every figure by name, ready for JSON."""
        harm = {"kl": self.harm.mean_kl(), "kl_by_codebook": list(self.harm.kl), "codec_error": self.harm.codec}
        return {"disk_bytes": self.disk_bytes, "ms_per_step": self.step_ms, **harm}


def keeps(outcome: Outcome, budget: Budget) -> bool:
    """Whether what was measured is within the budget."""
    figures = {
        "max_mb": outcome.disk_bytes / 1e6,
        "max_ms": outcome.step_ms,
        "max_kl": max(outcome.harm.mean_kl(), outcome.harm.codec),
    }
    return all(figures[name] <= limit for name, limit in budget.limits.items())


@dataclass(frozen=True)
class Calls:
    """The calls that a step makes: the sum of their times, each measured among its like, and how many of them leave
    the compiled code."""

    seconds: float
    leaving: int


@dataclass(frozen=True)
class Pace:
    """From a plan's calls to the time of its step: offset + slope * their sum + so much for each that leaves the
    compiled code, in seconds.

    The offset is all else: norms, attention, and the drawing of tokens. A float cache has one of its own.
    """

    offset_s: float
    slope: float
    leaving_s: float
    float_offset_s: float = 0.0

    @classmethod
    def of(cls, calls: Sequence[Calls], seen: Sequence[float]) -> Pace:
        """The pace that fits the steps that were seen best, each weighing by its share, not its size; none of its parts
        is below 0. Where calls say nothing of a step's time they count as they are."""
        times = np.array(seen)
        rows = np.array([[1.0, each.seconds, each.leaving] for each in calls]) / times[:, None]
        (offset, slope, leaving), _ = nnls(rows, np.ones(len(times)))
        if slope == 0.0:
            return cls(max(0.0, float(np.mean(times - [each.seconds for each in calls]))), 1.0, 0.0)
        return cls(float(offset), float(slope), float(leaving))

    def calls_s(self, calls: Calls) -> float:
        """Seconds of a step that its calls take."""
        return self.slope * calls.seconds + self.leaving_s * calls.leaving

    def step_s(self, calls: Calls, floats: bool) -> float:
        """Seconds of a step."""
        return (self.float_offset_s if floats else self.offset_s) + self.calls_s(calls)


class Workbench:
    """Measures a model's options once; then foresees and measures plans.

    Args:
        pipeline: the float model.
        name: of the folder that will be written, which is in its files.
        tokens: what schemes are tried on.
        schemes: those that may be used; all that this machine can run where None.
        on_progress, should_stop: told of, and asked before, every measurement.
        weights: how much each codebook counts in the mean; all alike where None.
        clock: adds up what all this takes.

    Raises:
        ValueError: an unknown scheme, one that this machine cannot run, or weights that do not fit the codebooks.
        Cancelled: `should_stop` said so; what was measured is kept.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        name: str,
        tokens: Tokens,
        schemes: Sequence[str] | None = None,
        on_progress: OnOption | None = None,
        should_stop: Callable[[], bool] | None = None,
        weights: Sequence[float] | None = None,
        clock: Clock | None = None,
    ):
        self.pipeline, self.name, self.tokens = pipeline, name, tokens
        self.clock = Clock() if clock is None else clock
        self.not_offered = unavailable(pipeline.device)
        self.schemes = _allowed(schemes, self.not_offered)
        with self.clock.part("float answers"):
            inputs = inputs_of(pipeline, tokens.moments)
            self.moments = inputs.moments
            self.judge = Judge(pipeline, tokens.judge, self.moments, weights)
        key = f"{tokens.moments.hash[:8]}{tokens.judge.hash[:8]}"
        short = None
        if is_large(pipeline):
            short = ShortWay(pipeline, self.judge, inputs.rows, tokens.judge.prompts, self.schemes)
        asked = (pipeline, self.judge, key, self.schemes, on_progress, should_stop, short, self.clock)
        self.options = self.clock.timed("sensitivity", sensitivities, *asked)
        self._by_place = {(option.group.name, option.scheme): option for option in self.options}
        self._group_of = {name: option.group.name for option in self.options for name in option.group.modules}
        with self.clock.part("cost"):
            self.costs = CostTable(pipeline)
            self.float_step_s, self.pace = self._measure_pace(on_progress)
            most = {o.group.name: max(map(_data_bytes, self._of_group(o.group.name))) for o in self.options}
            self.choices = [self._choice(option, sum(most.values())) for option in self.options]
        self.clock.note("cost", *self.costs.counts)
        self.fixed = Fixed(self._fixed_bytes(), self.pace.offset_s)

    @property
    def float_ms(self) -> float:
        """Milliseconds of a step of the float model."""
        return 1e3 * self.float_step_s

    def recipe(self, schemes: Mapping[str, str], name: str = "adaptive") -> Recipe:
        """A plan by the scheme of every module."""
        ordered = {module: schemes[module] for module in self._group_of}
        return Recipe(Plan.of(ordered, name), ordered, self.moments)

    def packed_recipe(self, schemes: Mapping[str, str]) -> Recipe:
        """The same with what was slow to pack as the search has packed it."""
        return replace(self.recipe(schemes), tensors=self.judge.packs.stored(schemes))

    def complete(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """Schemes for all modules: those wanted where a group can have them, fp16 (else fp32) for what it cannot."""
        found = {}
        for module, group in self._group_of.items():
            tries = (wanted.get(module, "fp16"), "fp16", "fp32")
            found[module] = next(scheme for scheme in tries if (group, scheme) in self._by_place)
        return found

    def chosen(self, schemes: Mapping[str, str]) -> list[Option]:
        """The option that each group has under the schemes of all modules."""
        groups = {group: schemes[module] for module, group in self._group_of.items()}
        return [self._by_place[group, scheme] for group, scheme in groups.items()]

    def foresee(self, schemes: Mapping[str, str]) -> Outcome:
        """What a plan will be: its bytes exactly, and the sums of what its schemes cost and do alone."""
        options = self.chosen(schemes)
        kl = tuple(np.sum([option.harm.kl for option in options], axis=0).tolist())
        harm = Harm(kl, sum(option.harm.codec for option in options), self.judge.weights)
        size = disk_bytes(self.pipeline, self.recipe(schemes), [t for o in options for t in o.tensors], self.name)
        return Outcome(size, 1e3 * self.pace.step_s(self.calls(schemes), self._floats(schemes)), harm)

    def measure(self, schemes: Mapping[str, str]) -> Outcome:
        """What a plan is: its bytes once it is written, its time, and its harm on the tokens of the search.

        It is timed in turn with the float model. Its time is that share of the float model's at the time of the costs,
        so that what is measured and what was foreseen, and all plans, are of the same pace of the machine.
        """
        harm = self.judge.harm(schemes)
        float_s, step_s = self._steps_s({"float": nullcontext, "plan": self._version(schemes)})
        return Outcome(self.written_bytes(schemes), 1e3 * self.float_step_s * step_s / float_s, harm)

    def written_bytes(self, schemes: Mapping[str, str]) -> int:
        """The bytes of a plan's files, from a folder that is written in the cache and removed again.

        Raises:
            OSError: it cannot be written, or the disk is full.
        """
        cache = cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="plan-", dir=cache) as scratch:
            return write(self.pipeline, self.packed_recipe(schemes), Path(scratch) / self.name).disk_bytes

    @cached_property
    def strict(self) -> Judge:
        """Compares with the float model on tokens that neither the rounding nor the search has seen."""
        judge = Judge(self.pipeline, self.tokens.held_out, self.moments, self.judge.weights)
        judge.packs = self.judge.packs
        return judge

    def held_out(self, schemes: Mapping[str, str]) -> Harm:
        """A plan's harm on those tokens."""
        return self.strict.harm(schemes)

    def calls(self, schemes: Mapping[str, str]) -> Calls:
        """The calls that a step makes."""
        steps = [(name, scheme) for name, scheme in schemes.items() if self.costs.stage(name) == "step"]
        leaving = sum(self.costs.leaves(name, scheme) for name, scheme in steps)
        return Calls(sum(self.costs.call_s(name, scheme) for name, scheme in steps), leaving)

    def _floats(self, schemes: Mapping[str, str]) -> bool:
        qkv = [scheme for name, scheme in schemes.items() if name.endswith(".qkv")]
        return all(scheme == "fp32" for scheme in qkv)

    def _measure_pace(self, on_progress: OnOption | None) -> tuple[float, Pace]:
        usable = [scheme for scheme in PACE_SCHEMES if scheme in self.schemes] or list(self.schemes)
        plans = {f"all of it in {scheme}": self._of_schemes([scheme]) for scheme in usable}
        if len(usable) > 1:
            plans |= {f"mixture {n + 1}": self._of_schemes(usable, Random(n)) for n in range(MIXED)}
        versions = {"the float model": nullcontext} | {name: self._version(plan) for name, plan in plans.items()}

        def tell(name: str, done: int, total: int) -> None:
            if on_progress is not None:
                on_progress(f"timing {name}", done, total)

        float_s, *seen = self._steps_s(versions, tell)
        pace = Pace.of([self.calls(schemes) for schemes in plans.values()], seen)
        floats = self.calls(dict.fromkeys(self._group_of, "fp32"))
        return float_s, replace(pace, float_offset_s=float_s - pace.calls_s(floats))

    def _version(self, schemes: Mapping[str, str]) -> Callable[[], AbstractContextManager]:
        return partial(tried, self.pipeline.modules, schemes, self.judge.packs)

    def _steps_s(
        self,
        versions: Mapping[str, Callable[[], AbstractContextManager]],
        on_clip: Callable[[str, int, int], None] | None = None,
    ) -> list[float]:
        """Seconds of a step of each version of the model."""
        clip_s = LARGE_CLIP_S if is_large(self.pipeline) else CLIP_S
        return steps_in_turn(self.pipeline, versions, clip_s, on_clip)

    def _of_schemes(self, usable: Sequence[str], rng: Random | None = None) -> dict[str, str]:
        """A plan whose steps are in the first of these schemes that a group can have; with a generator in any."""
        wanted = {}
        for group in dict.fromkeys(self._group_of.values()):
            able = [scheme for scheme in usable if (group, scheme) in self._by_place]
            if able and self.costs.stage(group) == "step":
                wanted[group] = able[0] if rng is None else rng.choice(able)
        return self.complete(wanted)

    def _of_group(self, group: str) -> list[Option]:
        return [option for option in self.options if option.group.name == group]

    def _choice(self, option: Option, room: int) -> Choice:
        names = [name for name in option.group.modules if self.costs.stage(name) is not None]
        step = self.pace.calls_s(self.calls(dict.fromkeys(names, option.scheme)))
        other = sum(self.costs.call_s(n, option.scheme) for n in names if self.costs.stage(n) != "step")
        lines = sum(len(f'  "{name}": "{option.scheme}",\n') for name in option.group.modules)
        size = lines + most_bytes(option.tensors, room)
        return Choice(option, size, step, other, option.harm.mean_kl(), option.harm.codec)

    def _fixed_bytes(self) -> int:
        empty = Recipe(Plan.of({"*": "fp32"}, "adaptive"), {}, self.moments)
        plan = {**plan_record(self.pipeline, empty), "rules": {}}
        beside = disk_bytes(self.pipeline, empty, [], self.name) - json_bytes(plan_record(self.pipeline, empty))
        return beside + json_bytes(plan) + SLACK_BYTES


def _allowed(schemes: Sequence[str] | None, reasons: Mapping[str, str]) -> list[str]:
    if schemes is None:
        return [name for name in SCHEMES if name not in reasons]
    for name in schemes:
        if name not in SCHEMES:
            raise ValueError(f"no such scheme: {name!r}; allowed: {', '.join(SCHEMES)}")
        if name in reasons:
            raise ValueError(f"{name} cannot be used here: {reasons[name]}")
    return [name for name in SCHEMES if name in {"fp32", *schemes}]


def _data_bytes(option: Option) -> int:
    return sum(tensor.bytes for tensor in option.tensors)
