"""Four-bit weights that know their inputs: GPTQ (Frantar et al. 2023, arXiv 2210.17323). O outputs, I inputs.

Rounding each weight to its nearest number keeps the weights close; what has to stay close is the product. GPTQ rounds
one input's weights after the other and moves what each rounding gets wrong onto the inputs that are still to come, as
the inputs' second moments say how one can stand in for another. The grid of a group is chosen when its turn comes,
shrunk where the weights that matter gain by it. The stored form, and so the kernel, are those of nearest rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .int4 import GROUP, TINY, grid, grouped, nearest, two_a_byte

DAMPING = 0.01  # of the mean square of an input, added to each
SHRINKS = tuple(1.0 - 0.04 * i for i in range(16))


def gptq_groups(weight: Tensor, moment: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """As `int4.int4_groups`, rounded for inputs with the second moments `moment`.

    Args:
        weight: [O,I].
        moment: [I,I], the sum of x x^T over inputs x.
        group: weights of a row that share a scale and a middle.

    Returns:
        nibbles uint8 [O, G * group / 2] and scales bfloat16 [O,G,2].

    Raises:
        ValueError: weights or moments that are not finite, or moments of another size.
    """
    importance = _importance(weight, moment, group)
    scales: list[Tensor] = []

    def grid_of(part: Tensor, first: int) -> tuple[Tensor, Tensor]:
        scale, middle = best_grid(part, importance[first : first + group])
        scales.append(torch.stack((scale, middle), dim=1))
        return scale, middle

    numbers = _rounded(weight, moment, group, grid_of)
    return two_a_byte(numbers), torch.stack(scales, dim=1)


def gptq_rows(weight: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """As `int4.int4_rows`, rounded for inputs with the second moments `moment` [I,I]; raises as `gptq_groups`."""
    importance = _importance(weight, moment, GROUP)[: weight.shape[1]]
    scale = best_scale(weight.detach().float(), importance)
    middle = torch.zeros_like(scale)
    numbers = _rounded(weight, moment, GROUP, lambda part, first: (scale, middle))
    return (numbers[:, : weight.shape[1]] - 8.0).to(torch.int8), scale


def _importance(weight: Tensor, moment: Tensor, group: int) -> Tensor:
    """How much an error in each input's weight counts, float32 [I filled up]; ValueError for moments that are none."""
    inputs = weight.shape[1]
    if tuple(moment.shape) != (inputs, inputs) or not bool(torch.isfinite(moment).all()):
        raise ValueError(f"the moments must be finite and [{inputs}, {inputs}], got {list(moment.shape)}")
    return functional.pad(moment.diagonal().float(), (0, -inputs % group)) + DAMPING * _typical(moment)


def _typical(moment: Tensor) -> float:
    return float(moment.diagonal().mean()) or 1.0


def _rounded(
    weight: Tensor, moment: Tensor, group: int, grid_of: Callable[[Tensor, int], tuple[Tensor, Tensor]]
) -> Tensor:
    """The numbers 0 to 15, float32 [O, I filled up]; `grid_of` is asked for a group's grid when its turn comes."""
    rest = grouped(weight, group).flatten(1)
    factor = _factor(functional.pad(moment.double(), (0, rest.shape[1] - weight.shape[1]) * 2), _typical(moment))
    numbers = torch.empty_like(rest)
    for first in range(0, rest.shape[1], group):
        end = first + group
        part, triangle = rest[:, first:end], factor[first:end, first:end]
        scale, middle = grid_of(part, first)
        off = torch.empty_like(part)
        for i in range(group):
            column = part[:, i]
            numbers[:, first + i] = nearest(column, scale, middle)
            kept = (numbers[:, first + i] - 8.0) * scale.float() + middle.float()
            off[:, i] = (column - kept) / triangle[i, i]
            part[:, i:] -= off[:, i : i + 1] * triangle[i : i + 1, i:]
        rest[:, end:] -= off @ factor[first:end, end:]
    return numbers


def _factor(moment: Tensor, typical: float) -> Tensor:
    """The upper Cholesky factor float32 [I,I] of the inverse of the damped moments."""
    damped = moment + torch.eye(len(moment), dtype=moment.dtype) * (DAMPING * typical)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def best_grid(part: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the middle [O] of a group [O,group] whose weighted error of rounding is least."""
    low, high = part.amin(dim=1), part.amax(dim=1)
    centre, reach = (low + high) / 2, (high - low) / 2
    grids = [grid(centre - shrink * reach, centre + shrink * reach) for shrink in SHRINKS]
    return _least(part, importance, grids)


def best_scale(weight: Tensor, importance: Tensor) -> Tensor:
    """The scale [O] of rows [O,I] whose weighted error of rounding is least, on a grid around 0."""
    most = weight.abs().amax(dim=1)
    grids = []
    for shrink in SHRINKS:
        scale = (shrink * most / 7.5).clamp_min(TINY).to(torch.bfloat16)
        grids.append((scale, torch.zeros_like(scale)))
    return _least(weight, importance, grids)[0]


def _least(part: Tensor, importance: Tensor, grids: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Of some grids, a scale and a middle [O] each, that with the least weighted error, row by row."""
    best = torch.full_like(part[:, 0], float("inf"))
    scale, middle = grids[0]
    for tried, about in grids:
        kept = (nearest(part, tried.unsqueeze(1), about.unsqueeze(1)) - 8.0) * tried.float().unsqueeze(1)
        error = ((kept + about.float().unsqueeze(1) - part).square() * importance).sum(dim=1)
        better = error < best
        best = torch.where(better, error, best)
        scale, middle = torch.where(better, tried, scale), torch.where(better, about, middle)
    return scale, middle
