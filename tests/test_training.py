import json

import pytest
import torch
from torch import nn

from tinymusician_core.training import Trainer, TrainSettings


def regression(model):
    """A loss whose batches come from the trainer's own generator."""
    goal = torch.tensor([[1.0, -2.0, 0.5]])

    def loss(rng, _):
        x = torch.randn(16, 3, generator=rng)
        return {"loss": (model(x) - x @ goal.T).pow(2).mean()}

    return loss


def trainer(folder, steps, **changes):
    torch.manual_seed(0)
    settings = {"learning_rate": 0.05, "steps": steps, "warm_up_steps": 5, "bf16": False, "log_every": 10, "ema": 0.9}
    return Trainer(nn.Linear(3, 1), TrainSettings(**settings | changes), folder)


def test_it_learns_and_logs(tmp_path):
    run = trainer(tmp_path, 200)
    seen = []
    run.run(regression(run.model), on_progress=seen.append)
    assert torch.allclose(run.model.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.05)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in log] == list(range(10, 201, 10))
    assert log[-1]["loss"] < log[0]["loss"] / 10
    assert seen[-1].fraction == 1.0
    assert log[-1]["lr"] < log[2]["lr"] / 5


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path):
    whole = trainer(tmp_path / "whole", 60)
    whole.run(regression(whole.model))
    first = trainer(tmp_path / "parts", 60)
    first.run(regression(first.model), should_stop=lambda: first.step == 23)
    assert first.step == 23
    second = trainer(tmp_path / "parts", 60)
    assert second.resume()
    second.run(regression(second.model))
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for name in whole.average:
        assert torch.equal(whole.average[name], second.average[name])


def test_the_average_trails_the_weights(tmp_path):
    run = trainer(tmp_path, 30, ema=0.99)
    run.run(regression(run.model))
    assert not torch.equal(run.averaged_state()["weight"], run.model.weight)
    assert trainer(tmp_path / "none", 30, ema=0.0).averaged_state().keys() == run.model.state_dict().keys()


def test_validation_is_logged_at_the_end(tmp_path):
    run = trainer(tmp_path, 10)
    run.run(regression(run.model), validate=lambda: {"validation_loss": 0.25})
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["validation_loss"] == 0.25


def test_a_budget_is_needed_and_positive(tmp_path):
    with pytest.raises(ValueError, match="either in minutes or in steps"):
        TrainSettings(learning_rate=1.0)
    with pytest.raises(ValueError, match="above zero"):
        TrainSettings(learning_rate=1.0, minutes=-3)
    assert not trainer(tmp_path, 5).resume()
