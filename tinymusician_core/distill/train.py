"""Distil: a teacher's folder and codec tokens, or prompts alone, in; a student's folder out.

While a run lasts, its checkpoint, its settings and its logs stand in `OUT.training` beside the folder that it will
write, and stay there, so that a longer budget can go on from where it ended. Clips that the teacher was asked to play
(`tokens`) and its cached logits (`logits`) lie there too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import whole_file
from ..folders import check_free
from ..guidance import Guidance
from ..pipeline import Pipeline
from ..processes import OneProcess, processes
from ..records import Cancelled
from ..run_log import LOG
from ..training import CHECKPOINT, Trainer, TrainProgress, TrainSettings
from ..variants import load, resolve
from .sampled import SampleSpec, built_in_prompts, sample_tokens
from .session import Session, check_fit
from .source import Teacher, hash_of, read_teacher
from .spec import DistillSpec

SETTINGS, TOKENS, LOGITS = "settings.json", "tokens", "logits"
BUILT_IN = "built-in"
STACKS = ("decoder.model.decoder.layers",)  # what Muon trains
BUILT_IN_PROMPTS = 200

OnStage = Callable[[str, int, int], None]  # what is prepared, how much is done, of how much


@dataclass(frozen=True)
class Distilled:
    """What `distill` wrote: the student's folder, which of the teacher's layers it has, and where training ended.

    `validation`: its cross-entropy, the teacher's own, and the forward KL between them, held out, in nats a token; of
    a student that is told its guidance also the KL at both ends of the range and at its base.
    `clip_kl`: that KL of each held-out clip it was judged on, in the clips' order, for an interval.
    `guidance`: what it has built in, or takes as an input; None where guidance is a second pass. `cache`: what
    `cache.json` says.
    """

    folder: Path
    layers: tuple[int, ...]
    steps: int
    minutes: float
    validation: dict[str, float]
    guidance: Guidance = None
    cache: dict[str, float] | None = None
    clip_kl: tuple[float, ...] = ()


@dataclass(frozen=True)
class Run:
    """How a run goes that changes nothing of its result but when it ends: budget, device, checkpoints, logs.

    `minutes` or `steps` are counted over resumed runs; 10 minutes where neither is given. `checkpoint_every_s` is how
    much a kill can cost.
    """

    minutes: float | None = None
    steps: int | None = None
    resume: bool = False
    device: str = "cpu"
    checkpoint_every_s: float = 180.0
    tensorboard: bool = False

    def settings(self, spec: DistillSpec) -> TrainSettings:
        """The trainer's settings; ValueError for a budget that is none."""
        return TrainSettings(
            spec.learning_rate,
            minutes=10.0 if self.minutes is None and self.steps is None else self.minutes,
            steps=self.steps,
            warm_up_steps=40,
            weight_decay=0.05,
            muon=STACKS if spec.optimizer == "muon" else (),
            ema=0.99,
            bf16=spec.bf16,
            seed=spec.seed,
            log_every=10,
            validate_every=spec.validate_every,
            checkpoint_every_s=self.checkpoint_every_s,
            patience=spec.patience,
            monitor="validation_kl",
            tensorboard=self.tensorboard,
        )


def distill(
    teacher: str | os.PathLike,
    tokens_dir: str | os.PathLike | None,
    layers: int | Sequence[int],
    out_dir: str | os.PathLike,
    *,
    prompts: str | Sequence[str] | None = None,
    clips: int = 256,
    minutes: float | None = None,
    steps: int | None = None,
    start_from: str | os.PathLike | None = None,
    resume: bool = False,
    device: str = "cpu",
    checkpoint_every_s: float = 180.0,
    tensorboard: bool = False,
    on_progress: Callable[[TrainProgress], None] | None = None,
    on_stage: OnStage | None = None,
    should_stop: Callable[[], bool] | None = None,
    **options,
) -> Distilled:
    """Train a student on a teacher's outputs, and write it in the teacher's format.

    Args:
        teacher: "teacher", a folder or a hub id.
        tokens_dir: a token folder with the splits train and validation, made with the teacher's codec; None with
            `prompts`.
        layers: how many of the teacher's layers to keep, or which.
        out_dir: the folder to make; a model of the same format that is there is replaced.
        prompts: what the teacher is to play, where there are no tokens: a list, or "built-in".
        clips: how many clips it is to play.
        minutes, steps: the budget, one of the two (10 minutes where neither is given), counted over resumed runs.
        start_from: an earlier student of the same sizes, whose weights this one begins with in the place of its
            teacher's: to go on with other data, another loss, or another teacher of that size.
        resume: go on from an earlier run's checkpoint, where there is one.
        device: "cpu" or "cuda"; what a launcher chose goes before it.
        checkpoint_every_s: seconds between checkpoints.
        tensorboard: log for TensorBoard too, into OUT.training/tensorboard.
        on_progress: told every few steps.
        on_stage: told of the clips that the teacher plays and of the logits that are put on disk, before training.
        should_stop: asked before every step.
        options: the other fields of `DistillSpec`.

    Raises:
        ValueError: an argument out of range, tokens that do not fit the teacher, a folder in use, an earlier run's
            checkpoint without `resume`, or one that was made with other settings.
        ModelError: the teacher's files are damaged.
        Cancelled: `should_stop` said so; the checkpoint is there to be resumed, and no model is written.
    """
    spec = DistillSpec(layers, **options)
    run = Run(minutes, steps, resume, device, checkpoint_every_s, tensorboard)
    settings, together = run.settings(spec), processes(device)
    check_source(tokens_dir, prompts)
    found, out = read_teacher(resolve(teacher), str(together.device)), Path(out_dir)
    check_free(out, found.config["model_type"])
    folder = out.with_name(f"{out.name}.training")
    check_fit(found, spec, together)
    earlier = None if start_from is None else read_teacher(resolve(start_from), str(together.device))
    if tokens_dir is None:
        model, order = _order(teacher, prompts, clips, spec, together)
    else:
        session = Session(found, tokens_dir, spec, together)
    if together.is_main:
        begun_with = {"teacher": hash_of(found), "start_from": None if earlier is None else hash_of(earlier)}
        _claim(folder, {**begun_with, **asdict(spec)}, resume)
    together.wait()
    if tokens_dir is None:
        told = None if on_stage is None else lambda done, of: on_stage("the teacher plays", done, of)
        tokens = sample_tokens(model, order, folder / TOKENS, together, told, should_stop)
        del model
        session = Session(found, tokens, spec, together)
    if earlier is not None:
        session.begin_with(earlier)
        del earlier
    cache = None
    if spec.cache_logits is not None:
        told = None if on_stage is None else lambda done, of: on_stage("the teacher's logits", done, of)
        cache = session.cache(folder / LOGITS, told, should_stop)
    trainer = Trainer(session.student, settings, folder, device, together)
    session.running = trainer.running
    return _train(session, trainer, found, out, run, cache, on_progress, should_stop)


