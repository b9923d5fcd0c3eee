"""Four-bit weights that know their inputs: GPTQ (Frantar et al. 2023, arXiv 2210.17323). O outputs, I inputs.

Rounding each weight to its nearest number keeps the weights close; what has to stay close is the product. GPTQ rounds
one input's weights after the other and moves what each rounding gets wrong onto the inputs that are still to come, as
the inputs' second moments say how one can stand in for another. The grid of a group is chosen when its turn comes,
shrunk where the weights that matter gain by it. The stored form, and so the kernel, are those of nearest rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .int4 import GROUP, grid, grouped, nearest, two_a_byte

DAMPING = 0.01  # of the mean square of an input, added to each
SHRINKS = tuple(1.0 - 0.04 * i for i in range(11))


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
    inputs = weight.shape[1]
    if tuple(moment.shape) != (inputs, inputs) or not bool(torch.isfinite(moment).all()):
        raise ValueError(f"the moments must be finite and [{inputs}, {inputs}], got {list(moment.shape)}")
    rest = grouped(weight, group).flatten(1)
    factor, importance = _factor(functional.pad(moment.double(), (0, rest.shape[1] - inputs) * 2))
    numbers, scales = torch.empty_like(rest), []
    for first in range(0, rest.shape[1], group):
        end = first + group
        part, triangle = rest[:, first:end], factor[first:end, first:end]
        scale, middle = _best_grid(part, importance[first:end])
        off = torch.empty_like(part)
        for i in range(group):
            column = part[:, i]
            numbers[:, first + i] = nearest(column, scale, middle)
            kept = (numbers[:, first + i] - 8.0) * scale.float() + middle.float()
            off[:, i] = (column - kept) / triangle[i, i]
            part[:, i:] -= off[:, i : i + 1] * triangle[i : i + 1, i:]
        rest[:, end:] -= off @ factor[first:end, end:]
        scales.append(torch.stack((scale, middle), dim=1))
    return two_a_byte(numbers), torch.stack(scales, dim=1)


def _factor(moment: Tensor) -> tuple[Tensor, Tensor]:
    """The upper Cholesky factor of the inverse of the damped moments [I,I], and the mean squares [I], float32."""
    squares = moment.diagonal()
    typical = float(squares.mean()) or 1.0
    damped = moment + torch.eye(len(moment), dtype=moment.dtype) * (DAMPING * typical)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float(), damped.diagonal().float()


def _best_grid(part: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the middle [O] of a group [O,group] whose weighted error of rounding is least."""
    low, high = part.amin(dim=1), part.amax(dim=1)
    centre, reach = (low + high) / 2, (high - low) / 2
    best = torch.full_like(low, float("inf"))
    scale, middle = grid(low, high)
    for shrink in SHRINKS:
        tried, about = grid(centre - shrink * reach, centre + shrink * reach)
        kept = (nearest(part, tried.unsqueeze(1), about.unsqueeze(1)) - 8.0) * tried.float().unsqueeze(1)
        error = ((kept + about.float().unsqueeze(1) - part).square() * importance).sum(dim=1)
        better = error < best
        best = torch.where(better, error, best)
        scale, middle = torch.where(better, tried, scale), torch.where(better, about, middle)
    return scale, middle
