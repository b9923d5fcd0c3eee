"""Whether a long clip stays one piece of music: its key and tempo hold, and it does not die into silence, noise, one
repeated bar or one note.

Six figures, from the sound alone. None of them has a threshold in it that was made up: what counts as too little or
too much is read off real music of the same kind (`limits.py`).

- key: how much better the pitch classes of the last third fit those of the first as they are than transposed, from -2
  to 2. The fit is the correlation of the two thirds' mean constant-Q chroma. A piece that goes to its relative minor
  keeps its scale and fits best as it is; one that moves up a fifth or a semitone does not. On the validation split a
  shift of the last third by a fifth was below 95% of the real music in 98 of 100 pieces, other shifts in all; the
  names of the nearest keys agree in only 90% of the real pieces, and are kept beside it for reading.
- tempo: how much better the rhythm of the last third fits that of the first as it is than slowed down or sped up, from
  -2 to 2. Rhythm is the autocorrelation of the onset strength at lags of 0.15 to 4 s, and the fit is the correlation of
  two of them. Beats are not counted, so there are no octave errors: two counts of the same real
  piece are an octave apart in 1 piece of 20, and a doubled tempo would be hidden among them. Steady music fits best as
  it is; on the validation split every change of tempo by a factor of 0.5, 0.8, 0.9, 1.12, 1.25, 1.5 or 2 was below 95%
  of the real music.
- silence: the share of blocks of 0.4 s that the gates of ITU-R BS.1770-4 and EBU Tech 3342 leave out of a programme:
  below -70 dBFS, or more than 20 dB below the mean power of the others (levels without the standards' weighting).
- noise: spectral flatness in dB (Gray & Markel 1974: geometric over arithmetic mean of the power spectrum, here from
  100 Hz to 8 kHz), the median over the frames of the noisiest third. White noise has -2.5, music -20 and less.
- loop: the autocorrelation of the chroma at lags of 0.4 to 5 s, the largest, in the half that repeats itself more: 1
  for one bar over and over.
- stuck: how alike two moments of the same half are on average, as the cosine of their chroma, in the half where they
  are more alike: 1 for one note or chord that never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from ..audio import resample
from ..domain import TONICS
from ..records import Waveform
from .second_opinion import (
    CHROMA_HOP,
    HOP,
    SAMPLE_RATE_HZ,
    autocorrelation,
    chroma_of,
    key_name,
    nearest_key,
    onsets_of,
)

MIN_S = 20.0
DIGITS = 4
ABSOLUTE_GATE, RELATIVE_GATE = 1e-7, 1e-2
"""Power of full scale (-70 dBFS), and of the mean of all that is above the first (-20 dB)."""
BLOCK, BLOCK_HOP = 8820, 2205
FRAME, FRAME_HOP = 2048, 1024
FLAT_HZ = (100.0, 8000.0)
RHYTHM_S, RHYTHM_LAGS = (0.15, 4.0), 150
STRETCHES = np.geomspace(0.4, 2.5, 111)
SAME_TEMPO, OTHER_TEMPO = 0.06, 0.12
"""Octaves: up to the first a stretch is the same tempo, from the second on it is another."""
LOOP_S = (0.4, 5.0)


@dataclass(frozen=True)
class Steadiness:
    """The six figures of a clip, as the module describes them; None where a part of the clip holds nothing to judge by.

    `first_key` and `last_key` are the nearest keys of the first and the last third, "e flat minor".
    """

    key: float | None
    tempo: float | None
    silence: float
    noise: float | None
    loop: float | None
    stuck: float | None
    first_key: str | None = None
    last_key: str | None = None

    def as_record(self) -> dict:
        """Ready for JSON, rounded to 4 digits."""
        return {name: round(x, DIGITS) if isinstance(x, float) else x for name, x in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping) -> Steadiness:
        """What `as_record` gave, more beside it or not; KeyError for anything else."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})

    @property
    def same_scale(self) -> bool:
        """Whether the two keys are one key, or a major key and its relative minor."""
        return None not in (self.first_key, self.last_key) and _signature(self.first_key) == _signature(self.last_key)


