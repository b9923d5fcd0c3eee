"""`tinymusician compare`: what stands beside the figures, and what Ctrl-C leaves of variants that were whole."""

import json
from contextlib import contextmanager

import pytest
from test_cli import FIGURES, PROMPT, run

from tinymusician_core import audio
from tinymusician_core.cli import compare, show


@pytest.fixture
def stops_at(monkeypatch):
    """Ctrl-C is pressed once a model has come to a stage."""
    seen = []
    step = show.Bar.step

    def watch(bar, who, progress):
        seen.append((who, progress.stage))
        step(bar, who, progress)

    def at(model: str, stage: str):
        @contextmanager
        def pressed():
            yield lambda: (model, stage) in seen

        monkeypatch.setattr(show.Bar, "step", watch)
        monkeypatch.setattr(compare, "stop_on_ctrl_c", pressed)

    return at


def test_spread_and_weights_stand_beside_the_figures(capsys, demo_family):
    code, out, err = run(capsys, "compare", PROMPT, "--models", "student", "--seconds", "0.5", "--runs", "2", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out.splitlines()[-1])
    assert set(record) == {"prompt", "seed", "seconds", "variants"}
    (variant,) = record["variants"]
    assert set(variant["figures"]) == FIGURES
    beside = {"spread", "processes", "weights_bytes", "load_s", "load_peak_bytes", "warm_up_s", "path"}
    assert set(variant) == {"model", "figures"} | beside
    spread = variant["spread"]
    for name in ("first_sound_ms", "ms_per_step", "x_realtime", "total_s", "peak_memory_bytes"):
        low, high = spread[name]
        assert low <= variant["figures"][name] <= high
    for name, (low, high) in spread["stages_ms"].items():
        assert low <= variant["figures"]["stages_ms"][name] <= high


def test_a_table_has_brackets_for_several_runs_and_none_for_one(capsys, demo_family):
    _, one, _ = run(capsys, "compare", PROMPT, "--models", "student", "--seconds", "0.5", "--runs", "1")
    assert "(" not in one
    assert "median of 1 run\n" in one
    _, two, _ = run(capsys, "compare", PROMPT, "--models", "student", "--seconds", "0.5", "--runs", "2")
    assert two.splitlines()[1].count("(") == 5
    assert "median of 2 runs, lowest and highest in brackets\n" in two


def test_ctrl_c_keeps_the_variants_that_are_whole(capsys, demo_family, tmp_path, stops_at):
    stops_at("student", "lm")
    arguments = ("compare", PROMPT, "--models", "teacher,student", "--seconds", "20", "--runs", "1")
    code, out, err = run(capsys, *arguments, "-o", str(tmp_path / "clips"), "--json")
    assert (code, err) == (130, "")
    record = json.loads(out.splitlines()[-1])
    assert (record["stopped"], record["missing"]) == (True, ["student"])
    (variant,) = record["variants"]
    assert variant["model"] == "teacher"
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["1-teacher.wav"]
    assert audio.read(variant["path"]).seconds == pytest.approx(20, abs=0.1)


def test_ctrl_c_says_what_was_stopped_and_what_is_missing(capsys, demo_family, tmp_path, stops_at):
    stops_at("student", "loading")
    arguments = ("compare", PROMPT, "--models", "teacher,student", "--seconds", "0.5", "--runs", "1")
    code, out, err = run(capsys, *arguments, "-o", str(tmp_path))
    assert (code, err) == (130, "")
    assert out.splitlines()[1].startswith("teacher")
    assert out.splitlines()[-2:] == [
        f"wrote {tmp_path / '1-teacher.wav'}",
        "stopped while student was playing; missing: student",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["1-teacher.wav"]


def test_ctrl_c_before_anything_is_whole_leaves_nothing(capsys, demo_family, tmp_path, stops_at):
    stops_at("teacher", "loading")
    folder = tmp_path / "clips"
    code, out, err = run(capsys, "compare", PROMPT, "--seconds", "0.5", "--models", "teacher", "-o", str(folder))
    assert (code, out) == (130, "")
    assert err == "tinymusician compare: stopped while teacher was playing\n"
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--device", "tpu"), "invalid choice: 'tpu'"),
        (("--runs", "x"), "runs must be a whole number of 1 or more, got 'x'"),
        (("-o", __file__), "output must be a folder, got the file"),
    ],
)
def test_wrong_arguments_are_one_sentence(capsys, demo_family, arguments, says):
    code, out, err = run(capsys, "compare", PROMPT, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
