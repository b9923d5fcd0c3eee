"""The static cache of one generation: every key and value has its place before the first step.

L layers, B batch, H heads, S text tokens, d width of one head. Nothing is allocated while tokens are made.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LayerView(NamedTuple):
    """What one layer needs for `n` new positions: where to write, what is filled, and the text's keys and values."""

    write: Tensor  # [2,B,H,n,d], a view into the cache
    keys: Tensor  # [B,H,filled,d]
    values: Tensor  # [B,H,filled,d]
    cross_keys: Tensor  # [B,H,S,d]
    cross_values: Tensor  # [B,H,S,d]


class Cache:
    """Keys and values of all layers, with room for `capacity` positions; made by `Decoder.prepare`.

    Attributes:
        length: positions filled so far.
        cross_mask: bool [B,1,1,S], or None where no row of text is padded part of the way.
    """

    def __init__(self, cross: list[tuple[Tensor, Tensor]], cross_mask: Tensor | None, capacity: int):
        if capacity < 1:
            raise ValueError(f"a cache needs room for at least 1 position, got {capacity}")
        keys = cross[0][0]
        batch, heads, _, width = keys.shape
        self.capacity = capacity
        self.length = 0
        self.cross_mask = cross_mask
        self._cross = cross
        self._layers = len(cross)
        self._store = torch.zeros(2 * self._layers, batch, heads, capacity, width, dtype=keys.dtype, device=keys.device)
        self._pairs = self._store.view(self._layers, 2, batch, heads, capacity, width)

    @property
    def bytes(self) -> int:
        """Memory held by the keys and values of the music itself."""
        return self._store.numel() * self._store.element_size()

    def take(self, positions: int) -> list[LayerView]:
        """Claim the next `positions` places, and return each layer's views of them.

        Raises:
            ValueError: the cache has no room left for them.
        """
        end = self.length + positions
        if end > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} positions, {end} were asked for")
        write = self._pairs.narrow(4, self.length, positions).unbind(0)
        filled = self._store.narrow(3, 0, end).unbind(0)
        self.length = end
        return [
            LayerView(write[i], filled[2 * i], filled[2 * i + 1], *self._cross[i]) for i in range(self._layers)
        ]
