"""Codecs: codes [B,K,T] <-> sound [B,C,N]. `encodec` is that of MusicGen, `spectral` that of the demo family.

Both decode whole or in chunks (`stream`), with the same result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from .stream import CodecStream


@runtime_checkable
class Codec(Protocol):
    """What the pipeline asks of a codec. N = T * sample_rate_hz / frame_rate_hz.

    Attributes:
        lookahead_frames: how many frames later than a frame's codes its sound is final: once t frames have been pushed
            to a stream, the sound of at least t - lookahead_frames frames has come out.
    """

    sample_rate_hz: int
    frame_rate_hz: float
    codebooks: int
    codebook_size: int
    channels: int
    lookahead_frames: int

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B,K,T] -> sound float32 [B,C,N]."""

    def stream(self, batch: int = 1) -> CodecStream:
        """A decode of codes that come in chunks: all that it gives, joined, equals `decode` of the whole."""

    def encode(self, audio: Tensor) -> Tensor:
        """Sound float32 [B,C,N] -> codes int64 [B,K,T]."""


def check_codes(codec: Codec, codes: Tensor) -> None:
    """ValueError unless codes are whole numbers [B,K,T], at least one frame, every entry in its codebook."""
    if codes.ndim != 3 or codes.shape[1] != codec.codebooks or 0 in codes.shape:
        raise ValueError(f"codes must be [batch, {codec.codebooks}, frames], got {tuple(codes.shape)}")
    if codes.is_floating_point():
        raise ValueError(f"codes must be whole numbers, got {codes.dtype}")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codec.codebook_size:
        raise ValueError(f"codes must lie between 0 and {codec.codebook_size - 1}, got {low} to {high}")


def check_audio(codec: Codec, audio: Tensor) -> None:
    """ValueError unless the sound is [B,C,N] with this codec's channels and at least one sample."""
    if audio.ndim != 3 or audio.shape[1] != codec.channels or 0 in audio.shape:
        raise ValueError(f"audio must be [batch, {codec.channels}, samples], got {tuple(audio.shape)}")
