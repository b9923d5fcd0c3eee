"""A second opinion on tempo and key, from librosa: nothing in it was trained, a few settings were chosen by hand.

Tempo: the onset strength of librosa (spectral flux after Böck & Widmer 2013, DAFx), its autocorrelation, and one
question put to it for every tempo and for both kinds of time: how alike is the music to itself after half a beat and 1,
2, 3 and 4 beats (simple time), or after a third and two thirds of a beat and 1, 2 and 3 (compound time)?

An autocorrelation repeats at every multiple and often at fractions of the beat: the same music can be counted at half
or twice the tempo, and listening alone does not settle which is meant. What decides between such octaves here is a
prior, as in Ellis (2007), "Beat tracking by dynamic programming": log-normal, with the mean and spread of the tempi in
the training split, one for each kind of time. Music unlike the family's may be counted an octave off, and its class be
wrong with it; how often that happens to held-out music is to be printed beside every figure that rests on this.

Key: constant-Q chroma over the clip, correlated with the 24 rotations of a pair of key profiles, as Krumhansl and
Schmuckler do. The profiles are those of Albrecht & Shanahan (2013), "The use of large corpora to train a new type of
key-finding algorithm", Music Perception 31(1). Tuning is taken to be 440 Hz.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..audio import resample
from ..domain import MODES, TONICS
from ..records import Waveform
from .tempi import tempo_class

MIN_S = 1.0
SAMPLE_RATE_HZ, HOP, CHROMA_HOP = 22050, 256, 2048
BPM = np.geomspace(45.0, 210.0, 300)
BEATS_LATER = {False: (1 / 2, 1, 2, 3, 4), True: (1 / 3, 2 / 3, 1, 2, 3)}
"""Compound time or not -> the lags, in beats, after which the music is compared with itself."""


@dataclass(frozen=True)
class Prior:
    """Of the tempi in one kind of time: mean (BPM) and spread (octaves) of a log-normal, and how common the time is."""

    bpm: float
    octaves: float
    share: float

    def log(self, bpm: np.ndarray) -> np.ndarray:
        return -0.5 * (np.log2(bpm / self.bpm) / self.octaves) ** 2 + math.log(self.share / self.octaves)


PRIORS = {False: Prior(115.0, 0.38, 0.72), True: Prior(95.0, 0.39, 0.28)}
LIKENESS_WEIGHT = 30.0
"""What a likeness of 1 weighs against the prior, in nats; chosen on the validation split."""
PROFILES = {
    "major": (0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081),
    "minor": (0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052),
}


@dataclass(frozen=True)
class Opinion:
    """What librosa makes of a sound; None where it holds no beat or no pitch to judge by.

    Attributes:
        bpm: beats a minute, of dotted quarters in compound time.
        compound: whether the beats fall into threes.
        tempo: slow, moderate or fast.
        tonic: pitch class, 0 for C.
        mode: major or minor.
    """

    bpm: float | None
    compound: bool | None
    tempo: str | None
    tonic: int | None
    mode: str | None

    @property
    def key(self) -> str | None:
        """As captions write it: "e flat minor"."""
        return None if self.tonic is None else key_name(self.tonic, self.mode)

    @property
    def heads(self) -> tuple[str, ...]:
        """What `best` can be asked for."""
        return ("tempo", "mode")

    def best(self, head: str) -> str | None:
        """The tempo or the mode, asked for as a listener is.

        Raises:
            ValueError: anything else.
        """
        if head not in self.heads:
            raise ValueError(f"the second opinion is on {' and '.join(self.heads)}, got {head!r}")
        return getattr(self, head)


def second_opinion(audio: np.ndarray, sample_rate_hz: int) -> Opinion:
    """Judge a sound: float32 [C,N] in -1..1, at least 1 s, at any rate and level.

    Raises:
        ValueError: less than 1 s, or no sound at all (shape, type, rate, not finite).
    """
    sound = Waveform(audio, sample_rate_hz)
    if sound.seconds < MIN_S:
        raise ValueError(f"a second opinion needs at least {MIN_S:g} s of sound, got {sound.seconds:.3g} s")
    mono = sound.audio.mean(0, keepdims=True)
    peak = float(np.abs(mono).max())
    if peak == 0.0:
        return Opinion(None, None, None, None, None)
    samples = resample(Waveform(mono / peak, sample_rate_hz), SAMPLE_RATE_HZ).audio[0]
    bpm, compound = beat_of(samples) or (None, None)
    tonic, mode = key_of(samples) or (None, None)
    return Opinion(bpm, compound, None if bpm is None else tempo_class(bpm, compound), tonic, mode)


def key_name(tonic: int, mode: str) -> str:
    """As captions write it: "e flat minor"."""
    return f"{TONICS[tonic]} {mode}"


def beat_of(samples: np.ndarray) -> tuple[float, bool] | None:
    """Beats a minute and whether time is compound, of sound float32 [N] at SAMPLE_RATE_HZ; None without onsets."""
    likeness = autocorrelation(onsets_of(samples))
    return None if likeness is None else count_beats(likeness, 60 * SAMPLE_RATE_HZ / HOP)


def onsets_of(samples: np.ndarray) -> np.ndarray:
    """Onset strength every HOP samples, float32 [T], of sound float32 [N] at SAMPLE_RATE_HZ."""
    import librosa

    return librosa.onset.onset_strength(y=samples, sr=SAMPLE_RATE_HZ, hop_length=HOP, n_fft=1024, lag=2)


def autocorrelation(values: np.ndarray) -> np.ndarray | None:
    """Of a series [N] about its mean, from lag 0, where it is 1; None for a series that never changes."""
    import librosa

    centred = values - values.mean()
    found = librosa.autocorrelate(centred)
    return found / found[0] if found[0] > 1e-9 * len(values) else None


def count_beats(likeness: np.ndarray, frames_per_minute: float) -> tuple[float, bool]:
    """The likeliest of BPM in either kind of time, from the autocorrelation of the onsets by lag in frames [N]."""
    beat, lags = frames_per_minute / BPM, np.arange(len(likeness))
    scores = {}
    for compound, multiples in BEATS_LATER.items():
        alike = np.mean([np.interp(m * beat, lags, likeness, right=0.0) for m in multiples], axis=0)
        scores[compound] = LIKENESS_WEIGHT * alike + PRIORS[compound].log(BPM)
    compound = bool(scores[True].max() > scores[False].max())
    return round(float(BPM[scores[compound].argmax()]), 1), compound


def key_of(samples: np.ndarray) -> tuple[int, str] | None:
    """Tonic (pitch class) and mode of sound float32 [N] at SAMPLE_RATE_HZ; None where no pitch class stands out."""
    return nearest_key(chroma_of(samples).mean(1))


def chroma_of(samples: np.ndarray) -> np.ndarray:
    """Weights of the pitch classes from C up, every CHROMA_HOP samples, float32 [12,T], the largest of a frame 1.

    Args:
        samples: sound float32 [N] at SAMPLE_RATE_HZ; less than 4 s is heard as if silence followed.
    """
    import librosa

    # The lowest of the constant-Q filters is longer than a second.
    padded = np.pad(samples, (0, max(0, 4 * SAMPLE_RATE_HZ - len(samples))))
    return librosa.feature.chroma_cqt(y=padded, sr=SAMPLE_RATE_HZ, hop_length=CHROMA_HOP, tuning=0.0)


def nearest_key(weights: np.ndarray) -> tuple[int, str] | None:
    """The key whose profile correlates best with the weights of the pitch classes [12]; None where all weigh alike."""
    if np.ptp(weights) < 1e-6:
        return None
    keys = [(tonic, mode) for mode in MODES for tonic in range(12)]
    correlations = [np.corrcoef(weights, np.roll(PROFILES[mode], tonic))[0, 1] for tonic, mode in keys]
    return keys[int(np.argmax(correlations))]
