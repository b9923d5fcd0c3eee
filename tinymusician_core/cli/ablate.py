"""`tinymusician ablate`: distil with every loss, temperature and choice of layers of a plan; which is best?"""

from __future__ import annotations

import argparse

from . import show
from .sampling import add_output
from .stopping import stop_on_ctrl_c


def add_commands(commands) -> None:
    """Add `ablate` to the sub-commands."""
    parser = commands.add_parser("ablate", help="compare losses, temperatures and layers of a distillation over seeds")
    parser.add_argument("plan", help="a JSON file: teacher, data, steps, seeds, losses, temperatures, layers, options")
    add_output(parser)
    parser.set_defaults(run=run_ablate)


def run_ablate(options: argparse.Namespace) -> int:
    """Make the runs that are not finished, and the report; Ctrl-C stops, and the same command goes on."""
    with show.bar() as bar, stop_on_ctrl_c() as should_stop:
        bar.show("ablation: loading", 0, None)
        from ..distill.ablation import read_plan, run_ablation

        def tell(name: str, done: int, total: int, at) -> None:
            bar.show("ablation", done + (at.fraction if at else 0.0), total, name)

        rows = run_ablation(read_plan(options.plan), options.output, tell, should_stop)
    if options.json:
        best = rows[0]
        show.emit_json({"path": options.output, "best": best.cell.label, "kl": best.figures["kl"].value})
        return 0
    for row in rows:
        kl = row.figures["kl"]
        spread = "" if kl.spread is None else f" ({kl.low:.4f} to {kl.high:.4f})"
        print(f"{row.cell.label}: KL {kl.value:.4f}{spread} nats")
    print(f"wrote {options.output}: report.md, report.json, ablation.png")
    return 0
