"""What several sub-commands share: how to draw a clip, where to write, and numbers that say what is allowed."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

from ..records import SamplingSpec

MODEL_HELP = "teacher, student, quantized, a model folder, or a hub id such as facebook/musicgen-small"


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The settings of `SamplingSpec`, as texts: the record itself says what is allowed."""
    parser.add_argument("--seconds", default="8", help="length of the clip, 0.5 to 600 (default 8)")
    parser.add_argument("--seed", default="7", help="the same seed, model and machine give the same file (default 7)")
    parser.add_argument(
        "--cfg", help="how closely to follow the prompt; 1 turns guidance off (default: what the model is made for)"
    )
    parser.add_argument("--temperature", default="1", help="below 1 plays safer, above 1 bolder (default 1)")
    parser.add_argument("--top-k", default="250", help="draw from so many likeliest tokens; 0 allows all (default 250)")
    parser.add_argument(
        "--top-p", help="draw from this share of probability; 0 allows all (default: what the model is made for)"
    )
    parser.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    parser.add_argument("--threads", default=None, help="CPU threads (default: torch decides)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where a new model goes, and the JSON line."""
    parser.add_argument("-o", "--output", required=True, help="the folder to make")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def read_spec(options: argparse.Namespace) -> SamplingSpec:
    """The sampling settings of a command line; ValueError names the first that is not allowed."""
    names = ("seconds", "seed", "cfg", "temperature", "top_k", "top_p", "greedy")
    return SamplingSpec(**{name: getattr(options, name) for name in names})


def read_count(name: str, text: str | None) -> int | None:
    """A whole number of 1 or more, or None where nothing was given."""
    if text is not None and not (text.isdecimal() and int(text) >= 1):
        raise ValueError(f"{name} must be a whole number of 1 or more, got {text!r}")
    return None if text is None else int(text)


def read_amount(name: str, text: str | None) -> float | None:
    """A finite number above 0, or None where nothing was given."""
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a number above 0, got {text!r}")
    return number


def plain(name: str) -> str:
    """A model's name, or its folder's, as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name).strip("-.") or "model"
