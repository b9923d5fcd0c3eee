import json

import pytest
import torch
from torch import nn

from tinymusician_core.precision import computes_bf16
from tinymusician_core.training import Trainer, TrainSettings, kept_state


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


@pytest.mark.parametrize(
    ("found", "expected"),
    [({"avx2": True}, False), ({"avx2": True, "avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)],
)
def test_bfloat16_where_the_cpu_has_instructions_for_it(tmp_path, monkeypatch, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert computes_bf16(torch.device("cpu")) is expected
    for asked in (None, True, False):
        run, seen = trainer(tmp_path / str(asked), 1, bf16=asked), []

        def loss(_, __, run=run, seen=seen):
            made = run.model(torch.ones(1, 3))
            seen.append(made.dtype)
            return {"loss": made.float().sum()}

        run.run(loss)
        assert seen == [torch.bfloat16 if (expected if asked is None else asked) else torch.float32]


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


def test_parts_of_a_batch_add_up_to_the_whole(tmp_path):
    goal = torch.tensor([[1.0, -2.0, 0.5]])

    def in_parts(model):
        def loss(rng, _):
            x = torch.randn(16, 3, generator=rng)
            return [lambda rows=rows: {"loss": (model(rows) - rows @ goal.T).pow(2).sum() / 16} for rows in x.split(5)]

        return loss

    whole, parts = trainer(tmp_path / "whole", 30), trainer(tmp_path / "parts", 30)
    whole.run(regression(whole.model))
    parts.run(in_parts(parts.model))
    torch.testing.assert_close(parts.model.weight, whole.model.weight, atol=1e-6, rtol=1e-5)
    logs = [
        [json.loads(x)["loss"] for x in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("whole", "parts")
    ]
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)


def test_it_ends_early_and_keeps_the_best_weights(tmp_path):
    values = iter([3.0, 2.0, 2.5, 2.0, 9.0, 9.0])
    seen = []
    run = trainer(tmp_path, 100, validate_every=5, patience=2)

    def validate():
        seen.append((run.step, {k: v.clone() for k, v in run.average.items()}))
        return {"validation_loss": next(values)}

    run.run(regression(run.model), validate)
    assert run.step == 20
    assert run.done
    assert run.fraction == 0.2
    best = next(weights for step, weights in seen if step == 10)
    assert torch.equal(run.averaged_state()["weight"], best["weight"])
    again = trainer(tmp_path, 100, validate_every=5, patience=2)
    assert again.resume()
    assert again.done
    assert torch.equal(again.averaged_state()["weight"], best["weight"])
    assert torch.equal(kept_state(tmp_path)["weights"]["weight"], best["weight"])


def test_weights_that_are_best_at_the_very_end_are_kept(tmp_path):
    values = iter([3.0, 2.0, 9.0, 1.0])
    run = trainer(tmp_path, 14, validate_every=5, patience=2)
    run.run(regression(run.model), lambda: {"validation_loss": next(values)}, should_stop=lambda: run.step == 12)
    assert run.best["value"] == 2.0
    assert run.best["ago"] == 0, "a validation where it was stopped is not for patience"
    run.run(regression(run.model), lambda: {"validation_loss": next(values)})
    assert run.step == 14
    assert torch.equal(kept_state(tmp_path)["weights"]["weight"], run.average["weight"])


def test_without_patience_the_average_is_kept_and_without_one_the_last(tmp_path):
    for ema in (0.9, 0.0):
        run = trainer(tmp_path / str(ema), 10, ema=ema)
        run.run(regression(run.model))
        kept = kept_state(tmp_path / str(ema))
        assert kept["step"] == 10
        assert torch.equal(kept["weights"]["weight"], (run.average or run.model.state_dict())["weight"])


def test_what_was_logged_after_the_checkpoint_is_forgotten(tmp_path):
    first = trainer(tmp_path, 40)
    first.run(regression(first.model), should_stop=lambda: first.step == 20)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 30, "elapsed_s": 1.0, "loss": 1.0}) + '\n{"step": 3')
    second = trainer(tmp_path, 40)
    assert second.resume()
    second.run(regression(second.model))
    log = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log == [10, 20, 30, 40]


def test_a_checkpoint_of_earlier_times_loads(tmp_path):
    first = trainer(tmp_path, 10)
    first.run(regression(first.model))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["best"]
    torch.save(state, tmp_path / "checkpoint.pt")
    second = trainer(tmp_path, 10)
    assert second.resume()
    assert second.step == 10
    assert torch.equal(second.model.weight, first.model.weight)


def test_tensorboard_gets_what_the_log_gets(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = trainer(tmp_path, 30, tensorboard=True)
    run.run(regression(run.model))
    run.close()
    log = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [e.step for e in found.Scalars("loss")] == [10, 20, 30]
    assert [e.value for e in found.Scalars("loss")] == pytest.approx(log, rel=1e-6)
