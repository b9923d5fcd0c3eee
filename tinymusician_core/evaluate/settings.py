"""What an evaluation is asked to do, and the file that keeps a resumed one to it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import whole
from ..files import whole_file
from ..records import MAX_SEED, SamplingSpec, check_prompt
from ..variants import assets_folder, resolve

if TYPE_CHECKING:
    from ..pipeline import Pipeline

FILE, DEVICES = "settings.json", ("cpu", "cuda")
PROMPT_SETS = ("in-domain", "out-of-domain")
MAX_CLIPS, MIN_CLIPS, MIN_SECONDS = 10_000, 20, 1.0


@dataclass(frozen=True)
class Settings:
    """The settings of an evaluation, checked.

    Attributes:
        models: what `tinymusician_core.load` takes; the first is the teacher of every ratio.
        clips: how many each variant plays, and the most held-out windows that it is asked to foresee.
        seconds: length of a clip.
        seed: clip i is drawn from seed + i; also the seed of the statistics.
        prompts: clip i plays the i-th, beginning again after the last; None for the captions of the held-out music.
        embedder: what `load_embedder` takes.
        reference: a folder of sound files to compare with; None for the held-out music.
        speed: whether speed and memory are measured too.
        device: what the variants run on, "cpu" or "cuda".
        cfg, top_p: of all variants; None for what each is made with where nothing is said.

    Raises:
        ValueError: a setting that is not allowed, or a model that is not known.
    """

    models: tuple[str, ...]
    clips: int = 200
    seconds: float = 10.0
    seed: int = 0
    prompts: tuple[str, ...] | None = None
    embedder: str = "listener"
    reference: Path | None = None
    speed: bool = True
    device: str = "cpu"
    cfg: float | None = None
    top_p: float | None = None

    def __post_init__(self):
        if isinstance(self.models, str) or not self.models or len(set(self.models)) != len(tuple(self.models)):
            raise ValueError(f"models must be a list of at least one name, each once, got {self.models!r}")
        for model in self.models:
            resolve(model)
        spec = SamplingSpec(self.seconds, self.seed, self.cfg, top_p=self.top_p)
        if spec.seconds < MIN_SECONDS:
            raise ValueError(
                f"seconds must be {MIN_SECONDS:g} or more, as the judges need that much, got {spec.seconds:g}"
            )
        object.__setattr__(self, "models", tuple(map(str, self.models)))
        object.__setattr__(self, "clips", whole("clips", self.clips, MIN_CLIPS, MAX_CLIPS))
        object.__setattr__(self, "seconds", spec.seconds)
        object.__setattr__(self, "seed", spec.seed)
        object.__setattr__(self, "cfg", spec.cfg)
        object.__setattr__(self, "top_p", spec.top_p)
        if self.device not in DEVICES:
            raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {self.device!r}")
        if self.prompts is not None and not self.prompts:
            raise ValueError("prompts must hold at least one, got none")
        if self.reference is not None and not Path(self.reference).is_dir():
            raise ValueError(f"reference must be a folder of sound files, got {str(self.reference)!r}")

    def as_dict(self) -> dict:
        """Ready for JSON; a list of prompts as its hash."""
        prompts = None
        if self.prompts is not None:
            prompts = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()[:16]
        reference = None if self.reference is None else str(Path(self.reference).resolve())
        return {
            "models": list(self.models),
            "clips": self.clips,
            "seconds": self.seconds,
            "seed": self.seed,
            "prompts": prompts,
            "embedder": self.embedder,
            "reference": reference,
            "speed": self.speed,
            "device": self.device,
            "cfg": self.cfg,
            "top_p": self.top_p,
        }

    def seed_of(self, index: int) -> int:
        """The seed of clip `index`."""
        return (self.seed + index) % (MAX_SEED + 1)

    def spec(self, pipeline: Pipeline, index: int = 0) -> SamplingSpec:
        """How a model draws clip `index`.

        Raises:
            ValueError: a guidance was asked for that the model does not take.
        """
        spec = pipeline.settled(SamplingSpec(self.seconds, self.seed_of(index), self.cfg, top_p=self.top_p))
        pipeline.engine_spec(spec)
        return spec


def read_prompts(source: str | os.PathLike) -> tuple[str, ...]:
    """A text file with a prompt a line, empty lines do not count; or one of the shipped sets by its name.

    Raises:
        ValueError: no such file, no text, nothing in it, or a prompt that is too long.
    """
    path = assets_folder() / "prompts" / f"{source}.txt" if source in PROMPT_SETS else Path(source).expanduser()
    allowed = f"prompts must be {', '.join(PROMPT_SETS)}, or a text file with a prompt a line"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{allowed}; there is no {str(path)!r}") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise ValueError(f"{allowed}; got {str(path)!r}") from None
    prompts = tuple(check_prompt(line) for line in text.splitlines() if line.strip())
    if not prompts:
        raise ValueError(f"{path} holds no prompt; one a line is allowed")
    return prompts


def claim(folder: Path, name: str, facts: dict) -> None:
    """Begin a run with these facts in `folder/name`, or go on with one of the same.

    Raises:
        ValueError: the folder is a file, holds something else, or a run of other facts; the first one is named.
        OSError: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the file {str(folder)!r}")
    file, facts = folder / name, json.loads(json.dumps(facts))
    if not file.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds files that are no evaluation; give a new folder, or an empty one")
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as partial:
            partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    for key in {**facts, **before}:
        was, now = before.get(key), facts.get(key)
        if was != now:
            raise ValueError(
                f"{folder} holds an evaluation whose {key} was {_said(was)}, not {_said(now)}; "
                "go on with the same settings, or give another folder"
            )


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
