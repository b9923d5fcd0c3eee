"""Training that is cut off for good, and training by several processes: both end where one undisturbed process does.

The run that is killed and those that run together are the real command in processes of their own; all of them use one
thread and float32, so that they can be compared.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_distill import write_clips

from tinymusician_core import cli

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
MODULE = ["-m", "tinymusician_core.cli"]
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


def launcher(sharded: bool) -> list[str]:
    """What starts the command in two processes, each with the whole model or with its share of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if not sharded:
        return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    start = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"]
    start += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*start, "--main_process_port", port]


def kill_all(process: subprocess.Popen) -> None:
    """Kill a process and all that it has started: a launcher's children are in groups of their own."""
    own = psutil.Process(process.pid)
    for each in (own, *own.children(recursive=True)):
        each.kill()
    process.wait()


def run(start: list[str], family, name: str, *how: str) -> None:
    """The command, by processes of its own, to its end."""
    line = [*start, *MODULE, *command(family, name, *how, "--json")]
    process = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said, complaints = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise
    assert process.returncode == 0, complaints
    assert sum(line.startswith("{") for line in said.splitlines()) == 1  # one of them speaks


def kill_on_the_way(start: list[str], family, name: str, how: list[str], after: int) -> int:
    """Begin a run and kill all of its processes once it has made `after` steps; the step of its checkpoint."""
    process = subprocess.Popen(
        [*start, *MODULE, *command(family, name, *how)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    folder, until = family / f"{name}.training", time.monotonic() + LIMIT_S
    try:
        while not ((folder / "checkpoint.pt").exists() and log_of(family, name)[-1]["step"] >= after):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < until, "the run did not get anywhere"
            time.sleep(0.01)
    finally:
        kill_all(process)
    assert not (family / name).exists()
    return torch.load(folder / "checkpoint.pt", weights_only=True)["step"]


def check_same(family, one: str, other: str) -> None:
    """The same weights to the last bit, and a log in which every step stands once."""
    ours, theirs = weights(family, one), weights(family, other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    steps = [record["step"] for record in log_of(family, other) if "loss" in record]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("how", [["--on-policy", "0.3"], ["--cache-logits", "16"]], ids=["own", "cached"])
def test_killed_in_the_middle_and_resumed_it_ends_with_the_same_weights(family, how):
    how = [*how, "--steps", "160", "--checkpoint-every", "0.3"]
    assert cli.main(command(family, "whole", *how)) == 0
    at = kill_on_the_way([sys.executable], family, "killed", how, 20)
    assert 0 < at < 160
    assert cli.main(command(family, "killed", *how, "--resume")) == 0
    check_same(family, "whole", "killed")


def test_killed_and_resumed_processes_that_share_the_weights_end_with_the_same(family):
    pytest.importorskip("accelerate")
    how = ["--steps", "60", "--checkpoint-every", "0.3", "--patience", "50", "--validate-every", "20"]
    run(launcher(sharded=True), family, "whole", *how)
    at = kill_on_the_way(launcher(sharded=True), family, "killed", how, 10)
    assert 0 < at < 60
    run(launcher(sharded=True), family, "killed", *how, "--resume")
    check_same(family, "whole", "killed")


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "fsdp"])
def test_two_processes_give_the_curve_of_one(family, sharded):
    pytest.importorskip("accelerate")
    how = ["--steps", "40", "--hidden", "mse:0.3", "--width", "16", "--on-policy", "0.3", "--dropout", "0.2"]
    how += ["--codebook-weights", "3,2,1,0.5"]
    how += ["--guidance", "input:1-6"] if sharded else []
    assert cli.main(command(family, "one", *how)) == 0
    run(launcher(sharded), family, "two", *how, "--accumulate", "2")
    one, two = log_of(family, "one"), log_of(family, "two")
    assert [r["step"] for r in one] == [r["step"] for r in two]
    for mine, other in zip(one, two, strict=True):
        for name in set(mine) - {"elapsed_s"}:
            assert other[name] == pytest.approx(mine[name], rel=2e-4, abs=1e-5), (name, mine["step"])
    # Single weights whose gradients are next to nothing go by the sign of rounding errors, which differ among CPUs.
    ours, theirs = weights(family, "one"), weights(family, "two")
    for name in ours:
        mine, other = ours[name].float(), theirs[name].float()
        assert (mine - other).norm() <= 0.02 * mine.norm() + 1e-4, name
