"""AdamW for everything, or Muon for the matrices inside a transformer's layers and AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes every update of a matrix nearly orthogonal:
its rare directions learn as fast as its common ones. `match_rms_adamw` (Liu et al. 2025, arXiv 2502.16982) scales the
updates to the size of AdamW's, so that both take the same learning rate and weight decay.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from .muon import FastMuon


def layer_matrices(model: nn.Module, stacks: Collection[str]) -> frozenset[str]:
    """Names of the weights of all linear layers below `stacks`, the lists of a model's layers ("decoder.layers").

    Raises:
        ValueError: one of them holds no linear layer.
    """
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {stack: {name for name in linear if name.startswith(f"{stack}.")} for stack in stacks}
    empty = [stack for stack, names in found.items() if not names]
    if empty:
        raise ValueError(f"no linear layers in {', '.join(empty)}; names of lists of layers are allowed")
    return frozenset().union(*found.values())


class Optimizers:
    """One optimiser or two that step as one, over the parameters of `model` that require gradients.

    Weight decay goes to matrices only. The state's keys say which optimisers it belongs to.

    Args:
        model: whose parameters.
        muon: the names of those that Muon trains, matrices all of them; AdamW trains the others.
        learning_rate: of all of them, until `set_learning_rate`.
        weight_decay: decoupled, of matrices.
        betas: AdamW's.
        steady: the names of those that have a learning rate of their own, never Muon's.

    Raises:
        ValueError: a name in `muon` is no trainable matrix of the model, or is in `steady` too.
    """

    def __init__(
        self,
        model: nn.Module,
        muon: Collection[str],
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        steady: Collection[str] = (),
    ) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        unfit = [name for name in muon if name not in trained or trained[name].ndim != 2 or name in steady]
        if unfit:
            raise ValueError(f"Muon trains matrices of the model; {', '.join(sorted(unfit))} is none that is trained")
        rest = {name: p for name, p in trained.items() if name not in muon}
        groups = [
            {
                "params": [p for name, p in rest.items() if (p.ndim >= 2, name in steady) == (matrices, apart)],
                "weight_decay": weight_decay if matrices else 0.0,
                "steady": apart,
            }
            for apart in ((False, True) if steady else (False,))
            for matrices in (True, False)
        ]
        self._by_name: dict[str, Optimizer] = {"adamw": AdamW(groups, lr=learning_rate, betas=betas)}
        if muon:
            matrices = [p for name, p in trained.items() if name in muon]
            self._by_name["muon"] = _muon_for(matrices)(
                matrices,
                lr=learning_rate,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )

    def set_learning_rate(self, value: float, steady: float) -> None:
        """One for the steady parameters, another for all the rest."""
        for optimizer in self._by_name.values():
            for group in optimizer.param_groups:
                group["lr"] = steady if group.get("steady") else value

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self._by_name.values():
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for optimizer in self._by_name.values():
            optimizer.step()

    def tensors(self) -> list[torch.Tensor]:
        """What is kept between steps: moments and counts."""
        states = [state for optimizer in self._by_name.values() for state in optimizer.state.values()]
        return [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]

    def state_dict(self) -> dict[str, dict]:
        """The state of each, by its name."""
        return {name: optimizer.state_dict() for name, optimizer in self._by_name.items()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Take up an earlier state; one of AdamW's own form (`state` and `param_groups`) is AdamW's.

        Raises:
            ValueError: it belongs to other optimisers than these.
        """
        if "param_groups" in state:
            state = {"adamw": state}
        if state.keys() != self._by_name.keys():
            raise ValueError(
                f"the checkpoint was trained with {' and '.join(sorted(state))}, "
                f"not with {' and '.join(sorted(self._by_name))}; start a new run from its weights"
            )
        for name, optimizer in self._by_name.items():
            optimizer.load_state_dict(_in_shares(state[name], optimizer))


def _is_share(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "placements")  # of a DTensor, whose module is only imported where one is made


def _muon_for(matrices: list[nn.Parameter]) -> type[FastMuon]:
    """Muon, or its twin for weights of which each process has a share."""
    if not any(map(_is_share, matrices)):
        return FastMuon
    from .sharded import ShardedMuon

    return ShardedMuon


def _in_shares(state: dict, optimizer: Optimizer) -> dict:
    """A whole state as this process keeps it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(map(_is_share, parameters)):
        return state
    from .sharded import share_moments

    return share_moments(state, parameters)