def _train(
    session: Session,
    trainer: Trainer,
    teacher: Teacher,
    out: Path,
    run: Run,
    cache: dict[str, float] | None,
    on_progress: Callable[[TrainProgress], None] | None,
    should_stop: Callable[[], bool] | None,
) -> Distilled:
    if run.resume:
        trainer.resume()
    try:
        if trainer.step == 0:
            costs = {f"cache_{name}": value for name, value in (cache or {}).items()}
            trainer.log({"step": 0, "elapsed_s": 0.0, **session.validate(), **costs})  # what nothing has trained yet
        trainer.run(session.loss, session.validate, on_progress, should_stop)
        if not trainer.done:
            raise Cancelled(f"stopped after {trainer.step} steps; resume goes on from {trainer.folder}")
        session.student.load_state_dict(trainer.averaged_state())
        judged, by_clip = session.judge()
        after = {**judged, **session.kl_by_scale()}
        trainer.log({"step": trainer.step, "elapsed_s": round(trainer.elapsed_s, 1), **after, "final": 1})
    finally:
        trainer.close()
    student = session.whole_student()
    if session.together.is_main:
        teacher.write(student.decoder, out, student.projection, session.guidance, student.guidance)
    session.together.wait()
    minutes = round(trainer.elapsed_s / 60.0, 2)
    clips = tuple(by_clip[clip] for clip in sorted(by_clip))
    return Distilled(out, session.student.chosen, trainer.step, minutes, after, session.guidance, cache, clips)


def check_source(tokens_dir: str | os.PathLike | None, prompts: str | Sequence[str] | None) -> None:
    """ValueError unless there is one source of training data."""
    if (tokens_dir is None) == (prompts is None):
        raise ValueError("give either a folder of codec tokens or prompts for the teacher to play")
    if isinstance(prompts, str) and prompts != BUILT_IN:
        raise ValueError(f"prompts are {prompts!r}; a list of texts, or {BUILT_IN!r}, is allowed")


def _order(
    teacher: str | os.PathLike,
    prompts: str | Sequence[str],
    clips: int,
    spec: DistillSpec,
    together: OneProcess,
) -> tuple[Pipeline, SampleSpec]:
    """The teacher as one who plays, and what it is to play."""
    model = load(teacher, str(together.device))
    if isinstance(prompts, str):
        prompts = built_in_prompts(model, min(clips, BUILT_IN_PROMPTS), spec.seed)
    return model, SampleSpec(tuple(prompts), clips, spec.seconds, model.usual_cfg, seed=spec.seed)


def _claim(folder: Path, settings: dict, resume: bool) -> None:
    """Make the run's folder, or see that the run in it is the same.

    Raises:
        ValueError: there is a run and `resume` is off, or it has other settings.
    """
    record, settings = folder / SETTINGS, json.loads(json.dumps(settings))
    begun = record.is_file() and any((folder / name).exists() for name in (CHECKPOINT, TOKENS, LOGITS))
    if begun and not resume:
        raise ValueError(f"{folder} holds an earlier run; resume it, or remove that folder to start afresh")
    if begun:
        earlier = json.loads(record.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if earlier.get(name) != value:
                raise ValueError(f"{folder} was begun with {name} {earlier.get(name)!r}, not {value!r}; give the same")
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOG).unlink(missing_ok=True)
    with whole_file(record) as path:
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
