"""`tinymusician bench`: how fast the variants are, or with --peers, how fast others run MusicGen beside us."""

from __future__ import annotations

import argparse

from rich.markup import escape
from rich.table import Table

from ..measure import bench_report
from ..measure.peer_report import COLUMNS, cells, notes, write_report
from ..measure.peers import ROWS, SHAPES, Peers, measure_peers
from ..measure.peers import Setting as PeerSetting
from ..measure.rounds import Benched, Setting, bench
from ..records import Cancelled, SamplingSpec, check_seed
from . import show
from .command import command_line
from .measuring import Measuring, add_measuring, names, read_measuring
from .sampling import read_count
from .stopping import stop_on_ctrl_c

RUNS, ROUNDS = 15, 5
PEERS_ONLY = ("shape", "layers", "student_layers", "rows")
VARIANTS_ONLY = ("models", "rounds")


def add_commands(commands) -> None:
    """Add `bench` to the sub-commands."""
    parser = commands.add_parser("bench", help="measure the speed of variants, or of other programs beside ours")
    add_measuring(parser, runs=f"{RUNS}; 1 with --peers", output="the report; what is measured there already is kept")
    parser.add_argument("--rounds", help=f"fresh processes that a variant's runs are dealt over (default {ROUNDS})")
    parser.add_argument("--seconds", help="of music in a run (default 8; 10 with --peers, 25 at most)")
    parser.add_argument("--seed", default="7", help="of the draws, and of the peers' weights (default 7)")
    parser.add_argument("--threads", help="CPU threads (default: torch decides)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--peers", action="store_true", help="transformers and AudioCraft beside us on random weights")
    parser.add_argument("--shape", help=f"with --peers: {', '.join(SHAPES)} (default small)")
    parser.add_argument("--layers", help="with --peers: of the decoder (default: the shape's)")
    parser.add_argument("--student-layers", help="with --peers: of the student (default: a third of the shape's)")
    parser.add_argument("--rows", help=f"with --peers: some of {', '.join(row.name for row in ROWS)}")
    parser.set_defaults(run=run_bench)


def run_bench(options: argparse.Namespace) -> int:
    """Measure variants, or peers."""
    refused, where = (VARIANTS_ONLY, "runs without --peers") if options.peers else (PEERS_ONLY, "--peers")
    for name in refused:
        if getattr(options, name) is not None:
            raise ValueError(f"{name.replace('_', ' ')} is for {where} only")
    if options.peers and options.device != "cpu":
        raise ValueError(f"device must be cpu with --peers, got {options.device!r}")
    order = read_measuring(options)
    return _bench_peers(options, order) if options.peers else _bench_variants(options, order)


def _bench_variants(options: argparse.Namespace, order: Measuring) -> int:
    spec = SamplingSpec(seconds="8" if options.seconds is None else options.seconds, seed=options.seed)
    rounds = read_count("rounds", options.rounds) or ROUNDS
    setting = Setting(tuple(order.models), spec, order.runs or RUNS, rounds, order.threads, order.device)
    with show.bar() as bar, stop_on_ctrl_c() as should_stop:

        def show_turn(turn, step) -> None:
            bar.step(f"{turn.number} of {turn.total}, {turn.model}", step)

        try:
            found = bench(setting, order.folder, show_turn, should_stop, command_line(options.argv))
        except Cancelled as stopped:
            on = "with -o FOLDER it could be gone on with" if order.folder is None else "the same command goes on"
            raise Cancelled(f"{stopped}; {on}") from stopped
    paths = [] if order.folder is None else bench_report.write_report(found, order.folder)
    if options.json:
        show.emit_json(found.as_dict() | {"path": None if order.folder is None else str(order.folder)})
        return 0
    _print_variants(found)
    for path in paths:
        print(f"wrote {path}")
    return 0


def _print_variants(found: Benched) -> None:
    show.print_figures([(variant.model, variant.figures) for variant in found.variants])
    for note in bench_report.notes(found):
        print(note)


def _bench_peers(options: argparse.Namespace, order: Measuring) -> int:
    setting, folder = _peer_setting(options, order), order.folder
    with show.bar() as bar:

        def show_stage(row: str, stage: str, done: int, total: int | None) -> None:
            bar.show(f"{row}: {stage}", done, total)

        found = measure_peers(setting, show_stage, command_line(options.argv))
    paths = [] if folder is None else write_report(found, folder)
    if options.json:
        show.emit_json(found.as_dict() | {"path": None if folder is None else str(folder)})
        return 0
    _print_peers(found)
    for path in paths:
        print(f"wrote {path}")
    return 0


def _peer_setting(options: argparse.Namespace, order: Measuring) -> PeerSetting:
    given = {
        "shape": options.shape,
        "layers": read_count("layers", options.layers),
        "student_layers": read_count("student layers", options.student_layers),
        "seconds": options.seconds,
        "runs": order.runs,
        "threads": order.threads,
        "rows": None if options.rows is None else tuple(names(options.rows)),
    }
    given = {name: value for name, value in given.items() if value is not None}
    return PeerSetting(seed=check_seed(options.seed), **given)


def _print_peers(found: Peers) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if number else "left")
    for peer in found.peers:
        table.add_row(*map(escape, cells(peer)))
    show.print_table(table)
    for note in notes(found):
        print(note)
