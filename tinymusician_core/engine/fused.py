"""One step on a CPU in float32: products by the decoder's modules, everything between them by compiled kernels.

The slow twin is `Decoder.prefill` over one position. R rows, K codebooks, V codebook size, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from .cache import Cache
from .kernels import add_normalise, attention, remember

if TYPE_CHECKING:
    from .decoder import Decoder, DecoderLayer

NOTHING = np.empty((0, 0), np.float32)


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's own memory; bfloat16 as its bits."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _norm(norm: nn.LayerNorm) -> tuple[np.ndarray, np.ndarray]:
    return _array(norm.weight), _array(norm.bias)


class FusedStep:
    """Steps of one generation: `step(tokens int64 [R,K], position)` gives logits float32 [R,K,V] and fills the cache.

    All that a step needs besides the products' outputs is made here, once.
    """

    def __init__(self, decoder: Decoder, cache: Cache, prompts: int):
        config = decoder.config
        self._decoder = decoder
        rows, width = cache.store.shape[2], config.width
        buffers = [torch.zeros(rows, width) for _ in range(3)]
        self._stream, self._normed, self._mixed = buffers
        self._x, self._h, self._m = (_array(buffer) for buffer in buffers)
        self._scores = np.zeros((config.heads, cache.store.shape[3]), np.float32)
        self._attend = attention(width // config.heads)
        lengths = np.zeros(rows, np.int64) if cache.text is None else cache.text.lengths.numpy()
        self._lengths = lengths
        # Guidance puts the rows without text last: nothing they attend to is there, and their products are left out.
        self._reading = int(np.flatnonzero(lengths)[-1]) + 1 if lengths.any() else 0
        self._filled = np.zeros(rows, np.int64)
        self._layers = [_Layer(layer, cache, i, prompts) for i, layer in enumerate(decoder.layers)]
        norms = [layer.first_norm for layer in self._layers] + [_norm(decoder.norm)]
        self._first_norm, self._next_norms = norms[0], norms[1:]
        self._heads = _by_prompt(decoder.heads, prompts)

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        self._filled[:] = position + 1
        self._embed(tokens, position)
        add_normalise(self._x, NOTHING, *self._first_norm, self._h)
        for layer, next_norm in zip(self._layers, self._next_norms, strict=True):
            self._through(layer, position, next_norm)
        logits = self._heads(self._normed)
        return logits.view(tokens.shape[0], self._decoder.config.codebooks, -1)

    def _embed(self, tokens: Tensor, position: int) -> None:
        columns = tokens.unbind(1)
        first, *others = self._decoder.embeddings
        torch.add(first(columns[0]), self._decoder.positions[position], out=self._stream)
        for embedding, column in zip(others, columns[1:], strict=True):
            self._stream += embedding(column)

    def _through(self, layer: _Layer, position: int, next_norm: tuple) -> None:
        """One layer: the stream and its norm come in, and go out normed for what is next."""
        x, h, m, reading = self._x, self._h, self._m, self._reading
        qkv = layer.qkv(self._normed).numpy()
        remember(qkv, layer.keys, layer.values, position)
        self._attend(qkv, layer.keys, layer.values, self._filled, m, self._scores)
        mixed = layer.out(self._mixed).numpy()
        if reading:
            add_normalise(x, mixed, *layer.cross_norm, h)
            query = layer.cross_q(self._normed[:reading]).numpy()
            self._attend(query, layer.text_keys, layer.text_values, self._lengths, m, layer.text_scores)
            mixed = layer.cross_out(self._mixed[:reading]).numpy()
        add_normalise(x, mixed, *layer.ffn_norm, h)
        more = layer.fc2(layer.activation(layer.fc1(self._normed))).numpy()
        add_normalise(x, more, *next_norm, h)


class _Layer:
    """A decoder layer's products and the arrays that its kernels read."""

    def __init__(self, layer: DecoderLayer, cache: Cache, index: int, prompts: int):
        self.activation = layer.activation
        self.first_norm, self.ffn_norm = _norm(layer.self_norm), _norm(layer.ffn_norm)
        self.qkv, self.out, self.fc1, self.fc2 = (
            _by_prompt(module, prompts) for module in (layer.qkv, layer.out, layer.fc1, layer.fc2)
        )
        self.keys, self.values = (_array(part) for part in cache.store[index])
        if cache.text is not None:
            self.cross_norm = _norm(layer.cross_norm)
            self.cross_q, self.cross_out = (_by_prompt(module, prompts) for module in (layer.cross_q, layer.cross_out))
            self.text_keys, self.text_values = _array(cache.text.keys[index]), _array(cache.text.values[index])
            self.text_scores = np.zeros((layer.heads, self.text_keys.shape[1]), np.float32)


def _by_prompt(module: nn.Module, prompts: int) -> Callable[[Tensor], Tensor]:
    """The module as a step calls it: by its `pair`, where it has one, for each prompt's rows apart."""
    pair = getattr(module, "pair", None)
    if pair is None or prompts == 1:
        return pair or module

    def apart(x: Tensor) -> Tensor:
        groups = x.view(-1, prompts, x.shape[1]).transpose(0, 1)
        return torch.stack([pair(group.contiguous()) for group in groups], dim=1).flatten(0, 1)

    return apart
