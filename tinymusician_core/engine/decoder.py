"""The step decoder: the MusicGen decoder's arithmetic (arXiv 2306.05284; transformers' MusicgenForCausalLM), with a
fused qkv, one product for all heads, and a static cache.

Every matrix product is an `nn.Linear` called as a module and every lookup an `nn.Embedding`, so that a quantization
plan can swap any of them by name; forward passes never read a `.weight`.
R rows of the batch, K codebooks, T frames, S text tokens, D width, V codebook size, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Cache, LayerView, StaticView, Text
from .config import ACTIVATIONS, DecoderConfig
from .fused import FusedStep
from .graph import GraphStep
from .linear import StepLinear

POSITIONS = 512  # made at first; a longer piece makes more


def sinusoids(positions: int, width: int) -> Tensor:
    """Position states float32 [positions, width]: cosines, then sines, of geometrically spaced frequencies."""
    half = width // 2
    rates = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
    angles = torch.arange(positions).float().unsqueeze(1) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class DecoderLayer(nn.Module):
    """Self-attention, attention to the text, feed-forward; each after a layer norm and around a residual.

    A layer of a model whose text stands before the music has no attention to the text.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        width = config.width
        self.heads, self.head_width = config.heads, width // config.heads
        self.activation = ACTIVATIONS[config.activation]
        self.crosses = config.text == "cross"
        self.self_norm = nn.LayerNorm(width)
        self.qkv = StepLinear(width, 3 * width)
        self.out = StepLinear(width, width)
        if self.crosses:
            self.cross_norm = nn.LayerNorm(width)
            self.cross_q = StepLinear(width, width)
            self.cross_kv = StepLinear(width, 2 * width)
            self.cross_out = StepLinear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.fc1 = StepLinear(width, config.ffn)
        self.fc2 = StepLinear(config.ffn, width)

    def _split(self, y: Tensor) -> Tensor:
        """[R,T,D] -> [R,H,T,D/H], a view."""
        return y.unflatten(2, (self.heads, self.head_width)).transpose(1, 2)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """query [R,T,D], keys and values [R,S,D] in any float type -> [R*T,D] in the query's."""
        keys, values = self._split(keys.to(query.dtype)), self._split(values.to(query.dtype))
        mixed = F.scaled_dot_product_attention(self._split(query), keys, values, mask)
        return mixed.transpose(1, 2).reshape(-1, query.shape[2])

    def span(self, x: Tensor, mask: Tensor | None, text: tuple | None, view: LayerView | StaticView | None) -> Tensor:
        """Several positions: x [R,T,D] -> [R,T,D].

        Args:
            x: the residual stream.
            mask: bool [T, filled], what each position sees.
            text: keys and values [R,S,D] and their mask; None in a layer that has no attention to the text.
            view: where earlier positions are read and these are written; None for neither.
        """
        shape = x.shape
        flat = x.reshape(-1, shape[2])
        query, keys, values = self.qkv(self.self_norm(flat)).view(*shape[:2], 3, shape[2]).unbind(2)
        if view is not None:
            view.put(keys, values)
            keys, values = view.keys, view.values
        flat = flat + self.out(self._attend(query, keys, values, mask))
        if text is not None:
            query = self.cross_q(self.cross_norm(flat)).view(shape)
            flat = flat + self.cross_out(self._attend(query, *text))
        flat = flat + self.fc2(self.activation(self.fc1(self.ffn_norm(flat))))
        return flat.view(shape)


