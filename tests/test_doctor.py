"""`tinymusician doctor`: every check reports, and a broken thing is one line of the report."""

import json

import numpy as np
import pytest
from commands import run

from tinymusician_core import doctor
from tinymusician_core.files import sha256_of


def write_manifest(folder, names):
    files = [{"path": name, "sha256": sha256_of(folder / name)} for name in names]
    (folder / "MANIFEST.json").write_text(json.dumps({"files": files}))


def test_doctor_reports_every_check(capsys, tmp_path, monkeypatch):
    (tmp_path / "model.bin").write_bytes(b"weights")
    write_manifest(tmp_path, ["model.bin"])
    monkeypatch.setenv("TINYMUSICIAN_ASSETS", str(tmp_path))
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no_such_package"))
    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out.splitlines()[-1])
    found = {check["name"]: check for check in report["checks"]}
    assert list(found) == [
        "python", "numpy", "no_such_package", "cpu", "cuda", "memory", "disk", "ffmpeg", "assets",
    ]  # fmt: skip
    assert (code, report["ok"]) == (1, False)
    assert found["numpy"]["found"] == np.__version__
    assert found["no_such_package"]["status"] == "fail"
    assert "No module named 'no_such_package'" in found["no_such_package"]["found"]
    assert found["assets"]["status"] == "ok"


def test_doctor_prints_a_table_and_is_content_with_a_good_machine(capsys, tmp_path, monkeypatch):
    write_manifest(tmp_path, [])
    monkeypatch.setenv("TINYMUSICIAN_ASSETS", str(tmp_path))
    monkeypatch.setattr(doctor, "PACKAGES", ())
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [check.status for check in doctor.examine()]


def test_doctor_names_missing_and_changed_assets(tmp_path):
    for name in ("same.bin", "changed.bin", "gone.bin"):
        (tmp_path / name).write_bytes(b"weights")
    write_manifest(tmp_path, ["same.bin", "changed.bin", "gone.bin"])
    (tmp_path / "changed.bin").write_bytes(b"weight!")
    (tmp_path / "gone.bin").unlink()
    check = doctor.check_assets(tmp_path)
    assert (check.status, check.found) == ("fail", "missing: gone.bin; changed: changed.bin")


@pytest.mark.parametrize("text", [None, "{", "[]", '{"files": [{"path": "a"}]}'])
def test_doctor_says_when_the_manifest_is_of_no_use(tmp_path, text):
    if text is not None:
        (tmp_path / "MANIFEST.json").write_text(text)
    assert doctor.check_assets(tmp_path).status == "fail"


def test_doctor_measures_the_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    check = doctor.check_disk(tmp_path / "not" / "yet")
    assert "GB free for" in check.found
