"""What is shipped is what the manifest says, small enough, and loads."""

import json
from pathlib import Path

import pytest

import tinymusician_core as tm
from tinymusician_core.files import sha256_of
from tinymusician_core.pretrain.publish import write_manifest

ASSETS = Path(__file__).resolve().parent.parent / "assets"
MB = 10**6


@pytest.fixture(scope="module")
def records():
    return json.loads((ASSETS / "MANIFEST.json").read_text(encoding="utf-8"))["files"]


def test_the_manifest_names_every_file_and_its_hash(records):
    there = {p.relative_to(ASSETS).as_posix() for p in ASSETS.rglob("*") if p.is_file()} - {"MANIFEST.json"}
    assert {r["path"] for r in records} == there
    for record in records:
        path = ASSETS / record["path"]
        assert (path.stat().st_size, sha256_of(path)) == (record["bytes"], record["sha256"]), record["path"]
        assert record["licence"]
        assert len(record["commit"]) == 40


def test_the_family_is_within_its_budget(records):
    sizes = {r["path"]: r["bytes"] for r in records}
    assert sum(size for path, size in sizes.items() if path.startswith("models/teacher/")) <= 40 * MB
    assert sum(sizes.values()) <= 60 * MB
    assert max(sizes.values()) <= 40 * MB


def test_student_and_quantized_are_the_shares_of_the_teacher_that_we_promise():
    teacher, student, quantized = (tm.load(name).disk_bytes for name in ("teacher", "student", "quantized"))
    assert student <= 0.45 * teacher
    assert quantized <= 0.15 * teacher


@pytest.mark.parametrize("name", ["teacher", "student", "quantized"])
def test_each_variant_plays_what_can_be_heard(name):
    clip = tm.generate(tm.load(name), "a calm piano waltz", seconds=2, seed=7)
    assert clip.audio.shape == (1, 64000)
    assert 0.005 < float((clip.audio**2).mean()) ** 0.5 < 0.5
    assert len(set(clip.codes[0].tolist())) > 3


def test_a_manifest_keeps_the_commit_of_what_did_not_change(tmp_path, monkeypatch):
    import tinymusician_core.pretrain.publish as publish

    (tmp_path / "models" / "codec").mkdir(parents=True)
    (tmp_path / "models" / "codec" / "config.json").write_text("{}")
    (tmp_path / "note.txt").write_text("one")
    monkeypatch.setattr(publish, "recipe_commit", lambda _: "a" * 40)
    write_manifest(tmp_path)
    (tmp_path / "note.txt").write_text("two")
    monkeypatch.setattr(publish, "recipe_commit", lambda _: "b" * 40)
    files = {r["path"]: r for r in json.loads(write_manifest(tmp_path).read_text())["files"]}
    assert files["models/codec/config.json"]["commit"] == "a" * 40
    assert "pretrain codec" in files["models/codec/config.json"]["recipe"]
    assert files["note.txt"]["commit"] == "b" * 40
