"""`tinymusician bench`: how fast the variants are, or with --peers, how fast others run MusicGen beside us."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ..measure.bandwidth import cache_bytes, read_bandwidth
from ..measure.bench import Measured, compare
from ..measure.peer_report import COLUMNS, cells, notes, write_report
from ..measure.peers import ROWS, SHAPES, Peers, Setting, measure_peers
from ..records import SamplingSpec, check_seed
from ..text import EXAMPLE
from . import show
from .compare import VARIANTS
from .sampling import read_count

PEERS_ONLY = ("shape", "layers", "student_layers", "rows", "output")


def add_commands(commands) -> None:
    """Add `bench` to the sub-commands."""
    parser = commands.add_parser("bench", help="measure the speed of variants, or of other programs beside ours")
    parser.add_argument("--models", help=f"variants, with commas between (default {VARIANTS})")
    parser.add_argument("--seconds", help="of music in a run (default 8; 10 with --peers, 25 at most)")
    parser.add_argument("--runs", help="how often to measure each; the figures are medians (default 3; 1 with --peers)")
    parser.add_argument("--seed", default="7", help="of the draws, and of the peers' weights (default 7)")
    parser.add_argument("--threads", help="CPU threads (default: torch decides)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--peers", action="store_true", help="transformers and AudioCraft beside us on random weights")
    parser.add_argument("--shape", help=f"with --peers: {', '.join(SHAPES)} (default small)")
    parser.add_argument("--layers", help="with --peers: of the decoder (default: the shape's)")
    parser.add_argument("--student-layers", help="with --peers: of the student (default: a third of the shape's)")
    parser.add_argument("--rows", help=f"with --peers: some of {', '.join(row.name for row in ROWS)}")
    parser.add_argument("-o", "--output", help="with --peers: a folder for report.json and report.md")
    parser.set_defaults(run=run_bench)


def run_bench(options: argparse.Namespace) -> int:
    """Measure variants, or peers."""
    if options.peers:
        if options.models is not None:
            raise ValueError("models are variants, and --peers measures none; leave one of the two out")
        return _bench_peers(options)
    for name in PEERS_ONLY:
        if getattr(options, name) is not None:
            raise ValueError(f"{name.replace('_', ' ')} is for --peers only")
    return _bench_variants(options)


def _bench_variants(options: argparse.Namespace) -> int:
    seconds = "8" if options.seconds is None else options.seconds
    spec = SamplingSpec(seconds=seconds, seed=options.seed)
    runs, threads = read_count("runs", options.runs) or 3, read_count("threads", options.threads)
    models = [name.strip() for name in (options.models or VARIANTS).split(",")]
    with show.bar() as bar:
        measured = compare(EXAMPLE, models, spec, runs=runs, on_progress=bar.step, threads=threads)
        bar.show("reading memory", 0, None)
        bandwidth = read_bandwidth()
    variants = [_variant(model, result) for model, result in zip(models, measured, strict=True)]
    if options.json:
        record = {"prompt": EXAMPLE, "seed": spec.seed, "seconds": spec.seconds}
        show.emit_json({**record, "bandwidth_gb_per_s": bandwidth / 1e9, "variants": variants})
        return 0
    show.print_figures([(model, result.figures) for model, result in zip(models, measured, strict=True)])
    reads = [f"{each['model']} {each['gb_per_s']:.1f} GB/s" for each in variants if each["gb_per_s"] is not None]
    said = ", ".join(reads) or "every variant's weights fit into the cache"
    print(f"memory bandwidth {bandwidth / 1e9:.1f} GB/s; read by steps: {said}")
    return 0


def _variant(model: str, measured: Measured) -> dict:
    """One entry of `variants`; gb_per_s is null where a step's weights fit into the cache, or no cache is known."""
    from ..measure.peer_models import step_bytes
    from ..variants import load

    read, cache, step_ms = step_bytes(load(model).decoder), cache_bytes(), measured.figures.ms_per_step
    return {
        "model": model,
        "figures": measured.figures.as_dict(),
        "spread_s": list(measured.spread_s),
        "load_s": measured.load_s,
        "warm_up_s": measured.warm_up_s,
        "step_bytes": read,
        "gb_per_s": read / step_ms / 1e6 if cache is not None and read > cache else None,
    }


def _bench_peers(options: argparse.Namespace) -> int:
    setting, folder = _setting(options), _folder(options.output)
    with show.bar() as bar:
        found = measure_peers(setting, lambda row, stage, done, total: bar.show(f"{row}: {stage}", done, total))
    paths = [] if folder is None else write_report(found, folder)
    if options.json:
        show.emit_json(found.as_dict() | {"path": None if folder is None else str(folder)})
        return 0
    _print_peers(found)
    for path in paths:
        print(f"wrote {path}")
    return 0


def _setting(options: argparse.Namespace) -> Setting:
    given = {
        "shape": options.shape,
        "layers": read_count("layers", options.layers),
        "student_layers": read_count("student layers", options.student_layers),
        "seconds": options.seconds,
        "runs": read_count("runs", options.runs),
        "threads": read_count("threads", options.threads),
        "rows": None if options.rows is None else tuple(name.strip() for name in options.rows.split(",")),
    }
    return Setting(seed=check_seed(options.seed), **{name: value for name, value in given.items() if value is not None})


def _folder(text: str | None) -> Path | None:
    """The folder of a report; ValueError for a file."""
    if text is None:
        return None
    folder = Path(text).expanduser()
    if folder.is_file():
        raise ValueError(f"output must be a folder, got the file {text!r}")
    return folder


def _print_peers(found: Peers) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if number else "left")
    for peer in found.peers:
        table.add_row(*map(escape, cells(peer)))
    show.print_table(table)
    for note in notes(found):
        print(note)
