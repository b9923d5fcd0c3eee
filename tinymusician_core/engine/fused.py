"""One step on a CPU in float32: products by torch or by a compiled kernel, everything between them compiled.

The slow twin is `Decoder.prefill` over one position. R rows, K codebooks, V codebook size, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Cache, Text
from .kernels import add_normalise, attention, gelu, remember
from .products import as_array, bind

if TYPE_CHECKING:
    from .decoder import Decoder, DecoderLayer

NOTHING = np.empty((0, 0), np.float32)


class FusedStep:
    """Steps of one generation: `step(tokens int64 [R,K], position)` gives logits float32 [R,K,V] and fills the cache.

    All buffers that a step needs are made here, once.
    """

    def __init__(self, decoder: Decoder, cache: Cache, prompts: int):
        config, rows = decoder.config, cache.store.shape[2]
        self._embeddings, self._positions = list(decoder.embeddings), decoder.positions
        self._shape = (rows, config.codebooks, config.entries)
        buffers = _Buffers(rows, config.width, config.ffn)
        self._stream = buffers.stream
        self._x, self._h = as_array(buffers.stream), as_array(buffers.normed)
        layers = [_Layer(layer, cache, i, buffers, prompts) for i, layer in enumerate(decoder.layers)]
        self._first_norm = layers[0].first_norm
        next_norms = [layer.first_norm for layer in layers[1:]] + [_norm(decoder.norm)]
        self._layers = list(zip(layers, next_norms, strict=True))
        self._heads = bind(decoder.heads, buffers.normed, prompts)

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        self._embed(tokens, position)
        add_normalise(self._x, NOTHING, *self._first_norm, self._h)
        for layer, next_norm in self._layers:
            layer.step(position, next_norm)
        return torch.from_numpy(self._heads()).view(self._shape).clone()

    def _embed(self, tokens: Tensor, position: int) -> None:
        columns = tokens.unbind(1)
        first, *others = self._embeddings
        torch.add(first(columns[0]), self._positions[position], out=self._stream)
        for embedding, column in zip(others, columns[1:], strict=True):
            self._stream += embedding(column)


class _Buffers:
    """What layers hand on: the residual stream, its norm, what attention mixed [R,D], and the feed-forward's [R,F]."""

    def __init__(self, rows: int, width: int, ffn: int):
        self.stream, self.normed, self.mixed = (torch.zeros(rows, width) for _ in range(3))
        self.wide = torch.zeros(rows, ffn)


class _Layer:
    """A decoder layer's products, bound to their buffers, and the arrays that its kernels read."""

    def __init__(self, layer: DecoderLayer, cache: Cache, index: int, buffers: _Buffers, prompts: int):
        rows = cache.store.shape[2]
        normed, mixed, wide = buffers.normed, buffers.mixed, buffers.wide
        self._x, self._h, self._m = as_array(buffers.stream), as_array(normed), as_array(mixed)
        self._w = as_array(wide)
        self.first_norm, self._ffn_norm = _norm(layer.self_norm), _norm(layer.ffn_norm)
        self._qkv, self._out = bind(layer.qkv, normed, prompts), bind(layer.out, mixed, prompts)
        self._fc1, self._fc2 = bind(layer.fc1, normed, prompts), bind(layer.fc2, wide, prompts)
        self._activate, self._attend = _activation(layer), attention(layer.head_width)
        self._keys, self._values = (as_array(part) for part in cache.store[index])
        self._filled = np.zeros(rows, np.int64)
        self._scores = np.zeros((layer.heads, cache.store.shape[3]), np.float32)
        self._reading = 0
        if cache.text is not None:
            self._read(layer, cache.text, index, buffers, prompts)

    def _read(self, layer: DecoderLayer, text: Text, index: int, buffers: _Buffers, prompts: int) -> None:
        """Guidance puts the rows without text last: there is nothing for them to attend to, and they are left out."""
        self._lengths = text.lengths.numpy()
        self._reading = int(np.flatnonzero(self._lengths)[-1]) + 1 if self._lengths.any() else 0
        self._cross_norm = _norm(layer.cross_norm)
        self._cross_q = bind(layer.cross_q, buffers.normed[: self._reading], prompts)
        self._cross_out = bind(layer.cross_out, buffers.mixed[: self._reading], prompts)
        self._text_keys, self._text_values = as_array(text.keys[index]), as_array(text.values[index])
        self._text_scores = np.zeros((layer.heads, self._text_keys.shape[1]), np.float32)

    def step(self, position: int, next_norm: tuple[np.ndarray, np.ndarray]) -> None:
        """The stream and its norm come in, and go out normed for what is next."""
        x, h, m = self._x, self._h, self._m
        qkv = self._qkv()
        remember(qkv, self._keys, self._values, position)
        self._filled.fill(position + 1)
        self._attend(qkv, self._keys, self._values, self._filled, m, self._scores)
        more = self._out()
        if self._reading:
            add_normalise(x, more, *self._cross_norm, h)
            self._attend(self._cross_q(), self._text_keys, self._text_values, self._lengths, m, self._text_scores)
            more = self._cross_out()
        add_normalise(x, more, *self._ffn_norm, h)
        self._activate(self._fc1(), self._w)
        add_normalise(x, self._fc2(), *next_norm, h)


def _norm(norm: nn.LayerNorm) -> tuple[np.ndarray, np.ndarray]:
    return as_array(norm.weight), as_array(norm.bias)


def _activation(layer: DecoderLayer) -> Callable[[np.ndarray, np.ndarray], None]:
    """Writes what the layer's activation makes of the first array into the second."""
    if layer.activation is F.gelu:
        return gelu
    return lambda x, out: np.copyto(out, layer.activation(torch.from_numpy(x)).numpy())
