"""What `compare` and `bench` share: which variants to measure, how often, on what, and where the results go."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..worker import DEVICES
from .sampling import read_count

VARIANTS = "teacher,student,quantized"


@dataclass(frozen=True)
class Measuring:
    """The arguments of a command that measures; None where the command has a default of its own."""

    models: list[str]
    runs: int | None
    threads: int | None
    device: str
    folder: Path | None


def add_measuring(parser: argparse.ArgumentParser, runs: str, output: str) -> None:
    """The arguments that `read_measuring` reads, but for --threads; `runs` and `output` say what is particular."""
    parser.add_argument("--models", help=f"variants, with commas between (default {VARIANTS})")
    parser.add_argument("--runs", help=f"how often to measure each; the figures are medians (default {runs})")
    parser.add_argument("--device", choices=DEVICES, default=DEVICES[0], help="where to compute (default cpu)")
    parser.add_argument("-o", "--output", help=f"a folder for {output}")


def read_measuring(options: argparse.Namespace) -> Measuring:
    """The arguments of a command line; ValueError names the first that is not allowed."""
    return Measuring(
        names(VARIANTS if options.models is None else options.models),
        read_count("runs", options.runs),
        read_count("threads", options.threads),
        options.device,
        read_folder(options.output),
    )


def names(text: str) -> list[str]:
    """What stands between the commas of a list."""
    return [name.strip() for name in text.split(",")]


def read_folder(text: str | None) -> Path | None:
    """The folder to write to, which need not be there; ValueError for a file."""
    if text is None:
        return None
    folder = Path(text).expanduser()
    if folder.is_file():
        raise ValueError(f"output must be a folder, got the file {text!r}")
    return folder
