"""What a search found, as report.json, report.md and a picture: foreseen beside measured, module by module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..measure.machine import describe
from ..measure.plots import Point, label, save_png
from ..measure.report import cell, document, table, write_files
from .against import section, verdict
from .clock import PARTS
from .sensitivity import Option
from .workbench import Outcome, Workbench

if TYPE_CHECKING:
    from .adaptive import Adapted
    from .against import Compared

PICTURE = "plans.png"
COLOURS = {"adaptive": "#3b5bdb", "uniform": "#e8590c", "paper": "#9c36b5", "layers": "#868e96"}
EXPLANATION = """How it was measured:

- Size: all files that generating reads. Step: the language model's, two rows (guidance), the best of several clips for
  each position, in one process. Every plan takes turns with the float model, clip by clip, and its time is that share
  of what the float model took when the costs were measured. KL: from the float model's next-token distribution to the
  plan's, without guidance, in nats a token, the mean over codebooks (weighted, where weights were given). Codec: half
  the energy of what the codec gets wrong over that of its sound, which is the KL of two normal distributions that far
  apart.
- Foreseen: the sum of what each module's scheme does when it alone is used, and of what its calls take. Measured: the
  whole plan. Held out: the same on tokens that neither the rounding nor the search has seen.
- A call's time is that of the engine's own product on this machine, among as many weights as a step reads.
- Size by size: an adaptive plan is searched for the bytes of each plan of one scheme, and has no more. It is held
  against the closest plan of one scheme that is no larger, on the same windows of tokens, and is to have less KL than
  that one and no more of KL and codec error together; where no such plan is found it is that one itself. "KL is" says
  which is lower on the tokens of the search, "held out" whether that can be told on tokens that it has not seen: their
  difference has a 95% interval by halves of the windows. The paper's map is held against plans within its bytes, and
  within its KL.
- Time: seconds of the wall clock, without loading the model and writing the files. What an earlier run had measured is
  read from the cache and takes none; costs are, where they are of the last hour.
