"""The step decoder: the MusicGen decoder's arithmetic (arXiv 2306.05284; transformers' MusicgenForCausalLM), with a
fused qkv, one product for all heads, and a static cache.

Every matrix product is an `nn.Linear` called as a module and every lookup an `nn.Embedding`, so that a quantization
plan can swap any of them by name; forward passes never read a `.weight`.
B batch, K codebooks, T frames, S text tokens, D width, V codebook size, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..delay import pattern
from .cache import Cache, LayerView
from .linear import StepLinear

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a MusicGen decoder; `from_dict` reads a transformers MusicgenDecoderConfig."""

    width: int
    layers: int
    heads: int
    ffn: int
    codebooks: int
    entries: int
    pad: int
    audio_channels: int = 1
    activation: str = "gelu"

    def __post_init__(self):
        for name in ("width", "layers", "heads", "ffn", "codebooks", "entries"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"the decoder's {name} must be a whole number above 0, got {getattr(self, name)!r}")
        if self.width % self.heads or self.width % 2 or self.width < 4:
            raise ValueError(
                "the decoder's width must be even, 4 or more and a multiple of its heads, "
                f"got a width of {self.width} and {self.heads} heads"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"the activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        if self.pad != self.entries:
            raise ValueError(f"the padding token must follow the {self.entries} codebook entries, got {self.pad}")
        pattern(self.codebooks, self.audio_channels)

    @classmethod
    def from_dict(cls, config: Mapping) -> DecoderConfig:
        """Read the fields of a MusicgenDecoderConfig; ValueError names the first that is missing."""
        names = {
            "width": "hidden_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "ffn": "ffn_dim",
            "codebooks": "num_codebooks",
            "entries": "vocab_size",
            "pad": "pad_token_id",
        }
        for field in names.values():
            if config.get(field) is None:
                raise ValueError(f"the decoder's configuration lacks {field}")
        return cls(
            **{ours: config[theirs] for ours, theirs in names.items()},
            audio_channels=config.get("audio_channels", 1),
            activation=config.get("activation_function", "gelu"),
        )

    @property
    def delays(self) -> tuple[int, ...]:
        return pattern(self.codebooks, self.audio_channels)


def sinusoids(positions: int, width: int) -> Tensor:
    """Position states float32 [positions, width]: cosines, then sines, of geometrically spaced frequencies."""
    half = width // 2
    rates = torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1)))
    angles = torch.arange(positions).float().unsqueeze(1) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class DecoderLayer(nn.Module):
    """Self-attention, attention to the text, feed-forward; each after a layer norm and around a residual."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        width = config.width
        self.heads, self.head_width = config.heads, width // config.heads
        self.activation = ACTIVATIONS[config.activation]
        self.self_norm = nn.LayerNorm(width)
        self.qkv = StepLinear(width, 3 * width)
        self.out = StepLinear(width, width)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_q = StepLinear(width, width)
        self.cross_kv = StepLinear(width, 2 * width)
        self.cross_out = StepLinear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.fc1 = StepLinear(width, config.ffn)
        self.fc2 = StepLinear(config.ffn, width)

    def text_keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B,H,S,d] of text states [B,S,D]."""
        batch, tokens, width = states.shape
        pair = self.cross_kv(states.reshape(-1, width)).view(batch, tokens, 2, self.heads, self.head_width)
        keys, values = pair.permute(2, 0, 3, 1, 4).unbind(0)
        return keys.contiguous(), values.contiguous()

    def step(self, x: Tensor, view: LayerView, cross_mask: Tensor | None) -> Tensor:
        """One position: x [B,D] -> [B,D], changed in place; its keys and values go into the cache."""
        batch, width = x.shape
        qkv = self.qkv(self.self_norm(x)).view(batch, 3, self.heads, 1, self.head_width).transpose(0, 1)
        view.write.copy_(qkv[1:])
        mixed = F.scaled_dot_product_attention(qkv[0], view.keys, view.values)
        x += self.out(mixed.reshape(batch, width))
        query = self.cross_q(self.cross_norm(x)).view(batch, self.heads, 1, self.head_width)
        mixed = F.scaled_dot_product_attention(query, view.cross_keys, view.cross_values, cross_mask)
        x += self.cross_out(mixed.reshape(batch, width))
        x += self.fc2(self.activation(self.fc1(self.ffn_norm(x))))
        return x

    def span(self, x: Tensor, mask: Tensor | None, cross: tuple, cross_mask: Tensor | None, view: LayerView | None):
        """Several positions: x [B,T,D] -> [B,T,D]. With a view, earlier positions are read from the cache."""
        batch, positions, width = x.shape

        def split(y: Tensor, parts: int) -> tuple[Tensor, ...]:
            y = y.view(batch, positions, parts, self.heads, self.head_width)
            return y.permute(2, 0, 3, 1, 4).unbind(0)

        def merge(y: Tensor) -> Tensor:
            return y.transpose(1, 2).reshape(-1, width)

        flat = x.reshape(-1, width)
        query, keys, values = split(self.qkv(self.self_norm(flat)), 3)
        if view is not None:
            view.write.copy_(torch.stack((keys, values)))
            keys, values = view.keys, view.values
        flat = flat + self.out(merge(F.scaled_dot_product_attention(query, keys, values, mask)))
        (query,) = split(self.cross_q(self.cross_norm(flat)), 1)
        flat = flat + self.cross_out(merge(F.scaled_dot_product_attention(query, *cross, cross_mask)))
        flat = flat + self.fc2(self.activation(self.fc1(self.ffn_norm(flat))))
        return flat.view(batch, positions, width)


