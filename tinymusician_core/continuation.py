"""Going on from a sound of the user's own: what of it the model is given, and the join where the new music begins.

C channels, N samples, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .audio import crossfade, resample
from .codec import Codec
from .records import MIN_SECONDS, ModelError, Waveform

WARM_S = 1.0
FADE_S = 0.05


@dataclass(frozen=True, eq=False)
class Given:
    """A sound to go on from.

    `audio` is float32 [C,N] in the model's rate and channels, `codes` int64 [1,K,T0] those of its last T0 frames; the
    last of them all ends where the sound ends.
    """

    audio: np.ndarray
    codes: Tensor


def check_sound(sound: Waveform) -> Waveform:
    """Return a sound that music can go on from; ValueError for anything but a `Waveform` of `MIN_SECONDS` or more."""
    if not isinstance(sound, Waveform):
        raise ValueError(f"continue_from must be a Waveform, as audio.read gives it, got {type(sound).__name__}")
    if sound.seconds < MIN_SECONDS:
        raise ValueError(f"a sound to go on from must last {MIN_SECONDS:g} s or more, got {sound.seconds:.3g} s")
    return sound


def fit(sound: Waveform, sample_rate_hz: int, channels: int) -> np.ndarray:
    """The sound float32 [C,N] at another rate; where the channels differ they are mixed to one, or that one doubled."""
    audio = sound.audio
    if audio.shape[0] != channels:
        audio = np.repeat(audio.mean(axis=0, keepdims=True), channels, axis=0)
    return resample(Waveform(audio, sound.sample_rate_hz), sample_rate_hz).audio


def encode(codec: Codec, audio: np.ndarray, frames: int, device: torch.device) -> Given:
    """Encode the last `frames` frames of a sound [C,N], or as many whole ones as it has.

    Raises:
        ModelError: the codec has no encoder.
    """
    per_frame = round(codec.sample_rate_hz / codec.frame_rate_hz)
    frames = min(frames, audio.shape[1] // per_frame)
    end = torch.from_numpy(audio[None, :, audio.shape[1] - frames * per_frame :]).to(device)
    try:
        return Given(audio, codec.encode(end))
    except FileNotFoundError as error:
        raise ModelError("this model was saved without its codec's encoder: it cannot go on from a sound") from error


def joined(audio: np.ndarray, chunks: Iterator[np.ndarray], decoded: int, rate: int) -> Iterator[np.ndarray]:
    """A sound, and after it the music that goes on from it, without a click.

    Args:
        audio: the sound [C,N].
        chunks: decoded music [1,C,n], which begins with the sound's own last `decoded` samples.
        decoded: at least `FADE_S` seconds of it. Where the music ends before that, the sound stays as it is.
        rate: samples a second.

    Yields:
        float32 [1,C,n]: the sound up to the join, the join, the music.
    """
    fade = round(FADE_S * rate)
    yield audio[None, :, :-fade]
    begun = np.zeros((1, audio.shape[0], 0), np.float32)
    for chunk in chunks:
        begun = np.concatenate([begun, chunk], axis=2)
        if begun.shape[2] >= decoded:
            break
    if begun.shape[2] < decoded:
        yield audio[None, :, -fade:]
        return
    join = crossfade(audio[:, -fade:], begun[0, :, decoded - fade : decoded]).clip(-1.0, 1.0)
    yield np.concatenate([join[None], begun[:, :, decoded:]], axis=2)
    yield from chunks
