"""The delay pattern of MusicGen (arXiv 2306.05284, section 2.2): codebook k runs `delays[k]` frames behind the first.

Pure functions on int64 tensors. B batch, K codebooks, T frames; a delayed sequence has T + max(delays) positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pattern(codebooks: int, audio_channels: int = 1) -> tuple[int, ...]:
    """The delay of each codebook: 0, 1, 2, ... for mono, and 0, 0, 1, 1, ... for stereo.

    The codebooks of a stereo model alternate between left and right.

    Raises:
        ValueError: no codebook, more than two channels, or an odd number of codebooks for stereo.
    """
    if codebooks < 1:
        raise ValueError(f"codebooks must be 1 or more, got {codebooks}")
    if audio_channels not in (1, 2) or codebooks % audio_channels:
        raise ValueError(
            f"audio_channels must be 1, or 2 with an even number of codebooks, got {audio_channels} with {codebooks}"
        )
    return tuple(k // audio_channels for k in range(codebooks))


def _check(delays: tuple[int, ...], tensor: Tensor, name: str) -> None:
    if tensor.ndim != 3 or tensor.shape[1] != len(delays):
        raise ValueError(f"{name} must have the shape [batch, {len(delays)}, frames], got {tuple(tensor.shape)}")


def valid(delays: tuple[int, ...], frames: int) -> Tensor:
    """Bool [K, T + max(delays)]: True where a delayed sequence holds a code, False where it holds padding."""
    position = torch.arange(frames + max(delays))
    start = torch.tensor(delays).unsqueeze(1)
    return (position >= start) & (position < start + frames)


def delay(codes: Tensor, delays: tuple[int, ...], pad: int) -> tuple[Tensor, Tensor]:
    """Shift each codebook by its delay.

    Args:
        codes: int64 [B,K,T].
        delays: one delay a codebook, see `pattern`.
        pad: the token that fills what the shift leaves open.

    Returns:
        The delayed codes [B, K, T + max(delays)] and the bool mask [K, T + max(delays)] of what is not padding.
    """
    _check(delays, codes, "codes")
    batch, codebooks, frames = codes.shape
    delayed = codes.new_full((batch, codebooks, frames + max(delays)), pad)
    for k, shift in enumerate(delays):
        delayed[:, k, shift : shift + frames] = codes[:, k]
    return delayed, valid(delays, frames).to(codes.device)


def undelay(delayed: Tensor, delays: tuple[int, ...]) -> Tensor:
    """Take the codes [B,K,T] back out of a delayed sequence [B, K, T + max(delays)]: the way back from `delay`.

    The engine's loop does the same frame by frame, as soon as a frame is whole; this is what it is held to.

    Raises:
        ValueError: the sequence is too short to hold one whole frame.
    """
    _check(delays, delayed, "delayed codes")
    frames = delayed.shape[2] - max(delays)
    if frames < 1:
        raise ValueError(f"a delayed sequence needs more than {max(delays)} positions, got {delayed.shape[2]}")
    return torch.stack([delayed[:, k, shift : shift + frames] for k, shift in enumerate(delays)], dim=1)
