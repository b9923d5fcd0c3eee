"""Linear layers packed by bitsandbytes: LLM.int8(), NF4 and FP4. They save memory everywhere, and time on a GPU.

bitsandbytes takes seconds to import, so it is imported when the first layer is packed, and never by a plan without it.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn

from .linears import PackedLinear, aligned, expect, expect_bias

BLOCK = 64  # weights that share one scale in NF4 and FP4


@cache
def kernels() -> ModuleType:
    """bitsandbytes.functional; its advice to install another package for one kernel is kept off the terminal."""
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional
    finally:
        log.setLevel(level)
    return bitsandbytes.functional


class BnbInt8Linear(PackedLinear):
    """LLM.int8() (Dettmers et al., arXiv 2208.07339) without outlier columns: int8 a row of weights and of inputs."""

    capturable = False  # bitsandbytes chooses kernels and buffers as it runs

    def __init__(self, like: nn.Linear, values: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__(like, bias)
        self.register_buffer("values", aligned(values), persistent=False)
        self.register_buffer("scale", scale, persistent=False)  # the largest weight of each row

    @classmethod
    def pack(cls, linear: nn.Linear) -> BnbInt8Linear:
        values, scale, _ = kernels().int8_vectorwise_quant(linear.weight.detach().half())
        return cls(linear, values, scale.float(), linear.bias)

    @classmethod
    def restore(cls, like: nn.Linear, tensors: dict[str, Tensor]) -> BnbInt8Linear:
        values = expect(tensors, "values", (like.out_features, like.in_features), torch.int8)
        return cls(
            like, values, expect(tensors, "scale", (like.out_features,), torch.float32), expect_bias(tensors, like)
        )

    def stored(self) -> dict[str, Tensor]:
        return {"values": self.values, "scale": self.scale, **super().stored()}

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [..., I] -> float32 [..., O]; sums in int32, scaled in float32: large states do not overflow."""
        flat = x.reshape(-1, self.in_features)
        rows, row_scale, _ = kernels().int8_vectorwise_quant(flat if flat.device.type == "cpu" else flat.half())
        sums = kernels().int8_linear_matmul(rows, self.values).float()
        y = sums * (row_scale.float().unsqueeze(1) / 127.0) * (self.scale / 127.0)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out_features)


class FourBitLinear(PackedLinear):
    """4 bits of a table of 16 numbers, a float16 scale for each 64 weights; bfloat16 products."""

    table: ClassVar[str]
    capturable = False  # bitsandbytes chooses kernels and buffers as it runs

    def __init__(self, like: nn.Linear, packed: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__(like, bias)
        self.register_buffer("packed", aligned(packed), persistent=False)  # uint8 [O * I / 2, 1]
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("code", kernels().get_4bit_type(self.table, device=packed.device), persistent=False)

    @classmethod
    def pack(cls, linear: nn.Linear) -> FourBitLinear:
        weight = linear.weight.detach().float().contiguous()
        packed, state = kernels().quantize_4bit(
            weight, blocksize=BLOCK, compress_statistics=False, quant_type=cls.table
        )
        return cls(linear, packed, state.absmax.half().float(), linear.bias)

    @classmethod
    def restore(cls, like: nn.Linear, tensors: dict[str, Tensor]) -> FourBitLinear:
        count = like.out_features * like.in_features
        packed = expect(tensors, "packed", (-(-count // 2), 1), torch.uint8)
        scale = expect(tensors, "scale", (-(-count // BLOCK),), torch.float16)
        return cls(like, packed, scale.float(), expect_bias(tensors, like))

    def stored(self) -> dict[str, Tensor]:
        return {"packed": self.packed, "scale": self.scale.half(), **super().stored()}

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [..., I] -> float32 [..., O]."""
        from bitsandbytes import matmul_4bit

        shape = torch.Size((self.out_features, self.in_features))
        state = kernels().QuantState(
            absmax=self.scale, shape=shape, code=self.code, blocksize=BLOCK, quant_type=self.table, dtype=torch.bfloat16
        )
        y = matmul_4bit(x.to(torch.bfloat16), self.packed.t(), state).float()
        return y if self.bias is None else y + self.bias


class Nf4Linear(FourBitLinear):
    """NF4, the quantiles of a normal distribution (QLoRA, Dettmers et al., arXiv 2305.14314)."""

    table = "nf4"


class Fp4Linear(FourBitLinear):
    """FP4: a sign, two bits of exponent and one of mantissa."""

    table = "fp4"
