"""What an ablation found, as files: report.json, report.md and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..measure.plots import forest
from ..measure.report import cell, document, made_with, table, write_files

if TYPE_CHECKING:
    from .ablation import Interval, Plan, Row

PICTURE = "ablation.png"
FIGURES = {
    "kl": ("KL to the teacher (nats)", "{:.4f}"),
    "cross_entropy": ("cross-entropy (nats)", "{:.4f}"),
    "likelihood": ("perplexity kept", "{:.1%}"),
}
BY_CLIP, AGAINST, AGAINST_BY_CLIP = "KL by clip", "KL against the baseline", "the same by clip"
EXPLANATION = """
How to read this:

- KL to the teacher: forward KL of teacher and student on fixed held-out windows, in nats a token; less is better, and
  it is what forward-kl itself is trained on. Cross-entropy is that of the held-out tokens. Perplexity kept is the
  teacher's perplexity by the student's, exp(teacher's cross-entropy - student's): 100% is the teacher's own.
- Each figure is the mean over seeds, with the 95% interval of Student's t in brackets; a single seed has none. Against
  the baseline: the mean difference in KL, seed by seed, from the baseline loss with the same temperature and layers; of
  the baseline loss itself from its first temperature, or where layers alone differ from the first ones. Where its
  interval holds 0 the two cannot be told apart.
- By clip: the same KL and difference, of the mean over seeds, with the interval over held-out clips, each counting
  alike. Over seeds an interval says how much training the same again would change; over clips, how much other music
  would.
"""


def write_report(
    plan: Plan, rows: Sequence[Row], records: Sequence[dict], out: Path, command: str | None = None
) -> list[Path]:
    """Write report.json, report.md and the picture; their paths."""
    columns = [title for title, _ in FIGURES.values()]
    heads = ("loss, temperature, layers", columns[0], BY_CLIP, *columns[1:], AGAINST, AGAINST_BY_CLIP)
    grid = table(heads, [_cells(row) for row in rows])
    notes = [*made_with(command), *_notes(plan, rows, records)]
    text = document("What a student learns best from", notes, grid, f"![KL to the teacher]({PICTURE})", EXPLANATION)
    found = [{**asdict(row), "label": row.cell.label} for row in rows]
    runs = [{name: value for name, value in record.items() if name != "clip_kl"} for record in records]
    record = {"command": command, "plan": asdict(plan), "rows": found, "runs": runs}
    paths = write_files(out, {"report.json": record, "report.md": text})
    drawn = [(row.cell.label_in(plan), row.figures["kl"].value, row.spread) for row in rows]
    return [*paths, forest(drawn, f"{columns[0]}, less is better", out / PICTURE)]


def _cells(row: Row) -> list[str]:
    kl, *others = (_cell(row.figures[name], form) for name, (_, form) in FIGURES.items())
    if row.against is None:
        return [row.cell.label, kl, _cell(row.by_clip, "{:.4f}"), *others, "the baseline", "the baseline"]
    against = (_cell(found, "{:+.4f}") for found in (row.against, row.against_by_clip))
    return [row.cell.label, kl, _cell(row.by_clip, "{:.4f}"), *others, *against]


def _cell(found: Interval, form: str) -> str:
    return cell(found.value, form, found.spread)


def _baseline(plan: Plan) -> str:
    first = "" if plan.temperatures[0] is None else f" at T={plan.temperatures[0]}"
    several = len(plan.losses) > 1 and len(plan.temperatures) > 1
    return f"baseline: {plan.baseline}{first}" + ("; for other losses, at their temperature" if several else "")


def _notes(plan: Plan, rows: Sequence[Row], records: Sequence[dict]) -> list[str]:
    budget = f"{plan.steps} steps" if plan.steps is not None else f"{plan.minutes:g} minutes"
    seeds, clips = len(plan.seeds), rows[0].by_clip.n
    windows = f"{records[0]['windows']} held-out windows of {clips} clip{'s' * (clips != 1)}"
    return [
        f"teacher {plan.teacher}, {budget} a run, {seeds} seed{'s' * (seeds != 1)}, {len(records)} runs",
        f"every student judged on the same {windows}",
        f"options: {', '.join(f'{k} {v}' for k, v in plan.options.items()) or 'as they are by default'}",
        _baseline(plan),
    ]
