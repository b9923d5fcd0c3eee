"""Embedding tables in a scheme's own form. V rows, D width; a look-up reads only the rows that it needs."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .int4 import GROUP, int4_groups
from .linears import expect, half_of, int8_rows


class Int8Embedding(nn.Module):
    """int8 rows with a scale each. `weight` is the int8 table: T5 asks an embedding for its weight's device."""

    def __init__(self, values: Tensor, scale: Tensor):
        super().__init__()
        self.num_embeddings, self.embedding_dim = values.shape
        self.register_buffer("weight", values, persistent=False)
        self.register_buffer("scale", scale.view(-1, 1), persistent=False)

    @classmethod
    def pack(cls, embedding: nn.Embedding) -> Int8Embedding:
        return cls(*int8_rows(embedding.weight))

    @classmethod
    def restore(cls, like: nn.Embedding, tensors: dict[str, Tensor]) -> Int8Embedding:
        values = expect(tensors, "values", (like.num_embeddings, like.embedding_dim), torch.int8)
        return cls(values, expect(tensors, "scale", (like.num_embeddings,), torch.float32))

    def stored(self) -> dict[str, Tensor]:
        return {"values": self.weight, "scale": self.scale.view(-1)}

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [...] -> float32 [..., D]."""
        return functional.embedding(tokens, self.weight) * functional.embedding(tokens, self.scale)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class Int4Embedding(nn.Module):
    """4 bits an entry, a bfloat16 scale and middle for each 64 of a row, as `int4.Int4Linear` has them.

    `weight` is the table of packed bytes: T5 asks an embedding for its weight's device.
    """

    def __init__(self, nibbles: Tensor, scales: Tensor, width: int):
        super().__init__()
        self.num_embeddings, self.embedding_dim = nibbles.shape[0], width
        self.register_buffer("weight", nibbles, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    @staticmethod
    def group_of(width: int) -> int:
        """64, or the whole of a shorter row, an odd one filled up."""
        return min(GROUP, width + width % 2)

    @classmethod
    def pack(cls, embedding: nn.Embedding) -> Int4Embedding:
        return cls(*int4_groups(embedding.weight, cls.group_of(embedding.embedding_dim)), embedding.embedding_dim)

    @classmethod
    def restore(cls, like: nn.Embedding, tensors: dict[str, Tensor]) -> Int4Embedding:
        rows, width = like.num_embeddings, like.embedding_dim
        group = cls.group_of(width)
        groups = -(-width // group)
        nibbles = expect(tensors, "nibbles", (rows, groups * group // 2), torch.uint8)
        return cls(nibbles, expect(tensors, "scales", (rows, groups, 2), torch.bfloat16), width)

    def stored(self) -> dict[str, Tensor]:
        return {"nibbles": self.weight, "scales": self.scales}

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [...] -> float32 [..., D]."""
        nibbles, scales = self.weight[tokens], self.scales[tokens].float()
        numbers = torch.stack((nibbles & 15, nibbles >> 4), dim=-1).flatten(-2).float() - 8.0
        rows = numbers.unflatten(-1, (scales.shape[-2], -1)) * scales[..., :1] + scales[..., 1:]
        return rows.flatten(-2)[..., : self.embedding_dim]

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class HalfEmbedding(nn.Module):
    """Rows in half precision, given back as float32."""

    dtype: ClassVar[torch.dtype]

    def __init__(self, half: Tensor):
        super().__init__()
        self.num_embeddings, self.embedding_dim = half.shape
        self.register_buffer("weight", half, persistent=False)

    @classmethod
    def pack(cls, embedding: nn.Embedding) -> HalfEmbedding:
        return cls(half_of(embedding.weight, cls.dtype))

    @classmethod
    def restore(cls, like: nn.Embedding, tensors: dict[str, Tensor]) -> HalfEmbedding:
        return cls(expect(tensors, "half", (like.num_embeddings, like.embedding_dim), cls.dtype))

    def stored(self) -> dict[str, Tensor]:
        return {"half": self.weight}

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [...] -> float32 [..., D]."""
        return functional.embedding(tokens, self.weight).float()

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class Fp16Embedding(HalfEmbedding):
    dtype = torch.float16


class Bf16Embedding(HalfEmbedding):
    dtype = torch.bfloat16
