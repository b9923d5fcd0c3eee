"""The records that travel between the parts: validated when made, frozen afterwards, and light to import.

Units stand in the names: `_s` seconds, `_ms` milliseconds, `_bytes`, `_hz`. Shapes: C channels, N samples,
K codebooks, T frames. Nothing here imports torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .checks import number as _number
from .checks import whole as _whole
from .figures import Figures as Figures
from .figures import Spread as Spread

MIN_SECONDS, MAX_SECONDS = 0.5, 600.0
MAX_PROMPT_CHARS = 1000
MAX_SEED = 2**32 - 1
MIN_CFG, MAX_CFG = 1.0, 20.0
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 5.0
MAX_TOP_K = 100_000
STAGES = ("loading", "warm-up", "text", "lm", "codec")


class ModelError(RuntimeError):
    """A model is there but cannot be used: broken, changed or unreachable files. The message is one sentence."""


class Cancelled(RuntimeError):
    """The caller asked running work to stop.

    Attributes:
        clip: what was made until then, a shorter `Clip` (a batch: a list of them); None where nothing was.
    """

    def __init__(self, message: str, clip: Clip | list[Clip] | None = None):
        super().__init__(message)
        self.clip = clip


def check_prompt(text) -> str:
    """Return the prompt without surrounding space.

    Raises:
        ValueError: not a text, nothing but space, or longer than `MAX_PROMPT_CHARS`.
    """
    if not isinstance(text, str):
        raise ValueError(f"prompt must be a text, got {type(text).__name__}")
    text = text.strip()
    if not text:
        raise ValueError(f"prompt is empty; between 1 and {MAX_PROMPT_CHARS} characters are allowed")
    if len(text) > MAX_PROMPT_CHARS:
        raise ValueError(f"prompt has {len(text)} characters; at most {MAX_PROMPT_CHARS} are allowed")
    return text


def check_seconds(value) -> float:
    """Return the length of a clip in seconds; ValueError outside `MIN_SECONDS` to `MAX_SECONDS`."""
    return _number("seconds", value, MIN_SECONDS, MAX_SECONDS)


def check_seed(value) -> int:
    """Return the seed; ValueError unless it is a whole number from 0 to `MAX_SEED`."""
    return _whole("seed", value, 0, MAX_SEED)


def check_cfg(value) -> float:
    """Return the guidance scale; 1 turns guidance off. ValueError outside `MIN_CFG` to `MAX_CFG`."""
    return _number("cfg", value, MIN_CFG, MAX_CFG, " (1 turns guidance off)")


def check_temperature(value) -> float:
    """Return the sampling temperature; ValueError outside `MIN_TEMPERATURE` to `MAX_TEMPERATURE`."""
    return _number("temperature", value, MIN_TEMPERATURE, MAX_TEMPERATURE)


def check_top_k(value) -> int:
    """Return how many of the likeliest tokens may be drawn; 0 allows all. ValueError unless whole, 0 or more."""
    return _whole("top_k", value, 0, MAX_TOP_K, " (0 allows all)")


def check_top_p(value) -> float:
    """Return the probability mass that may be drawn from; 0 or 1 allow all. ValueError outside 0 to 1."""
    return _number("top_p", value, 0.0, 1.0, " (0 allows all)")


@dataclass(frozen=True)
class SamplingSpec:
    """How a clip is drawn. The random state comes from `seed` alone; `greedy` takes the likeliest token instead.

    A `cfg` or `top_p` of None is what the model was made for; a clip's own record has the number.
    """

    seconds: float = 8.0
    seed: int = 0
    cfg: float | None = None
    temperature: float = 1.0
    top_k: int = 250
    top_p: float | None = None
    greedy: bool = False

    def __post_init__(self):
        checks = {
            "seconds": check_seconds,
            "seed": check_seed,
            **({} if self.cfg is None else {"cfg": check_cfg}),
            "temperature": check_temperature,
            "top_k": check_top_k,
            **({} if self.top_p is None else {"top_p": check_top_p}),
        }
        for name, check in checks.items():
            object.__setattr__(self, name, check(getattr(self, name)))
        if not isinstance(self.greedy, bool | np.bool_):
            raise ValueError(f"greedy must be true or false, got {self.greedy!r}")
        object.__setattr__(self, "greedy", bool(self.greedy))

    def as_dict(self) -> dict:
        """Every setting by name, ready for JSON."""
        return asdict(self)


def _check_audio(audio, sample_rate_hz) -> tuple[np.ndarray, int]:
    rate = _whole("sample_rate_hz", sample_rate_hz, 1, 768_000)
    array = np.asarray(audio)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"audio must have the shape [channels, samples] with at least one of each, got {array.shape}")
    array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise ValueError("audio holds samples that are not finite numbers; only -1 to 1 is allowed")
    peak = float(np.abs(array).max())
    if peak > 1.0:
        raise ValueError(f"audio peaks at {peak:.4g}; only -1 to 1 is allowed")
    return array, rate


@dataclass(frozen=True, eq=False)
class Waveform:
    """Sound: float32 [C,N] in -1..1 at `sample_rate_hz`."""

    audio: np.ndarray
    sample_rate_hz: int

    def __post_init__(self):
        audio, rate = _check_audio(self.audio, self.sample_rate_hz)
        object.__setattr__(self, "audio", audio)
        object.__setattr__(self, "sample_rate_hz", rate)

    @property
    def seconds(self) -> float:
        return self.audio.shape[1] / self.sample_rate_hz


@dataclass(frozen=True)
class Timing:
    """Wall time of one generation, in seconds; `steps` counts decoder steps, `first_sound_s` runs from the call."""

    text_s: float
    lm_s: float
    codec_s: float
    first_sound_s: float
    total_s: float
    steps: int

    def __post_init__(self):
        for name in ("text_s", "lm_s", "codec_s", "first_sound_s", "total_s"):
            object.__setattr__(self, name, _number(name, getattr(self, name), 0.0, math.inf))
        object.__setattr__(self, "steps", _whole("steps", self.steps, 0, 10**9))

    @property
    def ms_per_step(self) -> float | None:
        """Mean milliseconds of one decoder step; None when no step ran."""
        return 1000.0 * self.lm_s / self.steps if self.steps else None

    def x_realtime(self, audio_s: float) -> float | None:
        """Seconds of audio made in a second of waiting (bigger is better); None when nothing was timed."""
        return audio_s / self.total_s if self.total_s > 0 else None


@dataclass(frozen=True, eq=False)
class Clip:
    """A generated piece: float32 audio [C,N], the int64 codes [K,T] that it was decoded from, and how it was made."""

    audio: np.ndarray
    sample_rate_hz: int
    codes: np.ndarray
    timing: Timing
    prompt: str
    sampling: SamplingSpec
    model: str
    model_hash: str

    def __post_init__(self):
        audio, rate = _check_audio(self.audio, self.sample_rate_hz)
        object.__setattr__(self, "audio", audio)
        object.__setattr__(self, "sample_rate_hz", rate)
        codes = np.asarray(self.codes)
        if codes.ndim != 2 or codes.dtype.kind not in "iu":
            raise ValueError(f"codes must be whole numbers [codebooks, frames], got {codes.dtype} {codes.shape}")
        object.__setattr__(self, "codes", codes.astype(np.int64))
        object.__setattr__(self, "prompt", check_prompt(self.prompt))

    @property
    def seconds(self) -> float:
        return self.audio.shape[1] / self.sample_rate_hz

    @property
    def waveform(self) -> Waveform:
        return Waveform(self.audio, self.sample_rate_hz)

    def save(self, path) -> Path:
        """Write a 16-bit WAV at the model's own rate, with the prompt, model, hash, seed and settings in its tags.

        The same clip always gives the same bytes. The file appears whole or not at all.

        Raises:
            ValueError: the path does not end in .wav.
            OSError: the folder is missing, or the disk is full.
        """
        from .audio import clip_tags, write_wav

        return write_wav(path, self.waveform, clip_tags(self))


@dataclass(frozen=True)
class Progress:
    """One step of long work: `done` of `total` in a stage that has run for `elapsed_s` seconds."""

    stage: str
    done: int
    total: int
    elapsed_s: float

    def __post_init__(self):
        if self.stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        if not 0 <= self.done <= self.total:
            raise ValueError(f"done must lie between 0 and total, got {self.done} of {self.total}")

    @property
    def eta_s(self) -> float | None:
        """Seconds that this stage still needs at its present pace; None before the first step is done."""
        if self.done == 0:
            return None
        return self.elapsed_s * (self.total - self.done) / self.done
