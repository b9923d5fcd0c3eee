"""The ablation: every cell at one budget, over seeds, resumable, and a report whose figures are those of the runs."""

import json
import shutil
import statistics

import pytest
from test_cli import run
from test_distill import write_clips

from tinymusician_core.distill.ablation import WINDOWS, Plan, interval, read_plan, rows_of, run_ablation
from tinymusician_core.records import Cancelled

OPTIONS = {"batch": 4, "seconds": 1.0, "learning_rate": 0.01, "validation_windows": 8}


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
    assert row.against.n == row.figures["kl"].n == 2
    text = (out / "report.md").read_text()
    assert text.count("| the baseline | the baseline |") == 2
    assert "every student judged on the same 8 held-out windows of 2 clips" in text
    assert not any("clip_kl" in run for run in report["runs"]), "they are with the runs"
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


def test_losses_are_compared_at_one_temperature_and_the_baselines_own_with_its_first():
    found = Plan("t", "d", ("stage-mixed", "jsd"), (2, (0, 3)), temperatures=(None, "2:1"), seeds=(1,), steps=1)
    assert [cell.label for cell in found.cells[:4]] == [
        "stage-mixed, 2 layers",
        "stage-mixed, layers 0,3",
        "stage-mixed T=2:1, 2 layers",
        "stage-mixed T=2:1, layers 0,3",
    ]
    assert len({cell.folder for cell in found.cells}) == 8
    alone = Plan("t", "d", ("stage-mixed", "jsd"), (2,), temperatures=("2:1",), seeds=(1,), steps=1)
    assert [cell.label_in(alone) for cell in alone.cells] == ["stage-mixed", "jsd"]
    assert [cell.label_in(found) for cell in found.cells] == [cell.label for cell in found.cells]
    assert found.spec(found.cells[2], 5).terms.schedule.at(1.0).temperature == 1.0
    record = {"validation_cross_entropy": 3.0, "validation_teacher_cross_entropy": 2.9, "clip_kl": [0.5]}
    rows = rows_of(found, [record | {"validation_kl": 0.1 * i} for i in range(8)])
    apart = {row.cell.label: row.against and row.against.value for row in rows}
    assert apart["stage-mixed, 2 layers"] is None
    assert apart["stage-mixed T=2:1, layers 0,3"] == pytest.approx(0.2)
    assert apart["jsd, layers 0,3"] == apart["jsd T=2:1, layers 0,3"] == pytest.approx(0.4)


def test_choices_of_layers_alone_are_compared_with_the_first():
    found = Plan("t", "d", ("jsd",), (2, (0, 3), (0, 1)), seeds=(1,), steps=1, baseline="jsd")
    record = {"validation_cross_entropy": 3.0, "validation_teacher_cross_entropy": 2.9, "clip_kl": [0.5]}
    rows = rows_of(found, [record | {"validation_kl": 0.1 * (3 - i)} for i in range(3)])
    apart = {row.cell.label: row.against and row.against.value for row in rows}
    assert apart == {
        "jsd, layers 0,1": pytest.approx(-0.2), "jsd, layers 0,3": pytest.approx(-0.1), "jsd, 2 layers": None,
    }  # fmt: skip


def test_a_single_seed_has_no_interval(plan, tmp_path):
    found = Plan("t", "d", ("jsd",), (2,), seeds=(3,), steps=1, baseline="jsd")
    record = {"validation_kl": 0.5, "validation_cross_entropy": 3.0, "validation_teacher_cross_entropy": 2.9}
    (row,) = rows_of(found, [record | {"clip_kl": [0.4, 0.6, 0.5]}])
    assert row.figures["kl"].spread is None
    assert row.figures["likelihood"].value == pytest.approx(0.904837, rel=1e-5)
    assert row.against is row.against_by_clip is None
    assert row.spread == row.by_clip.spread == interval([0.4, 0.5, 0.6]).spread, "but one over clips"


