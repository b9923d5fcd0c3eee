"""Vector quantization for training: codebooks that follow the data by moving averages, started by k-means,
dead entries revived.

van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1; k-means start and revival as in SoundStream (arXiv
2107.03312).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tinymusician_core.codec.spectral import nearest


class MovingCodebook(nn.Module):
    """Updates an nn.Embedding's rows as the running mean of the vectors that choose them."""

    def __init__(self, table: nn.Embedding, decay: float = 0.98, dead_below: float = 0.3) -> None:
        super().__init__()
        self.table = table
        table.weight.requires_grad_(False)
        self.decay, self.dead_below = decay, dead_below
        self.register_buffer("counts", torch.ones(table.num_embeddings))
        self.register_buffer("sums", table.weight.detach().clone())

    @torch.no_grad()
    def start(self, vectors: Tensor, generator: torch.Generator, rounds: int = 12) -> None:
        """k-means on vectors [M,D], M at least the number of entries."""
        size = self.table.num_embeddings
        centres = vectors[torch.randperm(len(vectors), generator=generator)[:size]].clone()
        for _ in range(rounds):
            choice = nearest(vectors, centres)
            counts = torch.bincount(choice, minlength=size).to(vectors)
            sums = torch.zeros_like(centres).index_add_(0, choice, vectors)
            lost = counts == 0
            centres = sums / counts.clamp_min(1)[:, None]
            centres[lost] = vectors[torch.randperm(len(vectors), generator=generator)[: int(lost.sum())]]
        self.table.weight.copy_(centres)
        self.counts.fill_(len(vectors) / size)
        self.sums.copy_(centres * self.counts[:, None])

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B,T,D] -> (chosen rows with a straight-through gradient, indices [B,T], commitment loss). A
        generator means: learn."""
        choice = nearest(x.detach(), self.table.weight)
        rows = self.table.weight[choice]
        if generator is not None:
            self.learn(x.detach().flatten(0, 1), choice.flatten(), generator)
        return x + (rows - x).detach(), choice, (x - rows.detach()).pow(2).mean()

    @torch.no_grad()
    def learn(self, x: Tensor, choice: Tensor, generator: torch.Generator) -> None:
        size = self.table.num_embeddings
        self.counts.lerp_(torch.bincount(choice, minlength=size).to(x), 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, choice, x), 1 - self.decay)
        dead = (self.counts < self.dead_below).nonzero()[:, 0]
        if len(dead):
            fresh = x[torch.randint(len(x), (len(dead),), generator=generator).to(x.device)]
            self.sums[dead], self.counts[dead] = fresh, 1.0
        self.table.weight.copy_(self.sums / self.counts.clamp_min(1e-3)[:, None])
