"""Distil: a teacher's folder and codec tokens in, a student's folder out.

While a run lasts, its checkpoint, its settings and a JSONL log stand in `OUT.training` beside the folder that it will
write, and stay there, so that a longer budget can go on from where it ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..files import whole_file
from ..folders import check_free
from ..records import Cancelled
from ..training import CHECKPOINT, Trainer, TrainProgress, TrainSettings
from ..variants import resolve
from .data import Batch, Batches
from .divergence import forward_kl
from .loss import LossSpec, distillation_loss, loss_named, position_weights
from .source import Teacher, hash_of, read_teacher
from .student import logits, make_student

SETTINGS = "settings.json"
VALIDATION_BATCHES = 4


@dataclass(frozen=True)
class DistillSpec:
    """How to train a student. Raises ValueError for what is out of range.

    Attributes:
        layers: how many of the teacher's layers it keeps.
        loss: one of `distill.loss.LOSSES`.
        batch, seconds: windows a step, and how long each is.
        dropout: the share of captions left out, for guidance.
    """

    layers: int
    loss: str = "stage-mixed"
    batch: int = 12
    seconds: float = 10.0
    learning_rate: float = 1e-3
    dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        loss_named(self.loss)
        if not isinstance(self.layers, int) or self.layers < 1:
            raise ValueError(f"a student of {self.layers} layers; a whole number above 0 is allowed")
        if not isinstance(self.batch, int) or self.batch < 1:
            raise ValueError(f"batch is {self.batch}; a whole number above 0 is allowed")
        for name, top in (("seconds", 60.0), ("learning_rate", 1.0)):
            if not 0.0 < getattr(self, name) <= top:
                raise ValueError(f"{name} is {getattr(self, name)}; above 0 and at most {top} is allowed")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; 0 or more and below 1 is allowed")


@dataclass(frozen=True)
class Distilled:
    """What `distill` wrote: the student's folder, which of the teacher's layers it has, and where training ended.

    `validation`: its cross-entropy, the teacher's own, and the forward KL between them, held out, in nats a token.
    """

    folder: Path
    layers: tuple[int, ...]
    steps: int
    minutes: float
    validation: dict[str, float]


def distill(
    teacher: str | os.PathLike,
    tokens_dir: str | os.PathLike,
    layers: int,
    out_dir: str | os.PathLike,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
    device: str = "cpu",
    on_progress: Callable[[TrainProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    **options,
) -> Distilled:
    """Train a student on a teacher's outputs, and write it in the teacher's format.

    Args:
        teacher: "teacher", a folder or a hub id.
        tokens_dir: a token folder with the splits train and validation, made with the teacher's codec.
        layers: how many of the teacher's layers to keep.
        out_dir: the folder to make; a model of the same format that is there is replaced.
        minutes, steps: the budget, one of the two (10 minutes where neither is given), counted over resumed runs.
        resume: go on from an earlier run's checkpoint, where there is one.
        on_progress: told every few steps.
        should_stop: asked before every step.
        options: the other fields of `DistillSpec`: loss, batch, seconds, learning_rate, dropout, seed.

    Raises:
        ValueError: an argument out of range, tokens that do not fit the teacher, a folder in use, an earlier run's
            checkpoint without `resume`, or one that was made with other settings.
        ModelError: the teacher's files are damaged.
        Cancelled: `should_stop` said so; the checkpoint is there to be resumed, and no model is written.
    """
    spec = DistillSpec(layers, **options)
    budget = {"minutes": 10.0 if minutes is None and steps is None else minutes, "steps": steps}
    settings = TrainSettings(
        spec.learning_rate, **budget, warm_up_steps=40, weight_decay=0.05, ema=0.99, seed=spec.seed, log_every=10
    )
    found, out = read_teacher(resolve(teacher), device), Path(out_dir)
    check_free(out, found.config["model_type"])
    session = _Session(found, tokens_dir, spec, device)
    folder = out.with_name(f"{out.name}.training")
    _claim(folder, {"teacher": hash_of(found), **asdict(spec)}, resume)
    trainer = Trainer(session.student, settings, folder, device)
    if resume:
        trainer.resume()
    if trainer.step == 0:
        trainer.log({"step": 0, "elapsed_s": 0.0, **session.validate()})  # the copy that nothing has trained
    trainer.run(session.loss, session.validate, on_progress, should_stop)
    if trainer.fraction < 1.0:
        raise Cancelled(f"stopped after {trainer.step} steps; resume goes on from {folder}")
    session.student.load_state_dict(trainer.averaged_state())
    after = session.validate()
    trainer.log({"step": trainer.step, "elapsed_s": round(trainer.elapsed_s, 1), **after, "final": 1})
    found.write(session.student, out)
    return Distilled(out, session.chosen, trainer.step, round(trainer.elapsed_s / 60.0, 2), after)


class _Session:
    """Teacher, student and their data; what the trainer calls."""

    def __init__(self, teacher: Teacher, tokens_dir: str | os.PathLike, spec: DistillSpec, device: str):
        frames = max(1, round(spec.seconds * teacher.frame_rate_hz))
        common = (teacher.text_encoder, teacher.delays, teacher.start, frames)
        self.teacher, self.spec = teacher, spec
        self.terms: LossSpec = loss_named(spec.loss)
        self.batches = Batches(tokens_dir, "train", *common, spec.dropout)
        self.held_out = Batches(tokens_dir, "validation", *common, 0.0)
        self.student, self.chosen = make_student(teacher.decoder, spec.layers)
        self.student.to(device)

    def loss(self, rng: torch.Generator, progress: float) -> dict[str, Tensor]:
        """One training batch's loss and its parts."""
        batch = self.batches.draw(rng, self.spec.batch)
        wanted = None
        if self.terms.distillation > 0.0:
            with torch.no_grad():
                wanted = logits(self.teacher.decoder, batch.inputs, batch.states, batch.mask)
        found = logits(self.student, batch.inputs, batch.states, batch.mask)
        weights = position_weights(batch.valid, None)
        losses = distillation_loss(wanted, found, batch.targets, weights, self.terms, progress)
        return {"loss": losses.total, "cross_entropy": losses.cross_entropy, "distillation": losses.distillation}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cross-entropy, the teacher's own, and forward KL to it on fixed held-out windows, in nats a token."""
        rng = torch.Generator().manual_seed(1)
        parts = [self._held_out(self.held_out.draw(rng, self.spec.batch)) for _ in range(VALIDATION_BATCHES)]
        weight = sum(part["positions"] for part in parts)
        return {
            f"validation_{name}": sum(part[name] * part["positions"] for part in parts) / weight
            for name in ("cross_entropy", "teacher_cross_entropy", "kl")
        }

    def _held_out(self, batch: Batch) -> dict[str, float]:
        wanted = logits(self.teacher.decoder, batch.inputs, batch.states, batch.mask)[batch.valid]
        found = logits(self.student, batch.inputs, batch.states, batch.mask)[batch.valid]
        targets = batch.targets[batch.valid]
        return {
            "cross_entropy": float(functional.cross_entropy(found, targets)),
            "teacher_cross_entropy": float(functional.cross_entropy(wanted, targets)),
            "kl": float(forward_kl(wanted, found).mean()),
            "positions": len(found),
        }


def _claim(folder: Path, settings: dict, resume: bool) -> None:
    """Make the run's folder, or see that the run in it is the same.

    Raises:
        ValueError: there is a run and `resume` is off, or it has other settings.
    """
    record = folder / SETTINGS
    if (folder / CHECKPOINT).exists() and not resume:
        raise ValueError(f"{folder} holds an earlier run; resume it, or remove that folder to start afresh")
    if (folder / CHECKPOINT).exists() and record.is_file():
        earlier = json.loads(record.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if earlier.get(name) != value:
                raise ValueError(f"{folder} was begun with {name} {earlier.get(name)!r}, not {value!r}; give the same")
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").unlink(missing_ok=True)
    with whole_file(record) as path:
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
