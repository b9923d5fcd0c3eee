"""oneDNN's matrix product in float32, called as the operator itself.

`F.linear` takes MKL, which is made for Intel's processors and for many rows: on an AVX512 AMD machine oneDNN took half
MKL's time for 8 to 64 rows of 1024 x 4096, two thirds of it for 2, and reached 250 against 107 GFLOP/s a core.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def usable(x: Tensor) -> bool:
    """Whether this product can take a tensor: float32 on a CPU, nothing to differentiate, and torch built with it."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., I] times weight [O,I] transposed, and bias [O] -> [..., O]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def linear_plus(x: Tensor, weight: Tensor, plus: Tensor) -> Tensor:
    """Rows [n,I] times weight [O,I] transposed, and `plus` [n,O] -> [n,O]."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, None, "add")


class Linear(nn.Linear):
    """An `nn.Linear` that takes oneDNN's product where it can."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return linear(x, self.weight, self.bias) if usable(x) else super().forward(x)
