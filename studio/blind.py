"""The files of a blind pair: same loudness, length and rate, no tags, and names that say A or B and nothing else."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from pathlib import Path

from studio.trial import Pair
from tinymusician_core import audio
from tinymusician_core.records import Waveform

FOLDER = "listening"


class BlindFiles:
    """Prepared pairs under one output folder, each in a folder named by the pair's opaque id."""

    def __init__(self, folder: Path):
        self._source = Path(folder)
        self._folder = self._source / FOLDER

    def paths(self, pair: Pair) -> tuple[Path, Path]:
        """Where the pair's A and B lie once they are prepared."""
        return self._folder / pair.id / "a.wav", self._folder / pair.id / "b.wav"

    def prepare(self, pair: Pair) -> tuple[Path, Path]:
        """Write the pair's two files, unless they are there, and return their paths.

        Raises:
            ValueError: a clip cannot be read or is silent, so that its loudness cannot be matched.
            OSError: the disk is full or the folder cannot be written.
        """
        targets = self.paths(pair)
        if all(target.is_file() for target in targets):
            return targets
        sounds = match([audio.read(self._source / clip.file) for clip in (pair.a, pair.b)])
        targets[0].parent.mkdir(parents=True, exist_ok=True)
        for target, sound in zip(targets, sounds, strict=True):
            audio.write_wav(target, sound)
        return targets

    def forget(self, judged: Iterable[str]) -> None:
        """Remove the files of pairs that were judged; one that is still being played may stay until the next time."""
        for pair_id in judged:
            shutil.rmtree(self._folder / pair_id, ignore_errors=True)


def match(sounds: list[Waveform]) -> list[Waveform]:
    """Bring sounds to one rate, one length (the shortest) and one loudness (the quietest, ITU-R BS.1770).

    Raises ValueError when one of them is silent.
    """
    rate = min(sound.sample_rate_hz for sound in sounds)
    sounds = [audio.resample(sound, rate) for sound in sounds]
    length = min(sound.audio.shape[1] for sound in sounds)
    sounds = [Waveform(sound.audio[:, :length], rate) for sound in sounds]
    if not all(math.isfinite(audio.loudness(sound)) for sound in sounds):
        raise ValueError("one of its clips is silent")
    return audio.match_levels(sounds)
