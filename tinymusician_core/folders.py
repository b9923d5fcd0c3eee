"""Model folders that are whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_free(folder: Path, kind: str) -> None:
    """ValueError unless `folder` may be written to: it is not there, is empty, or holds a model of this `kind`."""
    if folder.is_dir():
        found = _kind_of(folder)
        if found == kind or not any(folder.iterdir()):
            return
        what = f"a {found} model" if found else "files that are no model"
        raise ValueError(
            f"{folder} holds {what}; give a new folder, an empty one, or one with a {kind} model to replace"
        )
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"{folder} is a file; a folder is needed")


@contextmanager
def whole_folder(folder: Path, kind: str) -> Iterator[Path]:
    """Give a temporary folder beside `folder`; it takes the name `folder` only when all went well.

    Args:
        folder: the folder to make; its parents are made too. A model of the same `kind` that is there is replaced.
        kind: the model_type in its config.json.

    Raises:
        ValueError: `folder` holds something else.
        OSError: it cannot be written, or the disk is full. Nothing is left behind, and an earlier model stays.
    """
    check_free(folder, kind)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _usual_mode(file, 0o666)
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        _usual_mode(partial, 0o777)
        _exchange(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _exchange(partial: Path, folder: Path) -> None:
    if not folder.is_dir():
        partial.rename(folder)
        return
    earlier = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    folder.rename(earlier / folder.name)
    try:
        partial.rename(folder)
    except OSError:
        (earlier / folder.name).rename(folder)
        raise
    finally:
        shutil.rmtree(earlier, ignore_errors=True)


def _usual_mode(path: Path, mode: int) -> None:
    """Readable as any new file or folder is: mkdtemp and safetensors make theirs for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(mode & ~mask)


def _kind_of(folder: Path) -> str | None:
    """The model_type of a folder's config.json; None where there is none to read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None
