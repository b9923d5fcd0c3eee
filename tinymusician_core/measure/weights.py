"""Bytes of weights as a loaded model holds them in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from ..engine.decoder import Decoder

STEP = ("qkv", "out", "cross_q", "cross_out", "fc1", "fc2")


def held_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the parameters and buffers of modules and of all that they consist of, each tensor once.

    What a kernel keeps in an order of its own, behind a handle, counts as the tensors that it was made of.
    """
    seen: dict[int, int] = {}
    packed = 0
    for module in {id(part): part for whole in modules for part in whole.modules()}.values():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if hasattr(module, "stored") and all(tensor is getattr(module, "bias", None) for tensor in own):
            packed += sum(tensor.nbytes for tensor in module.stored().values())
        else:
            seen.update({id(tensor): tensor.nbytes for tensor in own})
    return packed + sum(seen.values())


def step_bytes(decoder: Decoder) -> int:
    """Bytes of the weights that a step of our decoder reads: those of `STEP` in every layer, and the heads. Of a layer
    that holds them in two forms, the one that a step reads."""
    layers = (getattr(layer, name) for layer in decoder.layers for name in STEP if hasattr(layer, name))
    read = [*layers, decoder.heads]
    twofold = [layer for layer in read if hasattr(layer, "step_tensors")]
    own = sum(tensor.nbytes for layer in twofold for tensor in layer.step_tensors())
    return own + held_bytes(layer for layer in read if layer not in twofold)
