"""Names of files: readable, safe on every system, and never one that is taken."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path


def slug(text: str, most: int = 48) -> str:
    """A readable, safe part of a file name: plain letters, digits and hyphens; never empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if len(words) > most:
        words = words[: most + 1].rpartition("-")[0] or words[:most]
    return words or "clip"


def free_path(folder: Path, stem: str) -> Path:
    """`folder/stem.wav`, or with _2, _3 ... where that is taken."""
    path, count = folder / f"{stem}.wav", 1
    while path.exists():
        count += 1
        path = folder / f"{stem}_{count}.wav"
    return path
