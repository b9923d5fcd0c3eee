"""What a distillation costs, before it is begun: sizes, memory, and the time of a step that was really made.

One step is made on windows of noise to fill the memory, and a second one is timed; nothing is written. Teacher and
student are those of the run, so is the batch.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..processes import OneProcess
from ..tokens import TokenDataset, write_tokens
from ..training import Trainer
from ..variants import resolve
from .sampled import HELD_OUT
from .session import Session
from .source import Teacher, read_teacher
from .spec import DistillSpec
from .train import Run


@dataclass(frozen=True)
class Cost:
    """The plan, and what it takes. Bytes are those of tensors; what is not known is None.

    `decoder_parameters` are the teacher's decoder's, of which the student's are a share; text encoder and codec stay.
    `teacher_bytes` is its decoder with the text encoder, and the latter alone where its logits are cached.
    `activation_bytes` are the tensors kept for the backward pass of one part of a batch. `peak_memory_bytes` is the
    whole process's, or the GPU's. `steps` and `hours` are the budget's. `cache_bytes` is on disk.
    """

    layers: tuple[int, ...]
    width: int
    heads: int
    ffn: int
    decoder_parameters: int
    student_parameters: int
    share: float
    teacher_bytes: int
    weights_bytes: int
    average_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    peak_memory_bytes: int | None
    flops_per_step: int
    step_s: float
    steps: int
    hours: float
    cache_bytes: int | None
    device: str
    threads: int

    def as_dict(self) -> dict:
        """Everything by name, ready for JSON."""
        return asdict(self)


def cost_of(
    teacher: str | os.PathLike,
    layers: int | Sequence[int],
    *,
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
    tokens_dir: str | os.PathLike | None = None,
    clips: int | None = None,
    **options,
) -> Cost:
    """What `distill` with the same arguments would cost on this machine.

    Args:
        teacher, layers, minutes, steps, device, options: as for `distill`.
        tokens_dir, clips: what there is to train on, or will be; says how big cached logits would get.

    Raises:
        ValueError: as `distill`.
        ModelError: the teacher's files are damaged.
    """
    spec, run = DistillSpec(layers, **options), Run(minutes, steps, device=device)
    settings = run.settings(spec)
    found = read_teacher(resolve(teacher), device)
    training_s = None if clips is None else (1 - 1 / HELD_OUT) * clips * spec.seconds
    if tokens_dir is not None:
        training_s = TokenDataset(tokens_dir, "train").codes.shape[1] / found.frame_rate_hz
    with tempfile.TemporaryDirectory() as folder:
        session = Session(found, _noise(found, spec, Path(folder)), spec, OneProcess(device))
        if spec.cache_logits is not None:
            session.cache(Path(folder) / "logits", splits=("train",))
        trainer = Trainer(session.student, settings, Path(folder) / "run", device)
        with FlopCounterMode(display=False) as counter:
            kept = _activations(trainer, session)
        step_s = _step_s(trainer, session)
    total = settings.steps or max(1, int(60.0 * settings.minutes / step_s))
    return Cost(
        **asdict(spec.shape.of(found.decoder.config)),
        **_sizes(found, session, trainer),
        activation_bytes=kept,
        peak_memory_bytes=_peak(torch.device(device)),
        flops_per_step=counter.get_total_flops(),
        step_s=step_s,
        steps=total,
        hours=total * step_s / 3600.0,
        cache_bytes=_cache_bytes(found, spec, training_s),
        device=device,
        threads=torch.get_num_threads(),
    )


def _sizes(teacher: Teacher, session: Session, trainer: Trainer) -> dict[str, float]:
    """Parameters, and the bytes of everything that training holds but activations."""
    ours, theirs = _parameters(session.student), _parameters(teacher.decoder)
    return {
        "decoder_parameters": theirs,
        "student_parameters": ours,
        "share": ours / theirs,
        "teacher_bytes": _bytes(teacher.text_encoder) + (0 if session.caches else _bytes(teacher.decoder)),
        "weights_bytes": _bytes(session.student),
        "average_bytes": sum(tensor.nbytes for tensor in trainer.average.values()),
        "gradient_bytes": sum(p.grad.nbytes for p in trainer.parameters if p.grad is not None),
        "optimizer_bytes": sum(tensor.nbytes for tensor in trainer.optimizer.tensors()),
    }


def _noise(teacher: Teacher, spec: DistillSpec, folder: Path) -> Path:
    """A token folder of random codes: a window for every row of a batch."""
    frames, books = max(1, round(spec.seconds * teacher.frame_rate_hz)), teacher.decoder.config.num_codebooks
    random = torch.Generator().manual_seed(spec.seed)
    for split in ("train", "validation"):
        clips = [torch.randint(teacher.start, (books, frames), generator=random) for _ in range(spec.batch)]
        write_tokens(
            folder, split, clips, [{"captions": ["a calm piano waltz"], "bars": [0], "facts": {}}] * spec.batch
        )
    return folder


def _activations(trainer: Trainer, session: Session) -> int:
    """Make a step, and count the bytes that its backward pass keeps, of one part of the batch."""
    own = {p.untyped_storage().data_ptr() for p in session.student.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.train_step(session.loss)
    return sum(seen.values()) // session.spec.accumulate


def _step_s(trainer: Trainer, session: Session) -> float:
    """Seconds of a step; of the mean of both kinds of step where some are on-policy."""
    spec, total = session.spec, 0.0
    for share, on_policy in ((1.0 - spec.on_policy, 0.0), (spec.on_policy, 1.0)):
        if share > 0.0:
            session.spec = replace(spec, on_policy=on_policy)
            total += share * _timed(trainer, session)
    session.spec = spec
    return total


def _timed(trainer: Trainer, session: Session) -> float:
    began = time.perf_counter()
    trainer.train_step(session.loss)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter() - began


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _peak(device: torch.device) -> int | None:
    """The most memory that this process has had, or the GPU's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _cache_bytes(teacher: Teacher, spec: DistillSpec, training_s: float | None) -> int | None:
    if spec.cache_logits is None or training_s is None:
        return None
    windows = (max(1, round(training_s / spec.seconds / spec.batch)) + spec.validation_batches) * spec.batch
    books = teacher.decoder.config.num_codebooks
    positions = round(spec.seconds * teacher.frame_rate_hz) + max(teacher.delays)
    return windows * books * positions * min(spec.cache_logits, teacher.start) * 4
