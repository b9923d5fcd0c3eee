"""Measure variants as a listener meets them: each in a fresh process, one at a time, after a warm-up apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..records import Clip, Figures, Progress, SamplingSpec, Timing
from ..worker import OnProgress, ShouldStop, Worker
from .timing import spread, summarise

WARM_UP_S = 1.0


@dataclass(frozen=True)
class Measured:
    """A clip of the last run with the figures of all runs.

    `figures` holds medians; `timings` every run; `load_s` and `warm_up_s` what came before them (None: no warm-up).
    """

    clip: Clip
    figures: Figures
    timings: tuple[Timing, ...]
    load_s: float
    warm_up_s: float | None

    @property
    def spread_s(self) -> tuple[float, float]:
        """Total seconds of the fastest and of the slowest run."""
        return spread(self.timings)


def check_runs(runs) -> int:
    """Return how often to measure; ValueError unless it is a whole number from 1 to 100."""
    if isinstance(runs, bool) or not isinstance(runs, int) or not 1 <= runs <= 100:
        raise ValueError(f"runs must be a whole number from 1 to 100, got {runs!r}")
    return runs


def measure(
    model: str,
    prompt: str,
    spec: SamplingSpec,
    runs: int = 3,
    warm_up: bool = True,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
    threads: int | None = None,
) -> Measured:
    """Measure one variant in a fresh process.

    Args:
        model: what `tinymusician_core.load` takes.
        prompt: what to play.
        spec: how; every run draws the same clip.
        runs: how often; the figures are the medians.
        warm_up: play a short clip first that does not count.
        on_progress: told of every stage of every run; the stage of a warm-up is "warm-up".
        should_stop: asked all the time; heeded within one step.
        threads: CPU threads; None leaves the choice to torch.

    Raises:
        ValueError, ModelError, Cancelled, WorkerDied: as `Worker` does.
    """
    check_runs(runs)
    with Worker(model, threads) as worker:
        loaded = worker.start(on_progress, should_stop)
        warm_up_s = _warm_up(worker, prompt, spec, on_progress, should_stop) if warm_up else None
        results = [worker.generate(prompt, spec, on_progress, should_stop) for _ in range(runs)]
    clip, timings = results[-1].clip, tuple(result.clip.timing for result in results)
    figures = Figures(
        **summarise(timings, clip.seconds),
        peak_memory_bytes=results[-1].peak_memory_bytes,
        disk_bytes=loaded.disk_bytes,
        threads=loaded.threads,
        device=loaded.device,
        runs=runs,
    )
    return Measured(clip, figures, timings, loaded.load_s, warm_up_s)


def _warm_up(worker: Worker, prompt: str, spec: SamplingSpec, on_progress, should_stop) -> float:
    """Play a second of music that does not count; returns how long that took."""

    def report(progress: Progress) -> None:
        if on_progress is not None and progress.stage == "lm":
            on_progress(replace(progress, stage="warm-up"))

    start = time.perf_counter()
    worker.generate(prompt, replace(spec, seconds=min(WARM_UP_S, spec.seconds)), report, should_stop)
    return time.perf_counter() - start


def compare(
    prompt: str,
    models: Sequence[str] = ("teacher", "student", "quantized"),
    spec: SamplingSpec | None = None,
    runs: int = 1,
    warm_up: bool = True,
    on_progress: Callable[[str, Progress], None] | None = None,
    should_stop: ShouldStop | None = None,
    threads: int | None = None,
) -> list[Measured]:
    """Play the same prompt with several variants, one after the other, each in a process of its own.

    Args:
        prompt: what to play.
        models: names, folders or hub ids, at least one and each once.
        spec: how to draw; the defaults of `SamplingSpec` where None.
        runs, warm_up, should_stop, threads: as `measure` takes them.
        on_progress: told the model and its progress.

    Returns:
        One record a model, in the order of `models`.

    Raises:
        ValueError: no model, one twice, or one that is not known, before any plays; and what `measure` raises.
    """
    if isinstance(models, str) or not models or len(set(models)) != len(models):
        raise ValueError(f"models must be a list of at least one name, each once, got {models!r}")
    from ..variants import resolve

    spec = SamplingSpec() if spec is None else spec
    for model in models:
        resolve(model)
    measured = []
    for model in models:

        def report(progress: Progress, model: str = model) -> None:
            if on_progress is not None:
                on_progress(model, progress)

        measured.append(measure(model, prompt, spec, runs, warm_up, report, should_stop, threads))
    return measured
