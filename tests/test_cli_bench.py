"""`tinymusician bench`: the variants' figures, the peers' table and JSON, and what it says to wrong arguments."""

import json
from contextlib import contextmanager

import pytest
from test_cli import FIGURES, run

from tinymusician_core.cli import bench, show
from tinymusician_core.measure import rounds
from tinymusician_core.measure.bandwidth import read_bandwidth
from tinymusician_core.text import EXAMPLE


@pytest.fixture(autouse=True)
def quick_bandwidth(monkeypatch):
    monkeypatch.setattr(rounds, "read_bandwidth", lambda seconds: read_bandwidth(2**20, 0.01))


def test_variants_are_measured_without_a_file(capsys, demo_family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(
        capsys, "bench", "--models", "teacher,student", "--seconds", "0.5", "--runs", "2", "--threads", "1", "--json"
    )
    assert (code, err) == (0, "")
    record = json.loads(out.splitlines()[-1])
    names = {"command", "prompt", "seed", "seconds", "rounds", "machine", "others", "variants", "path"}
    names |= {"bandwidth_gb_per_s", "bandwidth_spread_gb_per_s"}
    assert set(record) == names
    assert (record["rounds"], record["path"]) == (2, None)
    assert record["command"].endswith("tinymusician bench --models teacher,student --seconds 0.5 --runs 2 --threads 1")
    assert record["machine"]["python"]
    assert (record["prompt"], record["seed"], record["seconds"]) == (EXAMPLE, 7, 0.5)
    assert record["bandwidth_gb_per_s"] > 0
    assert [variant["model"] for variant in record["variants"]] == ["teacher", "student"]
    for variant, layers in zip(record["variants"], (4, 2), strict=True):
        assert set(variant["figures"]) == FIGURES
        assert (variant["figures"]["runs"], variant["figures"]["threads"], variant["processes"]) == (2, 1, 2)
        assert len(variant["spread"]["x_realtime"]) == 2
        assert variant["weights_bytes"] > variant["step_bytes"]
        weights = layers * (6 * 32 * 32 + 2 * 32 * 48) + 4 * 64 * 32
        assert variant["step_bytes"] == 4 * weights
        assert variant["gb_per_s"] is None, "weights in the cache are not read from memory"
    assert not list(tmp_path.iterdir())


def test_variants_as_a_table(capsys, demo_family, monkeypatch):
    monkeypatch.setattr(rounds, "cache_bytes", lambda: 1)
    code, out, _ = run(capsys, "bench", "--models", "student", "--seconds", "0.5", "--runs", "1")
    assert code == 0
    assert "x real time" in out
    assert "median of 1 run\n" in out
    assert "memory bandwidth " in out
    assert "read by steps: student " in out


def test_a_report_is_written_and_a_second_call_measures_nothing_anew(capsys, demo_family, tmp_path, monkeypatch):
    arguments = ("bench", "--models", "student", "--seconds", "0.5", "--runs", "2", "-o", str(tmp_path / "report"))
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    files = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    assert set(files) == {"runs.jsonl", "report.json", "report.md", "speed-size.png"}
    typed = "tinymusician bench --models student --seconds 0.5 --runs 2 -o DIR`\n"
    assert typed in files["report.md"].decode()
    assert out.splitlines()[-1] == f"wrote {tmp_path / 'report' / 'speed-size.png'}"
    monkeypatch.setattr(rounds, "measure", None)
    again, out, err = run(capsys, *arguments, "--json")
    assert (again, err) == (0, "")
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == files
    assert json.loads(out)["path"] == str(tmp_path / "report")
    written = json.loads(files["report.json"])
    assert json.loads(out) == written | {"path": str(tmp_path / "report")}
    code, _, err = run(capsys, *arguments, "--seed", "8")
    assert code == 2
    assert "was measured with seed 7, not 8; take another folder, or remove that file" in err


@pytest.mark.parametrize(("more", "says"), [((), "with -o FOLDER it could"), (("-o", "report"), "the same command")])
def test_ctrl_c_says_how_to_go_on(capsys, demo_family, tmp_path, monkeypatch, more, says):
    monkeypatch.chdir(tmp_path)
    seen = []

    @contextmanager
    def pressed():
        yield lambda: ("2 of 4, student", "loading") in seen

    monkeypatch.setattr(show.Bar, "step", lambda bar, who, step: seen.append((who, step.stage)))
    monkeypatch.setattr(bench, "stop_on_ctrl_c", pressed)
    arguments = ("bench", "--models", "teacher,student", "--seconds", "0.5", "--runs", "2", "--rounds", "2", *more)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (130, "")
    assert err.startswith("tinymusician bench: stopped after 1 of 4 processes; ")
    assert says in err
    assert err.count("\n") == 1
    if more:
        assert [path.name for path in (tmp_path / "report").iterdir()] == ["runs.jsonl"]


def test_peers_print_a_table_json_and_a_report(capsys, tmp_path):
    arguments = ("bench", "--peers", "--shape", "tiny", "--seconds", "0.5", "--rows", "transformers fp32, ours int8")
    code, out, err = run(capsys, *arguments, "-o", str(tmp_path / "report"), "--json")
    assert (code, err) == (0, "")
    record = json.loads(out.splitlines()[-1])
    assert record["path"] == str(tmp_path / "report")
    assert [variant["model"] for variant in record["variants"]] == ["transformers fp32", "ours int8"]
    assert set(record["variants"][0]["figures"]) == FIGURES
    theirs, ours = (variant["figures"]["ms_per_step"] for variant in record["variants"])
    assert record["variants"][1]["x_transformers_fp32"] == pytest.approx(theirs / ours)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.json", "report.md"}
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written["variants"] == record["variants"]
    typed = "tinymusician bench --peers --shape tiny --seconds 0.5 --rows 'transformers fp32, ours int8' -o DIR"
    assert written["command"].endswith(typed)
    assert f"{typed}`\n" in (tmp_path / "report" / "report.md").read_text()


def test_peers_without_json_are_a_table(capsys):
    arguments = ("--peers", "--shape", "tiny", "--seconds", "0.5", "--layers", "1", "--rows", "ours fp32")
    code, out, _ = run(capsys, "bench", *arguments)
    assert code == 0
    header, row, *rest = out.splitlines()
    assert "ms a step" in header
    assert row.startswith("ours fp32 (1 layer)")
    assert any(line.startswith("memory bandwidth: ") for line in rest)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--peers", "--shape", "huge"), "no such shape: 'huge'; allowed: small, medium, tiny"),
        (("--peers", "--rows", "theirs"), "rows must be some of transformers fp32,"),
        (("--peers", "--layers", "none"), "layers must be a whole number of 1 or more, got 'none'"),
        (("--peers", "--seconds", "60"), "seconds must be 25 or less"),
        (("--peers", "--seed", "x"), "seed must be"),
        (("--peers", "--models", "student"), "models is for runs without --peers only"),
        (("--peers", "--rounds", "2"), "rounds is for runs without --peers only"),
        (("--peers", "--device", "cuda"), "device must be cpu with --peers"),
        (("--rounds", "none"), "rounds must be a whole number of 1 or more, got 'none'"),
        (("--shape", "tiny"), "shape is for --peers only"),
        (("--student-layers", "2"), "student layers is for --peers only"),
        (("--models", "nobody"), "nobody"),
        (("--seconds", "0"), "seconds must be"),
        (("--runs", "0"), "runs must be"),
    ],
)
def test_wrong_arguments_are_one_sentence(capsys, demo_family, arguments, said):
    code, out, err = run(capsys, "bench", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_report_cannot_take_the_place_of_a_file(capsys, tmp_path):
    file = tmp_path / "file"
    file.touch()
    code, _, err = run(capsys, "bench", "--peers", "-o", str(file))
    assert code == 2
    assert "output must be a folder" in err
