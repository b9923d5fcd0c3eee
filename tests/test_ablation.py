"""The ablation: every cell at one budget, over seeds, resumable, and a report whose figures are those of the runs."""

import json
import shutil
import statistics

import pytest
from test_distill import write_clips

from tinymusician_core.distill.ablation import Plan, interval, read_plan, rows_of, run_ablation
from tinymusician_core.records import Cancelled

OPTIONS = {"batch": 4, "seconds": 1.0, "learning_rate": 0.01}


@pytest.fixture
def plan(tiny_family, tmp_path):
    family = shutil.copytree(tiny_family, tmp_path / "models")
    write_clips(tmp_path / "tokens")
    record = {
        "teacher": str(family / "teacher"),
        "data": "tokens",
        "losses": ["stage-mixed", "forward-kl"],
        "layers": [1, [0, 3]],
        "seeds": [0, 1],
        "steps": 3,
        "options": OPTIONS,
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(record))
    return path


def test_the_interval_is_students(tmp_path):
    values = [1.0, 2.0, 4.0]
    found = interval(values)
    half = 4.302653 * statistics.stdev(values) / 3**0.5  # t of 97.5% with 2 degrees of freedom, from tables
    assert (found.value, found.n) == (pytest.approx(7 / 3), 3)
    assert found.spread == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=1e-5)
    assert interval([2.0]).spread is None


def test_every_cell_is_run_over_all_seeds_and_reported(plan, tmp_path):
    told, out = [], tmp_path / "out"
    rows = run_ablation(read_plan(plan), out, on_progress=lambda *at: told.append(at[:3]))
    assert len(rows) == 4
    assert [row.figures["kl"].value for row in rows] == sorted(row.figures["kl"].value for row in rows)
    report = json.loads((out / "report.json").read_text())
    assert len(report["runs"]) == 8
    assert {(r["loss"], tuple(r["layers"]), r["seed"]) for r in report["runs"]} == {
        (loss, layers, seed) for loss in ("stage-mixed", "forward-kl") for layers in ((0,), (0, 3)) for seed in (0, 1)
    }
    assert {r["steps"] for r in report["runs"]} == {3}
    row = next(row for row in rows if row.cell.label == "forward-kl, 1 layers")
    own = [r for r in report["runs"] if (r["loss"], r["temperature"], r["layers"]) == ("forward-kl", None, [0])]
    base = [r for r in report["runs"] if (r["loss"], r["temperature"], r["layers"]) == ("stage-mixed", None, [0])]
    assert row.figures["kl"].value == pytest.approx(statistics.mean(r["validation_kl"] for r in own))
    pairs = [a["validation_kl"] - b["validation_kl"] for a, b in zip(own, base, strict=True)]
    assert row.against.value == pytest.approx(statistics.mean(pairs))
    text = (out / "report.md").read_text()
    assert text.count("| the baseline |") == 2
    assert all(each.cell.label in text for each in rows)
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert told[0] == ("stage-mixed, 1 layers, seed 0", 0, 8)
    assert not list(out.rglob("checkpoint.pt"))
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    again = run_ablation(read_plan(plan), out)
    assert again == rows
    assert before == {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}


def test_a_stopped_ablation_goes_on_and_ends_the_same(plan, tmp_path):
    record = json.loads(plan.read_text()) | {"layers": [1]}
    plan.write_text(json.dumps(record))
    whole, calls = run_ablation(read_plan(plan), tmp_path / "whole"), []
    with pytest.raises(Cancelled, match="stopped in stage-mixed__1_layers-seed1; the same command goes on"):
        run_ablation(read_plan(plan), tmp_path / "out", should_stop=lambda: calls.append(0) or len(calls) == 5)
    parts = run_ablation(read_plan(plan), tmp_path / "out")
    for a, b in zip(whole, parts, strict=True):
        assert (a.cell, a.figures, a.against) == (b.cell, b.figures, b.against)
    plan.write_text(json.dumps(record | {"steps": 4}))
    with pytest.raises(ValueError, match="out holds another ablation"):
        run_ablation(read_plan(plan), tmp_path / "out")


def test_temperatures_are_cells_of_their_own_and_the_baselines_own_comes_first():
    found = Plan("t", "d", ("stage-mixed", "jsd"), (2, (0, 3)), temperatures=(None, "2:1"), seeds=(1,), steps=1)
    assert [cell.label for cell in found.cells[:4]] == [
        "stage-mixed, 2 layers",
        "stage-mixed, layers 0,3",
        "stage-mixed T=2:1, 2 layers",
        "stage-mixed T=2:1, layers 0,3",
    ]
    assert len({cell.folder for cell in found.cells}) == 8
    assert found.spec(found.cells[2], 5).terms.schedule.at(1.0).temperature == 1.0
    record = {"validation_cross_entropy": 3.0, "validation_teacher_cross_entropy": 2.9}
    rows = rows_of(found, [record | {"validation_kl": 0.1 * i} for i in range(8)])
    apart = {row.cell.label: row.against and row.against.value for row in rows}
    assert apart["stage-mixed, 2 layers"] is None
    assert apart["jsd T=2:1, layers 0,3"] == pytest.approx(0.6)


def test_a_single_seed_has_no_interval(plan, tmp_path):
    found = Plan("t", "d", ("jsd",), (2,), seeds=(3,), steps=1, baseline="jsd")
    record = {"validation_kl": 0.5, "validation_cross_entropy": 3.0, "validation_teacher_cross_entropy": 2.9}
    (row,) = rows_of(found, [record])
    assert row.figures["kl"].spread is None
    assert row.figures["likelihood"].value == pytest.approx(0.904837, rel=1e-5)
    assert row.against is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"losses": []}, "the ablation's losses are ..; a list with at least one entry"),
        ({"losses": ["jsd"]}, "the baseline is 'stage-mixed'; one of the losses"),
        ({"losses": ["stage-mixed", "magic"]}, "no such loss: 'magic'"),
        ({"seeds": [1, 1]}, "each entry may be there once"),
        ({"steps": None}, "the ablation has no budget"),
        ({"steps": 0}, "must be above zero"),
        ({"options": {"seed": 3}}, "the ablation's options hold seed"),
        ({"options": {"colour": 3}}, "the ablation's options are .'colour'."),
        ({"colour": 3}, "is no plan of an ablation: .*colour"),
    ],
)
def test_bad_plans_are_named(plan, change, words):
    plan.write_text(json.dumps(json.loads(plan.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        read_plan(plan)


def test_a_plan_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as a JSON plan"):
        read_plan(tmp_path / "none.json")
