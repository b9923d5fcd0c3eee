"""Pictures of clips: the log-frequency spectrogram behind a player, and the bars that set models side by side.

A spectrogram is a picture of alpha alone: the page lays it as a mask over the colour of its theme, so that one file
serves light and dark and every model's own colour.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from tinymusician_core import audio

LOW_HZ, HIGH_HZ = 55.0, 14_080.0
RANGE_DB = 66.0
COLUMNS, ROWS = 640, 168
WINDOW = 4096
HANN = np.hanning(WINDOW).astype(np.float32)
LOOKS = 6  # windows for each column of a long clip: all of it up to a good 8 minutes at 32 kHz
AXIS_HZ = ((110, "110"), (440, "440"), (1760, "1.8k"), (7040, "7k"))


def spectrogram(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Loudness over time and log frequency, 0 (silent) to 1 (the loudest spot), low frequencies in the last row.

    Args:
        samples: float32 [C,N].
    Returns:
        float32 [ROWS, COLUMNS]; 0 everywhere for silence. Covers `LOW_HZ` to `HIGH_HZ`; `RANGE_DB` under
        the peak is 0.
    """
    samples = np.asarray(samples, dtype=np.float32)
    return _picture(lambda start, count: samples[:, start : start + count], samples.shape[1], sample_rate_hz)


def file_spectrogram(path: Path) -> np.ndarray:
    """The `spectrogram` of a sound file, of which only what is looked at is read: memory does not grow with its length.

    Raises OSError or ValueError when it cannot be read.
    """
    audio.check_readable(path)
    with soundfile.SoundFile(path) as file:

        def read(start: int, count: int) -> np.ndarray:
            file.seek(start)
            return file.read(count, dtype="float32", always_2d=True).T

        return _picture(read, file.frames, file.samplerate)


def _picture(read: Callable[[int, int], np.ndarray], length: int, sample_rate_hz: int) -> np.ndarray:
    """Column after column: the loudest of what up to `LOOKS` windows around its place in `length` samples hold."""
    looks = min(LOOKS, max(1, round(length / COLUMNS / WINDOW)))
    places = np.linspace(0, max(length - 1, 0), COLUMNS * looks).astype(int).reshape(COLUMNS, looks)
    edges = np.geomspace(LOW_HZ, HIGH_HZ, ROWS + 1) * WINDOW / sample_rate_hz
    windows = (np.stack([_window(read, at, length) for at in group]) for group in places)
    power = np.stack([(np.abs(np.fft.rfft(group, axis=1)) ** 2).max(axis=0) for group in windows])
    rows = _bands(power, edges)
    peak = rows.max()
    if peak <= 0:
        return np.zeros((ROWS, COLUMNS), dtype=np.float32)
    level = 1.0 + 10.0 * np.log10(np.maximum(rows / peak, 1e-12)) / RANGE_DB
    return np.clip(level, 0.0, 1.0)[::-1].astype(np.float32)


def _window(read: Callable[[int, int], np.ndarray], centre: int, length: int) -> np.ndarray:
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


def mask_png(levels: np.ndarray) -> bytes:
    """A picture whose alpha is `levels` [rows, columns] in 0..1, bent a little so that partials stand out."""
    alpha = np.round(255 * np.asarray(levels) ** 1.8).astype(np.uint8)
    picture = Image.fromarray(np.stack([np.zeros_like(alpha), alpha], axis=-1))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@lru_cache(maxsize=64)
def _mask_uri(path: str, changed: float) -> str:
    picture = mask_png(file_spectrogram(Path(path)))
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def mask_uri(path: Path) -> str:
    """The spectrogram mask of a WAV file as a data URI. Raises OSError or ValueError when it cannot be read."""
    return _mask_uri(str(path), path.stat().st_mtime)


def axis_marks() -> list[tuple[float, str]]:
    """Frequencies to name beside a spectrogram: (height from the bottom in 0..1, label)."""
    whole = np.log(HIGH_HZ / LOW_HZ)
    return [(float(np.log(hz / LOW_HZ) / whole), label) for hz, label in AXIS_HZ]
