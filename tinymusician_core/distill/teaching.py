"""What the student is to learn from a batch: the teacher's logits, guided or not, and what its layers give.

B windows, K codebooks, P positions, D width, V codebook size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..guidance import Guidance, ScaleRange
from .data import Batch
from .source import Teacher
from .student import logits, logits_and_hidden


class Teaching:
    """A teacher that is run on every batch.

    With `guidance` its logits are those of classifier-free guidance (arXiv 2207.12598, as MusicGen has it), the
    prompt's and no prompt's in one batch of 2B: unconditional + scale (conditional - unconditional). The scale is the
    same for all rows, or where it is the student's input each row's own.
    """

    def __init__(self, teacher: Teacher, guidance: Guidance = None):
        self._decoder, self._projection, self._guidance = teacher.decoder, teacher.text_encoder.projection, guidance

    @torch.no_grad()
    def __call__(self, batch: Batch, with_hidden: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Logits [B,K,P,V], and where asked for what every layer gives [B,P,D] with the prompt."""
        states, mask, inputs = batch.states(self._projection), batch.mask, batch.inputs
        if self._guidance is not None:
            states, mask = torch.cat([states, torch.zeros_like(states)]), torch.cat([mask, torch.ones_like(mask)])
            inputs = torch.cat([inputs, inputs])
        hidden: list[Tensor] = []
        if with_hidden:
            found, hidden = logits_and_hidden(self._decoder, inputs, states, mask)
        else:
            found = logits(self._decoder, inputs, states, mask)
        if self._guidance is None:
            return found, hidden
        conditional, unconditional = found.float().chunk(2)
        half = [layer[: len(batch.inputs)] for layer in hidden]
        scale = self._guidance
        if isinstance(scale, ScaleRange):
            scale = batch.scales[:, None, None, None]
        return unconditional + scale * (conditional - unconditional), half


def matched(chosen: tuple[int, ...], total: int) -> tuple[int, ...]:
    """Which of the teacher's layers each layer of the student answers to.

    The one before the next that was copied, so that each copy is given what its original was given; for the last the
    teacher's last: layers 0, 4 and 7 of 8 answer to 3, 6 and 7.
    """
    return (*(after - 1 for after in chosen[1:]), total - 1)


def hidden_distance(
    theirs: list[Tensor], ours: list[Tensor], channels: Tensor | None, weights: Tensor, kind: str, whole: float
) -> Tensor:
    """How far what the student's layers give is from the teacher's matched ones: one number, the mean over layers.

    Args:
        theirs: [B,P,D] a layer; ours: [B,P,d] a layer.
        channels: which of D the student has; None for all.
        weights: [B,K,P]; a position counts as much as its codebooks do together.
        kind: "mse", the squared distance by the square of the teacher's size, or "cosine", 1 - the cosine.
        whole: the weight of all positions of the step.
    """
    counts = weights.sum(1)
    total = torch.zeros((), device=weights.device)
    for wanted, found in zip(theirs, ours, strict=True):
        wanted, found = wanted.float(), found.float()
        wanted = wanted if channels is None else wanted[..., channels.to(wanted.device)]
        if kind == "mse":
            apart = (found - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-12)
        else:
            apart = 1.0 - functional.cosine_similarity(found, wanted, dim=-1)
        total = total + (apart * counts).sum() / whole
    return total / len(ours)


def without_decoder(teacher: Teacher) -> nn.Module:
    """Give the memory of a teacher's decoder back; nothing can be asked of it afterwards."""
    return teacher.decoder.to("meta")
