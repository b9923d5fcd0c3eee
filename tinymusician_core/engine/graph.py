"""One step on a GPU with static shapes, so that it can be one CUDA graph: a launch instead of hundreds.

The whole capacity of the cache is read at every step, what is not filled being masked. R rows, K codebooks, V codebook
size, C capacity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cache import Cache, StaticView

if TYPE_CHECKING:
    from .decoder import Decoder

WARM_UPS = 3  # eager runs before the capture, in which libraries set themselves up


class GraphStep:
    """Steps of one generation: `step(tokens int64 [R,K], position)` gives logits float32 [R,K,V] and fills the cache.

    On a CUDA device the first step is captured as a graph and later ones replay it, unless a module says that it
    cannot be captured (`capturable` is False); elsewhere every step runs as it is.
    """

    def __init__(self, decoder: Decoder, cache: Cache):
        store = cache.store
        rows, capacity, device = store.shape[2], store.shape[3], store.device
        self._decoder, self._text = decoder, cache.text
        self._tokens = torch.zeros(rows, decoder.config.codebooks, 1, dtype=torch.long, device=device)
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._places = torch.arange(capacity, device=device).unsqueeze(0)
        self._views = [StaticView(layer, self._position) for layer in store]
        modules = decoder.modules()
        self._captures = device.type == "cuda" and all(getattr(module, "capturable", True) for module in modules)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        self._tokens.copy_(tokens.unsqueeze(2))
        self._position.fill_(position)
        if not self._captures:
            return self._run()
        if self._graph is None:
            self._capture()
        self._graph.replay()
        return self._logits.clone()

    def _run(self) -> Tensor:
        x = self._decoder.embed(self._tokens) + self._decoder.positions.index_select(0, self._position)
        x = self._decoder.through(x, self._places <= self._position, self._text, self._views)
        return self._decoder.read_out(x)[:, :, 0]

    def _capture(self) -> None:
        """Run and record. Each run writes the same keys and values to the same place: more than one does no harm."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._run()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._run()
