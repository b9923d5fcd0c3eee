"""Spectrograms for people to look at: one as a JPEG, and a contact sheet of all clips of an evaluation."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import whole_file
from ..spectrogram import spectrogram

COLOURS = "magma"
QUALITY = 72
CELL, LABEL, GAP = (240, 64), 18, 6  # dots
PAPER, INK = (255, 255, 255), (30, 30, 36)
CELL_BYTES = 2_200  # a picture's, so that the sheets of hundreds of clips can be committed beside their reports
SHEET_QUALITIES = (80, 70, 60, 50, 40, 30, 20)
MAX_ROWS = 65_500 // (CELL[1] + LABEL) - 1  # no JPEG is higher


def picture(sound: Path) -> Image.Image:
    """The spectrogram of a sound file in colour, 640 x 168; ValueError or OSError where it cannot be read."""
    from matplotlib import colormaps

    return Image.fromarray(np.round(255 * colormaps[COLOURS](spectrogram(sound))[..., :3]).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = QUALITY) -> bytes:
    """The bytes of a JPEG; the same picture gives the same ones."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


class Sheet:
    """A contact sheet that grows by a row a prompt: the prompt, and under it a picture a variant.

    Args:
        titles: of the columns.
        rows: how many there will be.

    Raises:
        ValueError: more rows than a picture can hold.
    """

    def __init__(self, titles: Sequence[str], rows: int):
        if rows > MAX_ROWS:
            raise ValueError(f"a sheet of spectrograms holds at most {MAX_ROWS} prompts, got {rows}")
        self._bytes = CELL_BYTES * len(titles) * rows
        self._width = len(titles) * (CELL[0] + GAP) + GAP
        self._image = Image.new("RGB", (self._width, LABEL + rows * (CELL[1] + LABEL) + GAP), PAPER)
        self._draw, self._font = ImageDraw.Draw(self._image), ImageFont.load_default(12)
        self._top = LABEL
        for column, title in enumerate(titles):
            self._write(title, GAP + column * (CELL[0] + GAP), 0, CELL[0])

    def add(self, label: str, pictures: Iterable[Image.Image]) -> None:
        """The next row."""
        self._write(label, GAP, self._top, self._width - 2 * GAP)
        for column, image in enumerate(pictures):
            small = image.resize(CELL, Image.Resampling.BOX)
            self._image.paste(small, (GAP + column * (CELL[0] + GAP), self._top + LABEL))
        self._top += CELL[1] + LABEL

    def _write(self, text: str, left: int, top: int, width: int) -> None:
        """A line, cut off where it is too long."""
        shown = text
        while self._draw.textlength(shown, self._font) > width:
            shown = shown.rstrip("…")[:-1] + "…"
        self._draw.text((left, top + 2), shown, INK, self._font)

    def save(self, path: Path) -> Path:
        """Write a JPEG of at most CELL_BYTES a picture, as good as that allows; of the least quality where even that is
        more."""
        for quality in SHEET_QUALITIES:
            content = jpeg(self._image, quality)
            if len(content) <= self._bytes:
                break
        with whole_file(path) as partial:
            partial.write_bytes(content)
        return path