- int4 is rounded by GPTQ (arXiv 2210.17323) with the inputs' second moments; this holds for the uniform plans too.
"""


def record(found: Adapted) -> dict:
    """All of the report, ready for JSON."""
    bench, tokens = found.bench, found.bench.tokens
    return {
        "model": {"name": bench.pipeline.name, "hash": bench.pipeline.hash},
        "float": {"disk_bytes": bench.pipeline.disk_bytes, "ms_per_step": 1e3 * bench.float_step_s},
        "budget": found.budget.limits,
        "codebook_weights": bench.judge.weights,
        "pace": found.pace,
        "foreseen": found.best.foreseen.as_dict(),
        "measured": found.best.measured.as_dict(),
        "held_out": _harm(found.held_out),
        "recovery": None if found.recovered is None else found.recovered.as_dict(),
        "rounds": [
            {"foreseen": round_.foreseen.as_dict(), "measured": round_.measured.as_dict()} for round_ in found.rounds
        ],
        "modules": [_module(bench, option) for option in bench.chosen(found.best.schemes)],
        "compared": [plan.as_dict() for plan in found.compared],
        "size_by_size": [each.as_dict() for each in found.against],
        "verdict": verdict(found.against) if found.against else None,
        "seconds": found.seconds,
        "costs": bench.costs.table(bench.schemes),
        "not_offered": bench.not_offered,
        "tokens": {part: getattr(tokens, part).source for part in ("moments", "judge", "held_out")},
        "machine": describe(),
    }


def _harm(harm) -> dict:
    return {"kl": harm.mean_kl(), "kl_by_codebook": list(harm.kl), "codec_error": harm.codec}


def _module(bench: Workbench, option: Option) -> dict:
    calls = [bench.costs.call_s(name, option.scheme) for name in option.group.modules]
    return {
        "module": option.group.name,
        "scheme": option.scheme,
        "bytes": sum(tensor.bytes for tensor in option.tensors),
        "kl_alone": option.harm.mean_kl(),
        "codec_error_alone": option.harm.codec,
        "call_us": 1e6 * sum(calls) if sum(calls) else None,
    }


def markdown(found: Adapted) -> str:
    """The report as Markdown."""
    bench, limits = found.bench, found.budget.limits
    rows = [_row("foreseen", found.best.foreseen), _row("measured", found.best.measured)]
    held_out = ["held out", "–", "–", cell(found.held_out.mean_kl(), "{:.6f}"), cell(found.held_out.codec, "{:.6f}")]
    size, step = bench.pipeline.disk_bytes / 1e6, 1e3 * bench.float_step_s
    notes = [
        f"made from {bench.pipeline.name} ({bench.pipeline.hash}): {size:.2f} MB, {step:.3f} ms a step",
        "budget: " + ", ".join(f"{name} {limit:g}" for name, limit in limits.items()),
        f"rounded by {bench.tokens.moments.source}, judged on {bench.tokens.judge.source}",
        f"plans measured until errors added up and the budget was kept: {len(found.rounds)}",
        *([found.pace] if found.pace else []),
        *([f"after the search, which the figures are of: {found.note}"] if found.note else []),
        *(f"{name} was not offered: {reason}" for name, reason in bench.not_offered.items()),
    ]
    blocks = [table(["", "MB", "ms a step", "KL", "codec"], [*rows, held_out])]
    if found.compared:
        kept = [_row(plan.name, plan.measured, plan.held_out.mean_kl()) for plan in _sorted(found.compared)]
        blocks += ["## Beside other plans", table(["plan", "MB", "ms a step", "KL", "codec", "KL held out"], kept)]
        blocks += [f"![size and harm of the plans]({PICTURE})"]
    blocks += [section(found.against)] if found.against else []
    blocks += ["## What it took", _seconds(found.seconds)]
    blocks += ["## Module by module", _modules(found), EXPLANATION]
    return document("A plan for a budget", notes, *blocks)


def _row(name: str, outcome: Outcome, held_out: float | None = None) -> list[str]:
    harm = outcome.harm
    cells = [name, f"{outcome.disk_bytes / 1e6:.3f}", cell(outcome.step_ms, "{:.3f}")]
    cells += [f"{harm.mean_kl():.6f}", f"{harm.codec:.6f}"]
    return cells if held_out is None else [*cells, f"{held_out:.6f}"]


def _seconds(spent: dict) -> str:
    """Every part of the search with its seconds."""
    rows, rest = [], spent["total_s"]
    for name, what in PARTS.items():
        part = spent["parts"][name]
        if part is None:
            rows.append([f"{name}: {what}", "not done", ""])
            continue
        rest -= part["seconds"]
        kept = ""
        if "measured" in part:
            kept = f"{part['measured']} measured, {part['from_earlier_runs']} from earlier runs"
        rows.append([f"{name}: {what}", f"{part['seconds']:.1f}", kept])
    rows += [["the rest", f"{max(0.0, rest):.1f}", ""], ["all of it", f"{spent['total_s']:.1f}", ""]]
    return table(["part", "seconds", "figures"], rows)


def _sorted(plans: tuple[Compared, ...]) -> list[Compared]:
    return sorted(plans, key=lambda plan: plan.measured.disk_bytes)


def _modules(found: Adapted) -> str:
    rows = [
        [
            row["module"],
            row["scheme"],
            f"{row['bytes']:,}",
            f"{1e6 * row['kl_alone']:.1f}",
            f"{1e6 * row['codec_error_alone']:.1f}",
            cell(row["call_us"], "{:.1f}"),
        ]
        for row in (_module(found.bench, option) for option in found.bench.chosen(found.best.schemes))
    ]
    return table(["module", "scheme", "bytes", "KL alone, millionths", "codec alone, millionths", "us a call"], rows)


def write_report(found: Adapted, folder: Path) -> None:
    """Write report.json and report.md into a folder, and a picture where plans were compared."""
    write_files(folder, {"report.json": record(found), "report.md": markdown(found)})
    if found.compared:
        draw(found.compared, folder / PICTURE)


def draw(plans: tuple[Compared, ...], path: Path) -> None:
    """Size against harm, a point a plan, those that nothing beats in both joined by a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel="on disk (MB)", ylabel="KL and codec error (nats)", yscale="log")
    axes.grid(color="#dee2e6", linewidth=0.8)
    points = {plan.name: (plan.measured.disk_bytes / 1e6, max(plan.measured.harm.total, 1e-7)) for plan in plans}
    line = [points[name] for name in best_of(points)]
    axes.plot(*zip(*line, strict=True), color="#adb5bd", linewidth=1, zorder=1)
    for family, colour in COLOURS.items():
        some = [points[plan.name] for plan in plans if plan.family == family]
        if some:
            axes.scatter(*zip(*some, strict=True), color=colour, s=36, label=family, zorder=2)
    axes.legend(frameon=False)
    names = {plan.name: "" if plan.family == "adaptive" else plan.name for plan in plans}
    label(axes, [(Point(names[name], x, None, y, None), "#212529") for name, (x, y) in points.items()], 7)
    save_png(figure, path)


def best_of(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points that no other is smaller than in both, from the least x on."""
    kept, lowest = [], math.inf
    for name, (_, y) in sorted(points.items(), key=lambda item: item[1]):
        if y < lowest:
            kept.append(name)
            lowest = y
    return kept
