"""What is true of a piece (its instrument, tempo, mode, ...), asked of the teacher while it trains.

A caption's word for the tempo changes the likelihood of the first notes alone: soon the music itself tells. That is too
little for cross-entropy to teach what such words mean. So linear probes ask the text's states and the decoder's hidden
states for the facts. They are for training only, and no part of the published teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FACTS = ("instrument", "style", "meter", "tempo", "mode", "tonic", "texture", "accompanist")

Classes = Mapping[str, Sequence[str | int]]


def classes_of(facts: Sequence[Mapping]) -> dict[str, tuple[str | int, ...]]:
    """The values that each of FACTS has among pieces, sorted."""
    return {name: tuple(sorted({each[name] for each in facts})) for name in FACTS}


class FactProbe(nn.Module):
    """A linear head for each fact, on vectors of `width`."""

    def __init__(self, width: int, classes: Classes) -> None:
        super().__init__()
        self.places = {name: {value: i for i, value in enumerate(values)} for name, values in classes.items()}
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in classes.items()})

    def forward(self, states: Tensor, facts: Sequence[Mapping], weights: Tensor) -> Tensor:
        """States [B,T,D], the facts of B pieces, weights [B,T] -> cross-entropy in nats, the mean over facts."""
        states, weights = self.norm(states), weights / weights.sum().clamp_min(1e-6)
        losses = []
        for name, head in self.heads.items():
            truth = torch.tensor([self.places[name][each[name]] for each in facts], device=states.device)
            each = F.cross_entropy(
                head(states).float().transpose(1, 2), truth[:, None].expand(weights.shape), reduction="none"
            )
            losses.append((each * weights).sum())
        return torch.stack(losses).mean()
