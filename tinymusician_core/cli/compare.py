"""`tinymusician compare`: play a prompt with several variants in turn, figures side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..measure.bench import Measured, compare
from ..records import check_prompt
from . import show
from .sampling import add_sampling, plain, read_count, read_spec

VARIANTS = "teacher,student,quantized"


def add_commands(commands) -> None:
    """Add `compare` to the sub-commands."""
    parser = commands.add_parser("compare", help="play a prompt with several variants, figures side by side")
    parser.add_argument("prompt", help="what to play")
    parser.add_argument("--models", default=VARIANTS, help=f"with commas between (default {VARIANTS})")
    parser.add_argument("--runs", default="3", help="how often to measure each; the figures are medians (default 3)")
    parser.add_argument("-o", "--output", help="a folder for one WAV file a variant (default: none is written)")
    add_sampling(parser)
    parser.set_defaults(run=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """Play a prompt with several variants, one after the other, each in a process of its own."""
    prompt, spec = check_prompt(options.prompt), read_spec(options)
    runs, threads = read_count("runs", options.runs), read_count("threads", options.threads)
    models = [name.strip() for name in options.models.split(",")]
    paths = _clip_paths(options.output, models)
    with show.bar() as bar:
        measured = compare(prompt, models, spec, runs=runs, on_progress=bar.step, threads=threads)
    for result, path in zip(measured, paths, strict=True):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            result.clip.save(path)
    if options.json:
        variants = [_record(*row) for row in zip(models, measured, paths, strict=True)]
        show.emit_json({"prompt": prompt, "seed": spec.seed, "seconds": spec.seconds, "variants": variants})
        return 0
    show.print_figures([(model, result.figures) for model, result in zip(models, measured, strict=True)])
    for path in filter(None, paths):
        print(f"wrote {path}")
    return 0


def _clip_paths(folder: str | None, models: list[str]) -> list[Path | None]:
    """One file a model in `folder`, or None each without a folder; ValueError for a folder that is a file."""
    if folder is None:
        return [None] * len(models)
    if Path(folder).expanduser().is_file():
        raise ValueError(f"output must be a folder, got the file {folder!r}")
    return [Path(folder).expanduser() / f"{number}-{plain(name)}.wav" for number, name in enumerate(models, start=1)]


def _record(model: str, measured: Measured, path: Path | None) -> dict:
    """One entry of `variants`."""
    return {
        "model": model,
        "figures": measured.figures.as_dict(),
        "spread_s": list(measured.spread_s),
        "load_s": measured.load_s,
        "warm_up_s": measured.warm_up_s,
        "path": None if path is None else str(path),
    }
