"""An evaluation: every variant plays the same prompts, is judged, and is asked how well it foresees held-out music.

Everything that takes time is written down as soon as it is there, a record at a time, so that a run that was stopped or
killed goes on to the very result that it would have had. All statistics come afterwards, from these records alone
(`summary.py`).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .. import __version__
from ..audio import clip_tags, write_wav
from ..engine.threads import threads_for
from ..journal import Journal
from ..pipeline import Pipeline
from ..records import Cancelled, Figures
from ..text import check_known
from ..variants import FAMILY, load
from .embedders import load_embedder
from .held_out import HeldOut, codec_identity
from .jury import Judged, Jury
from .likelihood import divergence_to, token_likelihood
from .listen import MAX_CLIPS, Played, write_listening
from .listener import Listener
from .reference import Reference, own_reference, shipped_reference
from .report import listening_notes, write_report
from .settings import FILE, Settings, claim, read_prompts
from .speed import speed_of
from .summary import Evaluation, Row, summarise

DRAWS = 400  # halves of which an interval is made; its ends are sure to 4% of its width


@dataclass(frozen=True)
class Step:
    """Progress: `done` of `total` of a stage.

    Stages are "reference", then "speed", "clips" and "likelihood" of each model, then "figures", and
    "pictures" where there is something to listen to.
    """

    model: str
    stage: str
    done: int
    total: int


OnProgress = Callable[[Step], None]
ShouldStop = Callable[[], bool]


def evaluate(
    models: Sequence[str] = FAMILY,
    clips: int = 200,
    seconds: float = 10.0,
    seed: int = 0,
    prompts: str | os.PathLike | Sequence[str] | None = None,
    embedder: str = "listener",
    reference: str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
    speed: bool = True,
    device: str = "cpu",
    listen: bool = False,
    cfg: float | None = None,
    top_p: float | None = None,
    threads: int | None = None,
    command: str | None = None,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Evaluation:
    """Measure how good variants are, and how much of the first they keep.

    Args:
        models: names, folders or hub ids, each once; the first is the teacher of every ratio.
        clips: how many each plays, 20 or more.
        seconds: length of a clip; with the held-out music of the assets as the reference 10 s or more, of which the
            last 10 s are compared with it. From 20 s on it is judged too whether clips stay steady.
        seed: clip i is drawn from seed + i.
        prompts: a list, a text file with one a line, or the name of a shipped set, "in-domain" (50) or "out-of-domain"
            (20); None for the held-out captions. Clip i plays the i-th, beginning again after the last.
        embedder: "listener", "clap", or a folder or hub id of a CLAP model.
        reference: a folder of sound files to compare with; None for the held-out music of the assets.
        output: a folder for the records and the report; a run that was stopped there goes on. None keeps nothing.
        speed: measure speed and memory too, each variant in a fresh process before it plays.
        device: what the variants run on, "cpu" or "cuda"; the judges stay on the CPU.
        listen: keep every clip as a WAV file in `output` and write a page to hear and see them all (`listen.py`). It
            changes no figure: clips of an earlier run that was not asked for sound are played once more.
        cfg: the guidance of all variants; None for what each is made with where nothing is said: what it has built in,
            or the base of the range that it takes, else the scale that its folder names.
        top_p: the share of probability that all draw from; None for what each is made for.
        threads: CPU threads; None leaves the choice to torch.
        command: the command line that asks for this, for the report; it changes no figure.
        on_progress: told of every step.
        should_stop: asked before every step of every clip.

    Returns:
        The evaluation; the same settings on the same machine give the same one, but for speed.

    Raises:
        ValueError: a setting that is not allowed, a prompt in which a model knows no word, or an `output` that holds
            something else or an evaluation with other settings.
        ModelError: a model, the listener, the embedder or the held-out music cannot be used.
        Cancelled: `should_stop` said so; the message says how to go on.
    """
    if prompts is not None:
        prompts = read_prompts(prompts) if isinstance(prompts, str | os.PathLike) else tuple(prompts)
    if listen and output is None:
        raise ValueError("clips to listen to need an output folder, got none")
    if listen and clips > MAX_CLIPS:
        raise ValueError(f"a page to listen to holds at most {MAX_CLIPS} clips a variant, got {clips}")
    folder = None if reference is None else Path(reference).expanduser()
    settings = Settings(tuple(models), clips, seconds, seed, prompts, embedder, folder, speed, device, cfg, top_p)
    with _run_folder(output) as run_folder, threads_for(threads):
        run = _Run(settings, run_folder, on_progress, should_stop, listen, threads, command)
        try:
            return run.whole(None if output is None else run_folder)
        except Cancelled as stopped:
            kept = "nothing was kept: give an output folder" if output is None else "the same call goes on from there"
            raise Cancelled(f"{stopped}; {kept}") from stopped


@contextmanager
def _run_folder(output: str | os.PathLike | None) -> Iterator[Path]:
    if output is not None:
        yield Path(output).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="tinymusician-evaluate-") as folder:
        yield Path(folder)


class _Run:
    """One run in its folder: the judges, the prompts, and what has been done so far."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        on_progress: OnProgress | None,
        should_stop: ShouldStop | None,
        listen: bool,
        threads: int | None,
        command: str | None,
    ):
        self.settings, self.folder, self.listen = settings, folder, listen
        self._threads, self._command = threads, command
        self._on_progress = on_progress or (lambda step: None)
        self._should_stop = should_stop or (lambda: False)
        listener = Listener.from_folder()
        self.held_out = HeldOut.from_folder()
        window_s = self.held_out.seconds if settings.reference is None else None
        self.jury = Jury(listener, load_embedder(settings.embedder), window_s)
        self.prompts = settings.prompts or self.held_out.prompts
        self.context = {
            "listener": listener.name,
            "embedder": self.jury.embedder.name,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "version": __version__,
        }

    def whole(self, report_folder: Path | None) -> Evaluation:
        """Do what is left to do, and sum up."""
        self._check_guidance()
        claim(self.folder, FILE, self.settings.as_dict() | self.context)
        reference = self._reference()
        rows = [self._variant(number, model) for number, model in enumerate(self.settings.models, start=1)]
        self._tell("all", "figures", 0, 1)
        made = summarise(
            self.settings.as_dict(),
            self.context | {"command": self._command},
            rows,
            reference,
            self.jury.listener.accuracy,
            self.settings.seed,
            DRAWS,
        )
        self._tell("all", "figures", 1, 1)
        if report_folder is not None:
            write_report(made, report_folder)
        if self.listen:
            self._write_listening(rows, made)
        return made

    def _write_listening(self, rows: Sequence[Row], made: Evaluation) -> None:
        every, played = range(self.settings.clips), []
        for number, row in enumerate(rows, start=1):
            place = self._place(number, row.model)
            played.append(Played(row.model, row.clips, tuple(self._sound(place, index) for index in every)))
        write_listening(
            played,
            listening_notes(made.as_dict()),
            self.settings.seconds,
            [self.settings.seed_of(index) for index in every],
            None if made.steadiness is None else made.steadiness["limits"],
            self.folder,
            lambda done, total: self._tell("all", "pictures", done, total),
        )

    def _tell(self, model: str, stage: str, done: int, total: int) -> None:
        self._on_progress(Step(model, stage, done, total))

    def _reference(self) -> Reference:
        if self.settings.reference is None:
            return shipped_reference(self.held_out, self.jury, self.settings.seconds)
        return own_reference(
            self.settings.reference,
            self.jury,
            self.settings.seconds,
            self.folder / "reference.jsonl",
            lambda done, total: self._tell(self.settings.reference.name, "reference", done, total),
            self._should_stop,
        )

    def _place(self, number: int, model: str) -> Path:
        """The folder of a variant."""
        return self.folder / f"{number}-{_plain(model)}"

    @staticmethod
    def _sound(place: Path, index: int) -> Path:
        """The sound file of a clip of the variant in a folder."""
        return place / "clips" / f"{index:03}.wav"

    def _check_guidance(self) -> None:
        """See that all variants take the guidance that was asked for, before the first one plays."""
        if self.settings.cfg is not None:
            for model in self.settings.models:
                self.settings.spec(load(model, self.settings.device))

    def _variant(self, number: int, model: str) -> Row:
        """One variant from its speed to the last held-out window."""
        folder = self._place(number, model)
        pipeline = load(model, self.settings.device)
        for prompt in self.prompts:
            check_known(prompt, pipeline.unknown_words(prompt))
        claim(folder, "model.json", {"model": model, "hash": pipeline.hash})
        figures = self._figures(model, pipeline, folder / "speed.json")
        clips = self._clips(model, pipeline, folder)
        tokens = self._tokens(model, pipeline, Journal(folder / "tokens.jsonl"))
        return Row(model, pipeline.hash, figures, clips, *tokens, self.settings.spec(pipeline), pipeline.guidance)

    def _figures(self, model: str, pipeline: Pipeline, file: Path) -> Figures:
        if not self.settings.speed:
            return Figures(disk_bytes=pipeline.disk_bytes, device=str(pipeline.device))
        self._tell(model, "speed", 0, 1)
        spec = self.settings.spec(pipeline)
        found = speed_of(model, spec, self.settings.device, self._threads, file, self._should_stop)
        self._tell(model, "speed", 1, 1)
        return found

    def _clips(self, model: str, pipeline: Pipeline, folder: Path) -> tuple[Judged, ...]:
        """The variant's clips, judged; a sound file is there before its record, so that every record has one."""
        journal, wanted = Journal(folder / "clips.jsonl"), self.settings.clips
        for index in range(wanted):
            sound = self._sound(folder, index)
            if index < len(journal) and (sound.is_file() or not self.listen):
                continue
            self._tell(model, "clips", index, wanted)
            prompt = self.prompts[index % len(self.prompts)]
            spec = self.settings.spec(pipeline, index)
            try:
                clip = pipeline.generate(prompt, spec, should_stop=self._should_stop)
            except Cancelled as stopped:
                raise Cancelled(f"stopped after {index} of {wanted} clips of {model}") from stopped
            if self.listen:
                sound.parent.mkdir(exist_ok=True)
                write_wav(sound, clip.waveform, clip_tags(clip))
            if index == len(journal):
                judged = self.jury.judge(clip.waveform, prompt)
                journal.append({"index": index, "seed": spec.seed, **judged.as_record()})
        self._tell(model, "clips", wanted, wanted)
        return tuple(map(Judged.from_record, journal.records))

    def _tokens(self, model: str, pipeline: Pipeline, journal: Journal) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Negative log-likelihood and divergence from the teacher [n,K] of held-out windows; None where it has none."""
        if codec_identity(pipeline.codec) != self.held_out.codec:
            return None, None
        tokens, wanted = self.held_out.tokens, min(self.settings.clips, len(self.held_out.tokens))
        teacher = self._teacher(model) if len(journal) < wanted else None
        for index in range(len(journal), wanted):
            self._tell(model, "likelihood", index, wanted)
            if self._should_stop():
                raise Cancelled(f"stopped after {index} of {wanted} held-out windows of {model}")
            nll = token_likelihood(pipeline, tokens, [index])[0]
            kl = None if teacher is None else divergence_to(teacher, pipeline, tokens, [index])[0].tolist()
            journal.append({"index": index, "nll": nll.tolist(), "kl": kl})
        self._tell(model, "likelihood", wanted, wanted)
        nll, kl = ([record[name] for record in journal.records] for name in ("nll", "kl"))
        return np.array(nll), None if None in kl else np.array(kl)

    def _teacher(self, model: str) -> Pipeline | None:
        """The first model, loaded beside another one; None for itself, or where its tokens are others."""
        if model == self.settings.models[0]:
            return None
        teacher = load(self.settings.models[0], self.settings.device)
        return teacher if codec_identity(teacher.codec) == self.held_out.codec else None


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name).strip("-.") or "model"
