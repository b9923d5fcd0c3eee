"""`tinymusician ablate`: distil with every loss, temperature and choice of layers of a plan; which is best?"""

from __future__ import annotations

import argparse

from ..worker import DEVICES
from . import show
from .command import command_line
from .sampling import add_output
from .stopping import stop_on_ctrl_c


def add_commands(commands) -> None:
    """Add `ablate` to the sub-commands."""
    parser = commands.add_parser("ablate", help="compare losses, temperatures and layers of a distillation over seeds")
    parser.add_argument("plan", help="a JSON file: teacher, data, steps, seeds, losses, temperatures, layers, options")
    parser.add_argument("--runs", metavar="DIR", help="where students and their records go (default: runs under -o)")
    parser.add_argument("--device", default="cpu", choices=DEVICES, help="where to train (default cpu)")
    add_output(parser)
    parser.set_defaults(run=run_ablate)


def run_ablate(options: argparse.Namespace) -> int:
    """Make the runs that are not finished, and the report; Ctrl-C stops, and the same command goes on."""
    with show.bar() as bar, stop_on_ctrl_c() as should_stop:
        bar.show("ablation: loading", 0, None)
        from ..distill.ablation import read_plan, run_ablation

        def tell(name: str, done: int, total: int, at) -> None:
            bar.show("ablation", done + (at.fraction if at else 0.0), total, name)

        rows = run_ablation(
            read_plan(options.plan),
            options.output,
            tell,
            should_stop,
            runs_dir=options.runs,
            device=options.device,
            command=command_line(options.argv),
        )
    if options.json:
        best = rows[0]
        show.emit_json({"path": options.output, "best": best.cell.label, "kl": best.figures["kl"].value})
        return 0
    for row in rows:
        spread = "" if row.spread is None else " ({:.4f} to {:.4f})".format(*row.spread)
        print(f"{row.cell.label}: KL {row.figures['kl'].value:.4f}{spread} nats")
    print(f"wrote {options.output}: report.md, report.json, ablation.png")
    return 0
