"""Win back what four bits lost: a short distillation from the float model with the rounding in the loop.

The decoder's int4 and int4-row layers are trained on their grids (`straight`), the rest stands as it will be stored;
what they learn from is in `lessons`. Schemes, shapes and bytes stay what they were.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..distill.data import Drawn
from ..distill.loss import distillation_loss, position_weights
from ..distill.sampled import SampleSpec, sample_tokens
from ..measure.report import write_files
from ..pipeline import Pipeline
from ..records import Cancelled
from ..training import Part, Trainer, TrainProgress, TrainSettings
from . import calibration
from .apply import Recipe
from .cachefile import cache_folder
from .lessons import Lesson, check_teacher, lessons_of, states_of
from .plan import packable
from .schemes import from_tensors, to_tensors
from .sensitivity import OnOption
from .straight import Passing, StraightEmbedding, StraightLinear, grid_of
from .trial import Judge
from .twin import Tensors, twin
from .workbench import HELD_OUT_WINDOWS, is_large

if TYPE_CHECKING:
    from .adaptive import Adapted

TRAINED = ("int4", "int4-row")
BATCH, LARGE_BATCH = 8, 2
CLIPS, LARGE_CLIPS = 128, 24  # that the model plays where there are no tokens
CLIPS_SEED = 1_000_000  # far from the seeds of the clips that plans are judged by
LEARNING_RATE = 0.003  # steps of the grid: more undoes what rounding by the inputs found


@dataclass(frozen=True)
class Recovered:
    """What a recovery came to, on tokens that it was not trained on.

    Attributes:
        kl_before, kl_after: KL(float || quantized) of the next token, nats a token, before and after.
        kept: whether the trained weights are what is stored: the KL has fallen or, where a teacher counts, the sum of
            the two KLs as the training weighs them, and the KL keeps its limit.
        steps, minutes: of training.
        tokens: what it was trained on, in words.
        teacher_kl_before, teacher_kl_after: KL(teacher || quantized) likewise; None without a teacher.
        max_kl: the most that the KL was allowed to rise to; None without such a limit.
    """

    kl_before: float
    kl_after: float
    kept: bool
    steps: int
    minutes: float
    tokens: str
    teacher_kl_before: float | None = None
    teacher_kl_after: float | None = None
    max_kl: float | None = None

    def sentence(self) -> str:
        """What happened, in words."""
        spent = f"{self.steps} steps of recovery in {self.minutes:.2g} minutes"
        change = f"KL from {self.kl_before:.3g} to {self.kl_after:.3g} nats a token, held out"
        if self.teacher_kl_before is not None:
            change += f", and that to the teacher from {self.teacher_kl_before:.3g} to {self.teacher_kl_after:.3g}"
        if self.kept:
            return f"{spent} brought the {change}"
        beyond = crosses(self.kl_before, self.kl_after, self.max_kl)
        why = f"that is more than the budget of {self.max_kl:.3g}" if beyond else "that is no better"
        return f"{spent} took the {change}: {why}, so the weights from before it were kept"

    def as_dict(self) -> dict:
        """Every figure by name, ready for JSON."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Put recovery.json into a folder."""
        write_files(folder, {"recovery.json": {**self.as_dict(), "note": self.sentence()}})


def trainable(schemes: Mapping[str, str]) -> list[str]:
    """The modules of a plan that a recovery trains: those of the decoder in four bits."""
    return [name for name, scheme in schemes.items() if name.startswith("decoder.") and scheme in TRAINED]


def check_recovery(minutes: float, schemes: Mapping[str, str] | None = None) -> None:
    """ValueError for a time that is none, or a plan that gives a recovery nothing to train."""
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0.0 < minutes < math.inf:
        raise ValueError(f"recover is {minutes!r}; a number of minutes above 0 is allowed")
    if schemes is not None and not trainable(schemes):
        raise ValueError(
            "the plan has no int4 in the decoder, so there is nothing to recover; a plan that gives int4 or int4-row "
            "to layers of the decoder is allowed"
        )


def crosses(kl_before: float, kl_after: float, max_kl: float | None) -> bool:
    """Whether a recovery took the KL beyond a limit; what was beyond it before may fall on its way there."""
    return max_kl is not None and kl_after > max(max_kl, kl_before)


