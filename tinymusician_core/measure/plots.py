"""Pictures of figures: one labelled point a variant, with error bars, or a row each. The same give the same bytes.

scatter([("student", 3.1, None, 2.41, (2.2, 2.6))], "on disk (MB)", "x real time", folder / "speed-size.png")
forest([("alpha-beta", 0.104, (0.101, 0.106))], "KL to the teacher (nats)", folder / "ablation.png")
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..files import whole_file
from .report import Range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

COLOURS = ("#3b5bdb", "#0ca678", "#e8590c", "#9c36b5", "#c2255c", "#1098ad", "#5c940d", "#495057")
MARKERS = "osD^vP*X"
SIZE_IN, DOTS_PER_INCH = (7.2, 4.6), 120
ROW_IN, AXIS_IN = 0.32, 0.8
PALETTE = 64
MARK_DOTS = 8
_SIDES = ((9, 7), (9, -7), (-9, 7), (-9, -7), (9, 21), (9, -21), (-9, 21), (-9, -21))


class Point(NamedTuple):
    """One point of a picture; a plain tuple in this order does as well.

    A range is what the error bar covers, lowest and highest, and need not hold the value; None draws no bar. A value of
    None was not measured: the point is named under the picture instead.
    """

    label: str
    x: float | None
    x_range: Range
    y: float | None
    y_range: Range


def scatter(points: Sequence[Point | tuple], x_label: str, y_label: str, path: Path) -> Path:
    """Draw one labelled point a variant, with error bars, into a PNG. Axes begin at 0 where nothing lies below, so that
    lengths can be compared.

    Args:
        points: as `Point` has them.
        x_label, y_label: of the axes, with units.
        path: the PNG, in a folder that is there.

    Raises:
        ValueError: no point, or a number that is not finite.
    """
    points = [_checked(Point(*point)) for point in points]
    if not points:
        raise ValueError("a picture needs at least one point, got none")
    with _canvas(path, SIZE_IN, "both") as axes:
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.spines[["top", "right"]].set_visible(False)
        _draw(axes, points)
    return path


def forest(rows: Sequence[tuple[str, float, Range]], x_label: str, path: Path) -> Path:
    """Draw a row a label into a PNG, the first at the top: its value as a point, its interval as a bar.

    Args:
        rows: label, value, and what the bar covers; None draws no bar.
        x_label: of the axis, with the unit.
        path: the PNG, in a folder that is there.

    Raises:
        ValueError: no row, or a number that is not finite.
    """
    for name, value, spread in rows:
        _checked(Point(name, value, spread, None, None))
    if not rows:
        raise ValueError("a picture needs at least one row, got none")
    with _canvas(path, (SIZE_IN[0], AXIS_IN + ROW_IN * len(rows)), "x") as axes:
        axes.set(xlabel=x_label, ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        for at, (_, value, spread) in enumerate(rows):
            if spread is not None:
                axes.plot(spread, (at, at), "|-", color=COLOURS[0], markersize=8, linewidth=1.4, zorder=2)
            axes.plot(value, at, "o", color=COLOURS[0], markersize=6, zorder=3)
    return path


@contextmanager
def _canvas(path: Path, size_in: tuple[float, float], lines: str) -> Iterator[Axes]:
    """Axes to draw on, with lines across "x", "y" or "both"; the PNG is written when the block ends."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context("default"), whole_file(path) as partial:
        figure = Figure(figsize=size_in, dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.grid(axis=lines, color="#dee2e6", linewidth=0.8)
        axes.set_axisbelow(True)
        yield axes
        save_png(figure, partial)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of `PALETTE` colours: to the eye the same, in a third of the bytes."""
    from PIL import Image

    whole = BytesIO()
    figure.savefig(whole, format="png")
    with Image.open(whole) as image:
        image.convert("RGB").quantize(PALETTE).save(path, format="png", optimize=True)


def _checked(point: Point) -> Point:
    for name, value, spread in (("x", point.x, point.x_range), ("y", point.y, point.y_range)):
        numbers = [number for number in (value, *(spread or ())) if number is not None]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{name} of {point.label} must be a finite number or None, got {numbers}")
    return point


def _draw(axes: Axes, points: Sequence[Point]) -> None:
    shown = []
    for number, point in enumerate(points):
        if point.x is None or point.y is None:
            continue
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(point.x, point.y, MARKERS[number % len(MARKERS)], color=colour, markersize=7, zorder=3)
        for spread, at, name in ((point.x_range, point.y, "xerr"), (point.y_range, point.x, "yerr")):
            if spread is not None:
                middle, half = (spread[0] + spread[1]) / 2, abs(spread[1] - spread[0]) / 2
                place = (middle, at) if name == "xerr" else (at, middle)
                axes.errorbar(*place, **{name: half}, fmt="none", ecolor=colour, capsize=4, elinewidth=1.4, zorder=2)
        shown.append((point, colour))
    axes.margins(0.14)
    _begin_at_zero(axes, [point for point, _ in shown])
    left_out = [point.label for point in points if point.x is None or point.y is None]
    if left_out:
        axes.set_xlabel(f"{axes.get_xlabel()}\nnot measured: {', '.join(left_out)}")
    label(axes, shown)


def _begin_at_zero(axes: Axes, points: Sequence[Point]) -> None:
    if min((_ends(point.x, point.x_range)[0] for point in points), default=-1) >= 0:
        axes.set_xlim(left=0)
    if min((_ends(point.y, point.y_range)[0] for point in points), default=-1) >= 0:
        axes.set_ylim(bottom=0)


def _ends(value: float, spread: Range) -> tuple[float, float]:
    """The lowest and the highest place that a value and its bar take up."""
    places = (value, *(spread or ()))
    return min(places), max(places)


def label(axes: Axes, shown: Sequence[tuple[Point, str]], fontsize: int = 10) -> None:
    """Write the name of each point of `axes` beside it in its colour, on the side where it covers no other name, or
    least of points and bars. An empty name keeps others off its point."""
    from matplotlib.transforms import Bbox

    axes.figure.canvas.draw()
    corners = [zip(_ends(point.x, point.x_range), _ends(point.y, point.y_range), strict=True) for point, _ in shown]
    marks = [Bbox(axes.transData.transform(list(pair))).padded(MARK_DOTS) for pair in corners]
    names: list[Bbox] = []
    for number, (point, colour) in enumerate(shown):
        others = marks[:number] + marks[number + 1 :] + len(shown) * names
        tried = []
        for side in _SIDES:
            tried.append(_write(axes, point, colour, side, others, fontsize))
            if not tried[-1][0]:
                break
        best = min(tried, key=lambda each: each[0])
        for each in tried:
            if each is not best:
                each[1].remove()
        names.append(best[2])


def _write(
    axes: Axes, point: Point, colour: str, side: tuple[int, int], others: Sequence[Bbox], fontsize: int
) -> tuple:
    """Write a name on one side of its point: how much it covers or sticks out, the text, and its place."""
    right, up = side
    text = axes.annotate(
        point.label,
        (point.x, point.y),
        side,
        textcoords="offset points",
        ha="left" if right > 0 else "right",
        va="bottom" if up > 0 else "top",
        color=colour,
        fontsize=fontsize,
    )
    box = text.get_window_extent(axes.figure.canvas.get_renderer())
    within = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
    return sum(map(box.overlaps, others)) + 2 * (not within), text, box
