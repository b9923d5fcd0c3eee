"""What the commands show: progress with the time left on standard error, tables and JSON on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..records import Figures
from ..records import Progress as Step

_STAGES = {"loading": "loading", "warm-up": "warming up", "text": "reading", "lm": "composing", "codec": "rendering"}


class Bar:
    """One line of progress: what is going on, how far, for how long, and how long still."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._task = progress.add_task("starting", total=None, left="", note="")
        self._text = "starting"

    def show(self, text: str, done: float, total: float | None, note: str = "") -> None:
        """Show `done` of `total` of what `text` says; another text starts the clock anew, no total means unknown."""
        if text != self._text:
            self._text = text
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task(text, total=total, left="left" if total else "", note=note)
        self._progress.update(self._task, completed=done, note=note)

    def step(self, who: str, step: Step) -> None:
        """Show a step of a generation by the model `who`."""
        known = step.stage in ("lm", "warm-up")
        self.show(f"{who}: {_STAGES[step.stage]}", step.done, step.total if known else None)


@contextmanager
def bar(console: Console | None = None) -> Iterator[Bar]:
    """A bar on standard error while the block runs; it leaves nothing behind, and shows nothing in a pipe or a file."""
    console = Console(stderr=True) if console is None else console
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress)


def emit_json(record: Mapping) -> None:
    """Print one JSON object as one line."""
    print(json.dumps(record, allow_nan=False), flush=True)


def shown(value: float | None, form: str) -> str:
    """A number in a form such as "{:.2f} ms", or that it was not measured."""
    return "not measured" if value is None else form.format(value)


def _megabytes(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e6


FIGURES = (
    ("first sound", "first_sound_ms", "{:,.0f}", " ms", 1.0),
    ("per step", "ms_per_step", "{:.2f}", " ms", 1.0),
    ("x real time", "x_realtime", "{:.2f}", "", 1.0),
    ("total", "total_s", "{:.2f}", " s", 1.0),
    ("peak memory", "peak_memory_bytes", "{:,.1f}", " MB", 1e-6),
)


def print_figures(rows: Sequence[tuple[str, Figures]]) -> None:
    """A table of figures, one model a row; from several runs, the lowest and highest stand behind each median."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model")
    for name in (*(words[0] for words in FIGURES), "weights", "on disk"):
        table.add_column(name, justify="right")
    for name, figures in rows:
        table.add_row(
            escape(name),
            *(_figure(figures, *words[1:]) for words in FIGURES),
            shown(_megabytes(figures.weights_bytes), "{:,.1f} MB"),
            shown(_megabytes(figures.disk_bytes), "{:,.1f} MB"),
        )
    print_table(table)
    first = rows[0][1]
    runs = f"median of {first.runs} run{'s' * (first.runs != 1)}"
    if (first.processes or 1) > 1:
        runs += f" in {first.processes} processes"
    if first.runs != 1:
        runs += ", lowest and highest in brackets"
    print(f"{first.device}, {first.threads} threads; {runs}")


def _figure(figures: Figures, name: str, form: str, unit: str, scale: float) -> str:
    value, spread = getattr(figures, name), getattr(figures.spread, name)
    if value is None:
        return shown(None, form)
    text = form.format(value * scale) + unit
    if spread is None or figures.runs == 1:
        return text
    low, high = (form.format(end * scale) for end in spread)
    return f"{text} ({low}–{high})"


def print_table(table: Table) -> None:
    """A table at its natural width where standard output is no terminal, so that nothing is cut off in a file."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=240)
    console.print(table)


def print_checks(rows: Sequence[tuple[str, str, str, str]]) -> None:
    """A table of checks: status, name, what was found, what to do about it."""
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for status, name, found, hint in rows:
        table.add_row(f"[{colour[status]}]{status}[/]", name, escape(found), escape(hint))
    print_table(table)
