"""What `bench` measured of variants, as a report: report.json, report.md, and speed against size as a picture."""

from __future__ import annotations

from pathlib import Path

from .machine import notes as machine_notes
from .plots import Point, scatter
from .report import cell, document, made_with, table, write_files
from .rounds import Benched, Variant
from .timing import extent, middle

PICTURE = "speed-size.png"
BUSY = 0.1  # a share of the processor that shows in the figures
COLUMNS = (
    "model",
    "x real time",
    "ms a step",
    "first sound ms",
    "total s",
    "text ms",
    "LM ms",
    "codec ms",
    "peak memory MB",
    "weights MB",
    "on disk MB",
    "loading s",
    "loading MB",
)
EXPLANATION = """
How it was measured:

- Figures are medians of all runs, with the lowest and the highest in brackets. Each variant's runs were made in several
  fresh processes, after a warm-up in each that does not count; the variants took turns, one process of each in a round.
- x real time: seconds of music over the whole time. First sound: from the request to the first sound that can be
  played. Text, LM and codec are where the whole time goes.
- Peak memory: the highest resident set of a run above the same process with nothing loaded, the kernel's mark being set
  back before each run; on a GPU the most that torch allocates there. Weights: those that the model holds in memory, as
  they are stored there. On disk: every file that the model reads. Loading: its time, and the most memory meanwhile.
- Two such reports agree about a figure where their brackets overlap. Brackets hold what the machine did while it was
  measured. What other programs took of it, looked at before each process, and what bandwidth they left, stand above:
  where these differ between two reports, so may the figures.
"""


def cells(variant: Variant) -> list[str]:
    """A row of the table, as `COLUMNS` names it."""
    figures, spread = variant.figures, variant.figures.spread
    peak, peaks = _megabytes(figures.peak_memory_bytes), spread.peak_memory_bytes
    stages = (cell(figures.stages_ms[name], "{:,.0f}", spread.stages_ms[name]) for name in ("text", "lm", "codec"))
    return [
        variant.model,
        cell(figures.x_realtime, "{:.2f}", spread.x_realtime),
        cell(figures.ms_per_step, "{:.2f}", spread.ms_per_step),
        cell(figures.first_sound_ms, "{:,.0f}", spread.first_sound_ms),
        cell(figures.total_s, "{:.2f}", spread.total_s),
        *stages,
        cell(peak, "{:,.1f}", None if peaks is None else (peaks[0] / 1e6, peaks[1] / 1e6)),
        cell(_megabytes(figures.weights_bytes), "{:,.1f}"),
        cell(_megabytes(figures.disk_bytes), "{:,.1f}"),
        cell(figures.load_s, "{:.2f}"),
        cell(_megabytes(figures.load_peak_bytes), "{:,.1f}"),
    ]


def _megabytes(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e6


def notes(found: Benched) -> list[str]:
    """What the table does not say: by which command, what was played, how often, and on what machine."""
    setting, first = found.setting, found.variants[0].figures
    reads = [f"{each.model} {each.gb_per_s:.1f} GB/s" for each in found.variants if each.gb_per_s is not None]
    (low, high), (slowest, fastest) = extent(found.others), extent(found.bandwidth)
    taken = f"{middle(found.others):.0%} of the processor ({low:.0%} to {high:.0%})"
    return [
        *made_with(found.command),
        f"{setting.spec.seconds:g} s of “{setting.prompt}”, seed {setting.spec.seed}; {first.runs} "
        f"run{'s' * (first.runs != 1)} a variant in {first.processes} fresh process{'es' * (first.processes != 1)}, "
        f"on {first.device}",
        *machine_notes(found.machine),
        f"other programs took {taken}{', so a quiet machine is faster than this' * (middle(found.others) > BUSY)}",
        f"memory bandwidth {slowest / 1e9:.1f} to {fastest / 1e9:.1f} GB/s; read by steps: "
        f"{', '.join(reads) or 'every variant fits into the cache'}",
    ]


def markdown(found: Benched) -> str:
    """The report as Markdown."""
    rows = table(COLUMNS, [cells(variant) for variant in found.variants])
    return document("Variants side by side", notes(found), rows, f"![speed against size]({PICTURE})", EXPLANATION)


def write_report(found: Benched, folder: Path) -> list[Path]:
    """Write report.json, report.md and the picture into a folder, which is made where there is none; their paths."""
    paths = write_files(folder, {"report.json": found.as_dict(), "report.md": markdown(found)})
    points = [
        Point(
            variant.model,
            _megabytes(variant.figures.disk_bytes),
            None,
            variant.figures.x_realtime,
            variant.figures.spread.x_realtime,
        )
        for variant in found.variants
    ]
    return [*paths, scatter(points, "on disk (MB)", "x real time (more is better)", folder / PICTURE)]
