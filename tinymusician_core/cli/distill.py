"""`tinymusician distill`: train a student on a teacher's outputs, into a folder of its own."""

from __future__ import annotations

import argparse

from rich.table import Table

from ..processes import is_main
from ..records import check_seed
from . import ablate, show
from .sampling import read_amount, read_count
from .stopping import stop_on_ctrl_c

BUILT_IN = "built-in"
PRECISIONS = {"auto": None, "bf16": True, "fp32": False}


def add_commands(commands) -> None:
    """Add `distill` and `ablate` to the sub-commands."""
    parser = commands.add_parser("distill", help="train a student with some of a teacher's layers on its outputs")
    parser.add_argument("--teacher", default="teacher", help="teacher, a model folder, or a hub id (default teacher)")
    _add_data(parser)
    _add_student(parser)
    _add_loss(parser)
    _add_training(parser)
    parser.add_argument("-o", "--output", help="the folder to make")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.set_defaults(run=run_distill)
    ablate.add_commands(commands)


def _add_data(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", help="a folder of codec tokens with the splits train and validation")
    source.add_argument("--prompts", help=f"no audio at all: the teacher plays these, one a line; or {BUILT_IN}")
    parser.add_argument("--clips", default="256", help="with --prompts: how many clips it plays (default 256)")
    parser.add_argument("--on-policy", default="0", help="share of steps on what the student plays itself (default 0)")
    parser.add_argument(
        "--cache-logits", help="keep so many of the teacher's likeliest tokens on disk, and train alone"
    )


def _add_student(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", required=True, help="how many of the teacher's layers to keep, or which: 0,2,5,7")
    parser.add_argument("--width", help="narrower than the teacher")
    parser.add_argument("--heads", help="attention heads (default: as wide as the teacher's)")
    parser.add_argument("--ffn", help="hidden units of a feed-forward layer")
    parser.add_argument("--start-from", help="an earlier student of these sizes, in the place of the teacher's layers")
    parser.add_argument(
        "--guidance", help="one pass instead of two: fixed:3 builds that scale in, input:1-6 makes it an input"
    )


def _add_loss(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--loss", default="stage-mixed", help="by name, as alpha-beta:0.2,0.7 (default stage-mixed)")
    parser.add_argument("--temperature", help="2, or 2:1 to cool down (default 4:1)")
    parser.add_argument("--cross-entropy", help="weight of the true tokens beside the divergence (default 0.5)")
    parser.add_argument("--codebook-weights", help="how much each codebook counts, as 3,2,0.6,0.4 (default alike)")
    parser.add_argument("--hidden", help="hidden states too: mse:0.5 or cosine:0.5")


def _add_training(parser: argparse.ArgumentParser) -> None:
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", help="minutes of training, over all resumed runs (default 10)")
    budget.add_argument("--steps", help="steps of training instead")
    parser.add_argument("--batch", default="12", help="windows a step (default 12)")
    parser.add_argument("--accumulate", default="1", help="parts that a batch is computed in (default 1)")
    parser.add_argument("--seconds", default="10", help="length of a window (default 10)")
    parser.add_argument("--shortest", help="halves of --seconds too, quarters and so on, down to these seconds")
    parser.add_argument("--learning-rate", default="0.001", help="at its highest (default 0.001)")
    parser.add_argument("--optimizer", default="muon", choices=["muon", "adamw"], help="of the layers (default muon)")
    parser.add_argument("--dropout", default="0.1", help="share of captions left out, for guidance (default 0.1)")
    parser.add_argument("--patience", help="end after so many validations without progress")
    parser.add_argument("--validate-every", help="steps between validations (default: every five minutes)")
    parser.add_argument("--validation-windows", help="that the finished student is judged on (default: four batches)")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=list(PRECISIONS),
        help="of products (default auto: bf16 where the device has instructions for it)",
    )
    parser.add_argument("--seed", default="0", help="start of the random draws (default 0)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to train (default cpu)")
    parser.add_argument("--resume", action="store_true", help="go on from the run that -o was begun with")
    parser.add_argument("--checkpoint-every", default="180", help="seconds between checkpoints (default 180)")
    parser.add_argument("--tensorboard", action="store_true", help="log for TensorBoard too")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and what it costs, and write nothing")
    parser.add_argument(
        "--assume-tflops", help="with --dry-run: for a machine that is not here and sustains so many TFLOP/s"
    )


def read_layers(text: str) -> int | tuple[int, ...]:
    """How many layers, or which, with commas between them."""
    if "," not in text:
        return read_count("layers", text)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"layers must be whole numbers with commas between them, got {text!r}")
    return tuple(int(part) for part in parts)


def _share(name: str, text: str | None) -> float | None:
    """A number of 0 or more; None where nothing was given."""
    return 0.0 if text in ("0", "0.0") else read_amount(name, text)


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    return tuple(_share("a codebook weight", part.strip()) for part in text.split(","))


def read_options(options: argparse.Namespace) -> dict:
    """The settings of `DistillSpec`, but for the layers, and the budget."""
    return {
        **{name: read_count(name, getattr(options, name)) for name in ("width", "heads", "ffn", "steps", "batch")},
        **{name: read_count(name, getattr(options, name)) for name in ("accumulate", "patience")},
        "cache_logits": read_count("cache logits", options.cache_logits),
        "validate_every": read_count("validate every", options.validate_every),
        "validation_windows": read_count("validation windows", options.validation_windows),
        **{name: read_amount(name, getattr(options, name)) for name in ("minutes", "seconds", "shortest")},
        "learning_rate": read_amount("learning rate", options.learning_rate),
        "cross_entropy": _share("cross entropy", options.cross_entropy),
        "dropout": _share("dropout", options.dropout),
        "on_policy": _share("on policy", options.on_policy),
        "codebook_weights": _numbers(options.codebook_weights),
        "bf16": PRECISIONS[options.precision],
        "seed": check_seed(options.seed),
        **{name: getattr(options, name) for name in ("loss", "temperature", "hidden", "guidance")},
        **{name: getattr(options, name) for name in ("optimizer", "device")},
    }


def run_distill(options: argparse.Namespace) -> int:
    """Train a student; Ctrl-C writes a checkpoint that --resume goes on from, and no model."""
    layers, settings = read_layers(options.layers), read_options(options)
    if options.dry_run:
        return _dry_run(options, layers, settings)
    if options.assume_tflops is not None:
        raise ValueError("--assume-tflops is for --dry-run: a run takes the time that it takes")
    if options.output is None:
        raise ValueError("-o is missing: the folder to make")
    if options.data is None and options.prompts is None:
        raise ValueError("--data or --prompts is missing: a folder of codec tokens, or what the teacher is to play")
    every = read_amount("checkpoint every", options.checkpoint_every)
    with show.bar() as bar, stop_on_ctrl_c() as should_stop:
        bar.show("distilling: loading", 0, None)
        from ..distill.sampled import read_prompts
        from ..distill.train import distill

        prompts = options.prompts if options.prompts in (None, BUILT_IN) else read_prompts(options.prompts)
        made = distill(
            options.teacher,
            options.data,
            layers,
            options.output,
            prompts=prompts,
            clips=read_count("clips", options.clips),
            start_from=options.start_from,
            resume=options.resume,
            checkpoint_every_s=every,
            tensorboard=options.tensorboard,
            on_progress=lambda at: bar.show("distilling", at.fraction, 1.0, f"loss {at.losses['loss']:.3f}"),
            on_stage=lambda what, done, of: bar.show(what, done, of),
            should_stop=should_stop,
            **settings,
        )
    if is_main():
        _tell(options, made)
    return 0


def _tell(options: argparse.Namespace, made) -> None:
    """What was made."""
    from ..guidance import GUIDANCE, ScaleRange, guidance_record

    if options.json:
        record = {"teacher": options.teacher, "path": str(made.folder), "layers": list(made.layers)}
        record |= {"steps": made.steps, "minutes": made.minutes, "cache": made.cache}
        record |= {"guidance": guidance_record(made.guidance).get(GUIDANCE)}
        show.emit_json({**record, **made.validation})
        return
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in made.validation.items())
    print(f"wrote {made.folder}: layers {', '.join(map(str, made.layers))} of {options.teacher}, {made.steps} steps")
    print(f"{figures} (nats a token)")
    if isinstance(made.guidance, ScaleRange):
        print(f"guidance is an input: one pass, with any cfg from {made.guidance}")
    elif made.guidance is not None:
        print(f"guidance of {made.guidance:g} is built in: one pass, and cfg must be {made.guidance:g}")
    if made.cache is not None:
        cost = made.cache["kl_nats"]
        print(f"cached logits: {made.cache['bytes'] / 1e6:,.1f} MB; the cut costs {cost:.4f} nats a token")