class Decoder(nn.Module):
    """The decoder of a MusicGen-family model.

    A plan names its modules `embeddings.{k}`, `layers.{i}.{qkv,out,cross_q,cross_kv,cross_out,fc1,fc2}` and `heads`.
    `decoder.to(dtype)` runs everything, the cache included, in that type; logits are always float32.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleList(nn.Embedding(config.entries + 1, config.width) for _ in range(config.codebooks))
        if config.prefix:
            self.prefix = nn.Embedding(1, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.heads = StepLinear(config.width, config.codebooks * config.entries)
        self.register_buffer("positions", sinusoids(POSITIONS, config.width), persistent=False)

    @property
    def cache_dtype(self) -> torch.dtype:
        """The type of keys and values: bfloat16 beside packed weights, otherwise that of the arithmetic."""
        packed = any(getattr(layer.qkv, "compact", False) for layer in self.layers)
        return torch.bfloat16 if packed else self.positions.dtype

    def _room_for(self, positions: int) -> None:
        if positions > self.positions.shape[0]:
            with torch.inference_mode(False):
                self.positions = sinusoids(positions, self.config.width).to(self.positions)

    def _states(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Text states [R,S,D], zero where the mask is, and the mask as bool [R,S]."""
        if states.ndim != 3 or states.shape[2] != self.config.width or mask.shape != states.shape[:2]:
            raise ValueError(
                f"text states must be [batch, tokens, {self.config.width}] with a mask [batch, tokens], "
                f"got {tuple(states.shape)} and {tuple(mask.shape)}"
            )
        keep = mask.to(device=states.device, dtype=torch.bool)
        return (states * keep.unsqueeze(2)).to(self.positions.dtype), keep

    def _text(self, states: Tensor, keep: Tensor) -> Text:
        """Every layer's keys and values of the text, each row's own tokens moved to the front.

        A row without any text has zero keys and values: what it attends to is zero.
        """
        lengths = keep.sum(1)
        order = (~keep).to(torch.int8).argsort(dim=1, stable=True)
        states = states.gather(1, order.unsqueeze(2).expand_as(states))
        kept = torch.arange(keep.shape[1], device=keep.device) < lengths.unsqueeze(1)
        ragged = bool((kept.any(1) & ~kept.all(1)).any())
        mask = (kept | ~kept.any(1, keepdim=True))[:, None, None, :] if ragged else None
        keys, values = [], []
        for layer in self.layers:
            pair = layer.cross_kv(states.flatten(0, 1)).view(*states.shape[:2], 2, -1)
            keys.append(pair[:, :, 0].contiguous())
            values.append(pair[:, :, 1].contiguous())
        return Text(tuple(keys), tuple(values), lengths.cpu(), mask)

    def _before(self, states: Tensor, keep: Tensor) -> Tensor:
        """What stands before the music [R,P+S,D] in a model of the "prepend" kind, its positions not yet added.

        Nothing is masked there, so rows with text must have the same number of tokens.
        """
        if bool((keep.any(1) & ~keep.all(1)).any()):
            raise ValueError("this model puts the text before the music: all prompts of a batch need as many tokens")
        if not self.config.prefix:
            return states
        place = torch.zeros(states.shape[0], self.config.prefix, dtype=torch.long, device=states.device)
        return torch.cat([self.prefix(place).to(states.dtype), states], dim=1)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens [R,K,T] -> [R,T,D], without positions."""
        x = self.embeddings[0](tokens[:, 0])
        for k in range(1, self.config.codebooks):
            x = x + self.embeddings[k](tokens[:, k])
        return x

    def _span(self, x: Tensor, start: int, text: Text | None, views: list) -> Tensor:
        """States x [R,T,D] at the positions from `start` on, through all layers."""
        count = x.shape[1]
        mask = torch.ones(count, start + count, dtype=torch.bool, device=x.device).tril(start)
        return self.through(x + self.positions[start : start + count], mask, text, views)

    def through(
        self,
        x: Tensor,
        mask: Tensor,
        text: Text | None,
        views: list,
        given: list[Tensor] | None = None,
        first: int = 0,
    ) -> Tensor:
        """States x [R,T,D] with their positions, through the layers from `first` on; `mask` bool [T, filled] is what
        each sees, and `given` takes the states before every layer and after the last where all are gone through."""
        for i in range(first, len(self.layers)):
            if given is not None and not first:
                given.append(x)
            x = self.layers[i].span(
                x, mask, None if text is None else (text.keys[i], text.values[i], text.mask), views[i]
            )
        if given is not None and not first:
            given.append(x)
        return x

    def read_out(self, x: Tensor) -> Tensor:
        """States [R,T,D] -> logits float32 [R,K,T,V]."""
        rows, count, width = x.shape
        logits = self.heads(self.norm(x).reshape(-1, width)).view(rows, count, self.config.codebooks, -1)
        return logits.transpose(1, 2).float()

    @torch.inference_mode()
    def prepare(self, states: Tensor, mask: Tensor, max_steps: int, prompts: int = 1) -> Cache:
        """Compute what the text gives once, and make room for `max_steps` positions.

        Args:
            states: text states [R,S,D].
            mask: [R,S], 1 or True where there is text; a row of zeros is unconditional.
            max_steps: positions of music.
            prompts: how many prompts the rows belong to, row r to prompt r modulo that.

        Raises:
            ValueError: wrong shapes, no room asked for, or ragged prompts before the music (the "prepend" kind).
        """
        config = self.config
        states, keep = self._states(states, mask)
        crosses = config.text == "cross"
        before = None if crosses else self._before(states, keep)
        room = max_steps if before is None or max_steps < 1 else max_steps + before.shape[1]
        self._room_for(room)
        text = self._text(states, keep) if crosses else None
        rows, device = states.shape[0], states.device
        cache = Cache(config.layers, rows, config.width, room, self.cache_dtype, device, text)
        if before is not None:
            start = cache.claim(before.shape[1])
            self._span(before, start, None, cache.views(start))
            cache.keep_as_text()
        if device.type == "cuda":
            cache.fast_step = GraphStep(self, cache)
        elif device.type == "cpu" and self.positions.dtype == torch.float32:
            cache.fast_step = FusedStep(self, cache, prompts)
        return cache

    @torch.inference_mode()
    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """One position of tokens int64 [R,K] -> logits float32 [R,K,V]."""
        if cache.fast_step is not None:
            return cache.fast_step(tokens, cache.claim(1))
        return self.prefill(tokens.unsqueeze(2), cache)[:, :, 0]

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Several positions at once: tokens int64 [R,K,T] -> logits float32 [R,K,T,V]; the cache grows by T."""
        start = cache.claim(tokens.shape[2])
        return self.read_out(self._span(self.embed(tokens), start, cache.text, cache.views(start)))

    def logits(
        self, tokens: Tensor, states: Tensor, mask: Tensor, given: list[Tensor] | None = None, first: int = 0
    ) -> Tensor:
        """The slow twin without a cache, which also carries gradients.

        Args:
            tokens: delayed tokens int64 [R,K,T].
            states: text states [R,S,D].
            mask: [R,S].
            given: takes what every layer is given [R,T,D], and at last what the last one gives.
            first: the layer to go on from, with what an earlier call put into `given`; nothing is put there then.

        Returns:
            Logits float32 [R,K,T,V]; those at position t are for position t + 1.
        """
        states, keep = self._states(states, mask)
        text = self._text(states, keep) if self.config.text == "cross" else None
        if first:
            x = given[first]
        else:
            x = self.embed(tokens)
            x = x if text is not None else torch.cat([self._before(states, keep), x], dim=1)
            self._room_for(x.shape[1])
            x = x + self.positions[: x.shape[1]]
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        x = self.through(x, causal, text, [None] * len(self.layers), given, first)
        return self.read_out(x[:, -tokens.shape[2] :])
