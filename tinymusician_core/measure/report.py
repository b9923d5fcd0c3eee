"""What every report is made of: JSON, notes and Markdown tables. No figure is computed here; pictures are in plots.py.

The same figures give the same bytes, and each file appears whole or not at all. A report is made like this:

    rows = [["student", cell(2.41, "{:.2f}", (2.2, 2.6))]]                 # "2.41 (2.20 to 2.60)"
    text = document("Title", ["a note", "another"], table(["model", "x real time"], rows), "How it was measured: ...")
    write_files(folder, {"report.json": record, "report.md": text})
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..files import whole_file

NOTHING = "–"

Range = tuple[float, float] | None  # lowest and highest; None where nothing is known of it


def cell(value: float | None, form: str, spread: Range = None, nothing: str = NOTHING) -> str:
    """A figure such as "2.41", with a spread "2.41 (2.20 to 2.60)"; `nothing` where it was not measured."""
    if value is None:
        return nothing
    text = form.format(value)
    return text if spread is None else f"{text} ({form.format(spread[0])} to {form.format(spread[1])})"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right.

    Raises:
        ValueError: a row with more or fewer cells than there are columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of the table must have {len(columns)} cells, got {len(row)}")
    rule = ["---", *["---:"] * (len(columns) - 1)]
    lines = [[_escaped(text) for text in columns], rule, *([_escaped(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def made_with(command: str | None) -> list[str]:
    """The note of a report that names the command that made it; nothing where there was none."""
    return [] if command is None else [f"made with `{command}`"]


def document(title: str, notes: Sequence[str], *blocks: str) -> str:
    """A Markdown document: a title, a list of notes, and blocks with an empty line between."""
    parts = [f"# {title}", "\n".join(f"- {note}" for note in notes), *(block.strip("\n") for block in blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_files(folder: Path, files: Mapping[str, Mapping | str]) -> list[Path]:
    """Write texts as they are and records as JSON, in one line each, into a folder, which is made where there is none.

    Raises:
        ValueError: a record with a number that is not finite.
        OSError: the folder cannot be written to, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else _in_a_line(content)
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def _in_a_line(record: Mapping) -> str:
    return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"
