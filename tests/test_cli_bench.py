"""`tinymusician bench`: the variants' figures, the peers' table and JSON, and what it says to wrong arguments."""

import json

import pytest
from test_cli import FIGURES, run

from tinymusician_core.cli import bench
from tinymusician_core.measure.bandwidth import read_bandwidth
from tinymusician_core.text import EXAMPLE


@pytest.fixture(autouse=True)
def quick_bandwidth(monkeypatch):
    monkeypatch.setattr(bench, "read_bandwidth", lambda: read_bandwidth(2**20, 0.01))


def test_variants_are_measured_without_a_file(capsys, demo_family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(
        capsys, "bench", "--models", "teacher,student", "--seconds", "0.5", "--runs", "2", "--threads", "1", "--json"
    )
    assert (code, err) == (0, "")
    record = json.loads(out.splitlines()[-1])
    assert set(record) == {"prompt", "seed", "seconds", "bandwidth_gb_per_s", "variants"}
    assert (record["prompt"], record["seed"], record["seconds"]) == (EXAMPLE, 7, 0.5)
    assert record["bandwidth_gb_per_s"] > 0
    assert [variant["model"] for variant in record["variants"]] == ["teacher", "student"]
    for variant, layers in zip(record["variants"], (4, 2), strict=True):
        assert set(variant["figures"]) == FIGURES
        assert (variant["figures"]["runs"], variant["figures"]["threads"]) == (2, 1)
        weights = layers * (6 * 32 * 32 + 2 * 32 * 48) + 4 * 64 * 32
        assert variant["step_bytes"] == 4 * weights
        assert variant["gb_per_s"] is None, "weights in the cache are not read from memory"
    assert not list(tmp_path.iterdir())


def test_variants_as_a_table(capsys, demo_family, monkeypatch):
    monkeypatch.setattr(bench, "cache_bytes", lambda: 1)
    code, out, _ = run(capsys, "bench", "--models", "student", "--seconds", "0.5", "--runs", "1")
    assert code == 0
    assert "x real time" in out
    assert "median of 1 run\n" in out
    assert "memory bandwidth " in out
    assert "read by steps: student " in out


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
        (("--peers", "--models", "student"), "models are variants"),
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