def recover(
    pipeline: Pipeline,
    recipe: Recipe,
    minutes: float | None = None,
    *,
    steps: int | None = None,
    data: str | Path | None = None,
    weights: Sequence[float] | None = None,
    teacher: Pipeline | None = None,
    judge: Judge | None = None,
    max_kl: float | None = None,
    on_progress: OnOption | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[Recipe, Recovered]:
    """Train the four-bit layers of a recipe on the float model's outputs.

    Args:
        pipeline: the float model, which stays as it is.
        recipe: with at least one `trainable` module.
        minutes, steps: the budget of training, one of the two.
        data: a token folder of real music, whose tokens count too; None lets the model play its own, once for all runs.
        weights: how much each codebook counts; all alike where None.
        teacher: the model that the float one was distilled from, whose answers count a little too.
        judge: compares with the float model on tokens that are not trained on; one is made where None.
        max_kl: nats a token that the KL to the float model must not rise above, whatever a teacher gains.
        on_progress, should_stop: told of, and asked before, every step.

    Returns:
        The recipe with all tensors, trained or as they were where that is no better; and what came of it.

    Raises:
        ValueError: a budget that is none, no tokens, tokens that are not this model's, a teacher of other tokens or
            guidance, or nothing to train.
        Cancelled: `should_stop` said so.
    """
    check_recovery(1.0 if minutes is None else minutes, recipe.schemes)
    check_teacher(pipeline, teacher)
    if judge is None:
        judge = Judge(pipeline, _held_out(pipeline, data, on_progress, should_stop), weights=weights)
    folder = _played(pipeline, on_progress, should_stop) if data is None else Path(data)
    before = tensors_of(pipeline, recipe)
    lessons = lessons_of(pipeline, folder, data is not None, teacher)
    judges = [judge, *(Judge(lesson.model, judge.calibration, weights=judge.weights) for lesson in lessons[1:])]

    def kls(tensors: Tensors) -> list[float]:
        made = twin(pipeline, recipe.schemes, tensors)
        return [each.divergence_of(made).mean_kl() for each in judges]

    kls_before = kls(before)
    session = Session(pipeline, recipe.schemes, before, lessons, judge.weights)
    with tempfile.TemporaryDirectory(prefix="recovery-") as scratch:
        trainer = Trainer(session.student.decoder, _settings(minutes, steps), Path(scratch))
        try:
            trainer.run(session.loss, None, _teller(on_progress), should_stop)
        finally:
            trainer.close()
        if not trainer.done:
            raise Cancelled(f"stopped after {trainer.step} steps of recovery")
        trainer.model.load_state_dict(trainer.averaged_state())
    after = before | session.trained()
    kls_after = kls(after)
    kept = _weighed(lessons, kls_after) < _weighed(lessons, kls_before)
    kept = kept and not crosses(kls_before[0], kls_after[0], max_kl)
    (kl_before, *teachers_before), (kl_after, *teachers_after) = kls_before, kls_after
    spent = (trainer.step, trainer.elapsed_s / 60, session.source(data))
    found = Recovered(kl_before, kl_after, kept, *spent, *teachers_before, *teachers_after, max_kl=max_kl)
    return replace(recipe, tensors=after if found.kept else before), found


def recovered_plan(pipeline: Pipeline, adapted: Adapted, minutes: float, **asked) -> Adapted:
    """A searched plan after a recovery of so many minutes; the same with a note where it has nothing to train.

    `asked` are arguments of `recover`, and what it raises is raised.
    """
    if not trainable(adapted.recipe.schemes):
        note = "the plan that was found has no int4 in the decoder, so there was nothing to recover"
        return replace(adapted, note=note)
    limited = {"judge": adapted.bench.strict, "max_kl": adapted.budget.max_kl}
    recipe, found = recover(pipeline, adapted.recipe, minutes, **limited, **asked)
    return replace(adapted, recipe=recipe, recovered=found, note=found.sentence())


def tensors_of(pipeline: Pipeline, recipe: Recipe) -> dict[str, dict[str, Tensor]]:
    """What every module of a recipe is stored as."""
    targets = packable(pipeline.modules)
    return {
        name: dict(recipe.tensors.get(name) or to_tensors(targets[name], scheme, recipe.moments.get(name)))
        for name, scheme in recipe.schemes.items()
    }


class Session:
    """The quantized twin of a float model as student, and the lessons that it is given: the float model's first.

    Attributes:
        student: a pipeline whose decoder has parameters where the plan has four bits.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        schemes: Mapping[str, str],
        tensors: Tensors,
        lessons: Sequence[Lesson],
        weights: tuple[float, ...] | None,
    ):
        self._lessons, self._weights, self._names = lessons, weights, trainable(schemes)
        floats = packable(pipeline.modules)
        self.student = twin(pipeline, schemes, tensors, partial(_trained_form, floats))
        self.student.modules.requires_grad_(False)
        for name in self._names:
            self.student.modules.get_submodule(name).grid.requires_grad_(True)
        self._size = LARGE_BATCH if is_large(pipeline) else BATCH
        self._at_once = 1 if pipeline.decoder.config.text == "prepend" else self._size
        self._windows = lessons[0].windows.read_by(self.student.text_encoder)

    def source(self, data: str | Path | None) -> str:
        """What it trains on, in words."""
        count = len(self._windows.dataset)
        return f"{count} clips that the model played itself" if data is None else f"{count} clips of the train split"

    def loss(self, rng: torch.Generator, progress: float) -> list[Part]:
        """One step's loss, in parts that the decoder takes at once."""
        drawn = self._windows.draw(rng, self._size)
        whole = float(position_weights(self._windows.valid(drawn), self._weights).sum())
        starts = range(0, self._size, self._at_once)
        return [partial(self._part, drawn.rows(i, i + self._at_once), progress, whole) for i in starts]

    def _part(self, drawn: Drawn, progress: float, whole: float) -> dict[str, Tensor]:
        with torch.no_grad():
            batch = self._windows.batch(drawn)
            states = states_of(self.student, batch)
        found = self.student.decoder.logits(batch.inputs, states, batch.heard)
        weights = position_weights(batch.valid, self._weights)
        learnt = [
            distillation_loss(lesson.answers(drawn), found, batch.targets, weights, lesson.loss, progress, whole)
            for lesson in self._lessons
        ]
        return {"loss": sum(losses.total for losses in learnt), "kl": learnt[0].distillation}

    def trained(self) -> dict[str, dict[str, Tensor]]:
        """The trained modules' tensors as they are stored."""
        return {name: self.student.modules.get_submodule(name).stored() for name in self._names}


def _weighed(lessons: Sequence[Lesson], kls: Sequence[float]) -> float:
    """The KLs to the lessons' models as they count in the loss."""
    return sum(lesson.loss.distillation * kl for lesson, kl in zip(lessons, kls, strict=True))


def _settings(minutes: float | None, steps: int | None) -> TrainSettings:
    return TrainSettings(
        LEARNING_RATE,
        minutes,
        steps,
        warm_up_steps=10,
        weight_decay=0.0,
        ema=0.9,
        bf16=False,
        log_every=1,
        checkpoint_every_s=math.inf,
    )


def _trained_form(
    floats: Mapping[str, nn.Module], name: str, like: nn.Module, scheme: str, tensors: dict[str, Tensor]
) -> nn.Module:
    """A module of the student: on a grid where it is trained, with a way through for the gradient elsewhere."""
    if trainable({name: scheme}):
        grid = grid_of(floats[name].weight, tensors)
        return StraightEmbedding(grid) if isinstance(like, nn.Embedding) else StraightLinear(grid, like.bias)
    made = from_tensors(like, scheme, tensors)
    if name.startswith("decoder.") and isinstance(like, nn.Linear) and scheme != "fp32":
        return Passing(made, floats[name].weight)
    return made


def _teller(on_progress: OnOption | None) -> Callable[[TrainProgress], None] | None:
    if on_progress is None:
        return None

    def tell(progress: TrainProgress) -> None:
        on_progress(f"recovering, KL {progress.losses['kl']:.3g}", round(100 * progress.fraction), 100)

    return tell


def _held_out(
    pipeline: Pipeline,
    data: str | Path | None,
    on_progress: OnOption | None,
    should_stop: Callable[[], bool] | None,
) -> calibration.Calibration:
    windows = max(1, HELD_OUT_WINDOWS // (4 if is_large(pipeline) else 1))
    if data is not None:
        return calibration.from_folder(pipeline, data, "validation", 2, windows)
    return calibration.sampled(pipeline, 0, windows, _playing(on_progress), should_stop)


def _played(pipeline: Pipeline, on_progress: OnOption | None, should_stop: Callable[[], bool] | None) -> Path:
    """A token folder of what the model plays to the captions that schemes are tried on, kept for the next run."""
    clips = LARGE_CLIPS if is_large(pipeline) else CLIPS
    prompts = tuple(calibration.captions(pipeline, CLIPS_SEED, clips))
    spec = SampleSpec(prompts, clips, calibration.SECONDS, pipeline.usual_cfg, seed=CLIPS_SEED)
    folder = cache_folder() / f"played-{pipeline.hash}-{clips}x{calibration.SECONDS:g}s"
    return sample_tokens(pipeline, spec, folder, None, _playing(on_progress), should_stop)


def _playing(on_progress: OnOption | None) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress("playing to itself", done, total)
