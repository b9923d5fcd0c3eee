"""What can be ordered: a prompt with settings, form and models, checked before anything computes. Gradio-free."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from studio import wording
from tinymusician_core.looping import LoopLength, loop_length
from tinymusician_core.records import Clip, Figures, Progress, SamplingSpec, check_prompt

MEASURED_RUNS = 3
LONG_S = 30.0  # a longer clip plays once: nobody waits three times for it
MAX_MODEL_CHARS = 300
MAX_MODELS = 4


@dataclass(frozen=True)
class Form:
    """What a take is beyond a prompt: a loop, in whole bars where `bpm` is given, or the continuation of a sound.

    `source` is the sound's file relative to the output folder, `source_s` its length. Raises ValueError for a loop of a
    continuation.
    """

    source: str = ""
    source_s: float = 0.0
    loop: bool = False
    bpm: float | None = None

    def __post_init__(self) -> None:
        if self.loop and self.source:
            raise ValueError("a take is a loop or it continues a file, not both; untick Loop or remove the file")

    @property
    def plain(self) -> bool:
        """True for a piece made from its prompt alone."""
        return self == Form()

    def as_dict(self) -> dict:
        """What is not usual, by name; {} for a plain piece."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Form, name)}


@dataclass(frozen=True)
class Job:
    """One clip that a model is to make: `sampling` holds all that it has to play, the tail of a loop with it.

    It plays `runs` times, so that its figures are medians, and goes on from the sound in the file `source`.
    """

    model: str
    prompt: str
    sampling: SamplingSpec
    runs: int = 1
    source: Path | None = None


@dataclass(frozen=True)
class Watch:
    """What a maker is given besides its job: whom to tell of its steps and of its sound, and whether to stop.

    `on_audio` takes the chunks of the first run, float32 [C,n] and the rate in Hz; None where nobody listens.
    """

    on_progress: Callable[[Progress], None]
    should_stop: Callable[[], bool]
    on_audio: Callable[[np.ndarray, int], None] | None = None


@dataclass(frozen=True)
class Made:
    """What a maker hands back: the clip, what was measured while it was made, and whether it was stopped on the way."""

    clip: Clip
    figures: Figures
    stopped: bool = False


Maker = Callable[[Job, Watch], Made]


@dataclass
class Order:
    """A take that was asked for. `stop` ends it at the next step; `started` is set as soon as its turn has come."""

    prompt: str
    sampling: SamplingSpec
    models: tuple[str, ...]
    blind: bool = False
    form: Form = field(default_factory=Form)
    take_id: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def loop(self) -> LoopLength | None:
        """How long the loop is, with its tail; None where none is wanted."""
        return loop_length(self.sampling.seconds, self.form.bpm) if self.form.loop else None

    def job(self, model: str, folder: Path) -> Job:
        """What one of the models has to do; `folder` is the output folder."""
        sampling = self.sampling
        if self.loop is not None:
            sampling = replace(sampling, seconds=self.loop.seconds + self.loop.tail_s)
        source = folder / self.form.source if self.form.source else None
        return Job(model, self.prompt, sampling, runs_of(model, self.sampling.seconds, self.blind), source)


def runs_of(model: str, seconds: float, blind: bool = False) -> int:
    """How often a model plays: once in a blind take, where the clip is long, or where it is a model of one's own."""
    return MEASURED_RUNS if model in wording.MODELS and not blind and seconds <= LONG_S else 1


def check_order(prompt, models: list[str], own_model: str, settings: dict, form: Form | None = None) -> Order:
    """Turn what was typed into an order.

    Raises ValueError with one sentence: no words in the prompt, a setting out of range, no model chosen.
    """
    prompt = check_prompt(prompt)
    if not any(letter.isalnum() for letter in prompt):
        shown = prompt if len(prompt) <= 24 else prompt[:24] + "…"
        raise ValueError(f"prompt “{shown}” has no words; describe the music in words, such as “{wording.EXAMPLES[0]}”")
    chosen = [name for name in wording.MODELS if name in models]
    own_model = (own_model or "").strip()
    if len(own_model) > MAX_MODEL_CHARS:
        raise ValueError(f"model name has {len(own_model)} characters; at most {MAX_MODEL_CHARS} are allowed")
    if own_model and own_model not in chosen:
        chosen.append(own_model)
    if not chosen:
        raise ValueError(f"no model is chosen; tick at least one of {', '.join(wording.MODELS)}")
    sampling, form = SamplingSpec(**settings), form or Form()
    if form.loop:
        loop_length(sampling.seconds, form.bpm)
    return Order(prompt, sampling, tuple(chosen), form=form)
