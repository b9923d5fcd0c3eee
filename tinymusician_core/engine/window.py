"""What the decoder sees of the music: a window of delayed columns that slides along a piece of any length.

B batch, K codebooks, T frames. A column [B,K] is what the decoder reads at one position; the start column, all
padding, stands at position 0, and the delayed codes (see `delay.py`) follow it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def context_of(window: int) -> tuple[int, int]:
    """How many frames of the opening, and of the end of the last window, a later window begins with.

    A twelfth of the longest window each, 2.5 s of MusicGen's 30. The opening holds key, tempo and level where the most
    recent frames alone let a weak model drift off into a drone or silence. Of twelve pieces of 120 s from the demo
    student the one that held least fell silent for 28 s where a sixth of the window, all of it recent, was kept, for
    57 s with a twelfth from the opening and an eighth recent, and for 7 s with this.
    """
    return window // 12, window // 12


def size_of(frames: int, window: int | None) -> int:
    """How many frames a window holds in a piece of so many, where the decoder can see `window` of them at most.

    A piece that fits is made in one window. A longer one slides whenever two thirds of the longest window are full:
    attention reads what the window holds, 5/12 of the longest one on average, and for each new frame a sixth of an old
    one is read again. A third of the longest window kept until all of it was full cost 1.2 times the first 10 s.
    """
    return frames if window is None or frames <= window else max(1, window * 2 // 3)


def kept_of(given: int, new: int, window: int | None) -> int:
    """How many of `given` frames the first window begins with, `new` frames being to come.

    As many as leave room for the new ones in the longest window, and no fewer than a later window begins with.
    """
    return given if window is None else min(given, max(window - new, sum(context_of(window))))


class Window:
    """The columns of the present window. It holds as many as the decoder's cache has room for, and one to be read.

    Attributes:
        length: columns so far, the start column included.
        room: columns that the decoder can read before the window must slide.
    """

    def __init__(self, given: Tensor, delays: tuple[int, ...], pad: int, frames: int, opening: int, recent: int):
        """Begin with the codes `given` int64 [B,K,T0].

        `frames` fit in; sliding keeps `opening` of the first ones, and `recent` of the last that are whole.
        """
        batch, codebooks, count = given.shape
        self._longest, self._opening = max(delays), opening
        self._kept = 1 + opening + recent + self._longest
        self.room = frames + self._longest
        self._columns = given.new_full((batch, codebooks, self.room + 1), pad)
        for k, shift in enumerate(delays):
            self._columns[:, k, 1 + shift : 1 + count] = given[:, k, : max(0, count - shift)]
        self.length = 1 + count
        self._books = torch.arange(codebooks, device=given.device)
        shifts = torch.tensor(delays, device=given.device)
        self._newest = shifts - self._longest - 1
        head = torch.arange(1 + opening + self._longest, device=given.device)
        self._stays = head <= opening + shifts.unsqueeze(1)
        self._first: Tensor | None = None

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

    def slide(self, over: Tensor | None = None) -> int:
        """Make the opening and the end of this window the beginning of the next, as if nothing had been between.

        The last columns move up to the opening: those of `recent` whole frames, and with them, delayed as they stand,
        the codes of the frames that are not whole yet. The start column and the opening's codes stay where they are.

        Args:
            over: bool [B], rows whose music has come to its end. They are taken up where the opening led on.

        Returns:
            How many columns are what they were; the decoder has to read those after them, one at least.
        """
        if self._first is None:
            self._first = self._columns[:, :, : self._kept].clone()
        kept = self._columns[:, :, self.length - self._kept : self.length].clone()
        head = self._stays.shape[1]
        kept[:, :, :head] = torch.where(self._stays, self._first[:, :, :head], kept[:, :, :head])
        if over is not None:
            kept = torch.where(over.to(kept.device)[:, None, None], self._first, kept)
        self._columns[:, :, : self._kept] = kept
        self.length = self._kept
        return min(1 + self._opening, self._kept - 1)
