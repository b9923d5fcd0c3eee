"""The `tinymusician` command: one sub-command a file, each with its own arguments.

Exit codes: 0 done, 1 a failure, 2 a wrong argument, 130 stopped with Ctrl-C. What goes wrong is one sentence on
standard error. With `--json` the last line of standard output is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from ..records import Cancelled


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one sentence."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """The command line with all its sub-commands; each sets `run`, which takes the parsed options."""
    from . import bench, compare, diagnose, distill, evaluate, generate, quantize

    parser = Parser(prog="tinymusician", description="Text-to-music models small enough for the machine before you.")
    parser.add_argument("--version", action="version", version=f"tinymusician {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for part in (generate, compare, bench, evaluate, quantize, distill, diagnose):
        part.add_commands(commands)
    return parser


def _one_line(error: BaseException) -> str:
    """What an error says, on one line; an error of the system with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse itself leaves with 2)."""
    command = "tinymusician"
    try:
        options = build_parser().parse_args(argv)
        options.argv = list(sys.argv[1:] if argv is None else argv)
        command += f" {options.command}"
        return options.run(options)
    except Cancelled as error:
        code, says = 130, _one_line(error)
    except ValueError as error:
        code, says = 2, _one_line(error)
    except (RuntimeError, OSError, MemoryError, ImportError) as error:
        code, says = 1, _one_line(error)
    except KeyboardInterrupt:
        code, says = 130, "stopped"
    print(f"{command}: {says}", file=sys.stderr)
    return code
