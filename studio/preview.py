"""A clip that can be heard while it is made: its sound so far in a file that grows, and the shape of its loudness.

The page fetches from the file what it has not heard yet; nobody who does not press play pays for it. A preview is never
kept, exported or judged: it is removed as soon as the whole clip is there.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COLUMNS = 120
STALE_S = 3600.0


@dataclass(frozen=True)
class Heard:
    """What can be heard of a clip so far: `samples` a channel in `path`, 16 bit, little endian, channels interleaved.

    `levels` are the peaks, 0 to 1, of `COLUMNS` equal parts of the `expected_s` seconds that the clip will have.
    """

    path: Path
    sample_rate_hz: int
    channels: int
    samples: int
    expected_s: float
    levels: tuple[float, ...]


class Preview:
    """Takes the chunks of one clip and tells what can be heard; one thread adds, others may read `heard`."""

    def __init__(self, folder: Path, expected_s: float):
        self.path = Path(folder) / f"{secrets.token_hex(8)}.pcm"
        self.heard: Heard | None = None
        self._expected_s = expected_s
        self._levels = np.zeros(COLUMNS, dtype=np.float32)

    def add(self, chunk: np.ndarray, sample_rate_hz: int) -> None:
        """Append a chunk, float32 [C,n] in -1..1. Raises OSError when the disk is full."""
        channels, count = chunk.shape
        if not count:
            return
        before = self.heard.samples if self.heard else 0
        with open(self.path, "ab") as file:
            file.write(np.rint(chunk.T * 32767).astype("<i2").tobytes())
        self._raise_levels(np.abs(chunk).max(axis=0), before, self._expected_s * sample_rate_hz)
        levels = tuple(self._levels.round(3).tolist())
        self.heard = Heard(self.path, sample_rate_hz, channels, before + count, self._expected_s, levels)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _raise_levels(self, loud: np.ndarray, start: int, whole: float) -> None:
        """Let the samples `loud` [n], the first of which is number `start` of `whole`, count in their columns."""
        columns = ((start + np.arange(len(loud))) * (COLUMNS / whole)).astype(int).clip(max=COLUMNS - 1)
        begins = np.flatnonzero(np.diff(columns, prepend=-1))
        peaks = np.maximum.reduceat(loud, begins)
        self._levels[columns[begins]] = np.maximum(self._levels[columns[begins]], peaks)


def remove_stale(folder: Path) -> None:
    """Remove previews that a killed studio left behind; those that may still grow stay."""
    for path in Path(folder).glob("*.pcm"):
        if time.time() - path.stat().st_mtime > STALE_S:
            path.unlink(missing_ok=True)
