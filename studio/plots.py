"""Pictures of clips: the log-frequency spectrogram behind a player, and the bars that set models side by side.

A spectrogram is a picture of alpha alone: the page lays it as a mask over the colour of its theme, so that one file
serves light and dark and every model's own colour.
"""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from tinymusician_core.spectrogram import HIGH_HZ, LOW_HZ, spectrogram

AXIS_HZ = ((110, "110"), (440, "440"), (1760, "1.8k"), (7040, "7k"))


def mask_png(levels: np.ndarray) -> bytes:
    """A picture whose alpha is `levels` [rows, columns] in 0..1, bent a little so that partials stand out."""
    alpha = np.round(255 * np.asarray(levels) ** 1.8).astype(np.uint8)
    picture = Image.fromarray(np.stack([np.zeros_like(alpha), alpha], axis=-1))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@lru_cache(maxsize=64)
def _mask_uri(path: str, changed: float) -> str:
    picture = mask_png(spectrogram(Path(path)))
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def mask_uri(path: Path) -> str:
    """The spectrogram mask of a WAV file as a data URI. Raises OSError or ValueError when it cannot be read."""
    return _mask_uri(str(path), path.stat().st_mtime)


def axis_marks() -> list[tuple[float, str]]:
    """Frequencies to name beside a spectrogram: (height from the bottom in 0..1, label)."""
    whole = np.log(HIGH_HZ / LOW_HZ)
    return [(float(np.log(hz / LOW_HZ) / whole), label) for hz, label in AXIS_HZ]
