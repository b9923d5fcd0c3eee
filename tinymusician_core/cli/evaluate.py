"""`tinymusician evaluate`: how good variants are, and how much of a teacher they keep."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from . import show
from .command import command_line
from .measuring import VARIANTS
from .sampling import read_amount, read_count
from .stopping import stop_on_ctrl_c

STAGES = {
    "reference": "hearing the reference",
    "speed": "measuring speed",
    "clips": "playing and judging",
    "likelihood": "reading held-out music",
    "figures": "working out figures",
    "pictures": "drawing spectrograms",
}


def add_commands(commands) -> None:
    """Add `evaluate` to the sub-commands."""
    parser = commands.add_parser("evaluate", help="measure how good variants are, and what they keep of the first")
    parser.add_argument(
        "--models", default=VARIANTS, help=f"with commas between, the teacher first (default {VARIANTS})"
    )
    parser.add_argument("--clips", default="200", help="how many each variant plays, 20 or more (default 200)")
    parser.add_argument("--seconds", default="10", help="length of a clip (default 10)")
    parser.add_argument("--seed", default="0", help="clip i is drawn from seed + i (default 0)")
    parser.add_argument(
        "--prompts",
        help="in-domain (50), out-of-domain (20) or a text file with a prompt a line (default: held-out captions)",
    )
    parser.add_argument("--embedder", default="listener", help="listener, clap, or a CLAP folder or hub id")
    parser.add_argument("--reference", help="a folder of sound files to compare with (default: held-out music)")
    parser.add_argument("--cfg", help="guidance of all (default: what each is made for)")
    parser.add_argument("--top-p", help="the share of probability that all draw from (default: what each is made for)")
    parser.add_argument("--no-speed", action="store_true", help="leave speed and memory out")
    parser.add_argument("--device", default="cpu", help="what the variants run on: cpu or cuda (default cpu)")
    parser.add_argument("--threads", help="CPU threads (default: torch decides)")
    parser.add_argument(
        "--listen", action="store_true", help="with -o: keep every clip as WAV, with a page to hear and see them all"
    )
    parser.add_argument("-o", "--output", help="a folder for the report; a run that was stopped there goes on")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> int:
    """Evaluate variants; Ctrl-C keeps what was made, where there is a folder for it."""
    settings = {
        "models": [name.strip() for name in options.models.split(",")],
        "clips": read_count("clips", options.clips),
        "seconds": read_amount("seconds", options.seconds),
        "seed": options.seed,
        "cfg": options.cfg,
        "top_p": options.top_p,
        "threads": read_count("threads", options.threads),
    }
    with show.bar() as bar, stop_on_ctrl_c() as should_stop:
        bar.show("evaluate: loading", 0, None)
        from ..evaluate.run import evaluate

        made = evaluate(
            **settings,
            prompts=options.prompts,
            embedder=options.embedder,
            reference=options.reference,
            output=options.output,
            speed=not options.no_speed,
            device=options.device,
            listen=options.listen,
            command=command_line(options.argv),
            on_progress=lambda step: bar.show(f"{step.model}: {STAGES[step.stage]}", step.done, step.total),
            should_stop=should_stop,
        )
    record = made.as_dict()
    if options.json:
        show.emit_json(record | {"path": options.output})
        return 0
    _print(record)
    from ..evaluate.listen import PAGE

    if options.output is not None:
        print(f"wrote {Path(options.output) / 'report.md'}")
    if options.listen:
        print(f"wrote {Path(options.output) / PAGE}")
    return 0


def _print(record: Mapping) -> None:
    """Tables of retention, quality and steadiness."""
    from ..evaluate.limits import MEASURES
    from ..evaluate.tables import QUALITY, interval_cell
    from ..measure.report import NOTHING

    parts = ("retention", "likelihood", "sound", "prompt")
    if record["retention"]:
        rows = [
            [name, *(interval_cell(kept[part], "{:.1%}") for part in parts)]
            for name, kept in record["retention"].items()
        ]
        _table(("", *parts), rows)
    shown = [column for column in QUALITY if any(each["quality"][column[1]] for each in record["variants"])]
    rows = []
    for each in (*record["variants"], *record["baselines"]):
        cells = [interval_cell(each["quality"][key], form) for _, key, form in shown]
        rows.append([each.get("model") or each["name"], *cells])
    _table(("", *(title for title, _, _ in shown)), rows)
    steady = record["steadiness"]
    if steady is not None and steady["limits"] is not None:
        titles = (*MEASURES, "all")
        rows = [
            [name, *(interval_cell(row["within"][key], "{:.0%}") for key in titles)]
            for name, row in steady["rows"].items()
        ]
        _table(("as real music", *titles), rows)
    context = record["context"]
    print(f"{NOTHING} not measured; 95% intervals; embedder {context['embedder']}, reference {context['reference']}")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    show.print_table(table)
