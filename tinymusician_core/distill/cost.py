"""What a distillation costs, before it is begun: sizes, memory, and the time of a step that was really made.

One step is made on windows of noise to fill the memory, and a second one is timed; nothing is written. Teacher and
student are those of the run, so is the batch.

For a machine that is not here (`assume_tflops`) nothing is timed: what steps of one row and of two compute and keep is
counted on the CPU, what the second row adds is taken for what each further row adds, and the time is that of so many
operations at the assumed throughput.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ..processes import OneProcess
from ..tokens import TokenDataset, write_tokens
from ..training import Part, Trainer
from ..variants import resolve
from .sampled import HELD_OUT
from .session import Session
from .source import Teacher, read_teacher
from .spec import DistillSpec
from .train import Run

# The attention of torch's CPU kernels, of which its own counter does not know.
ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
    ),
}


@dataclass(frozen=True)
class Cost:
    """The plan, and what it takes. Bytes are those of tensors; what is not known is None.

    `decoder_parameters` are the teacher's decoder's, of which the student's are a share; text encoder and codec stay.
    `teacher_bytes` is its decoder with the text encoder, and the latter alone where its logits are cached.
    `activation_bytes` are the tensors kept for the backward pass of one part of a batch. `expected_memory_bytes` is the
    sum of all of these, without what kernels need for a moment. `peak_memory_bytes` is measured, of the whole process
    or the GPU. `steps` and `hours` are the budget's. `cache_bytes` is on disk. With `assumed_tflops`, `step_s` and
    `hours` are estimates from that figure.
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
    expected_memory_bytes: int
    peak_memory_bytes: int | None
    flops_per_step: int
    step_s: float
    steps: int
    hours: float
    cache_bytes: int | None
    device: str
    threads: int | None
    assumed_tflops: float | None = None

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
    assume_tflops: float | None = None,
    **options,
) -> Cost:
    """What `distill` with the same arguments would cost on this machine, or on one of so many TFLOP/s.

    Args:
        teacher, layers, minutes, steps, device, options: as for `distill`.
        tokens_dir, clips: what there is to train on, or will be; says how big cached logits would get.
        assume_tflops: 10^12 operations a second that a machine sustains in training, in the precision that is asked
            for, bfloat16 where none is; the device need not be there then.

    Raises:
        ValueError: as `distill`; a throughput that is none, or on-policy steps with it.
        ModelError: the teacher's files are damaged.
    """
    spec, run = DistillSpec(layers, **options), Run(minutes, steps, device=device)
    check_assumed(assume_tflops, spec)
    if assume_tflops is not None and spec.bf16 is None:
        spec = replace(spec, bf16=True)
    settings, here = run.settings(spec), device if assume_tflops is None else "cpu"
    found = read_teacher(resolve(teacher), here)
    training_s = None if clips is None else (1 - 1 / HELD_OUT) * clips * spec.seconds
    if tokens_dir is not None:
        training_s = TokenDataset(tokens_dir, "train").codes.shape[1] / found.frame_rate_hz
    tried = replace(spec, shortest=None)  # shorter windows are the more: the longest take at least as much
    if assume_tflops is not None:
        tried = replace(tried, batch=2, accumulate=1)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(found, _noise(found, tried, Path(folder)), tried, OneProcess(here))
        if spec.cache_logits is not None:
            session.cache(Path(folder) / "logits", splits=("train",))
        trainer = Trainer(session.student, settings, Path(folder) / "run", here)
        if assume_tflops is None:
            flops, kept = _first_step(trainer, session)
            step_s = _step_s(trainer, session)
        else:
            flops, kept = _by_rows(trainer, session, spec)
            step_s = flops / (1e12 * assume_tflops)
    total = settings.steps or max(1, int(60.0 * settings.minutes / step_s))
    sizes = _sizes(found, session, trainer)
    return Cost(
        **asdict(spec.shape.of(found.decoder.config)),
        **sizes,
        activation_bytes=kept,
        expected_memory_bytes=kept + sum(size for name, size in sizes.items() if name.endswith("_bytes")),
        peak_memory_bytes=_peak(torch.device(device)) if assume_tflops is None else None,
        flops_per_step=flops,
        step_s=step_s,
        steps=total,
        hours=total * step_s / 3600.0,
        cache_bytes=_cache_bytes(found, spec, training_s),
        device=device,
        threads=torch.get_num_threads() if assume_tflops is None else None,
        assumed_tflops=assume_tflops,
    )


def check_assumed(tflops: float | None, spec: DistillSpec) -> None:
    """ValueError for a throughput that is none, and for steps whose time it does not tell."""
    if tflops is None:
        return
    if isinstance(tflops, bool) or not isinstance(tflops, int | float) or not 0.0 < tflops < math.inf:
        raise ValueError(f"assume_tflops is {tflops!r}; a number above 0 is allowed")
    if spec.on_policy:
        raise ValueError(
            "what a student plays itself waits for memory and not for operations, so that an assumed throughput does "
            "not tell its time; leave on_policy out"
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


def _first_step(trainer: Trainer, session: Session) -> tuple[int, int]:
    """Make a step; the operations in it, and the bytes that its backward pass keeps, of one part of the batch."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        kept = _activations(trainer, session)
    return counter.get_total_flops(), kept


def _by_rows(trainer: Trainer, session: Session, spec: DistillSpec) -> tuple[int, int]:
    """As `_first_step` for the batch of `spec`, from a step of one row and one of two."""
    found = []
    for rows in (1, 2):
        session.spec = replace(session.spec, batch=rows)
        found.append(_first_step(trainer, session))
    (flops, kept), (more_flops, more_kept) = found
    part = spec.batch // spec.accumulate
    return flops + (spec.batch - 1) * (more_flops - flops), kept + (part - 1) * (more_kept - kept)


def _activations(trainer: Trainer, session: Session) -> int:
    """Make a step, and count the bytes that its backward pass keeps, of the first part of the batch.

    Of one part alone: what it kept is given back before the next, which may get the same addresses.
    """
    own = {p.untyped_storage().data_ptr() for p in session.student.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    def loss(rng: torch.Generator, progress: float) -> list[Part]:
        first, *others = session.loss(rng, progress)

        def watched() -> dict[str, Tensor]:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                return first()

        return [watched, *others]

    trainer.train_step(loss)
    return sum(seen.values())


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
