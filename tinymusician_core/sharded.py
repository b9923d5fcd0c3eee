"""Training in which every process keeps a share of the weights: PyTorch's fully_shard ("FSDP2"), on GPUs and on CPUs.

Each layer's weights are put together where it is computed and forgotten after it; gradients and the optimiser's moments
exist in shares alone. Checkpoints hold whole tensors, so any number of processes can go on from them. Imported only
where a launcher asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Muon

NS_STEPS, NS_COEFFICIENTS, EPS = 5, (3.4445, -4.7750, 2.0315), 1e-7  # Jordan et al. 2024


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


def orthogonal(update: Tensor) -> Tensor:
    """A matrix [N,M] with its singular values brought near 1, in bfloat16, by the quintic Newton-Schulz iteration of
    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon)."""
    a, b, c = NS_COEFFICIENTS
    x = update.bfloat16()
    x = x.T if update.shape[0] > update.shape[1] else x
    x = x / x.norm().clamp(min=EPS)
    for _ in range(NS_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if update.shape[0] > update.shape[1] else x


class ShardedMuon(Muon):
    """torch.optim.Muon for shares: every process orthogonalises the whole update, and keeps its share of all else.

    torch's own would work on shares of the products too, and round differently in bfloat16 for every number of
    processes. `adjust_lr_fn` is "match_rms_adamw", and the momentum Nesterov's, whatever is asked for.
    """

    @torch.no_grad()
    def step(self) -> None:
        """One update of every matrix that has a gradient. All processes must call it together."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, group)

    def _update(self, matrix: Tensor, group: dict) -> None:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
        update = orthogonal(whole(matrix.grad.lerp(momentum, group["momentum"])))
        rate = group["lr"] * 0.2 * math.sqrt(max(matrix.shape))
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(share(update, matrix), alpha=-rate)
