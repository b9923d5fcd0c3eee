"""Muon with products in the type that the device is fast in: torch's own computes in bfloat16 everywhere, which takes a
CPU without instructions for it ten times as long as float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Muon

from .precision import computes_bf16

NS_STEPS, NS_COEFFICIENTS, EPS = 5, (3.4445, -4.7750, 2.0315), 1e-7  # Jordan et al. 2024


def orthogonal(update: Tensor) -> Tensor:
    """A matrix [N,M] with its singular values brought near 1, by the quintic Newton-Schulz iteration of Muon (Jordan
    et al. 2024, https://kellerjordan.github.io/posts/muon)."""
    a, b, c = NS_COEFFICIENTS
    x = update.bfloat16() if computes_bf16(update.device) else update.float()
    x = x.T if update.shape[0] > update.shape[1] else x
    x = x / x.norm().clamp(min=EPS)
    for _ in range(NS_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if update.shape[0] > update.shape[1] else x


class FastMuon(Muon):
    """torch.optim.Muon with `orthogonal`. `adjust_lr_fn` is "match_rms_adamw", and the momentum Nesterov's, whatever is
    asked for."""

    @torch.no_grad()
    def step(self) -> None:
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, group)

    def _update(self, matrix: Tensor, group: dict) -> None:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
        update = self._orthogonal(matrix.grad.lerp(momentum, group["momentum"]), matrix)
        rate = group["lr"] * 0.2 * math.sqrt(max(matrix.shape))
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(update, alpha=-rate)

    def _orthogonal(self, update: Tensor, matrix: Tensor) -> Tensor:
        """The update of the matrix, made orthogonal."""
        return orthogonal(update)
