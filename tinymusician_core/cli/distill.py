"""`tinymusician distill`: train a student on a teacher's outputs, into a folder of its own."""

from __future__ import annotations

import argparse

from ..records import check_seed
from . import show
from .sampling import add_output, read_amount, read_count
from .stopping import stop_on_ctrl_c


def add_commands(commands) -> None:
    """Add `distill` to the sub-commands."""
    parser = commands.add_parser("distill", help="train a student with some of a teacher's layers on its outputs")
    parser.add_argument("--teacher", default="teacher", help="teacher, a model folder, or a hub id (default teacher)")
    parser.add_argument("--data", required=True, help="a folder of codec tokens with the splits train and validation")
    parser.add_argument("--layers", required=True, help="how many of the teacher's layers to keep")
    parser.add_argument("--loss", default="stage-mixed", help="a loss by name (default stage-mixed)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", help="minutes of training, over all resumed runs (default 10)")
    budget.add_argument("--steps", help="steps of training instead")
    parser.add_argument("--batch", default="12", help="windows a step (default 12)")
    parser.add_argument("--seconds", default="10", help="length of a window (default 10)")
    parser.add_argument("--learning-rate", default="0.001", help="at its highest (default 0.001)")
    parser.add_argument("--seed", default="0", help="start of the random draws (default 0)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to train (default cpu)")
    parser.add_argument("--resume", action="store_true", help="go on from the run that -o was begun with")
    add_output(parser)
    parser.set_defaults(run=run_distill)


def run_distill(options: argparse.Namespace) -> int:
    """Train a student; Ctrl-C writes a checkpoint that --resume goes on from, and no model."""
    settings = {
        "layers": read_count("layers", options.layers),
        "minutes": read_amount("minutes", options.minutes),
        "steps": read_count("steps", options.steps),
        "batch": read_count("batch", options.batch),
        "seconds": read_amount("seconds", options.seconds),
        "learning_rate": read_amount("learning rate", options.learning_rate),
        "seed": check_seed(options.seed),
    }
    with show.bar() as bar, stop_on_ctrl_c() as should_stop:
        bar.show("distilling: loading", 0, None)
        from ..distill.train import distill

        made = distill(
            options.teacher,
            options.data,
            out_dir=options.output,
            loss=options.loss,
            device=options.device,
            resume=options.resume,
            on_progress=lambda at: bar.show("distilling", at.fraction, 1.0, f"loss {at.losses['loss']:.3f}"),
            should_stop=should_stop,
            **settings,
        )
    if options.json:
        show.emit_json(
            {
                "teacher": options.teacher,
                "path": str(made.folder),
                "layers": list(made.layers),
                "steps": made.steps,
                "minutes": made.minutes,
                **made.validation,
            }
        )
        return 0
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in made.validation.items())
    print(f"wrote {made.folder}: layers {', '.join(map(str, made.layers))} of {options.teacher}, {made.steps} steps")
    print(f"{figures} (nats a token)")
    return 0
