"""Sounds of one's own to go on from: checked as soon as they come, and kept so that a take can be made again."""

from __future__ import annotations

import shutil
from pathlib import Path

import soundfile

from studio import wording
from studio.naming import slug
from tinymusician_core import audio
from tinymusician_core.files import sha256_of, whole_file
from tinymusician_core.records import MAX_SECONDS

ENDINGS = (".wav", ".mp3", ".flac", ".ogg")
KINDS = "WAV, MP3, FLAC or OGG"


def check_source(path: Path) -> float:
    """The length in seconds of a sound file of any rate.

    Raises ValueError with one sentence when it cannot be read, holds no sound or is longer than `MAX_SECONDS`.
    """
    path = Path(path)
    try:
        seconds = soundfile.info(path).duration
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"the file {path.name} is no {KINDS} file that can be read") from error
    if seconds > MAX_SECONDS:
        longest = wording.duration(MAX_SECONDS)
        raise ValueError(f"the file {path.name} is {wording.duration(seconds)} long; at most {longest} are allowed")
    try:
        return audio.read(path).seconds
    except ValueError as error:
        raise ValueError(f"the file {path.name} holds no sound that can be read; a {KINDS} file is allowed") from error


def keep_source(path: Path, folder: Path) -> Path:
    """Copy a checked sound into `folder`, under its own name and once for each content; returns where it lies."""
    path = Path(path)
    target = Path(folder) / sha256_of(path)[:12] / (slug(path.stem) + path.suffix.lower())
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as draft:
            shutil.copyfile(path, draft)
    return target
