"""Linear layers of 4 bits by torch's own CPU kernels. O outputs, I inputs, G groups of a row, any leading shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .linears import PackedLinear, WeightInt8Linear, expect, expect_bias, int8_rows

GROUP = 64
ROWS = 16  # the kernel takes a multiple of so many outputs
AT_ONCE = 64  # rows that are unpacked at once, as 32 bits a weight; the kernel's order has blocks of 64 at most
TINY = 1e-30  # the scale of a group whose weights are all the same
FEW = 2**19  # weights: as int8, a matrix of up to so many lies in the cache of one core


class Int4Linear(PackedLinear):
    """4-bit weights, a bfloat16 scale and middle for each 64 inputs of a row; bfloat16 inputs. On the CPU alone.

    A weight is (q - 8) * scale + middle, q from 0 to 15; scale and middle span the group from its least to its
    greatest weight. On disk two weights make a byte, the first in the low half, and the last group of a row is filled
    up; in memory they are in the kernel's own order, and beside that as int8 where a step multiplies with few.
    """

    cpu_only = True
    reads_moments = True

    def __init__(self, like: nn.Linear, nibbles: Tensor, scales: Tensor, bias: Tensor | None):
        super().__init__(like, bias)
        self._filled_up = nibbles.shape[1] * 2 - self.in_features
        more = -self.out_features % ROWS
        whole = functional.pad(nibbles, (0, 0, 0, more)) if more else nibbles
        packed = torch.empty_like(whole)
        for part, into in zip(whole.split(AT_ONCE), packed.split(AT_ONCE), strict=True):
            numbers = torch.stack((part & 15, part >> 4), dim=2).flatten(1).int()
            into.copy_(torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1))
        self.register_buffer("numbers", packed, persistent=False)
        scales = functional.pad(scales, (0, 0, 0, 0, 0, more)).transpose(0, 1).contiguous()
        self.register_buffer("scales", scales, persistent=False)  # [G, O and more, 2]
        self.register_buffer("values", None, persistent=False)
        self.register_buffer("row_scale", None, persistent=False)

    @classmethod
    def pack(cls, linear: nn.Linear, moment: Tensor | None = None) -> Int4Linear:
        """Each weight to the nearest number, or by GPTQ where the inputs' second moments [I,I] are known."""
        if moment is None:
            return cls(linear, *int4_groups(linear.weight), linear.bias)
        from .gptq import gptq_groups

        return cls(linear, *gptq_groups(linear.weight, moment), linear.bias)

    @classmethod
    def restore(cls, like: nn.Linear, tensors: dict[str, Tensor]) -> Int4Linear:
        groups = -(-like.in_features // GROUP)
        nibbles = expect(tensors, "nibbles", (like.out_features, groups * GROUP // 2), torch.uint8)
        scales = expect(tensors, "scales", (like.out_features, groups, 2), torch.bfloat16)
        return cls(like, nibbles, scales, expect_bias(tensors, like))

    def stored(self) -> dict[str, Tensor]:
        """The kernel alone knows its order: it gives the numbers back as its product with the identity."""
        inputs = self.in_features + self._filled_up
        plain = torch.zeros_like(self.scales)
        plain[..., 0] = 1
        numbers = (self._product(torch.eye(inputs, dtype=torch.bfloat16), plain) + 8).to(torch.uint8).t()
        nibbles = numbers[: self.out_features, 0::2] | (numbers[: self.out_features, 1::2] << 4)
        scales = self.scales.transpose(0, 1)[: self.out_features].contiguous()
        return {"nibbles": nibbles, "scales": scales, **super().stored()}

    def plain(self) -> tuple[Tensor, Tensor] | None:
        """Values int8 [O,I] and scales float32 [O] a row, for the kernels of a step; None for more than `FEW` weights.

        On few weights the product over int8 is faster than this kernel, which has to take every byte apart. Rounding to
        int8 adds little to what 4 bits have rounded. Made at the first call, and kept.
        """
        if self.in_features * self.out_features > FEW:
            return None
        if self.values is None:
            stored = self.stored()
            weight = weights_of(stored["nibbles"], stored["scales"])
            self.values, self.row_scale = int8_rows(weight[:, : self.in_features])
        return self.values, self.row_scale

    def step_tensors(self) -> tuple[Tensor, Tensor]:
        """What a step reads of the layer."""
        return self.plain() or (self.numbers, self.scales)

    def _product(self, rows: Tensor, scales: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.numbers, GROUP, scales)

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [..., I] -> float32 [..., O]."""
        flat = x.reshape(-1, self.in_features).to(torch.bfloat16)
        if self._filled_up:
            flat = functional.pad(flat, (0, self._filled_up))
        y = self._product(flat, self.scales)[:, : self.out_features].float()
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out_features)


class Int4RowLinear(WeightInt8Linear):
    """4-bit weights on disk, a bfloat16 scale a row; in memory they are int8, and run as `WeightInt8Linear` does.

    A weight is q * scale, q from -8 to 7: the fewest bytes on disk, and nothing to take apart at a step.
    """

    reads_moments = True

    @classmethod
    def pack(cls, linear: nn.Linear, moment: Tensor | None = None) -> Int4RowLinear:
        """Each weight to the nearest number, or by GPTQ where the inputs' second moments [I,I] are known."""
        if moment is None:
            return cls(linear, *int4_rows(linear.weight), linear.bias)
        from .gptq import gptq_rows

        return cls(linear, *gptq_rows(linear.weight, moment), linear.bias)

    @classmethod
    def restore(cls, like: nn.Linear, tensors: dict[str, Tensor]) -> Int4RowLinear:
        nibbles = expect(tensors, "nibbles", (like.out_features, -(-like.in_features // 2)), torch.uint8)
        scale = expect(tensors, "scale", (like.out_features,), torch.bfloat16)
        values = torch.empty(like.out_features, like.in_features, dtype=torch.int8)
        for part, into in zip(nibbles.split(AT_ONCE), values.split(AT_ONCE), strict=True):
            into.copy_(torch.stack((part & 15, part >> 4), dim=2).flatten(1)[:, : like.in_features])
        return cls(like, values.sub_(8), scale, expect_bias(tensors, like))

    def stored(self) -> dict[str, Tensor]:
        numbers = functional.pad(self.values + 8, (0, self.in_features % 2))
        bias = {} if self.bias is None else {"bias": self.bias}
        return {"nibbles": two_a_byte(numbers), "scale": self.scale, **bias}


def int4_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [O,I] -> int8 [O,I] from -8 to 7 and scales bfloat16 [O].

    Raises:
        ValueError: weights that are not finite.
    """
    rows = grouped(weight, weight.shape[1])[:, 0]
    scale = (rows.abs().amax(dim=1) / 7.5).clamp_min(TINY).to(torch.bfloat16)
    return (nearest(rows, scale.unsqueeze(1), torch.zeros_like(scale).unsqueeze(1)) - 8.0).to(torch.int8), scale


def grouped(weight: Tensor, group: int = GROUP) -> Tensor:
    """Weight [O,I] -> float32 [O,G,group], the last group of a row filled up with zeros.

    Raises:
        ValueError: weights that are not finite.
    """
    weight = weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weights are not finite; there is no int4 for them")
    return functional.pad(weight, (0, -weight.shape[1] % group)).view(weight.shape[0], -1, group)


def grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the middle, bfloat16 [...], of 16 numbers that span `low` to `high`."""
    scale = ((high - low) / 15.0).clamp_min(TINY).to(torch.bfloat16)
    return scale, (low + 8.0 * scale.float()).to(torch.bfloat16)


def nearest(weight: Tensor, scale: Tensor, middle: Tensor) -> Tensor:
    """The number 0 to 15, as float32, that stands nearest to each weight [...] on its grid."""
    return ((weight - middle.float()) / scale.float() + 8.0).round().clamp(0, 15)


def two_a_byte(numbers: Tensor) -> Tensor:
    """Numbers [O,I], I even -> uint8 [O,I / 2], the first in the low half."""
    numbers = numbers.to(torch.uint8)
    return numbers[:, 0::2] | (numbers[:, 1::2] << 4)


def weights_of(nibbles: Tensor, scales: Tensor) -> Tensor:
    """What `int4_groups` gave -> the weights that it stands for, float32 [O, G * group]."""
    numbers = torch.stack((nibbles & 15, nibbles >> 4), dim=2).flatten(1).unflatten(1, (scales.shape[1], -1)).float()
    scale, middle = scales.float().unsqueeze(3).unbind(2)
    return ((numbers - 8.0) * scale + middle).flatten(1)


def int4_groups(weight: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """Weight [O,I] -> nibbles uint8 [O, G * group / 2], scales bfloat16 [O,G,2]: a group's scale and its middle.

    Raises:
        ValueError: weights that are not finite.
    """
    groups = grouped(weight, group)
    scale, middle = grid(groups.amin(dim=2), groups.amax(dim=2))
    numbers = nearest(groups, scale.unsqueeze(2), middle.unsqueeze(2))
    return two_a_byte(numbers.flatten(1)), torch.stack((scale, middle), dim=2)