def _signature(key: str) -> int:
    """The tonic of the major key with the same signature, as a pitch class."""
    tonic, _, mode = key.rpartition(" ")
    return (TONICS.index(tonic) + (3 if mode == "minor" else 0)) % 12


def steadiness(audio: np.ndarray, sample_rate_hz: int) -> Steadiness:
    """The figures of a sound: float32 [C,N] in -1..1, at least 20 s, at any rate and level.

    Raises:
        ValueError: less than 20 s, or no sound at all (shape, type, rate, not finite).
    """
    sound = Waveform(audio, sample_rate_hz)
    if sound.seconds < MIN_S:
        raise ValueError(f"steadiness needs at least {MIN_S:g} s of sound, got {sound.seconds:.3g} s")
    samples = resample(Waveform(sound.audio.mean(0, keepdims=True), sample_rate_hz), SAMPLE_RATE_HZ).audio[0]
    peak = float(np.abs(samples).max())
    if peak**2 < ABSOLUTE_GATE:
        return Steadiness(None, None, 1.0, None, None, None)
    chroma = chroma_of(samples / peak)
    first, last = (_key(third) for third in _ends(chroma))
    return Steadiness(
        key=key_likeness(chroma),
        tempo=tempo_likeness(onsets_of(samples / peak), SAMPLE_RATE_HZ / HOP),
        silence=silent_share(samples),
        noise=flatness_db(samples),
        loop=repetition(chroma, SAMPLE_RATE_HZ / CHROMA_HOP),
        stuck=_largest(sameness, chroma),
        first_key=first,
        last_key=last,
    )


