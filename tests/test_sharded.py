"""Weights of which each of two processes keeps a share: what is kept, and what is saved."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from tinymusician_core.processes import processes
from tinymusician_core.training import Trainer, TrainSettings

pytest.importorskip("accelerate")

SETTINGS = {"warm_up_steps": 1, "weight_decay": 0.05, "ema": 0.9, "bf16": False, "patience": 9, "validate_every": 2}
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from test_sharded import loss_of, make, settings
from tinymusician_core.processes import processes
from tinymusician_core.training import Trainer

torch.set_num_threads(1)
together = processes("cpu")
trainer = Trainer(make(), settings(int(sys.argv[2])), Path(sys.argv[1]), together=together)
resumed = trainer.resume()
judged = lambda: {"validation_loss": 1.0 / (1 + trainer.step)}
trainer.run(loss_of(trainer.running, together), judged, should_stop=lambda: trainer.step >= int(sys.argv[3]))
kept = sum(p.to_local().numel() for p in trainer.parameters)
moments = sum(getattr(t, "to_local", lambda t=t: t)().numel() for t in trainer.optimizer.tensors() if t.ndim)
told = {"rank": together.rank, "kept": kept, "moments": moments, "resumed": resumed, "kind": type(together).__name__}
Path(sys.argv[1], f"told-{together.rank}.json").write_text(json.dumps(told))
"""


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(12, 33), nn.Linear(33, 12)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Model(nn.Module):
    _no_split_modules = ("Layer", "Linear")

    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList([Layer(), Layer()]), nn.Linear(12, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def make() -> Model:
    torch.manual_seed(0)
    return Model()


def settings(steps: int) -> TrainSettings:
    return TrainSettings(0.01, steps=steps, muon=("layers",), **SETTINGS)


def loss_of(model, together):
    """A batch of eight rows in two parts, of which each process has its own."""

    def loss(rng, fraction):
        x, y = torch.randn(8, 12, generator=rng), torch.randn(8, 3, generator=rng)
        size = 4 // together.world
        first = 2 * size * together.rank
        rows = [slice(first + part * size, first + (part + 1) * size) for part in range(2)]
        return [lambda at=at: {"loss": (model(x[at]) - y[at]).square().sum() / 24 * together.world} for at in rows]

    return loss


def two(folder, steps: int, stop: int = 99) -> list[dict]:
    """Train in two processes, `steps` in all or up to `stop`; what each of them says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*start, str(folder), str(steps), str(stop)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


def checkpoint(folder) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def flat(tree, name="") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {key: value for place, part in pairs for key, value in flat(part, f"{name}.{place}").items()}


def test_two_processes_share_what_one_has(tmp_path):
    told = two(tmp_path / "two", 12)
    total = sum(p.numel() for p in make().parameters())
    matrices = 4 * 12 * 33
    assert {t["kind"] for t in told} == {"ShardedProcesses"}
    assert sum(t["kept"] for t in told) == total
    assert max(t["kept"] for t in told) < 0.6 * total
    assert sum(t["moments"] for t in told) == matrices + 2 * (total - matrices)
    one = Trainer(make(), settings(12), tmp_path / "one")
    one.run(loss_of(one.running, one.together), lambda: {"validation_loss": 1.0 / (1 + one.step)})
    ours, theirs = flat(checkpoint(tmp_path / "one")), flat(checkpoint(tmp_path / "two"))
    assert ours.keys() == theirs.keys()  # averages, moments and the best weights too
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], atol=1e-3, rtol=1e-3, msg=lambda text, n=name: n + text)


def test_they_go_on_from_a_checkpoint_exactly_and_one_can_take_it_over(tmp_path):
    two(tmp_path / "whole", 12)
    first = two(tmp_path / "parts", 12, stop=5)
    assert checkpoint(tmp_path / "parts")["step"] == 5
    shutil.copytree(tmp_path / "parts", tmp_path / "taken")
    second = two(tmp_path / "parts", 12)
    assert [t["resumed"] for t in (*first, *second)] == [False, False, True, True]
    ours, theirs = flat(checkpoint(tmp_path / "whole")), flat(checkpoint(tmp_path / "parts"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    one = Trainer(make(), settings(12), tmp_path / "taken")
    assert one.resume()
    one.run(loss_of(one.running, one.together), lambda: {"validation_loss": 1.0 / (1 + one.step)})
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, ours[f".model.{name}"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"FSDP_VERSION": "1"}, "FSDP of version 1; version 2 is allowed, with --fsdp_version 2"),
        ({}, "FSDP of version 1; version 2 is allowed"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params is true, which is not supported"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--fsdp_activation_checkpointing is true"),
    ],
)
def test_what_of_fsdp_is_not_done_is_refused(monkeypatch, environment, words):
    for name in ("FSDP_VERSION", "FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        processes("cpu")
