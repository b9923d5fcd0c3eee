"""Measure variants as a listener meets them: each in a fresh process, one at a time, after a warm-up apart."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..records import Cancelled, Clip, Figures, Progress, SamplingSpec
from ..worker import Loaded, OnAudio, OnProgress, Result, ShouldStop, Stopped, Worker
from .timing import Process, Run, figures_of

WARM_UP_S = 1.0


@dataclass(frozen=True)
class Measured:
    """A clip of the last run with the figures of all runs.

    `made_s` says how many seconds of the clip are new, which is all of it unless it goes on from a given sound;
    `figures` holds medians and how far the runs lie apart; `process` every run.
    """

    clip: Clip
    made_s: float
    figures: Figures
    process: Process


class StoppedMeasuring(Cancelled):
    """Measuring ended because its caller said so, and something was made by then: `measured`.

    It covers the runs that were whole, or where there was none the first one as far as it came, with a shorter clip;
    `whole` says which.
    """

    def __init__(self, message: str, measured: Measured, whole: bool):
        super().__init__(message, measured.clip)
        self.measured, self.whole = measured, whole


class StoppedComparing(Cancelled):
    """Comparing ended because its caller said so: `finished` has the variants of which at least one run was whole."""

    def __init__(self, message: str, finished: Mapping[str, Measured]):
        super().__init__(message)
        self.finished = dict(finished)


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
    on_audio: OnAudio | None = None,
    continue_from: str | os.PathLike | None = None,
    device: str = "cpu",
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
        on_audio: given the sound of the first run that counts while it is being made, as `Worker.generate` does.
        continue_from: a sound file that the music goes on from.
        device: "cpu" or "cuda"; on a GPU the memory is what torch allocates there.

    Raises:
        ValueError, ModelError, WorkerDied: as `Worker` does.
        StoppedMeasuring: `should_stop` said so, after the first sound that counts; it has what was made.
        Cancelled: `should_stop` said so before.
    """
    check_runs(runs)
    results, warm_up_s = [], None
    with Worker(model, threads, device) as worker:
        loaded = worker.start(on_progress, should_stop)
        if warm_up:
            warm_up_s = _warm_up(worker, prompt, spec, on_progress, should_stop, continue_from)
        try:
            for _ in range(runs):
                heard = None if results else on_audio
                results.append(worker.generate(prompt, spec, on_progress, should_stop, heard, continue_from))
        except Cancelled as stopped:
            if not results and not isinstance(stopped, Stopped):
                raise
            made = _measured(results or [stopped.result], loaded, warm_up_s)
            raise StoppedMeasuring(str(stopped), made, whole=bool(results)) from stopped
    return _measured(results, loaded, warm_up_s)


def _measured(results: Sequence[Result], loaded: Loaded, warm_up_s: float | None) -> Measured:
    runs = tuple(Run(result.clip.timing, result.made_s, result.peak_memory_bytes) for result in results)
    process = Process(runs, loaded, warm_up_s)
    return Measured(results[-1].clip, results[-1].made_s, figures_of([process]), process)


def _warm_up(worker: Worker, prompt: str, spec: SamplingSpec, on_progress, should_stop, continue_from) -> float:
    """Play a second of music that does not count; returns how long that took."""

    def report(progress: Progress) -> None:
        if on_progress is not None and progress.stage == "lm":
            on_progress(replace(progress, stage="warm-up"))

    start = time.perf_counter()
    short = replace(spec, seconds=min(WARM_UP_S, spec.seconds))
    try:
        worker.generate(prompt, short, report, should_stop, continue_from=continue_from)
    except Stopped as stopped:
        raise Cancelled("stopped while warming up") from stopped
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
    on_audio: Callable[[str, np.ndarray, int], None] | None = None,
    continue_from: str | os.PathLike | None = None,
    device: str = "cpu",
) -> list[Measured]:
    """Play the same prompt with several variants, one after the other, each in a process of its own.

    Args:
        prompt: what to play.
        models: names, folders or hub ids, at least one and each once.
        spec: how to draw; the defaults of `SamplingSpec` where None.
        runs, warm_up, should_stop, threads, continue_from, device: as `measure` takes them.
        on_progress: told the model and its progress.
        on_audio: given the model, a chunk of its first run that counts, and its rate, while it is being made.

    Returns:
        One record a model, in the order of `models`.

    Raises:
        ValueError: no model, one twice, or one that is not known, before any plays; and what `measure` raises.
        StoppedComparing: `should_stop` said so; it has the variants that were played to the end by then.
    """
    check_models(models)
    spec = SamplingSpec() if spec is None else spec
    finished: dict[str, Measured] = {}
    for model in models:
        report = None if on_progress is None else partial(on_progress, model)
        hear = None if on_audio is None else partial(on_audio, model)
        order = (model, prompt, spec, runs, warm_up, report, should_stop, threads, hear, continue_from, device)
        try:
            finished[model] = measure(*order)
        except Cancelled as stopped:
            if isinstance(stopped, StoppedMeasuring) and stopped.whole:
                finished[model] = stopped.measured
            raise StoppedComparing(f"stopped while {model} was playing", finished) from stopped
    return list(finished.values())


def check_models(models: Sequence[str]) -> None:
    """ValueError, or ModelError, unless these are models that can be had, at least one and each once."""
    from ..variants import resolve

    if isinstance(models, str) or not models or len(set(models)) != len(models):
        raise ValueError(f"models must be a list of at least one name, each once, got {models!r}")
    for model in models:
        resolve(model)
