"""`tinymusician compare`: play a prompt with several variants in turn, figures side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..measure.bench import Measured, StoppedComparing, compare
from ..records import check_prompt
from . import show
from .measuring import add_measuring, read_measuring
from .sampling import add_sampling, plain, read_spec
from .stopping import stop_on_ctrl_c

RUNS = 3


def add_commands(commands) -> None:
    """Add `compare` to the sub-commands."""
    parser = commands.add_parser("compare", help="play a prompt with several variants, figures side by side")
    parser.add_argument("prompt", help="what to play")
    add_measuring(parser, runs=str(RUNS), output="one WAV file a variant (default: none is written)")
    add_sampling(parser)
    parser.set_defaults(run=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """Play a prompt with several variants, each in a process of its own; after Ctrl-C keep those that are whole."""
    prompt, spec, order = check_prompt(options.prompt), read_spec(options), read_measuring(options)
    stopped = None
    with show.bar() as bar, stop_on_ctrl_c() as should_stop:
        try:
            measured = compare(
                prompt,
                order.models,
                spec,
                runs=order.runs or RUNS,
                on_progress=bar.step,
                should_stop=should_stop,
                threads=order.threads,
                device=order.device,
            )
            finished = dict(zip(order.models, measured, strict=True))
        except StoppedComparing as stop:
            if not stop.finished:
                raise
            finished, stopped = stop.finished, str(stop)
    paths = _write(finished, order.models, order.folder)
    missing = [model for model in order.models if model not in finished]
    if options.json:
        variants = [_record(model, result, paths.get(model)) for model, result in finished.items()]
        record = {"prompt": prompt, "seed": spec.seed, "seconds": spec.seconds, "variants": variants}
        show.emit_json(record | ({"stopped": True, "missing": missing} if stopped else {}))
    else:
        _print(finished, paths, stopped, missing)
    return 130 if stopped else 0


def _write(finished: Mapping[str, Measured], models: Sequence[str], folder: Path | None) -> dict[str, Path]:
    """Write one WAV a variant that is whole, numbered as they were asked for; nothing without a folder."""
    if folder is None:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{number}-{plain(name)}.wav" for number, name in enumerate(models, start=1)}
    return {model: result.clip.save(paths[model]) for model, result in finished.items()}


def _record(model: str, measured: Measured, path: Path | None) -> dict:
    """One entry of `variants`."""
    figures = measured.figures
    return {
        "model": model,
        "figures": figures.as_dict(),
        **figures.more(),
        "path": None if path is None else str(path),
    }


def _print(
    finished: Mapping[str, Measured], paths: Mapping[str, Path], stopped: str | None, missing: Sequence[str]
) -> None:
    show.print_figures([(model, result.figures) for model, result in finished.items()])
    for path in paths.values():
        print(f"wrote {path}")
    if stopped is not None:
        print(f"{stopped}{'; missing: ' + ', '.join(missing) if missing else ''}")