POSITIONS = 2048


class Decoder(nn.Module):
    """The decoder of a MusicGen-family model.

    A plan names its modules `embeddings.{k}`, `layers.{i}.{qkv,out,cross_q,cross_kv,cross_out,fc1,fc2}` and `heads`.
    `decoder.to(dtype)` runs everything, the cache included, in that type; logits are always float32.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleList(
            nn.Embedding(config.entries + 1, config.width) for _ in range(config.codebooks)
        )
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.heads = StepLinear(config.width, config.codebooks * config.entries)
        self.register_buffer("positions", sinusoids(POSITIONS, config.width), persistent=False)

    def _room_for(self, positions: int) -> None:
        if positions > self.positions.shape[0]:
            with torch.inference_mode(False):
                self.positions = sinusoids(positions, self.config.width).to(self.positions)

    def _text(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Zero the padding of states [B,S,D]; the mask bool [B,1,1,S] stays only where padding would weigh in.

        A row without any text has zero keys and values: what it attends to is zero, with a mask or without.
        """
        if states.ndim != 3 or states.shape[2] != self.config.width or mask.shape != states.shape[:2]:
            raise ValueError(
                f"text states must be [batch, tokens, {self.config.width}] with a mask [batch, tokens], "
                f"got {tuple(states.shape)} and {tuple(mask.shape)}"
            )
        keep = mask.to(device=states.device, dtype=torch.bool)
        states = (states * keep.unsqueeze(2)).to(self.positions.dtype)
        keep = keep | ~keep.any(dim=1, keepdim=True)
        return states, None if bool(keep.all()) else keep[:, None, None, :]

    def _embed(self, tokens: Tensor, start: int) -> Tensor:
        """tokens [B,K,T] -> [B,T,D], the positions counted from `start`."""
        x = self.embeddings[0](tokens[:, 0])
        for k in range(1, self.config.codebooks):
            x = x + self.embeddings[k](tokens[:, k])
        return x + self.positions[start : start + tokens.shape[2]]

    def _span(self, tokens: Tensor, cross: list, cross_mask: Tensor | None, views: list, start: int) -> Tensor:
        batch, codebooks, count = tokens.shape
        x = self._embed(tokens, start)
        mask = torch.ones(count, start + count, dtype=torch.bool, device=tokens.device).tril(start)
        for layer, pair, view in zip(self.layers, cross, views, strict=True):
            x = layer.span(x, mask, pair, cross_mask, view)
        logits = self.heads(self.norm(x).view(batch * count, -1)).view(batch, count, codebooks, -1)
        return logits.transpose(1, 2).float()

    @torch.inference_mode()
    def prepare(self, states: Tensor, mask: Tensor, max_steps: int) -> Cache:
        """Compute the text's keys and values once, and make room for `max_steps` positions.

        Args:
            states: text states [B,S,D].
            mask: [B,S], 1 or True where there is text; a row of zeros is unconditional.
        """
        states, cross_mask = self._text(states, mask)
        self._room_for(max_steps)
        return Cache([layer.text_keys_values(states) for layer in self.layers], cross_mask, max_steps)

    @torch.inference_mode()
    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """One position of tokens int64 [B,K] -> logits float32 [B,K,V]."""
        views = cache.take(1)
        columns = tokens.unbind(1)
        x = self.embeddings[0](columns[0]) + self.positions[cache.length - 1]
        for k in range(1, self.config.codebooks):
            x += self.embeddings[k](columns[k])
        cross_mask = cache.cross_mask
        for layer, view in zip(self.layers, views, strict=True):
            x = layer.step(x, view, cross_mask)
        return self.heads(self.norm(x)).view(tokens.shape[0], self.config.codebooks, -1).float()

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Several positions at once: tokens int64 [B,K,T] -> logits float32 [B,K,T,V]; the cache grows by T."""
        start = cache.length
        views = cache.take(tokens.shape[2])
        cross = [(view.cross_keys, view.cross_values) for view in views]
        return self._span(tokens, cross, cache.cross_mask, views, start)

    def logits(self, tokens: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """The slow twin without a cache, which also carries gradients.

        Args:
            tokens: delayed tokens int64 [B,K,T].
            states: text states [B,S,D].
            mask: [B,S].

        Returns:
            Logits float32 [B,K,T,V]; those at position t are for position t + 1.
        """
        states, cross_mask = self._text(states, mask)
        self._room_for(tokens.shape[2])
        cross = [layer.text_keys_values(states) for layer in self.layers]
        return self._span(tokens, cross, cross_mask, [None] * len(cross), 0)
