"""Files that are whole or not there: hashes, checks, and writing by temporary name, fsync and rename."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .records import ModelError

SAMPLED_BYTES, SAMPLES, SAMPLE_BYTES = 1 << 26, 1024, 4096


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without the full stop."""
    return str(error).strip().split("\n")[0].rstrip(". ") or type(error).__name__


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def identity_of(path: str | Path) -> str:
    """What tells a file from another of its kind: its sha256 up to 64 MB, above that a sha256 over a sample of it.

    The sample: the length, the first megabyte (where safetensors files have names, types and shapes), and 1024 blocks
    of 4 KB, evenly spread and the last one at the end. Any training or fine-tuning of the large matrices shows in it; a
    single changed byte, or a change in a small tensor alone, need not. It is no proof that a download is undamaged.
    """
    length = os.path.getsize(path)
    if length <= SAMPLED_BYTES:
        return sha256_of(path)
    digest = hashlib.sha256(str(length).encode())
    with open(path, "rb") as file:
        digest.update(file.read(1 << 20))
        for i in range(SAMPLES):
            file.seek(i * (length - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return f"sampled-{digest.hexdigest()}"


def combined_hash(hashes: Mapping[str, str]) -> str:
    """One short hash (16 hexadecimal digits) for a set of named files and their hashes."""
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()[:16]


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Compare every file named in `files` (path relative to the folder -> sha256) with its hash.

    Raises:
        ModelError: names the first file that is missing or has changed.
    """
    config = folder / "config.json"
    if not isinstance(files, Mapping) or not files:
        raise ModelError(f"{config} lists no files with their hashes")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path} is missing")
        if sha256_of(path) != expected:
            raise ModelError(f"{path} is not the file it was: its sha256 differs from the one in {config}")


def check_safetensors(path: Path) -> None:
    """ModelError where a file is missing, cut short or no safetensors file at all."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt"):
            return
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or cut short: {first_line(error)}") from error


@contextmanager
def reading(what: str | Path) -> Iterator[None]:
    """Turn what libraries say about unusable files into one ModelError that names what was read."""
    from safetensors import SafetensorError

    try:
        yield
    except ModelError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{what} cannot be loaded: {first_line(error)}") from error


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the name `path` only when all went well.

    Raises:
        OSError: the folder is missing or cannot be written to, or the disk is full. Nothing is left behind.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".part{path.suffix}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _take_usual_mode(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every system lets a folder be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _take_usual_mode(path: Path) -> None:
    """Readable as any new file is: mkstemp makes files for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
