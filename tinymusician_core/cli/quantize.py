"""`tinymusician quantize`: store a model's weights in fewer bits, into a folder of its own."""

from __future__ import annotations

import argparse

from . import show
from .sampling import MODEL_HELP, add_output, read_amount
from .stopping import stop_on_ctrl_c

LIMITS = {
    "max_mb": "search the plan closest to the float model whose files have so many megabytes at most",
    "max_ms": "milliseconds that a step of the language model may take, measured on this machine",
    "max_kl": "nats a token by which it may differ from the float model; the smallest such plan is searched for",
}


def add_commands(commands) -> None:
    """Add `quantize` to the sub-commands."""
    parser = commands.add_parser("quantize", help="store a model's weights in fewer bits, module by module")
    parser.add_argument("--model", default="student", help=f"{MODEL_HELP} (default student)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--preset", help="paper, int8, fast or int4 (default fast, where there is no budget)")
    how.add_argument("--plan", help="a JSON file of module names or globs and schemes, or the plan.json of a model")
    for name, text in LIMITS.items():
        parser.add_argument(_flag(name), help=text)
    parser.add_argument("--recover", metavar="MINUTES", help="then train the decoder's int4 layers for so long")
    parser.add_argument("--teacher", help="what the model was distilled from; its answers count in a recovery too")
    parser.add_argument("--data", help="a folder of codec tokens to try and train on (default: what the model plays)")
    parser.add_argument("--schemes", help="only these, separated by commas (default: all that this machine can run)")
    parser.add_argument("--codebook-weights", help="how much each counts, such as 4,2,1,1 (default: all alike)")
    parser.add_argument("--compare", action="store_true", help="measure other plans too, and draw them in a picture")
    add_output(parser)
    parser.set_defaults(run=run_quantize)


def run_quantize(options: argparse.Namespace) -> int:
    """Write a quantized model; its folder appears whole or not at all."""
    limits = {name: read_amount(_flag(name), getattr(options, name)) for name in LIMITS}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    weights = options.codebook_weights
    if weights is not None:
        weights = [read_amount("--codebook-weights", weight) for weight in weights.split(",")]
    recover = None if options.recover is None else read_amount("--recover", options.recover)
    _check(options, limits)
    with show.bar() as bar, stop_on_ctrl_c() as should_stop:
        bar.show(f"{options.model}: loading", 0, None)
        from ..quant.apply import quantize
        from ..quant.plan import Plan

        how: dict = {"plan": (options.preset or "fast") if options.plan is None else Plan.read(options.plan)}
        if limits:
            schemes = None if options.schemes is None else options.schemes.split(",")
            how = {"schemes": schemes, "compare": options.compare, **limits}
        how |= {"recover": recover, "teacher": options.teacher, "data": options.data, "weights": weights}

        doing = "searching" if limits else "packing" if recover is None else "recovering"

        def report(what: str, done: int, total: int) -> None:
            bar.show(f"{options.model}: {doing}", done, total, what if limits or recover else "")

        made = quantize(options.model, out_dir=options.output, on_progress=report, should_stop=should_stop, **how)
    _tell(options, made)
    return 0


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check(options: argparse.Namespace, limits: dict[str, float]) -> None:
    """ValueError for a budget beside a plan, and for what only a search can use where there is none."""
    if limits and (options.preset is not None or options.plan is not None):
        raise ValueError(f"{_flag(next(iter(limits)))} searches a plan itself; leave --preset and --plan out")
    given = {_flag(name): getattr(options, name) for name in ("data", "schemes", "codebook_weights", "compare")}
    unused = [name for name, value in given.items() if value]
    if options.recover is not None:
        unused = [name for name in unused if name not in ("--data", "--codebook-weights")]
    if options.teacher is not None and options.recover is None:
        raise ValueError("--teacher is for a recovery; give --recover MINUTES with it")
    if unused and not limits:
        raise ValueError(f"{unused[0]} is for a search; give one of {', '.join(map(_flag, LIMITS))} with it")


def _tell(options: argparse.Namespace, made) -> None:
    if options.json:
        record = {
            "model": options.model,
            "plan": made.preset,
            "path": str(made.folder),
            "disk_bytes": made.disk_bytes,
            "source_bytes": made.source_bytes,
            "modules": made.counts,
        }
        found = {"search": made.search, "recovery": made.recovery}
        show.emit_json(record | {name: value for name, value in found.items() if value is not None})
        return
    counts = ", ".join(f"{number} {scheme}" for scheme, number in made.counts.items())
    share = 100 * made.disk_bytes / made.source_bytes
    print(f"wrote {made.folder}: {made.disk_bytes / 1e6:.2f} MB, {share:.0f}% of {options.model} (modules: {counts})")
    if made.search is not None:
        foreseen, measured = made.search["foreseen"], made.search["measured"]
        print(
            f"{measured['ms_per_step']:.3f} ms a step (foreseen {foreseen['ms_per_step']:.3f}), "
            f"KL {measured['kl']:.2g} (foreseen {foreseen['kl']:.2g}, held out {made.search['held_out']['kl']:.2g}); "
            f"{made.folder / 'report.md'} has the plan"
        )
    if made.note:
        print(made.note)
