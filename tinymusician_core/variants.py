"""Names to models: teacher, student and quantized of the demo family, a folder, or a model on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .audiocraft_format import CODEC_FILE, LM_FILE
from .bundle import is_audiocraft, load_parts
from .hub import fetch
from .pipeline import Pipeline
from .records import ModelError
from .stored import is_whole

FAMILY = ("teacher", "student", "quantized")
ALLOWED = f"allowed are {', '.join(FAMILY)}, a model folder, or a hub id such as facebook/musicgen-small"
HUB_FILES = ("*.json", "*.safetensors", "spiece.model")
AUDIOCRAFT_FILES = (LM_FILE, CODEC_FILE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def assets_folder() -> Path:
    """The folder of the demo family; the environment variable TINYMUSICIAN_ASSETS overrides the repository's own."""
    override = os.environ.get("TINYMUSICIAN_ASSETS")
    return Path(override) if override else Path(__file__).resolve().parent.parent / "assets"


def resolve(source: str | os.PathLike) -> Path:
    """The folder that a name stands for; a hub id is downloaded, or found among earlier downloads.

    Raises:
        ValueError: nothing of that name.
        ModelError: the demo family or the hub model cannot be had.
    """
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    if text in FAMILY:
        folder = assets_folder() / "models" / text
        if not folder.is_dir():
            raise ModelError(f"the demo family's {text} is not at {folder}; TINYMUSICIAN_ASSETS can name its assets")
        return folder
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        return Path(path)
    if _HUB_ID.fullmatch(text) and not os.path.exists(path):
        return _from_hub(text)
    raise ValueError(f"no such model: got {source!r}; {ALLOWED}")


def _from_hub(name: str) -> Path:
    files = "its config.json, *.safetensors and tokenizer files"
    otherwise = f"download {files} from https://huggingface.co/{name} and give their folder"
    folder = fetch(name, HUB_FILES, is_whole, otherwise)
    if (folder / "config.json").is_file():
        return folder
    return fetch(name, AUDIOCRAFT_FILES, is_audiocraft, otherwise)


def load(source: str | os.PathLike, device: str = "cpu") -> Pipeline:
    """Load a model.

    Args:
        source: "teacher", "student" or "quantized" of the demo family, a folder of ours, of transformers or of
            AudioCraft, or a hub id.
        device: a torch device.

    Returns:
        The pipeline, named as it was asked for; a folder has the name in its config.json, or its own.

    Raises:
        ValueError: no such model, or a folder that is none.
        ModelError: the model's files are missing, damaged, changed or cannot be downloaded.
    """
    folder = resolve(source)
    text = os.fspath(source)
    is_folder = text not in FAMILY and os.path.isdir(os.path.expanduser(text))
    return Pipeline(load_parts(folder), None if is_folder else text, device)
