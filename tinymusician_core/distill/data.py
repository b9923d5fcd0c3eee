"""From codec tokens to what teacher and student see: delayed inputs, targets, and the mask of what counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..delay import delay
from ..text import TextEncoder
from ..tokens import TokenDataset


@dataclass(frozen=True)
class Batch:
    """Delayed inputs and targets int64 [B,K,P] and valid bool [B,K,P], P = T + delay; states [B,S,D], mask [B,S]."""

    inputs: Tensor
    targets: Tensor
    valid: Tensor
    states: Tensor
    mask: Tensor


def delayed(codes: Tensor, delays: tuple[int, ...], start: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes int64 [B,K,T], -1 past a clip's end -> inputs, targets and valid, each [B,K,P].

    The inputs are the delayed codes behind one `start` token, which also stands for padding; the targets are the
    delayed codes themselves. Padding, and what lies past a clip's end, is not valid.
    """
    shifted, real = delay(codes, delays, start)
    valid = real & (shifted >= 0)
    shifted = shifted.masked_fill(~valid, start)
    inputs = functional.pad(shifted, (1, 0), value=start)[..., :-1]
    return inputs, shifted, valid.expand_as(shifted)


class Batches:
    """Batches of a token folder's split, with text from a frozen encoder.

    Args:
        tokens: the folder, see `tokens.TokenDataset`.
        text_encoder: made for the teacher; its weights stay as they are.
        delays: of each codebook.
        start: the token before the first.
        frames: length of a window.
        dropout: the share of captions that are left out, so that guidance has an unconditional half.
    """

    def __init__(
        self,
        tokens: str | Path,
        split: str,
        text_encoder: TextEncoder,
        delays: tuple[int, ...],
        start: int,
        frames: int,
        dropout: float,
    ):
        self.dataset, self.text_encoder = TokenDataset(tokens, split), text_encoder
        self.delays, self.start, self.frames, self.dropout = delays, start, frames, dropout
        if len(self.dataset) == 0:
            raise ValueError(f"{tokens} holds no {split} clips; at least one is needed")
        books, highest = self.dataset.codebooks, int(self.dataset.codes.max())
        if books != len(delays) or highest >= start:
            raise ValueError(
                f"{tokens} holds {books} codebooks with codes up to {highest}; "
                f"the teacher has {len(delays)} of {start} entries"
            )

    def draw(self, rng: torch.Generator, size: int) -> Batch:
        """`size` random windows. A caption that is left out becomes zeros behind an open mask, which weigh nothing."""
        codes, captions = self.dataset.batch(rng, size, self.frames)
        inputs, targets, valid = delayed(codes, self.delays, self.start)
        states, mask = self.text_encoder.encode(captions)
        states, mask = states.clone(), mask.clone()  # out of inference mode: the student's gradients run through them
        left_out = torch.rand(size, generator=rng).to(states.device) < self.dropout
        states[left_out], mask[left_out] = 0.0, 1
        device = states.device
        return Batch(inputs.to(device), targets.to(device), valid.to(device), states, mask)
