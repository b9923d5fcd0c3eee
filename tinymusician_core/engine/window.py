"""What the decoder sees of the music: a window of delayed columns that slides along a piece of any length.

B batch, K codebooks, T frames. A column [B,K] is what the decoder reads at one position; the start column, all
padding, stands at position 0, and the delayed codes (see `delay.py`) follow it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def context_of(window: int) -> int:
    """How many frames of a full window of `window` frames the next one begins with: a third.

    The next window costs the reading of its context once, and its attention runs over more positions the longer the
    context is; the music holds together better the more of it there is.
    """
    return window // 3


def kept_of(given: int, new: int, window: int | None) -> int:
    """How many of `given` frames the first window begins with, `new` frames being to come.

    All of them where everything fits into one window; else as many as leave room for the new ones, and no fewer than
    any later window begins with.
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
