"""`tinymusician quantize`: folders that are whole or not there."""

import json

from tinymusician_core import cli
from tinymusician_core.cli import show

PROMPT = "a calm piano waltz"


def run(capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    try:
        code = cli.main(arguments)
    except SystemExit as left:
        code = left.code
    out, err = capsys.readouterr()
    return code, out, err


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
