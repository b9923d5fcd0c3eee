"""The static cache of one generation: every key and value has its place before the first step.

L layers, R rows of the batch, C capacity, S text tokens, D width. Positions lie one after the other, all heads side by
side, so that a step reads what is filled in order. Nothing is allocated while tokens are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Text:
    """What the layers attend to beside the music, computed once a prompt.

    Attributes:
        keys, values: for each layer [R,S,D], each row's own tokens first.
        lengths: int64 [R] on the CPU, tokens of each row; 0 is unconditional.
        mask: bool [R,1,1,S], or None where no row is padded part of the way.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    lengths: Tensor
    mask: Tensor | None


class LayerView:
    """One layer's keys and values up to the positions that are new, whose number is known.

    Args:
        store: [2,R,C,D], the layer's part of the cache.
        first, end: the new positions; what is read ends with them.
    """

    def __init__(self, store: Tensor, first: int, end: int):
        self._new = store[:, :, first:end]
        self.keys, self.values = store[:, :, :end].unbind(0)  # [R,end,D]

    def put(self, keys: Tensor, values: Tensor) -> None:
        """Write the new keys and values [R,n,D]."""
        self._new.copy_(torch.stack((keys, values)))


class StaticView:
    """One layer's keys and values as they are always, with the new position in a tensor: for graphs of fixed shapes.

    Args:
        store: [2,R,C,D], the layer's part of the cache; all of it is read.
        position: int64 [1] on the same device.
    """

    def __init__(self, store: Tensor, position: Tensor):
        self._store, self._position = store, position
        self.keys, self.values = store.unbind(0)  # [R,C,D]

    def put(self, keys: Tensor, values: Tensor) -> None:
        """Write the new keys and values [R,1,D]."""
        self._store.index_copy_(2, self._position, torch.stack((keys, values)).to(self._store.dtype))


class Cache:
    """Keys and values of all layers, with room for `capacity` positions; made by `Decoder.prepare`.

    Attributes:
        length: positions filled so far, those of a text that stands before the music not counted.
        text: what the layers attend to beside it; None in a model whose text stands before the music.
        fast_step: the quick step over this cache, where the device has one: tokens and position to logits.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        width: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        text: Text | None,
    ):
        if capacity < 1:
            raise ValueError(f"a cache needs room for at least 1 position, got {capacity}")
        self.text = text
        self.fast_step: Callable[[Tensor, int], Tensor] | None = None
        self.store = torch.zeros(layers, 2, rows, capacity, width, dtype=dtype, device=device)
        self._filled = self._start = 0

    @property
    def length(self) -> int:
        return self._filled - self._start

    @property
    def filled(self) -> int:
        """Positions filled, those of a text before the music included."""
        return self._filled

    @property
    def capacity(self) -> int:
        """Positions of music that there is room for."""
        return self.store.shape[3] - self._start

    @property
    def bytes(self) -> int:
        """Memory held by the keys and values of the music itself."""
        return self.store.numel() * self.store.element_size()

    def rewind(self, length: int = 0) -> None:
        """Forget the music after `length` positions; the text stays."""
        if not 0 <= length <= self.length:
            raise ValueError(f"the cache holds {self.length} positions, it cannot go back to {length}")
        self._filled = self._start + length

    def keep_as_text(self) -> None:
        """What is filled now is the text before the music: `rewind` keeps it, `length` leaves it out."""
        self._start = self._filled

    def claim(self, positions: int) -> int:
        """Take the next `positions` places; returns the first of them.

        Raises:
            ValueError: the cache has no room left for them.
        """
        end = self._filled + positions
        if end > self.store.shape[3]:
            raise ValueError(f"the cache has room for {self.capacity} positions, {end - self._start} were asked for")
        self._filled = end
        return end - positions

    def views(self, first: int) -> list[LayerView]:
        """Each layer's view, the positions from `first` to the last one filled being new."""
        return [LayerView(store, first, self._filled) for store in self.store]
