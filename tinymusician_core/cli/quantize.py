"""`tinymusician quantize`: store a model's weights in fewer bits, into a folder of its own."""

from __future__ import annotations

import argparse

from . import show
from .sampling import MODEL_HELP, add_output


def add_commands(commands) -> None:
    """Add `quantize` to the sub-commands."""
    parser = commands.add_parser("quantize", help="store a model's weights in fewer bits, module by module")
    parser.add_argument("--model", default="student", help=f"{MODEL_HELP} (default student)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--preset", default="fast", help="paper, int8, fast or int4 (default fast)")
    how.add_argument("--plan", help="a JSON file of module names or globs and schemes, or the plan.json of a model")
    add_output(parser)
    parser.set_defaults(run=run_quantize)


def run_quantize(options: argparse.Namespace) -> int:
    """Write a quantized model; its folder appears whole or not at all."""
    with show.bar() as bar:
        bar.show(f"{options.model}: loading", 0, None)
        from ..quant.apply import quantize
        from ..quant.plan import Plan

        plan = options.preset if options.plan is None else Plan.read(options.plan)
        made = quantize(
            options.model,
            plan,
            options.output,
            on_progress=lambda name, done, total: bar.show(f"{options.model}: packing", done, total),
        )
    if options.json:
        show.emit_json(
            {
                "model": options.model,
                "plan": made.preset,
                "path": str(made.folder),
                "disk_bytes": made.disk_bytes,
                "source_bytes": made.source_bytes,
                "modules": made.counts,
            }
        )
        return 0
    counts = ", ".join(f"{number} {scheme}" for scheme, number in made.counts.items())
    share = 100 * made.disk_bytes / made.source_bytes
    print(f"wrote {made.folder}: {made.disk_bytes / 1e6:.1f} MB, {share:.0f}% of {options.model} (modules: {counts})")
    return 0
