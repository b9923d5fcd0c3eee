"""The products of a step on a CPU, each bound to the buffer that it reads. R rows, I inputs, O outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from .kernels import product

# Up to here one core with the compiled product is faster than torch's on two.
SMALL_BYTES = 2**21

Product = Callable[[], np.ndarray]


def as_array(tensor: Tensor) -> np.ndarray:
    """The tensor's own memory; bfloat16 as its bits."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def compiles(module: nn.Module) -> bool:
    """Whether the module's product is made by the compiled kernel: it shows its weights (`plain`), and they are few."""
    plain = module.plain() if hasattr(module, "plain") else None
    if plain is None:
        return False
    weight, _ = plain
    return weight.nbytes <= SMALL_BYTES and weight.dtype in (torch.float32, torch.int8)


def bind(module: nn.Module, x: Tensor, prompts: int) -> Product:
    """The module's product with what stands in `x` float32 [R,I] whenever it is called: an array float32 [R,O].

    What `compiles` goes to the compiled kernel; a module that quantizes all rows of a call alike is called by its
    `pair`, for each prompt's rows apart; any other is called as it is.

    Args:
        module: a linear layer without bias.
        x: the buffer; it must stay where it is.
        prompts: row r belongs to prompt r modulo that.
    """
    if compiles(module):
        return _compiled(*module.plain(), x)
    pair = getattr(module, "pair", None)
    if pair is None:
        return lambda: module(x).numpy()
    if prompts == 1:
        return lambda: pair(x).numpy()
    return lambda: _apart(pair, x, prompts).numpy()


def _compiled(weight: Tensor, scale: Tensor, x: Tensor) -> Product:
    rows, weights, scales = as_array(x), as_array(weight), as_array(scale)
    out = np.zeros((len(rows), len(weights)), np.float32)

    def run() -> np.ndarray:
        product(weights, scales, rows, out)
        return out

    return run


def _apart(pair: Callable[[Tensor], Tensor], x: Tensor, prompts: int) -> Tensor:
    groups = x.view(-1, prompts, x.shape[1]).transpose(0, 1)
    return torch.stack([pair(group.contiguous()) for group in groups], dim=1).flatten(0, 1)