def _dry_run(options: argparse.Namespace, layers: int | tuple[int, ...], settings: dict) -> int:
    """Show what the run would be and cost."""
    from ..distill.cost import cost_of

    assumed = read_amount("assume tflops", options.assume_tflops)
    with show.bar() as bar:
        bar.show("distilling: two steps on noise", 0, None)
        clips = None if options.prompts is None else read_count("clips", options.clips)
        cost = cost_of(options.teacher, layers, tokens_dir=options.data, clips=clips, assume_tflops=assumed, **settings)
    if options.json:
        show.emit_json({"teacher": options.teacher, **cost.as_dict()})
        return 0
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in _rows(options, cost):
        table.add_row(name, value)
    show.print_table(table)
    if assumed is not None:
        print(f"time is an estimate from the {assumed:g} TFLOP/s that were assumed: no {cost.device} was timed")
    if options.prompts is not None:
        print("the time in which the teacher plays its clips is not in this: `tinymusician bench` measures its speed")
    return 0


def _mb(size: int | None) -> str:
    return show.shown(None if size is None else size / 1e6, "{:,.1f} MB")


def _rows(options: argparse.Namespace, cost) -> list[tuple[str, str]]:
    shape = f"layers {', '.join(map(str, cost.layers))}; {cost.width} wide, {cost.heads} heads, ffn {cost.ffn}"
    million = f"{cost.student_parameters / 1e6:,.1f} of {cost.decoder_parameters / 1e6:,.1f} million, {cost.share:.0%}"
    rows = [
        ("student", f"{shape} of {options.teacher}"),
        ("decoder parameters", million),
        ("teacher", _mb(cost.teacher_bytes)),
        ("student's weights", _mb(cost.weights_bytes)),
        ("their average", _mb(cost.average_bytes)),
        ("gradients", _mb(cost.gradient_bytes)),
        ("optimizer", _mb(cost.optimizer_bytes)),
        ("activations", f"{_mb(cost.activation_bytes)}, of one part of a batch"),
        ("expected memory", f"{_mb(cost.expected_memory_bytes)}, the sum of these; kernels need some more for moments"),
        ("peak memory", f"{_mb(cost.peak_memory_bytes)}{_measured(cost)}"),
        ("a step", f"{cost.step_s:.3g} s {_where(cost)}; {cost.flops_per_step / 1e12:.3g} TFLOP"),
        ("the budget", f"{cost.steps:,} steps, {cost.hours:,.2f} hours"),
    ]
    if options.cache_logits is not None:
        rows.append(("cached logits on disk", _mb(cost.cache_bytes)))
    return rows


def _measured(cost) -> str:
    return "" if cost.peak_memory_bytes is None else ", measured, all that this process had"


def _where(cost) -> str:
    if cost.assumed_tflops is None:
        return f"on {cost.device}, {cost.threads} threads"
    return f"on {cost.device} at {cost.assumed_tflops:g} TFLOP/s, estimated"
