"""A bench whose models are tones: what the studio's tests share."""

from pathlib import Path

import numpy as np

from studio.orders import Form, Job, Made, Order, Watch
from studio.store import ClipRow
from studio.takes import Bench, Card
from tinymusician_core.records import Cancelled, Clip, Figures, Progress, SamplingSpec, Timing, Waveform

PROMPT = "a calm piano waltz"
RATE = 8000
LEVELS = {"teacher": 0.5, "student": 0.1, "quantized": 0.3}
FIGURES = Figures(900.0, 12.5, 2.25, 0.9, {"text": 4.0, "lm": 800.0, "codec": None}, None, 31_200_000, 2, "cpu", 1)


def tone(model: str, seconds: float = 2.0, hz: float = 440.0) -> Waveform:
    """A steady note; each model plays it at another level."""
    time_s = np.arange(int(RATE * seconds)) / RATE
    return Waveform((LEVELS.get(model, 0.2) * np.sin(2 * np.pi * hz * time_s))[None].astype(np.float32), RATE)


def clip_of(job: Job, seconds: float) -> Clip:
    """A tone of some length as the clip of a job."""
    codes, timing = np.zeros((1, 4), dtype=np.int64), Timing(0.004, 0.8, 0.1, 0.9, 0.9, 64)
    sound, model = tone(job.model, seconds), job.model
    return Clip(sound.audio, RATE, codes, timing, job.prompt, job.sampling, model, f"hash-of-{model}")


def give_encoder(models: Path) -> None:
    """Add a random encoder to the codec of a tiny family, so that its models can go on from a sound."""
    from conftest import scramble

    from tinymusician_core.codec.spectral import SpectralCodec, SpectralEncoder

    codec = SpectralCodec.from_folder(models / "codec")
    codec.save(models / "codec", scramble(SpectralEncoder(codec.config), seed=9))


def play(job: Job, watch: Watch) -> Made:
    """A maker that needs no model: a step, and a tone in chunks of half a second.

    A model named "broken" fails, "endless" makes no sound and "steady" one chunk until they are stopped.
    """
    watch.on_progress(Progress("loading", 1, 1, 0.1))
    if job.model == "broken":
        raise RuntimeError("the process of broken ended (killed)")
    while job.model == "endless":
        watch.on_progress(Progress("lm", 1, 4, 0.1))
        if watch.should_stop():
            raise Cancelled("stopped")
    clip = clip_of(job, job.sampling.seconds)
    for start in range(0, clip.audio.shape[1], RATE // 2):
        if watch.on_audio is not None:
            watch.on_audio(clip.audio[:, start : start + RATE // 2], RATE)
        while job.model == "steady":
            if watch.should_stop():
                return Made(clip_of(job, 0.5), FIGURES, stopped=True)
    return Made(clip, FIGURES)


def perform(bench: Bench, *models: str, form: Form | None = None, **settings) -> list[Card]:
    order = Order(PROMPT, SamplingSpec(**{"seconds": 1.0, "seed": 7, **settings}), models, form=form or Form())
    return list(bench.perform(bench.order(order)))


def ended(cards_seen: list[Card]) -> dict[str, Card]:
    return {card.model: card for card in cards_seen if card.state != "working"}


def row(number: int, model: str) -> ClipRow:
    """A clip's row in the history."""
    return ClipRow(number, 1, 0.0, model, f"hash-of-{model}", f"clips/{model}.wav", 2.0, FIGURES.as_dict())
