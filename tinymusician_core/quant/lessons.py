"""What a quantized model learns from while it recovers.

The float model's answers, the forward KL to them the loss (arXiv 1503.02531, as `distill.loss` has it); where tokens
are of real music some of their cross-entropy; and where the float model is a student, some of what it was distilled
with: the KL to its own teacher, and true tokens beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..distill.data import Batch, Batches, Drawn
from ..distill.loss import LossSpec, loss_named
from ..guidance import ScaleRange
from ..pipeline import Pipeline
from . import calibration

DROPOUT = 0.1  # of captions, in a model that guidance is a second pass of
LOSS = loss_named("forward-kl", temperature="1", cross_entropy=0.0)
TRUE_TOKENS = 0.03  # the weight of their cross-entropy beside the KL, where there are any
TEACHERS = 0.25  # the weight of the KL to the float model's own teacher, where that is given
TEACHERS_TOKENS = 0.6  # of true tokens beside that KL, as in a distillation: alone it would make them less likely


@dataclass(frozen=True)
class Lesson:
    """What is learnt from one model: its answers to windows of tokens, and how they count.

    Attributes:
        model: whose answers they are.
        windows: of tokens, with its own text.
        loss: of its answers, and of the tokens themselves.
    """

    model: Pipeline
    windows: Batches
    loss: LossSpec

    @torch.no_grad()
    def answers(self, drawn: Drawn) -> Tensor:
        """Its logits [B,K,P,V] for drawn windows."""
        batch = self.windows.batch(drawn)
        return self.model.decoder.logits(batch.inputs, states_of(self.model, batch), batch.heard)


def lessons_of(pipeline: Pipeline, folder: Path, true_tokens: bool, teacher: Pipeline | None = None) -> list[Lesson]:
    """The float model's lesson, in which tokens count too where they are true; and that of its teacher, where there is
    one."""
    tokens, windows = float(true_tokens), _windows(pipeline, folder)
    lessons = [Lesson(pipeline, windows, replace(LOSS, cross_entropy=TRUE_TOKENS * tokens))]
    if teacher is not None:
        loss = replace(LOSS, distillation=TEACHERS, cross_entropy=TEACHERS * TEACHERS_TOKENS * tokens)
        lessons.append(Lesson(teacher, windows.read_by(teacher.text_encoder), loss))
    return lessons


def _windows(pipeline: Pipeline, folder: Path) -> Batches:
    config = pipeline.decoder.config
    frames = max(1, round(calibration.SECONDS * pipeline.frame_rate_hz))
    scales = pipeline.guidance if isinstance(pipeline.guidance, ScaleRange) else None
    dropout = DROPOUT if pipeline.guidance is None else 0.0
    return Batches(folder, "train", pipeline.text_encoder, config.delays, config.pad, frames, dropout, scales)


def check_teacher(pipeline: Pipeline, teacher: Pipeline | None) -> None:
    """ValueError for a teacher that the model cannot have been distilled from: one of other tokens or guidance."""
    if teacher is None:
        return
    ours, theirs = (
        (c.codebooks, c.entries, c.delays, c.pad, c.text) for c in (pipeline.decoder.config, teacher.decoder.config)
    )
    if ours != theirs or pipeline.frame_rate_hz != teacher.frame_rate_hz:
        raise ValueError(f"{teacher.name} reads other tokens than {pipeline.name}; the model's own teacher is allowed")
    if pipeline.guidance != teacher.guidance:
        raise ValueError(f"{teacher.name} and {pipeline.name} differ in their guidance; leave the teacher out")


def states_of(pipeline: Pipeline, batch: Batch) -> Tensor:
    """A batch's text states [B,S,D] as a model's decoder takes them."""
    return batch.states(pipeline.text_encoder.projection, pipeline.text_encoder.guidance)
