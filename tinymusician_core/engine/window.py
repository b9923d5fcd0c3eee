"""What the decoder sees of the music: a window of delayed columns that slides along a piece of any length.

B batch, K codebooks, T frames. A column [B,K] is what the decoder reads at one position; the start column, all
padding, stands at position 0, and the delayed codes (see `delay.py`) follow it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def context_of(window: int) -> int:
    """How many frames each later window begins with: a sixth of the longest window, 5 s of MusicGen's 30."""
    return window // 6


def size_of(frames: int, window: int | None) -> int:
    """How many frames a window holds in a piece of so many, where the decoder can see `window` of them at most.

    A piece that fits is made in one window. A longer one slides on whenever two thirds of the longest window are
    full, and so every half of it. Those two fractions are what a later frame costs: attention reads what the window
    holds, on average 5/12 of the longest one, and each frame reads a third of an old one again. Against the first
    10 s that is 1.10 to 1.15 times the time; a context of a third, kept until the window is full, cost 1.2 times.
    """
    return frames if window is None or frames <= window else max(1, window * 2 // 3)


def kept_of(given: int, new: int, window: int | None) -> int:
    """How many of `given` frames the first window begins with, `new` frames being to come.

    As many as leave room for the new ones in the longest window, and no fewer than a later window begins with.
    """
    return given if window is None else min(given, max(window - new, context_of(window)))


class Window:
    """The columns of the present window. It holds as many as the decoder's cache has room for, and one to be read.

    Attributes:
        length: columns so far, the start column included.
        room: columns that the decoder can read before the window must slide.
    """

    def __init__(self, given: Tensor, delays: tuple[int, ...], pad: int, frames: int, context: int):
        """Begin with the codes `given` int64 [B,K,T0]; `frames` fit in, and sliding keeps `context` of them whole."""
        batch, codebooks, count = given.shape
        self._longest, self._pad, self._context = max(delays), pad, context
        self.room = frames + self._longest
        self._columns = given.new_full((batch, codebooks, self.room + 1), pad)
        for k, shift in enumerate(delays):
            self._columns[:, k, 1 + shift : 1 + count] = given[:, k, : max(0, count - shift)]
        self.length = 1 + count
        self._books = torch.arange(codebooks, device=given.device)
        shifts = torch.tensor(delays, device=given.device)
        self._newest = shifts - self._longest - 1
        self._before = torch.arange(1 + self._longest, device=given.device) <= shifts.unsqueeze(1)

    def unread(self, read: int) -> Tensor:
        """The columns [B,K,n] after the first `read` ones."""
        return self._columns[:, :, read : self.length]

    def write(self, column: Tensor) -> None:
        """Append a column [B,K]."""
        self._columns[:, :, self.length] = column
        self.length += 1

    def newest_frame(self) -> Tensor:
        """The codes [B,K] of the frame whose last codebook stands in the last column."""
        return self._columns[:, self._books, self._newest + self.length]

    def slide(self) -> None:
        """Make the end of this window the beginning of the next, as if its first frame were the first of all.

        The last columns move to the front: those of `context` whole frames, and with them, delayed as they stand, the
        codes of the frames that are not whole yet. What belongs to frames before the first becomes padding.
        """
        kept = 1 + self._context + self._longest
        self._columns[:, :, :kept] = self._columns[:, :, self.length - kept : self.length].clone()
        self._columns[:, :, : 1 + self._longest].masked_fill_(self._before, self._pad)
        self.length = kept
