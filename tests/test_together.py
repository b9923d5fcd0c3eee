"""Training that is cut off for good, and training by several processes: both end where one undisturbed process does.

The run that is killed and those that run together are the real command in processes of their own; all of them use one
thread and float32, so that they can be compared.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from test_distill import write_clips

from tinymusician_core import cli

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
MODULE = [sys.executable, "-m", "tinymusician_core.cli"]
LIMIT_S = 240


@pytest.fixture
def family(tiny_family, tmp_path):
    write_clips(tmp_path / "tokens")
    return shutil.copytree(tiny_family, tmp_path / "models")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def command(family, name: str, *more: str) -> list[str]:
    own = ["distill", "--teacher", str(family / "teacher"), "--data", str(family.parent / "tokens"), "--layers", "2"]
    own += ["--batch", "4", "--seconds", "1", "--precision", "fp32", "--learning-rate", "0.01", "--seed", "3"]
    return [*own, "-o", str(family / name), *more]


def log_of(family, name: str) -> list[dict]:
    path = family / f"{name}.training" / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def weights(family, name: str) -> dict[str, torch.Tensor]:
    return load_file(family / name / "model.safetensors")


@pytest.mark.parametrize("how", [["--on-policy", "0.3"], ["--cache-logits", "16"]], ids=["own", "cached"])
def test_killed_in_the_middle_and_resumed_it_ends_with_the_same_weights(family, how):
    how = [*how, "--steps", "160", "--checkpoint-every", "0.3"]
    assert cli.main(command(family, "whole", *how)) == 0
    process = subprocess.Popen(
        [*MODULE, *command(family, "killed", *how)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    folder, until = family / "killed.training", time.monotonic() + LIMIT_S
    try:
        while not ((folder / "checkpoint.pt").exists() and log_of(family, "killed")[-1]["step"] >= 20):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < until, "the run did not get anywhere"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (family / "killed").exists()
    at = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < at < 160
    assert cli.main(command(family, "killed", *how, "--resume")) == 0
    ours, theirs = weights(family, "whole"), weights(family, "killed")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    steps = [record["step"] for record in log_of(family, "killed") if "loss" in record]
    assert steps == sorted(set(steps))


def test_two_processes_give_the_curve_of_one(family):
    pytest.importorskip("accelerate")
    how = ["--steps", "40", "--hidden", "mse:0.3", "--width", "16", "--on-policy", "0.3", "--dropout", "0.2"]
    how += ["--codebook-weights", "3,2,1,0.5"]
    assert cli.main(command(family, "one", *how)) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    done = subprocess.run(
        [*launcher, *MODULE[1:], *command(family, "two", *how, "--accumulate", "2", "--json")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("{") for line in done.stdout.splitlines()) == 1  # one of them speaks
    one, two = log_of(family, "one"), log_of(family, "two")
    assert [r["step"] for r in one] == [r["step"] for r in two]
    for mine, other in zip(one, two, strict=True):
        for name in set(mine) - {"elapsed_s"}:
            assert other[name] == pytest.approx(mine[name], rel=2e-4, abs=1e-5), (name, mine["step"])
    ours, theirs = weights(family, "one"), weights(family, "two")
    for name in ours:
        torch.testing.assert_close(ours[name].float(), theirs[name].float(), atol=2e-3, rtol=2e-3)
