"""The command that was typed, as reports name it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence

ENVIRONMENT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")  # what changes how fast things are
FOLDER = "DIR"


def command_line(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The command that makes a report, ready to be typed again.

    What does not show in the report is left out, so that the same one comes of the same settings wherever it is
    written: `--json`, and the name of the folder that it is written to, which is "DIR".

    Args:
        argv: the arguments behind `tinymusician`.
        environment: where settings of OpenMP are looked up, which stand before the command; None for this process's.
    """
    environment = os.environ if environment is None else environment
    settings = [f"{name}={shlex.quote(environment[name])}" for name in ENVIRONMENT if environment.get(name)]
    return " ".join([*settings, "tinymusician", *map(shlex.quote, _shown(argv))])


def _shown(argv: Sequence[str]) -> Iterator[str]:
    words = iter(argv)
    for word in words:
        name, equals, _ = word.partition("=")
        if name == "-o" or _means(name, "--output"):
            yield from (f"{name}={FOLDER}",) if equals else (name, FOLDER)
            if not equals:
                next(words, None)
        elif word.startswith("-o"):
            yield f"-o{FOLDER}"
        elif not _means(word, "--json"):
            yield word


def _means(word: str, option: str) -> bool:
    """Whether a word is an option, or as much of it as tells it from the others."""
    return len(word) > 2 and option.startswith(word)
