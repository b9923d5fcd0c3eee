"""Training in which every process keeps a share of the weights: PyTorch's fully_shard ("FSDP2"), on GPUs and on CPUs.

Each layer's weights are put together where it is computed and forgotten after it; gradients and the optimiser's moments
exist in shares alone. Checkpoints hold whole tensors, so any number of processes can go on from them. Imported only
where a launcher asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .muon import FastMuon, orthogonal


def shard(model: nn.Module, device: torch.device, world: int, reshard: bool) -> FSDPModule:
    """Let each of `world` processes keep its share of the weights of `model`, which stays the same object.

    A layer that transformers does not split is a unit of its own; what is left is another. With `reshard` the layers
    are taken apart again between forward and backward pass: less memory, one more exchange.
    """
    mesh = init_device_mesh(device.type, (world,))
    for layer in list(_layers(model, set())):
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
    return fully_shard(model, mesh=mesh, reshard_after_forward=reshard)


def _layers(module: nn.Module, unsplit: set[str]) -> Iterator[nn.Module]:
    """The outermost modules below this one of the classes that transformers does not split."""
    unsplit = unsplit | set(getattr(module, "_no_split_modules", None) or ())
    if type(module).__name__ in unsplit:
        yield module
        return
    for child in module.children():
        yield from _layers(child, unsplit)


def whole(tree: Any) -> Any:
    """A state, of nested dicts and lists, with its shares put together. All processes must call it together."""
    if isinstance(tree, DTensor):
        return tree.detach().full_tensor()
    if isinstance(tree, Mapping):
        return {name: whole(value) for name, value in tree.items()}
    return [whole(value) for value in tree] if isinstance(tree, list) else tree


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, laid out as `like` is; the tensor itself where `like` is not shared."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    here = tensor.to(device=like.device, dtype=tensor.dtype)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def share_moments(state: dict, parameters: Iterable[Tensor]) -> dict:
    """An optimiser's state with whole moments, in the shares of its parameters, which are numbered in their order."""
    shared = {}
    for number, parameter in enumerate(parameters):
        kept = state["state"].get(number, {})
        shared[number] = {
            name: share(value, parameter) if getattr(value, "shape", None) == parameter.shape else value
            for name, value in kept.items()
        }
    return {**state, "state": {number: kept for number, kept in shared.items() if kept}}


class ShardedMuon(FastMuon):
    """Muon for shares: every process orthogonalises the whole update, and keeps its share of all else. All processes
    must call `step` together.

    torch's own would work on shares of the products too, and round differently for every number of processes.
    """

    def _orthogonal(self, update: Tensor, matrix: Tensor) -> Tensor:
        return share(orthogonal(whole(update)), matrix)
