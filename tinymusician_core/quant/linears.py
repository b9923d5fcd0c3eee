"""Linear layers in a scheme's own form: int8 and half precision. O outputs, I inputs, any leading shape.

This is the one place that calls torch.ao's kernels. They are the fastest here, take int8 weights as they stand on disk,
and are deprecated: whoever replaces them has to change nothing but this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..records import ModelError

STEP_ROWS = 2  # what weights are laid out for: guidance makes two rows of a prompt


def int8_rows(weight: Tensor, scale_type: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Symmetric int8 a row: weight [O,I] -> values int8 [O,I] in -127..127 and scales [O].

    The scale is rounded to `scale_type` first, which leaves no error of its own. Raises ValueError for weights that are
    not finite.
    """
    weight = weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weights are not finite; there is no int8 for them")
    scale = (weight.abs().amax(dim=1) / 127.0).clamp_min(torch.finfo(torch.float32).tiny).to(scale_type)
    values = (weight / scale.float().unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
    return values, scale


def half_of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another float type; ValueError where a number is too big for it."""
    tensor = tensor.detach()
    half = tensor.to(dtype)
    if not bool(torch.isfinite(half).all()):
        raise ValueError(f"the weights reach {float(tensor.abs().max()):g}, beyond what {dtype} can hold")
    return half


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, contiguous and at an address that 64 divides: kernels read whole vectors, files keep no order."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 64 else tensor


def stays_on_cpu(move: Callable[[Tensor], Tensor]) -> bool:
    """Whether what `nn.Module.to` would do to a tensor leaves it on the CPU."""
    return move(torch.empty(0)).device.type == "cpu"


def expect(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The stored tensor `name`; ModelError where it is missing, or has another shape or type."""
    if name not in tensors:
        raise ModelError(f"the stored weights lack {name}")
    found = tensors[name]
    if tuple(found.shape) != tuple(shape) or found.dtype != dtype:
        raise ModelError(f"the stored {name} is {found.dtype} {list(found.shape)}, not {dtype} {list(shape)}")
    return found


def expect_bias(tensors: dict[str, Tensor], like: nn.Linear) -> Tensor | None:
    """The stored bias [O] of a linear layer that has one."""
    return None if like.bias is None else expect(tensors, "bias", (like.out_features,), torch.float32)


class PackedLinear(nn.Module):
    """What every packed linear layer has in common.

    `weight` is None: code that looks at a weight's type before it calls the layer (T5's feed-forward) then leaves its
    input alone. Buffers move with `.to(device)`; `stored` is what goes to disk, and `restore` takes it back.
    """

    weight: ClassVar[None] = None
    compact: ClassVar[bool] = True  # the engine keeps its cache in bfloat16 beside such weights
    cpu_only: ClassVar[bool] = False
    reads_moments: ClassVar[bool] = False  # whether `pack` takes the second moments of the inputs
    capturable: ClassVar[bool] = True  # whether a CUDA graph can hold its product

    def __init__(self, like: nn.Linear, bias: Tensor | None):
        super().__init__()
        self.in_features, self.out_features = like.in_features, like.out_features
        self.register_buffer("bias", None if bias is None else bias.detach().float(), persistent=False)

    def stored(self) -> dict[str, Tensor]:
        """The tensors that say all: what `restore` needs."""
        return {} if self.bias is None else {"bias": self.bias}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        if self.cpu_only and not stays_on_cpu(fn):
            raise ValueError(
                "int8 and int4 layers run on the cpu alone; for another device, quantize with bnb-int8, nf4 or fp16"
            )
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Linear(PackedLinear):
    """torch.ao's dynamic int8: weights int8 a row, inputs int8 a row, sums in int32. On the CPU alone.

    torch.ao chooses one scale for all rows of a call. Here each row is brought to a peak of 1 first, and two more rows
    hold the range at -1 to 1: so each has its own scale, and gives the same whatever stands beside it. The packed
    weights are the only copy; `stored` unpacks them.
    """

    cpu_only = True

    def __init__(self, like: nn.Linear, values: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__(like, bias)
        zeros = torch.zeros(like.out_features, dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(values, scale.double(), zeros, 0)
        self._packed = torch.ops.quantized.linear_prepack(weight, None)
        # Without VNNI, x86 kernels add pairs of products in 16 bits: inputs of 7 bits keep them from overflowing.
        engine = torch.backends.quantized.engine
        self._short = engine in ("x86", "fbgemm") and not torch.cpu._is_vnni_supported()

    @classmethod
    def pack(cls, linear: nn.Linear) -> Int8Linear:
        return cls(linear, *int8_rows(linear.weight), linear.bias)

    @classmethod
    def restore(cls, like: nn.Linear, tensors: dict[str, Tensor]) -> Int8Linear:
        values = expect(tensors, "values", (like.out_features, like.in_features), torch.int8)
        scale = expect(tensors, "scale", (like.out_features,), torch.float32)
        return cls(like, values, scale, expect_bias(tensors, like))

    def stored(self) -> dict[str, Tensor]:
        weight, _ = torch.ops.quantized.linear_unpack(self._packed)
        scale = weight.q_per_channel_scales().float()
        return {"values": weight.int_repr(), "scale": scale, **super().stored()}

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [..., I] -> float32 [..., O]."""
        flat = x.reshape(-1, self.in_features)
        peaks = flat.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        rows = torch.ones(len(flat) + 2, self.in_features)
        rows[-1] = -1.0
        torch.div(flat, peaks, out=rows[:-2])
        y = self.pair(rows)[:-2] * peaks
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def pair(self, x: Tensor) -> Tensor:
        """x float32 [rows, I] -> float32 [rows, O] with one scale for all rows, and without the bias.

        For the two rows that guidance makes of one prompt: a step has no time to spare.
        """
        return torch.ops.quantized.linear_dynamic(x, self._packed, reduce_range=self._short)


class WeightInt8Linear(PackedLinear):
    """int8 weights with bfloat16 inputs: nothing to quantize a call, so it is the fastest for few rows."""

    cpu_only = True
    MULTIPLE = 16  # torch's kernel reads whole vectors of inputs and checks nothing

    def __init__(self, like: nn.Linear, values: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__(like, bias)
        if like.in_features % self.MULTIPLE:
            raise ValueError(
                f"int8-weight and int4-row need inputs that {self.MULTIPLE} divides, got {like.in_features}; "
                "int8 and int4 take any"
            )
        self.register_buffer("values", aligned(values), persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    @classmethod
    def pack(cls, linear: nn.Linear) -> WeightInt8Linear:
        return cls(linear, *int8_rows(linear.weight, torch.bfloat16), linear.bias)

    @classmethod
    def restore(cls, like: nn.Linear, tensors: dict[str, Tensor]) -> WeightInt8Linear:
        values = expect(tensors, "values", (like.out_features, like.in_features), torch.int8)
        scale = expect(tensors, "scale", (like.out_features,), torch.bfloat16)
        return cls(like, values, scale, expect_bias(tensors, like))

    def stored(self) -> dict[str, Tensor]:
        return {"values": self.values, "scale": self.scale, **super().stored()}

    def plain(self) -> tuple[Tensor, Tensor]:
        """The values int8 [O,I] and the scales float32 [O]: for the kernels of a step."""
        return self.values, self.scale.float()

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [..., I] -> float32 [..., O]."""
        flat = x if x.ndim == 2 else x.reshape(-1, self.in_features)
        y = torch.ops.aten._weight_int8pack_mm(flat.to(torch.bfloat16), self.values, self.scale).float()
        if self.bias is not None:
            y += self.bias
        return y if x.ndim == 2 else y.view(*x.shape[:-1], self.out_features)


class Fp16Linear(PackedLinear):
    """float16 weights. On x86, fbgemm's kernel with float32 inputs and sums; elsewhere a product in float16."""

    def __init__(self, like: nn.Linear, half: Tensor, bias: Tensor | None):
        super().__init__(like, bias)
        self._packed = None
        on_x86 = half.device.type == "cpu" and torch.backends.quantized.engine in ("x86", "fbgemm")
        self.register_buffer("half_weight", None if on_x86 else half, persistent=False)
        if on_x86:
            self._packed = torch.ops.quantized.linear_prepack_fp16(half.float(), self.bias)

    @classmethod
    def pack(cls, linear: nn.Linear) -> Fp16Linear:
        return cls(linear, half_of(linear.weight, torch.float16), linear.bias)

    @classmethod
    def restore(cls, like: nn.Linear, tensors: dict[str, Tensor]) -> Fp16Linear:
        half = expect(tensors, "half", (like.out_features, like.in_features), torch.float16)
        return cls(like, half, expect_bias(tensors, like))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fp16Linear:
        if self._packed is not None and not stays_on_cpu(fn):
            self.half_weight, self._packed = self.stored()["half"], None
        return super()._apply(fn, recurse)

    def stored(self) -> dict[str, Tensor]:
        half = self.half_weight
        if self._packed is not None:
            half = torch.ops.quantized.linear_unpack_fp16(self._packed)[0].half()
        return {"half": half, **super().stored()}

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [..., I] -> float32 [..., O]."""
        if self._packed is not None:
            return torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        y = functional.linear(x.half(), self.half_weight).float()
        return y if self.bias is None else y + self.bias


class Bf16Linear(PackedLinear):
    """bfloat16 weights and inputs, sums in float32.

    On a CPU with the instructions for it, oneDNN's product over weights in oneDNN's own order: twice as fast for two
    rows as torch's, which has the weights in plain order. The packed weights are the only copy.
    """

    def __init__(self, like: nn.Linear, half: Tensor, bias: Tensor | None):
        super().__init__(like, bias)
        self._packed = None
        able = half.device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.register_buffer("half_weight", None if able else half, persistent=False)
        if able:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(half.contiguous(), STEP_ROWS)

    @classmethod
    def pack(cls, linear: nn.Linear) -> Bf16Linear:
        return cls(linear, half_of(linear.weight, torch.bfloat16), linear.bias)

    @classmethod
    def restore(cls, like: nn.Linear, tensors: dict[str, Tensor]) -> Bf16Linear:
        half = expect(tensors, "half", (like.out_features, like.in_features), torch.bfloat16)
        return cls(like, half, expect_bias(tensors, like))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bf16Linear:
        if self._packed is not None and not stays_on_cpu(fn):
            self.half_weight, self._packed = self.stored()["half"], None
        return super()._apply(fn, recurse)

    def stored(self) -> dict[str, Tensor]:
        half = self.half_weight if self._packed is None else self._packed.to_dense()
        return {"half": half, **super().stored()}

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [..., I] -> float32 [..., O]."""
        x = x.to(torch.bfloat16)
        if self._packed is not None:
            y = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "").float()
        else:
            y = functional.linear(x, self.half_weight).float()
        return y if self.bias is None else y + self.bias