def _ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last third of a series [...,T]."""
    third = values.shape[-1] // 3
    return values[..., :third], values[..., -third:]


def _key(chroma: np.ndarray) -> str | None:
    found = nearest_key(chroma.mean(1))
    return None if found is None else key_name(*found)


def key_likeness(chroma: np.ndarray) -> float | None:
    """How much better the pitch classes of the two ends of a chroma [12,T] fit in the same key than in any other.

    Returns:
        The correlation of the mean chroma of the two thirds, less the largest of those with the first transposed by 1
        to 11 semitones. None where an end has no pitch class that stands out.
    """
    first, last = (third.mean(1) for third in _ends(chroma))
    if min(np.ptp(first), np.ptp(last)) < 1e-6:
        return None
    here, *elsewhere = (float(np.corrcoef(np.roll(first, steps), last)[0, 1]) for steps in range(12))
    return here - max(elsewhere)


def tempo_likeness(onsets: np.ndarray, frames_per_s: float) -> float | None:
    """How much better the rhythms of the two ends of an onset series [T] fit at the same tempo than at any other.

    Returns:
        The best fit within 4% of the same tempo, less the best from 9% off to 2.5 times as fast or slow; each fit is
        the mean of the last third stretched on to the first and the first on to the last. None where an end has no
        onsets.
    """
    likenesses = [autocorrelation(third.astype(np.float64)) for third in _ends(onsets)]
    if any(each is None for each in likenesses):
        return None
    first, last = likenesses
    fits = (_fits(first, last, frames_per_s) + _fits(last, first, frames_per_s)[::-1]) / 2
    octaves = np.abs(np.log2(STRETCHES))
    return float(fits[octaves < SAME_TEMPO].max() - fits[octaves > OTHER_TEMPO].max())


def _fits(fixed: np.ndarray, stretched: np.ndarray, frames_per_s: float) -> np.ndarray:
    """Correlation of one autocorrelation with another at each of STRETCHES [S]; 0 where one does not change."""
    lags = np.geomspace(*RHYTHM_S, RHYTHM_LAGS) * frames_per_s
    one = _standard(np.interp(lags, np.arange(len(fixed)), fixed, right=0.0))
    others = np.interp(STRETCHES[:, None] * lags, np.arange(len(stretched)), stretched, right=0.0)
    return _standard(others) @ one


def _standard(values: np.ndarray) -> np.ndarray:
    """Less their mean and of length 1, along the last axis; 0 where they are all the same."""
    centred = values - values.mean(-1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)


def silent_share(samples: np.ndarray) -> float:
    """The share of the blocks of sound [N] at SAMPLE_RATE_HZ that both gates leave out."""
    return float(np.mean(~_audible(_power(_frames(samples, BLOCK, BLOCK_HOP)))))


def _frames(samples: np.ndarray, length: int, hop: int) -> np.ndarray:
    """Overlapping parts [T,length] of sound [N], one every `hop` samples, all wholly inside."""
    return np.lib.stride_tricks.sliding_window_view(samples, length)[::hop]


def _power(frames: np.ndarray) -> np.ndarray:
    return np.mean(frames.astype(np.float64) ** 2, axis=1)


def _audible(power: np.ndarray) -> np.ndarray:
    """Which of the powers [T] pass both gates."""
    loud = power >= ABSOLUTE_GATE
    return loud & (power >= RELATIVE_GATE * power[loud].mean()) if loud.any() else loud


def flatness_db(samples: np.ndarray) -> float | None:
    """Spectral flatness of the noisiest third of sound [N] at SAMPLE_RATE_HZ, the median of its audible frames.

    None where no third holds an audible frame.
    """
    frames = _frames(samples, FRAME, FRAME_HOP)
    audible = _audible(_power(frames))
    hz = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE_HZ)
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=1)) ** 2
    band = np.maximum(spectrum[:, (hz >= FLAT_HZ[0]) & (hz <= FLAT_HZ[1])], 1e-12)
    flat = 10 * (np.log10(band).mean(1) - np.log10(band.mean(1)))
    thirds = zip(np.array_split(flat, 3), np.array_split(audible, 3), strict=True)
    return max((float(np.median(part[heard])) for part, heard in thirds if heard.any()), default=None)


def _largest(figure: Callable[[np.ndarray], float | None], chroma: np.ndarray) -> float | None:
    """The larger figure of the two halves of a chroma [12,T]; None where neither has one."""
    half = chroma.shape[1] // 2
    found = [figure(part) for part in (chroma[:, :half], chroma[:, half:])]
    return max((each for each in found if each is not None), default=None)


def repetition(chroma: np.ndarray, frames_per_s: float) -> float | None:
    """How exactly the half of a chroma [12,T] that repeats itself more does so within 5 s; None where it is still."""
    lags = range(round(LOOP_S[0] * frames_per_s), round(LOOP_S[1] * frames_per_s) + 1)

    def best(part: np.ndarray) -> float | None:
        found = [_repeated(_unit(part), lag) for lag in lags if lag < part.shape[1] // 2]
        return max((each for each in found if each is not None), default=None)

    return _largest(best, chroma)


def _unit(chroma: np.ndarray) -> np.ndarray:
    """Each frame of [12,T] with length 1; silent ones stay 0."""
    return chroma / np.maximum(np.linalg.norm(chroma, axis=0), 1e-9)


def _repeated(frames: np.ndarray, lag: int) -> float | None:
    """Correlation about the mean of [12,T] with itself `lag` frames later; None where nothing changes."""
    centred = frames - frames.mean(1, keepdims=True)
    early, late = centred[:, :-lag], centred[:, lag:]
    norm = float(np.sqrt((early**2).sum() * (late**2).sum()))
    return float((early * late).sum()) / norm if norm > 1e-6 * frames.size else None


def sameness(chroma: np.ndarray) -> float | None:
    """The mean cosine of all pairs of frames that sound in a chroma [12,T]; None where none does.

    It is the squared length of the mean of the frames, each of length 1.
    """
    frames = _unit(chroma[:, chroma.max(0) > 0])
    return float((frames.mean(1) ** 2).sum()) if frames.shape[1] else None
