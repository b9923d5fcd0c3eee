"""Four-bit weights that can be trained, exactly as they are stored. O outputs, I inputs, G groups of a row.

A weight is trained as the place where it stands on its group's grid of 16 numbers; what is multiplied with is the
number nearest to it, and the gradient goes straight through the rounding (Bengio et al. 2013, arXiv 1308.3432). Scale
and middle are trained too (Esser et al. 2020, arXiv 1902.08153), rounded to the bfloat16 in which they are stored. All
is counted in steps of the grid, so that one learning rate fits layers of any size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .int4 import TINY, grouped, two_a_byte

NEAR = 0.45  # how far from its number a weight may begin: less than half a step, so that it begins at that number
REACH = 8.0  # steps from the middle of a grid to its end


def through(value: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` in the product, `value` in the gradient."""
    return value + (rounded - value).detach()


class Grid(nn.Module):
    """The weights of a layer on their grids; begins with just the numbers, scales and middles that are given.

    Args:
        weight: the float weights [O,I]: where between two numbers each begins.
        nibbles: uint8 [O, G * group / 2], the first weight in the low half.
        scale: bfloat16 [O,G].
        middle: bfloat16 [O,G]; None for grids around 0, which stay there.
    """

    def __init__(self, weight: Tensor, nibbles: Tensor, scale: Tensor, middle: Tensor | None):
        super().__init__()
        self.inputs = weight.shape[1]
        group = 2 * nibbles.shape[1] // scale.shape[1]
        numbers = torch.stack((nibbles & 15, nibbles >> 4), dim=2).flatten(1).unflatten(1, (-1, group)).float()
        self.register_buffer("scale", scale.float().clone(), persistent=False)
        self.register_buffer("middle", None if middle is None else middle.float().clone(), persistent=False)
        about = 0.0 if middle is None else self.middle.unsqueeze(2)
        exact = (grouped(weight, group) - about) / self.scale.unsqueeze(2) + 8.0
        self.place = nn.Parameter(numbers + (exact - numbers).clamp(-NEAR, NEAR))
        self.stretch = nn.Parameter(torch.zeros_like(self.scale))
        self.shift = None if middle is None else nn.Parameter(torch.zeros_like(self.scale))

    def plane(self) -> tuple[Tensor, Tensor | None]:
        """Scale and middle [O,G] as they are now, in bfloat16's numbers."""
        scale = (self.scale * (1.0 + self.stretch / REACH)).clamp_min(TINY)
        scale = through(scale, scale.to(torch.bfloat16).float())
        if self.shift is None:
            return scale, None
        middle = self.middle + self.shift * self.scale
        return scale, through(middle, middle.to(torch.bfloat16).float())

    def numbers(self) -> Tensor:
        """Each weight's number 0 to 15, float32 [O,G,group]."""
        return self.place.detach().round().clamp(0, 15)

    def forward(self) -> Tensor:
        """The weights [O,I] as a stored layer multiplies with them."""
        scale, middle = self.plane()
        weight = (through(self.place, self.numbers()) - 8.0) * scale.unsqueeze(2)
        if middle is not None:
            weight = weight + middle.unsqueeze(2)
        return weight.flatten(1)[:, : self.inputs]

    @torch.no_grad()
    def stored(self) -> dict[str, Tensor]:
        """The tensors by the names that the packed forms give them."""
        scale, middle = (None if part is None else part.to(torch.bfloat16) for part in self.plane())
        nibbles = two_a_byte(self.numbers().flatten(1))
        if middle is None:
            return {"nibbles": nibbles, "scale": scale[:, 0]}
        return {"nibbles": nibbles, "scales": torch.stack((scale, middle), dim=2)}


def grid_of(weight: Tensor, tensors: dict[str, Tensor]) -> Grid:
    """The grid of float weights [O,I] and what they are stored as under "int4" or "int4-row"."""
    if "scale" in tensors:
        return Grid(weight, tensors["nibbles"], tensors["scale"].unsqueeze(1), None)
    scale, middle = tensors["scales"].unbind(2)
    return Grid(weight, tensors["nibbles"], scale, middle)


class StraightLinear(nn.Module):
    """A linear layer on a grid, with inputs rounded to bfloat16 as the kernels have them."""

    def __init__(self, grid: Grid, bias: Tensor | None):
        super().__init__()
        self.grid = grid
        self.register_buffer("bias", None if bias is None else bias.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [..., I] -> float32 [..., O]."""
        return functional.linear(through(x, x.to(torch.bfloat16).float()), self.grid(), self.bias)

    def stored(self) -> dict[str, Tensor]:
        """What `restore` of the packed form takes."""
        return self.grid.stored() | ({} if self.bias is None else {"bias": self.bias})


class StraightEmbedding(nn.Module):
    """An embedding table on a grid."""

    def __init__(self, grid: Grid):
        super().__init__()
        self.grid = grid

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [...] -> float32 [..., D]."""
        return functional.embedding(tokens, self.grid())

    def stored(self) -> dict[str, Tensor]:
        """What `restore` of the packed form takes."""
        return self.grid.stored()


class Passing(nn.Module):
    """A packed linear layer that is not trained: its own kernel forward, the float weights [O,I] for the gradient."""

    def __init__(self, packed: nn.Module, weight: Tensor):
        super().__init__()
        self.packed, self._float = packed, weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        """x float32 [..., I] -> float32 [..., O]."""
        return _Pass.apply(x, self.packed, self._float)


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, packed: nn.Module, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return packed(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.weight, None, None
