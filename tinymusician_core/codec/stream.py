"""Decoding while the codes still come: sound that is final now, and never computed twice.

Every convolution of a decoder keeps the few last inputs that its next outputs need (`Window`) and waits for the inputs
to its right that its newest outputs need; padding is put at the two true ends of the music alone. So whatever the
chunks, each layer sees exactly the numbers that it sees when everything is decoded in one go.
Tensors between layers are [B,t,C], channels last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from . import check_codes

if TYPE_CHECKING:
    from . import Codec

Decode = Callable[[Tensor, bool], Tensor]  # codes [B,K,t] and whether they are the last -> sound [B,C,n]


class CodecStream:
    """Codes in, sound out, in chunks of any size; made by a codec's `stream`. Memory does not grow with the length.

    Args:
        codec: whose codes these are.
        batch: B, the same for every chunk.
        decode: gives the sound that is final once these codes have come; it keeps what it needs of them.
    """

    def __init__(self, codec: Codec, batch: int, decode: Decode):
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ValueError(f"a stream's batch must be a whole number from 1, got {batch!r}")
        self._codec, self._batch, self._decode = codec, batch, decode
        self._finished = False
        self._no_codes: Tensor | None = None

    @torch.inference_mode()
    def push(self, codes: Tensor) -> Tensor:
        """Codes int64 [B,K,t], t >= 1 -> the sound float32 [B,C,n] that is final now; n may be 0.

        Raises:
            ValueError: codes of another shape, batch or type, or outside the codebook; a stream that has finished.
        """
        self._check_open()
        check_codes(self._codec, codes)
        if codes.shape[0] != self._batch:
            raise ValueError(f"this stream takes a batch of {self._batch}, got codes {tuple(codes.shape)}")
        self._no_codes = codes.new_empty(self._batch, self._codec.codebooks, 0)
        return self._decode(codes, False)

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """The rest of the sound, float32 [B,C,n]; the stream is used up.

        Raises:
            ValueError: a stream that has finished.
        """
        self._check_open()
        self._finished = True
        if self._no_codes is None:
            return torch.zeros(self._batch, self._codec.channels, 0)
        return self._decode(self._no_codes, True)

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("this stream has finished; open another with the codec's stream()")


class Window:
    """The inputs of one convolution, [B,t,C], handed on in stretches that begin with the context they need.

    Args:
        context: inputs that an output needs beside one, (kernel - 1) * dilation.
        left, right: padding at the beginning and at the end.
        reflect: pad with the mirrored sound, as EnCodec does, instead of zeros. What is too short to be mirrored
            counts as followed by zeros, as in transformers.
    """

    def __init__(self, context: int, left: int, right: int, reflect: bool = False):
        self._context, self._left, self._right, self._reflect = context, left, right, reflect
        self._needed = max(left, right) + 1 if reflect else 1
        self._held: Tensor | None = None
        self._begun = False

    def push(self, x: Tensor, last: bool) -> Tensor:
        """New inputs [B,t,C], t may be 0 -> [B,n + context,C] for the n outputs that are final now, or [B,0,C]."""
        parts = [x] if self._held is None else [self._held, x]
        missing = 0
        if not self._begun:
            x = _joined(parts)
            if x.shape[1] == 0 or (x.shape[1] < self._needed and not last):
                self._held = x
                return x[:, :0]
            missing = max(0, self._needed - x.shape[1])
            x = torch.cat([x, _zeros(x, missing)], dim=1) if missing else x
            parts = [self._mirror(x[:, 1 : self._left + 1], self._left), x]
            self._begun = True
        if last and self._right:
            x = _joined(parts)
            parts = [x, self._mirror(x[:, -self._right - 1 : -1], self._right)]
        x = _joined(parts)
        return self._take(x[:, : x.shape[1] - missing])

    def ready(self, length: int) -> int:
        """How many outputs are final after `length` inputs, while more will come."""
        return max(0, length + self._left - self._context) if length >= self._needed else 0

    def _mirror(self, edge: Tensor, count: int) -> Tensor:
        return edge.flip(1) if self._reflect else _zeros(edge, count)

    def _take(self, x: Tensor) -> Tensor:
        ready = x.shape[1] - self._context
        if ready <= 0:
            self._held = x
            return x[:, :0]
        self._held = x[:, ready:].clone() if self._context else None
        return x


class OverlapAdd:
    """Pieces of sound that begin `hop` samples apart and are longer than that, added where they overlap."""

    def __init__(self, hop: int):
        self._hop = hop
        self._tail: Tensor | None = None

    def push(self, pieces: Tensor, last: bool) -> Tensor:
        """Pieces [B,n,W] -> the samples [B,m] to which no later piece adds; with the last ones, all that is left."""
        batch, count, width = pieces.shape
        pieces = F.pad(pieces, (0, -width % self._hop)).unflatten(2, (-1, self._hop))
        parts = pieces.shape[2]
        blocks = pieces.new_zeros(batch, count + parts - 1, self._hop)
        for part in range(parts):
            blocks[:, part : part + count] += pieces[:, :, part]
        if self._tail is not None:
            blocks[:, : parts - 1] += self._tail
        final = blocks.shape[1] if last else count
        self._tail = blocks[:, final:].clone()
        return blocks[:, :final].flatten(1)


def lookahead(ready: Callable[[int], int], samples_per_frame: int) -> int:
    """How many frames later than a frame's own codes its sound is final.

    Args:
        ready: how many samples are final after so many frames, while more will come. It grows by
            `samples_per_frame` a frame once it has begun to grow.
    """
    first = 1
    while ready(first) < samples_per_frame:
        first += 1
    behind = first * samples_per_frame - ready(first)
    return max(first - 1, -(-behind // samples_per_frame))


def _joined(parts: list[Tensor]) -> Tensor:
    parts = [part for part in parts if part.shape[1]] or parts[:1]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _zeros(like: Tensor, count: int) -> Tensor:
    return like.new_zeros(like.shape[0], count, *like.shape[2:])