def test_over_clips_seeds_are_averaged_and_cells_paired():
    found = Plan("t", "d", ("stage-mixed", "jsd"), (2,), seeds=(0, 1), steps=1)
    base = {"validation_cross_entropy": 3.0, "validation_teacher_cross_entropy": 2.9}
    clips = [[0.2, 0.4, 0.9], [0.4, 0.6, 0.7], [0.1, 0.3, 0.6], [0.3, 0.5, 0.6]]  # two seeds of each loss
    records = [base | {"validation_kl": statistics.mean(each), "clip_kl": each} for each in clips]
    rows = {row.cell.loss: row for row in rows_of(found, records)}
    for loss, clips in (("stage-mixed", [0.3, 0.5, 0.8]), ("jsd", [0.2, 0.4, 0.6])):
        wanted, by_clip = interval(clips), rows[loss].by_clip
        assert (by_clip.value, *by_clip.spread) == pytest.approx((wanted.value, *wanted.spread))
    apart = rows["jsd"].against_by_clip
    assert (apart.value, apart.n) == (pytest.approx(-0.4 / 3), 3)
    assert apart.spread == pytest.approx(interval([-0.1, -0.1, -0.2]).spread)
    assert rows["jsd"].against.n == 2
    assert rows["jsd"].spread == rows["jsd"].figures["kl"].spread, "of several seeds theirs is shown"


def test_students_are_judged_on_many_windows_unless_the_plan_says_otherwise():
    plan = Plan("t", "d", ("stage-mixed",), (2,), steps=1, options={"batch": 8})
    assert plan.spec(plan.cells[0], 0).validation_batches == WINDOWS // 8
    plan = Plan("t", "d", ("stage-mixed",), (2,), steps=1, options=OPTIONS)
    assert plan.spec(plan.cells[0], 0).validation_batches == 2


def test_runs_can_lie_elsewhere_and_the_report_alone_be_kept(plan, tmp_path, capsys):
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"layers": [1], "seeds": [0]}))
    out, runs = tmp_path / "report", tmp_path / "students"
    command = ("ablate", str(plan), "-o", str(out), "--runs", str(runs), "--device", "cpu")
    code, printed, err = run(capsys, *command, "--json")
    assert (code, err) == (0, "")
    assert json.loads(printed)["path"] == str(out)
    assert {path.name for path in out.iterdir()} == {"plan.json", "report.json", "report.md", "ablation.png"}
    students = [f"{loss}__1_layers-seed0" for loss in ("stage-mixed", "forward-kl")]
    assert {name for student in students for name in (student, f"{student}.json", f"{student}.training")} | {
        "plan.json"
    } == {path.name for path in runs.iterdir()}
    text = (out / "report.md").read_text()
    said = f"tinymusician ablate {plan} -o DIR --runs {runs} --device cpu"
    assert f"{said}`\n" in text
    assert json.loads((out / "report.json").read_text())["command"].endswith(said)
    before = {path: path.stat().st_mtime_ns for path in runs.iterdir()}
    again = run_ablation(read_plan(plan), tmp_path / "again", runs_dir=runs)
    assert before == {path: path.stat().st_mtime_ns for path in runs.iterdir()}, "no student is made anew"
    assert len(again) == 2
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"steps": 4}))
    with pytest.raises(ValueError, match="students holds another ablation"):
        run_ablation(read_plan(plan), tmp_path / "third", runs_dir=runs)


def test_students_that_were_judged_on_other_windows_are_refused(plan, tmp_path):
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"layers": [1], "seeds": [0], "losses": ["stage-mixed"]}))
    run_ablation(read_plan(plan), tmp_path / "out")
    (record,) = (tmp_path / "out" / "runs").glob("*-seed0.json")
    found = json.loads(record.read_text())
    assert (found["windows"], len(found["clip_kl"])) == (8, 2)
    record.write_text(json.dumps({name: value for name, value in found.items() if name not in ("windows", "clip_kl")}))
    with pytest.raises(ValueError, match="judged on None held-out windows, not 8; give another folder for the runs"):
        run_ablation(read_plan(plan), tmp_path / "out")


def test_the_device_reaches_the_runs(plan, tmp_path, capsys, monkeypatch):
    asked = []

    def distill(*order, **options):
        asked.append(options["device"])
        raise Cancelled("stopped")

    monkeypatch.setattr("tinymusician_core.distill.ablation.distill", distill)
    for more, device in ((("--device", "cuda"), "cuda"), ((), "cpu")):
        assert run(capsys, "ablate", str(plan), "-o", str(tmp_path / "out"), *more)[0] == 130
        assert asked[-1] == device


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
