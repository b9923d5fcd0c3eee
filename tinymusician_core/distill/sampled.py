"""Clips that the teacher itself makes from prompts, as a token folder: data for a distillation without any audio."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..domain import KIND, MODES, PLAYED_BY, TEMPO, TONICS
from ..files import whole_file
from ..pipeline import Pipeline
from ..playing import play
from ..processes import OneProcess
from ..records import MAX_SEED, Cancelled, SamplingSpec, check_prompt, check_seconds
from ..tokens import TokenDataset, write_tokens

SETTINGS, PARTS = "sampled.json", "parts"
HELD_OUT = 10  # one clip in so many is for validation


@dataclass(frozen=True)
class SampleSpec:
    """What to have the teacher play: `clips` of `seconds`, prompt after prompt, each with a seed of its own.

    Raises:
        ValueError: fewer than 2 clips, no prompt, or a number out of range.
    """

    prompts: tuple[str, ...]
    clips: int
    seconds: float
    cfg: float = 3.0
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(check_prompt(prompt) for prompt in self.prompts))
        object.__setattr__(self, "seconds", check_seconds(self.seconds))
        if not self.prompts:
            raise ValueError("there are no prompts; at least one is needed")
        for name, least in (("clips", 2), ("batch", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value}; a whole number of {least} or more is allowed")
        self.sampling(0)

    def prompt(self, clip: int) -> str:
        return self.prompts[clip % len(self.prompts)]

    def sampling(self, clip: int) -> SamplingSpec:
        return SamplingSpec(self.seconds, (self.seed + clip) % (MAX_SEED + 1), self.cfg)

    def held_out(self, clip: int) -> bool:
        """Whether a clip is for validation: every tenth prompt, or clip where prompts are few; else the last."""
        if self.clips < HELD_OUT:
            return clip == self.clips - 1
        of = clip % len(self.prompts) if HELD_OUT <= len(self.prompts) <= self.clips else clip
        return of % HELD_OUT == HELD_OUT - 1


def read_prompts(path: str | os.PathLike) -> tuple[str, ...]:
    """The prompts of a text file, one a line; of a .jsonl file the "prompt" of each record.

    Raises:
        ValueError: the file is missing or no text, holds no prompts, or one that `check_prompt` refuses.
    """
    path = Path(path)
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        prompts = [json.loads(line)["prompt"] for line in lines] if path.suffix == ".jsonl" else lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as prompts, one a line or .jsonl records with a prompt") from error
    if not prompts:
        raise ValueError(f"{path} holds no prompts; at least one is needed")
    return tuple(check_prompt(prompt) for prompt in prompts)


def built_in_prompts(model: Pipeline, count: int, seed: int = 0) -> tuple[str, ...]:
    """`count` different prompts of the demo family's domain, in words that the model knows.

    Raises:
        ValueError: the model knows too few of the words.
    """

    def known(phrases: Iterable[str]) -> list[str]:
        return [phrase for phrase in dict.fromkeys(phrases) if not model.unknown_words(phrase)]

    tables = [known(chain.from_iterable(table.values())) for table in (TEMPO, PLAYED_BY, KIND)]
    tables += [known(TONICS), known(MODES)]
    if math.prod(len(table) for table in tables) < 2 * count or model.unknown_words("in"):
        raise ValueError(f"the model {model.name} knows too few words of the built-in prompts; give it some of its own")
    rng, found = random.Random(seed), {}
    while len(found) < count:
        tempo, instrument, kind, tonic, mode = (rng.choice(table) for table in tables)
        found[f"{tempo} {instrument} {kind} in {tonic} {mode}"] = None
    return tuple(found)


def sample_tokens(
    model: Pipeline,
    spec: SampleSpec,
    folder: str | os.PathLike,
    together: OneProcess | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Path:
    """Have a model play, and write what it played as a token folder with the splits train and validation.

    Every batch is a file, so that a stopped run goes on where it was; several processes share them out.

    Args:
        model: the teacher, from `load`.
        spec: what to play.
        folder: the token folder to make, or one that an earlier run began.
        together: the processes that work on it.
        on_progress: told how many clips there are, and of how many.
        should_stop: asked before every step of the model.

    Raises:
        ValueError: the folder was begun with other settings, or holds something else.
        Cancelled: `should_stop` said so; what is finished stays.
    """
    folder, together = Path(folder), together or OneProcess()
    if together.is_main:
        _claim(folder, {"model": model.hash, **json.loads(json.dumps(asdict(spec)))})
    together.wait()
    if (folder / "train.safetensors").exists() and (folder / "validation.safetensors").exists():
        return folder
    (folder / PARTS).mkdir(exist_ok=True)
    starts = range(0, spec.clips, spec.batch)
    for index, first in enumerate(starts):
        part = folder / PARTS / f"{index:05d}.safetensors"
        if index % together.world == together.rank and not part.exists():
            codes = _play(model, spec, range(first, min(first + spec.batch, spec.clips)), should_stop)
            with whole_file(part) as partial:
                save_file({"codes": codes.to(torch.int16)}, partial)
        if on_progress is not None:
            on_progress(min(first + spec.batch, spec.clips), spec.clips)
    together.wait()
    if together.is_main:
        parts = [folder / PARTS / f"{index:05d}.safetensors" for index in range(len(starts))]
        _gather(folder, spec, model.frame_rate_hz, [clip for part in parts for clip in load_file(part)["codes"]])
    together.wait()
    return folder


def _claim(folder: Path, settings: dict) -> None:
    record = folder / SETTINGS
    if record.is_file():
        earlier = json.loads(record.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if earlier.get(name) != value:
                raise ValueError(f"{folder} was begun with other {name} than now; give the same, or another folder")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no clips of a teacher's; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(record) as partial:
        partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _play(model: Pipeline, spec: SampleSpec, clips: Sequence[int], should_stop: Callable[[], bool] | None) -> Tensor:
    """Codes int64 [B,K,T] of some clips."""
    try:
        return play(model, [spec.prompt(clip) for clip in clips], [spec.sampling(clip) for clip in clips], should_stop)
    except Cancelled as stop:
        raise Cancelled(f"stopped while clip {clips[0] + 1} of {spec.clips} was made; resume goes on") from stop


def _gather(folder: Path, spec: SampleSpec, frame_rate_hz: float, clips: list[Tensor]) -> None:
    """The parts as a token folder; a window of it may begin at any whole second."""
    bars = list(range(0, clips[0].shape[1], max(1, round(frame_rate_hz))))
    for split, wanted in (("train", False), ("validation", True)):
        chosen = [i for i in range(len(clips)) if spec.held_out(i) == wanted]
        records = [
            {"captions": [spec.prompt(i)], "bars": bars, "facts": {"seed": spec.sampling(i).seed}} for i in chosen
        ]
        write_tokens(folder, split, [clips[i] for i in chosen], records)
    for split in ("train", "validation"):
        TokenDataset(folder, split)
    for part in (folder / PARTS).iterdir():
        part.unlink()
    (folder / PARTS).rmdir()
