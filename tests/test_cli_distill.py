"""`tinymusician distill`: folders that are whole or not there, and runs that can be resumed."""

import json
import os
import shutil
import signal

import pytest
import torch

from tinymusician_core import cli
from tinymusician_core.cli import show, stopping
from tinymusician_core.tokens import write_tokens

PROMPT = "a calm piano waltz"


def run(capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    try:
        code = cli.main(arguments)
    except SystemExit as left:
        code = left.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def distil(capsys, tiny_family, tmp_path):
    """Run `distill` on a tiny teacher and tokens of noise; the student goes beside its teacher."""
    tokens, models = tmp_path / "tokens", tmp_path / "models"
    random = torch.Generator().manual_seed(0)
    for split, count in (("train", 3), ("validation", 1), ("test", 1)):
        clips = [torch.randint(0, 64, (4, 60), generator=random) for _ in range(count)]
        write_tokens(tokens, split, clips, [{"captions": [PROMPT], "bars": [0, 20], "facts": {}}] * count)
    shutil.copytree(tiny_family, models)

    def call(*more):
        small = ("--teacher", str(models / "teacher"), "--data", str(tokens), "--layers", "1", "--batch", "2")
        return run(capsys, "distill", *small, "--seconds", "0.5", "-o", str(models / "mine"), *more)

    return call, models / "mine"


def test_distill_writes_a_student(distil):
    call, out = distil
    code, printed, err = call("--steps", "10", "--json")
    assert (code, err) == (0, "")
    record = json.loads(printed.splitlines()[-1])
    assert (record["path"], record["layers"], record["steps"]) == (str(out), [0], 10)
    assert record["validation_kl"] > 0
    assert (out / "model.safetensors").exists()
    code, _, err = call("--steps", "10")
    assert code == 2
    assert "resume it, or remove" in err


def test_ctrl_c_in_the_middle_of_distill_can_be_resumed(distil, monkeypatch):
    call, out = distil
    show_step = show.Bar.show

    def interrupt(bar, text, done, total, note=""):
        show_step(bar, text, done, total, note)
        if total:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(show.Bar, "show", interrupt)
    code, _, err = call("--steps", "30")
    assert code == 130
    assert "stopped after 10 steps; resume goes on from" in err
    assert err.count("\n") == 1
    assert not out.exists()
    monkeypatch.setattr(show.Bar, "show", show_step)
    code, printed, _ = call("--steps", "30", "--resume")
    assert code == 0
    assert "30 steps" in printed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_a_run_hard():
    with stopping.stop_on_ctrl_c() as should_stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
