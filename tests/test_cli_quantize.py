"""`tinymusician quantize`: folders that are whole or not there."""

import json

from commands import run

from tinymusician_core.cli import show

PROMPT = "a calm piano waltz"


def test_quantize_writes_a_model_that_plays(capsys, demo_family, tmp_path):
    folder = tmp_path / "small"
    code, out, err = run(capsys, "quantize", "--model", "student", "--preset", "int8", "-o", str(folder), "--json")
    assert (code, err) == (0, "")
    record = json.loads(out.splitlines()[-1])
    assert (record["model"], record["plan"], record["path"]) == ("student", "int8", str(folder))
    assert record["disk_bytes"] == sum(file.stat().st_size for file in folder.iterdir()) < record["source_bytes"]
    assert record["modules"]["int8"] > 0
    replay = tmp_path / "again"
    code, out, _ = run(capsys, "quantize", "--plan", str(folder / "plan.json"), "-o", str(replay))
    assert code == 0
    assert f"wrote {replay}" in out
    assert (replay / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    clip = str(tmp_path / "a.wav")
    assert run(capsys, "generate", PROMPT, "--model", str(folder), "--seconds", "0.5", "-o", clip)[0] == 0


def test_ctrl_c_in_the_middle_of_quantize_leaves_nothing(capsys, demo_family, tmp_path, monkeypatch):
    def stop(bar, text, done, total, note=""):
        if done > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(show.Bar, "show", stop)
    code, _, err = run(capsys, "quantize", "-o", str(tmp_path / "small"))
    assert (code, err) == (130, "tinymusician quantize: stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_a_budget_is_kept_and_its_report_told(capsys, demo_family, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYMUSICIAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tinymusician_core.quant.calibration.SECONDS", 0.5)
    monkeypatch.setattr("tinymusician_core.quant.cost.LEAST_S", 0.0)
    monkeypatch.setattr("tinymusician_core.quant.workbench.LARGE_S", 0.5)
    monkeypatch.setattr("tinymusician_core.quant.workbench.LARGE_CLIP_S", 0.5)
    monkeypatch.setattr("tinymusician_core.quant.cost.CLIPS", 1)
    monkeypatch.setattr("tinymusician_core.quant.workbench.MANY_WEIGHTS", 1)
    folder = tmp_path / "small"
    common = ("quantize", "--schemes", "fp16,int8", "-o", str(folder))
    code, out, err = run(capsys, *common, "--max-kl", "0.1", "--codebook-weights", "4,2,1,1", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out.splitlines()[-1])
    assert record["search"]["budget"] == {"max_kl": 0.1}
    assert record["search"]["foreseen"]["disk_bytes"] == record["disk_bytes"]
    assert (folder / "report.md").is_file()
    assert json.loads((folder / "report.json").read_text())["codebook_weights"] == [4.0, 2.0, 1.0, 1.0]
    code, out, err = run(capsys, *common, "--max-kl", "0.1")
    assert code == 0
    assert "ms a step (foreseen" in out
    code, _, err = run(capsys, *common, "--max-mb", "0.0001")
    assert (code, err.count("\n")) == (2, 1)
    assert "max_mb 0.0001 cannot be kept" in err


def test_a_recovery_is_told(capsys, demo_family, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYMUSICIAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tinymusician_core.quant.calibration.SECONDS", 0.5)
    monkeypatch.setattr("tinymusician_core.quant.recover.CLIPS", 10)
    monkeypatch.setattr("tinymusician_core.quant.recover.HELD_OUT_WINDOWS", 2)
    (tmp_path / "plan.json").write_text(json.dumps({"*": "fp16", "decoder.*": "int4"}))
    arguments = ("quantize", "--plan", str(tmp_path / "plan.json"), "--recover", "0.01", "--teacher", "teacher")
    code, out, err = run(capsys, *arguments, "-o", str(tmp_path / "a"), "--json")
    assert (code, err) == (0, "")
    told = json.loads(out.splitlines()[-1])["recovery"]
    kept = json.loads((tmp_path / "a" / "recovery.json").read_text())
    assert told == {name: value for name, value in kept.items() if name != "note"}
    code, out, err = run(capsys, *arguments, "-o", str(tmp_path / "b"))
    assert (code, err) == (0, "")
    assert "steps of recovery in" in out.splitlines()[-1]
    assert (tmp_path / "a" / "plan.json").read_bytes() == (tmp_path / "b" / "plan.json").read_bytes()


def test_what_does_not_go_together_is_said(capsys, demo_family, tmp_path):
    folder = ("-o", str(tmp_path / "small"))
    for arguments, words in (
        (("--max-mb", "3", "--preset", "int8"), "--max-mb searches a plan itself; leave --preset and --plan out"),
        (("--compare",), "--compare is for a search; give one of --max-mb, --max-ms, --max-kl with it"),
        (("--recover", "-1"), "--recover must be a number above 0, got '-1'"),
        (
            ("--recover", "1", "--compare"),
            "--compare is for a search; give one of --max-mb, --max-ms, --max-kl with it",
        ),
        (("--preset", "int8", "--recover", "1"), "the plan has no int4 in the decoder, so there is nothing to recover"),
        (("--codebook-weights", "1,x"), "--codebook-weights must be a number above 0, got 'x'"),
        (("--preset", "int8", "--codebook-weights", "2,1,1,1"), "--codebook-weights is for a search; give one of"),
        (("--preset", "int8", "--teacher", "teacher"), "--teacher is for a recovery; give --recover MINUTES with it"),
        (("--max-ms", "none"), "--max-ms must be a number above 0, got 'none'"),
    ):
        code, _, err = run(capsys, "quantize", *folder, *arguments)
        assert code == 2
        assert words in err
