"""A distillation under way: teacher, student and their data, and what the trainer calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..guidance import ScaleRange
from ..processes import OneProcess
from ..training import Part
from .cached import LogitCache, write_summary
from .data import Batch, Batches, Drawn
from .divergence import kl, log_probs
from .loss import LossSpec, distillation_loss, position_weights
from .policy import choose_begin, go_on
from .source import Teacher
from .spec import VALIDATION_BATCHES, DistillSpec
from .student import Student, make_student
from .teaching import Teaching, hidden_distance, matched, without_decoder

VALIDATION_SEED = 1
SUMS = ("cross_entropy", "teacher_cross_entropy", "kl", "positions")


def check_fit(teacher: Teacher, spec: DistillSpec, together: OneProcess) -> None:
    """ValueError where a teacher, or so many processes, cannot do what is asked."""
    if isinstance(teacher.guidance, ScaleRange):
        raise ValueError(
            "the teacher takes its guidance as an input; one that needs two passes or has one scale built in is allowed"
        )
    if teacher.guidance is not None and spec.guided is not None:
        raise ValueError(f"the teacher has guidance of {teacher.guidance:g} built in already; leave guidance out")
    if spec.batch % (spec.accumulate * together.world):
        raise ValueError(
            f"a batch of {spec.batch} in {spec.accumulate} parts on {together.world} processes; "
            "a batch that can be shared out evenly is allowed"
        )
    books, weights = teacher.decoder.config.num_codebooks, spec.codebook_weights
    if weights is not None and len(weights) != books:
        raise ValueError(f"there are {len(weights)} codebook weights; the teacher has {books} codebooks")
    teacher.check_width(spec.shape.of(teacher.decoder.config).width)


class Session:
    """Teacher, student and their data.

    Attributes:
        student: the student itself.
        running: what is called in training; where several processes train together it is not the same.
        guidance: the scale that the student has built in, or the range that it takes as an input.
    """

    def __init__(self, teacher: Teacher, tokens: str | os.PathLike, spec: DistillSpec, together: OneProcess):
        self.teacher, self.spec, self.terms, self.together = teacher, spec, spec.terms, together
        check_fit(teacher, spec, together)
        guided = spec.guided
        if isinstance(guided, ScaleRange):
            guided = guided.around(teacher.made_for.cfg)
        self.guidance = guided or teacher.guidance
        self.teaching = Teaching(teacher, guided)
        scales = guided if isinstance(guided, ScaleRange) else None
        frames = max(1, round(spec.seconds * teacher.frame_rate_hz))
        common = (teacher.text_encoder, teacher.delays, teacher.start, frames)
        self.batches = Batches(tokens, "train", *common, 0.0 if self.guidance else spec.dropout, scales)
        self.held_out = Batches(tokens, "validation", *common, 0.0, scales)
        made = make_student(teacher.decoder, spec.shape, teacher.text_encoder.projection, scales)
        self.student = made.to(together.device)
        self.running: nn.Module = self.student
        self.caches: dict[str, LogitCache] = {}

    def begin_with(self, earlier: Teacher) -> None:
        """Give the student the weights of an earlier one.

        Raises:
            ValueError: it has other sizes, or takes its guidance as an input.
        """
        if isinstance(earlier.guidance, ScaleRange):
            raise ValueError(f"{earlier.folder} takes its guidance as an input; a student to start from must not")
        student, projection = self.student, earlier.text_encoder.projection
        for own, theirs in ((student.decoder, earlier.decoder), (student.projection, projection)):
            if own is None:
                continue
            state = {} if theirs is None else theirs.state_dict()
            if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in own.state_dict().items()}:
                raise ValueError(f"{earlier.folder} has other sizes than the student that is asked for")
            own.load_state_dict(state)

    @property
    def shared(self) -> nn.Module:
        """The teacher's text projection, which a student of its width shares."""
        return self.teacher.text_encoder.projection

    def whole_student(self) -> Student:
        """The student, or where processes share its weights a copy with all of them; all processes must call it."""
        if not self.together.shares_weights:
            return self.student
        return self.student.copy(self.together.whole(self.student.state_dict()))

    def cache(
        self,
        folder: Path,
        on_chunk: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        splits: tuple[str, ...] = ("train", "validation"),
    ) -> dict[str, float]:
        """Put the teacher's logits on disk and give its decoder's memory back; what they take and what the cut costs.

        Raises:
            Cancelled: as `LogitCache.build`.
        """
        spec, keep = self.spec, min(self.spec.cache_logits, self.teacher.start)
        for split in splits:
            batches, seed = (self.batches, spec.seed) if split == "train" else (self.held_out, VALIDATION_SEED)
            cache = LogitCache(folder, split, batches, self.teacher.start)
            chunks = spec.validation_batches if split == "validation" else None
            cache.build(self.teaching, keep, spec.batch, seed, self.together, chunks, on_chunk, should_stop)
            self.caches[split] = cache
        without_decoder(self.teacher)
        if self.together.is_main:
            return write_summary(folder, self.caches["train"], keep)
        return self.caches["train"].summary()

    def _asked(self, drawn: Drawn, batch: Batch) -> tuple[Tensor | None, list[Tensor]]:
        """What the student is to learn from a batch: logits, and hidden states where they count."""
        if self.terms.distillation == 0.0:
            return None, []
        if drawn.picks:
            return self.caches["train"].wanted(drawn).to(batch.inputs.device), []
        return self.teaching(batch, self.spec.hidden is not None)

    def loss(self, rng: torch.Generator, progress: float) -> list[Part]:
        """One step's loss in parts, of the rows that are this process's."""
        spec, terms, seeds, drawn = self.spec, self.terms, None, self._draw(rng)
        if spec.on_policy and float(torch.rand((), generator=rng)) < spec.on_policy:
            drawn, seeds = choose_begin(drawn, rng)
            terms = replace(terms, cross_entropy=0.0)
        whole = float(position_weights(self.batches.valid(drawn), spec.codebook_weights).sum())
        return [
            partial(
                self._part, drawn.rows(*rows), None if seeds is None else seeds[slice(*rows)], terms, progress, whole
            )
            for rows in self._mine(len(drawn))
        ]

    def _draw(self, rng: torch.Generator) -> Drawn:
        """A step's windows, of one length; of shorter ones as many more as fill the same time."""
        if "train" in self.caches:
            return self.caches["train"].draw(rng, self.spec.batch)
        parts = self.spec.parts
        part = parts[int(torch.randint(len(parts), (), generator=rng))] if len(parts) > 1 else 1
        return self.batches.draw(rng, self.spec.batch * part, part)

    def _mine(self, rows: int) -> Iterator[tuple[int, int]]:
        """The rows of this process, part after part."""
        size = rows // (self.together.world * self.spec.accumulate)
        first = self.together.rank * size * self.spec.accumulate
        return ((first + i * size, first + (i + 1) * size) for i in range(self.spec.accumulate))

    def _part(
        self, drawn: Drawn, seeds: list[int] | None, terms: LossSpec, progress: float, whole: float
    ) -> dict[str, Tensor]:
        """The loss of some rows of a step whose positions weigh `whole` in all.

        Processes average their gradients; times their number the parts add up.
        """
        if seeds is not None:
            drawn = go_on(self.whole_student(), self.teacher, self.batches, drawn, seeds)
        batch, hidden = self.batches.batch(drawn), self.spec.hidden_term
        wanted, theirs = self._asked(drawn, batch)
        found, ours = self.running(batch, self.shared, hidden is not None)
        weights = position_weights(batch.valid, self.spec.codebook_weights)
        losses = distillation_loss(wanted, found, batch.targets, weights, terms, progress, whole)
        made = {"loss": losses.total, "distillation": losses.distillation}
        if seeds is None:
            made["cross_entropy"] = losses.cross_entropy
        if hidden is not None:
            kind, weight = hidden
            layers = matched(self.student.chosen, self.teacher.decoder.config.num_hidden_layers)
            picked = [theirs[index] for index in layers]
            apart = hidden_distance(picked, ours, self.student.channels, weights, kind, whole)
            made |= {"loss": made["loss"] + weight * apart, "hidden": apart.detach()}
        return {name: value * self.together.world for name, value in made.items()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Cross-entropy, the teacher's own, and forward KL to it on a few fixed held-out windows, in nats a token."""
        return _means(self._sums(self._validation(min(VALIDATION_BATCHES, self.spec.validation_batches))))

    @torch.no_grad()
    def judge(self) -> tuple[dict[str, float], dict[int, float]]:
        """What `validate` gives, on all held-out windows that were asked for; and the KL of each clip by its number."""
        batches = self.spec.validation_batches
        sums = self._sums(self._validation(batches))
        order = torch.tensor(self.held_out.order(VALIDATION_SEED, sums.shape[1]))
        clips, place = order.unique(return_inverse=True)
        kl_sums, counts = (torch.zeros(len(clips), dtype=sums.dtype).index_add(0, place, row) for row in sums[2:])
        return _means(sums), dict(zip(clips.tolist(), (kl_sums / counts).tolist(), strict=True))

    @torch.no_grad()
    def kl_by_scale(self) -> dict[str, float]:
        """Forward KL to the teacher's two passes at both ends and the base of the range that a student is told of.

        Nothing where the scale is no input, or where cached logits of other scales stand in for the teacher.
        """
        scales = self.held_out.scales
        if scales is None or self.caches:
            return {}
        found = {}
        for scale in dict.fromkeys((scales.low, scales.base, scales.high)):
            windows = self._validation(self.spec.validation_batches)
            told = (replace(drawn, scales=torch.full((len(drawn),), scale)) for drawn in windows)
            found[f"validation_kl_at_{scale:g}"] = _means(self._sums(told))["validation_kl"]
        return found

    def _sums(self, windows: Iterable[Drawn]) -> Tensor:
        """What `SUMS` names, added up over the positions of each window, float64 [4,n]."""
        parts = []
        for drawn in windows:
            part = torch.zeros(len(SUMS), len(drawn), dtype=torch.float64)
            for first, last in self._mine(len(drawn)):
                part[:, first:last] = self._held_out(drawn.rows(first, last))
            parts.append(part)
        mine = torch.cat(parts, dim=1)
        whole = self.together.sum({str(place): value for place, value in enumerate(mine.flatten().tolist())})
        return torch.tensor(list(whole.values()), dtype=torch.float64).view_as(mine)

    def _validation(self, batches: int) -> Iterator[Drawn]:
        """The first so many batches of the held-out windows."""
        if "validation" in self.caches:
            return islice(self.caches["validation"].every(self.spec.batch), batches)
        return self.held_out.fixed(VALIDATION_SEED, self.spec.batch, batches)

    def _held_out(self, drawn: Drawn) -> Tensor:
        """What `SUMS` names, added up over the positions of each window, float64 [4,B]."""
        batch = self.held_out.batch(drawn)
        if drawn.picks:
            wanted = self.caches["validation"].wanted(drawn).to(batch.inputs.device)
        else:
            wanted = self.teaching(batch)[0]
        wanted = log_probs(wanted[batch.valid])
        found = log_probs(self.student(batch, self.shared)[0][batch.valid])
        targets = batch.targets[batch.valid]
        own, theirs = (functional.nll_loss(values, targets, reduction="none") for values in (found, wanted))
        values = torch.stack([own, theirs, kl(wanted, found), torch.ones_like(own)]).double()
        rows = torch.nonzero(batch.valid)[:, 0]
        return (
            torch.zeros(len(SUMS), len(drawn), dtype=values.dtype, device=values.device)
            .index_add(1, rows, values)
            .cpu()
        )


def _means(sums: Tensor) -> dict[str, float]:
    """Nats a token over all windows, from sums [4,n]."""
    totals = dict(zip(SUMS, sums.sum(dim=1).tolist(), strict=True))
    return {f"validation_{name}": totals[name] / totals["positions"] for name in SUMS[:-1]}
