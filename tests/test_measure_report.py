"""What every report is made of: cells, tables, documents, files and pictures."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from tinymusician_core.measure import plots
from tinymusician_core.measure.plots import Point, forest, scatter
from tinymusician_core.measure.report import NOTHING, cell, document, table, write_files

POINTS = [
    ("teacher", 38.8, None, 8.6, (5.5, 21.1)),
    Point("student", 12.7, (12.0, 13.0), 27.6, (5.9, 50.2)),
    ("quantized", 6.5, None, 39.6, None),
]


def test_a_cell_says_the_figure_its_spread_or_that_there_is_none():
    assert cell(2.414, "{:.2f}") == "2.41"
    assert cell(2.414, "{:.2f}", (2.2, 2.6)) == "2.41 (2.20 to 2.60)"
    assert cell(None, "{:.2f}", (1, 2)) == NOTHING
    assert cell(None, "{:.2f}", nothing="not measured") == "not measured"
    assert cell(0.0, "{:.0f}") == "0", "nought is a figure"


def test_a_table_keeps_its_columns_whatever_stands_in_the_cells():
    text = table(["", "a|b"], [["one\ntwo", "x | y"], ["three", "–"]])
    assert text.splitlines() == ["|  | a\\|b |", "| --- | ---: |", "| one two | x \\| y |", "| three | – |"]


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="must have 2 cells, got 1"):
        table(["a", "b"], [["1"]])


def test_a_document_has_a_title_notes_and_blocks_with_empty_lines_between():
    assert document("T", ["n", "m"], "\nblock\n", "more") == "# T\n\n- n\n- m\n\nblock\n\nmore\n"
    assert document("T", []) == "# T\n"


def test_files_are_written_whole_into_a_new_folder(tmp_path):
    record = {"a": [1.5, None], "name": "Füße"}
    paths = write_files(tmp_path / "new" / "folder", {"r.json": record, "r.md": "# ü\n"})
    assert [path.name for path in paths] == ["r.json", "r.md"]
    assert json.loads(paths[0].read_text(encoding="utf-8")) == record
    assert paths[1].read_text(encoding="utf-8") == "# ü\n"


def test_a_number_that_is_none_leaves_the_old_file_as_it_was(tmp_path):
    write_files(tmp_path, {"r.json": {"a": 1}})
    with pytest.raises(ValueError, match="JSON"):
        write_files(tmp_path, {"r.json": {"a": float("nan")}})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def coloured(path, colour: str) -> np.ndarray:
    """The places (row, column) of a picture that have exactly this colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere((pixels == wanted).all(axis=2))


def test_every_point_is_drawn_in_its_place_with_its_bar(tmp_path):
    path = scatter(POINTS, "MB", "x real time", tmp_path / "p.png")
    middles = [coloured(path, colour).mean(axis=0) for colour in plots.COLOURS[: len(POINTS)]]
    columns = [middle[1] for middle in middles]
    assert columns[2] < columns[1] < columns[0], "the smaller stands to the left"
    heights = [np.ptp(coloured(path, colour)[:, 0]) for colour in plots.COLOURS[: len(POINTS)]]
    assert heights[1] > 2 * heights[0] > 2 * heights[2], "a wide spread has a long bar, none has none"


def test_the_same_points_give_the_same_bytes_and_others_do_not(tmp_path):
    one, two = (scatter(POINTS, "MB", "x", tmp_path / f"{name}.png").read_bytes() for name in "ab")
    assert one == two
    assert scatter(POINTS[:2], "MB", "x", tmp_path / "c.png").read_bytes() != one


def test_what_was_not_measured_is_named_and_not_drawn(tmp_path, monkeypatch):
    labels = []
    draw = plots._draw

    def listen(axes, *rest):
        draw(axes, *rest)
        labels.append((axes.get_xlabel(), [text.get_text() for text in axes.texts]))

    monkeypatch.setattr(plots, "_draw", listen)
    scatter([*POINTS, ("lost", None, None, 3.0, None)], "MB", "x", tmp_path / "p.png")
    assert labels == [("MB\nnot measured: lost", ["teacher", "student", "quantized"])]
    scatter([("lost", None, None, 3.0, None)], "MB", "x", tmp_path / "q.png")
    assert labels[1] == ("MB\nnot measured: lost", [])


def test_names_of_points_at_one_place_do_not_cover_each_other(tmp_path, monkeypatch):
    boxes = []
    label = plots.label

    def listen(axes, shown):
        label(axes, shown)
        boxes.extend(text.get_window_extent(axes.figure.canvas.get_renderer()) for text in axes.texts)

    monkeypatch.setattr(plots, "label", listen)
    scatter([(f"variant {i}", 10 + 0.1 * i, None, 2.0, None) for i in range(4)], "MB", "x", tmp_path / "p.png")
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_axes_begin_at_nought_unless_something_lies_below(tmp_path, monkeypatch):
    limits = []
    draw = plots._draw

    def listen(axes, *rest):
        draw(axes, *rest)
        limits.append((axes.get_xlim()[0], axes.get_ylim()[0]))

    monkeypatch.setattr(plots, "_draw", listen)
    scatter(POINTS, "MB", "x", tmp_path / "p.png")
    scatter([("a", 1.0, (-1.0, 2.0), 5.0, (4.0, 6.0))], "MB", "x", tmp_path / "p.png")
    assert limits[0] == (0, 0)
    assert limits[1][0] < -1
    assert limits[1][1] == 0


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ([], "at least one point"),
        ([("a", float("nan"), None, 1.0, None)], "x of a must be a finite number"),
        ([("a", 1.0, None, 1.0, (0.0, float("inf")))], "y of a must be a finite number"),
    ],
)
def test_a_picture_of_nothing_or_of_no_numbers_is_refused(tmp_path, points, says):
    with pytest.raises(ValueError, match=says):
        scatter(points, "MB", "x", tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []


def test_a_forest_has_a_row_a_label_from_the_top(tmp_path):
    rows = [("near", 1.0, (0.5, 1.5)), ("far", 3.0, None), ("between", 2.0, (1.9, 2.1))]
    path = forest(rows, "nats", tmp_path / "f.png")
    assert path.read_bytes() == forest(rows, "nats", tmp_path / "g.png").read_bytes()
    blue = coloured(path, plots.COLOURS[0])
    rows_in = np.linspace(0, blue[:, 0].max() + 1, len(rows) + 1)
    parts = [blue[(blue[:, 0] >= top) & (blue[:, 0] < end)] for top, end in itertools.pairwise(rows_in)]
    places = [part[:, 1].mean() for part in parts]
    assert places[0] < places[2] < places[1], "more is further to the right"
    widths = [np.ptp(part[:, 1]) for part in parts]
    assert widths[0] > widths[2] > widths[1], "a wide interval has a long bar, none has none"
    for wrong, says in (([], "at least one row"), ([("a", float("inf"), None)], "x of a must be a finite number")):
        with pytest.raises(ValueError, match=says):
            forest(wrong, "nats", tmp_path / "h.png")
    assert not (tmp_path / "h.png").exists()
