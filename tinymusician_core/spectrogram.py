"""The picture of a sound file: how loud every pitch is at every moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from . import audio

LOW_HZ, HIGH_HZ = 55.0, 14_080.0
RANGE_DB = 66.0
COLUMNS, ROWS = 640, 168
WINDOW = 4096
HANN = np.hanning(WINDOW).astype(np.float32)
LOOKS = 6  # windows for each column of a long clip: all of it up to a good 8 minutes at 32 kHz

Read = Callable[[int, int], np.ndarray]
"""First sample and how many -> sound [C,n]."""


def spectrogram(path: str | Path) -> np.ndarray:
    """Loudness over time and log frequency, 0 (silent) to 1 (the loudest spot), low frequencies in the last row.

    Only what is looked at is read: memory does not grow with the length of the file.

    Returns:
        float32 [ROWS, COLUMNS]; 0 everywhere for silence. Covers `LOW_HZ` to `HIGH_HZ`; `RANGE_DB` under the peak is 0.

    Raises:
        ValueError: no such file, no sound in it, or a format that cannot be read.
        OSError: it can no longer be read.
    """
    audio.check_readable(path)
    with soundfile.SoundFile(path) as file:

        def read(start: int, count: int) -> np.ndarray:
            file.seek(start)
            return file.read(count, dtype="float32", always_2d=True).T

        rows = _bands(_powers(read, file.frames), np.geomspace(LOW_HZ, HIGH_HZ, ROWS + 1) * WINDOW / file.samplerate)
    peak = rows.max()
    if peak <= 0:
        return np.zeros((ROWS, COLUMNS), dtype=np.float32)
    level = 1.0 + 10.0 * np.log10(np.maximum(rows / peak, 1e-12)) / RANGE_DB
    return np.clip(level, 0.0, 1.0)[::-1].astype(np.float32)


def _powers(read: Read, length: int) -> np.ndarray:
    """Column after column [COLUMNS, bins] the loudest of what up to `LOOKS` windows around its place hold."""
    looks = min(LOOKS, max(1, round(length / COLUMNS / WINDOW)))
    places = np.linspace(0, max(length - 1, 0), COLUMNS * looks).astype(int).reshape(COLUMNS, looks)
    windows = (np.stack([_window(read, at, length) for at in group]) for group in places)
    return np.stack([(np.abs(np.fft.rfft(group, axis=1)) ** 2).max(axis=0) for group in windows])


def _window(read: Read, centre: int, length: int) -> np.ndarray:
    """The `WINDOW` samples around a place, channels mixed, weighted by a Hann window; silence beyond the ends."""
    first, last = max(0, centre - WINDOW // 2), min(length, centre + WINDOW // 2)
    mono = read(first, last - first).mean(axis=0)
    before = first - (centre - WINDOW // 2)
    return np.pad(mono, (before, WINDOW - before - len(mono))) * HANN


def _bands(power: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The most power [ROWS, columns] that `power` [columns, bins] holds between each two edges, given in bins."""
    centres, bins = np.sqrt(edges[:-1] * edges[1:]), np.arange(power.shape[1])
    rows = np.stack([np.interp(centres, bins, column, right=0.0) for column in power], axis=1)
    for row, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        first, last = int(np.ceil(low)), int(np.floor(high))
        if last > first and last < power.shape[1]:
            rows[row] = power[:, first : last + 1].max(axis=1)
    return rows
