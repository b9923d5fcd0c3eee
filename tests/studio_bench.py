"""A bench whose models are tones: what the studio's tests share."""

import numpy as np

from studio.takes import Bench, Card, Made, Order
from tinymusician_core.records import Cancelled, Clip, Figures, Progress, SamplingSpec, Timing, Waveform

PROMPT = "a calm piano waltz"
RATE = 8000
LEVELS = {"teacher": 0.5, "student": 0.1, "quantized": 0.3}
FIGURES = Figures(900.0, 12.5, 2.25, 0.9, {"text": 4.0, "lm": 800.0, "codec": None}, None, 31_200_000, 2, "cpu", 1)


def tone(model: str, seconds: float = 2.0, hz: float = 440.0) -> Waveform:
    """A steady note; each model plays it at another level."""
    time_s = np.arange(int(RATE * seconds)) / RATE
    return Waveform((LEVELS.get(model, 0.2) * np.sin(2 * np.pi * hz * time_s))[None].astype(np.float32), RATE)


def play(model: str, prompt: str, sampling: SamplingSpec, runs: int, on_progress, should_stop) -> Made:
    """A maker that needs no model: two steps and a tone. A model named "broken" fails, "endless" runs until stopped."""
    on_progress(Progress("loading", 1, 1, 0.1))
    if model == "broken":
        raise RuntimeError("the process of broken ended (killed)")
    while model == "endless":
        on_progress(Progress("lm", 1, 4, 0.1))
        if should_stop():
            raise Cancelled("stopped")
    sound = tone(model, sampling.seconds)
    codes, timing = np.zeros((1, 4), dtype=np.int64), Timing(0.004, 0.8, 0.1, 0.9, 0.9, 64)
    return Made(Clip(sound.audio, RATE, codes, timing, prompt, sampling, model, f"hash-of-{model}"), FIGURES)


def perform(bench: Bench, *models: str, **settings) -> list[Card]:
    order = Order(PROMPT, SamplingSpec(**{"seconds": 1.0, "seed": 7, **settings}), models)
    return list(bench.perform(bench.order(order)))


def ended(cards_seen: list[Card]) -> dict[str, Card]:
    return {card.model: card for card in cards_seen if card.state != "working"}
