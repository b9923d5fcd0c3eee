import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tinymusician_core.optimizer import Optimizers, layer_matrices
from tinymusician_core.training import Trainer, TrainSettings


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)) for _ in range(2))
        self.head = nn.Linear(8, 7)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def loss_of(net):
    def loss(rng, _):
        tokens = torch.randint(0, 7, (16,), generator=rng)
        return {"loss": F.cross_entropy(net(tokens), (3 * tokens + 1) % 7)}

    return loss


def trainer(folder, steps=40, muon=("layers",)):
    torch.manual_seed(0)
    settings = TrainSettings(0.02, steps=steps, warm_up_steps=5, bf16=False, log_every=10, muon=muon)
    return Trainer(Net(), settings, folder)


def test_matrices_of_the_named_stacks():
    names = {f"layers.{layer}.{part}.weight" for layer in (0, 1) for part in (0, 2)}
    assert layer_matrices(Net(), ["layers"]) == names
    assert layer_matrices(Net(), ["layers", "head"]) == names | {"head.weight"}
    assert layer_matrices(Net(), []) == frozenset()
    with pytest.raises(ValueError, match=r"no linear layers in layer; names of lists"):
        layer_matrices(Net(), ["layers", "layer"])


def test_an_update_of_a_matrix_is_nearly_orthogonal_and_of_adamws_size():
    torch.manual_seed(1)
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    both = Optimizers(net, layer_matrices(net, ["layers"]), 0.01, 0.0, (0.9, 0.95))
    F.cross_entropy(net(torch.arange(7)), torch.arange(7).flip(0)).backward()
    both.step()
    for name in sorted(layer_matrices(net, ["layers"])):
        update = before[name] - net.get_parameter(name).detach()
        # lr * 0.2 * sqrt(longer side) times a matrix whose singular values are near 1 (Newton-Schulz: 0.7 to 1.2);
        # the gradient's rank is 7 of 8 at most
        size = torch.linalg.svdvals(update)[:4] / (0.01 * 0.2 * 12**0.5)
        assert float(size.min()) > 0.6
        assert float(size.max()) < 1.3
    head = before["head.weight"] - net.head.weight.detach()
    assert float(head.abs().max()) == pytest.approx(0.01, rel=0.01)  # AdamW's first step is the learning rate


def test_what_muon_cannot_train_is_refused():
    for name in ("embed.rows", "head.bias"):
        with pytest.raises(ValueError, match=f"{name} is none that is trained"):
            Optimizers(Net(), [name], 0.01, 0.0, (0.9, 0.95))
    frozen = Net()
    frozen.head.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"head.weight is none"):
        Optimizers(frozen, ["head.weight"], 0.01, 0.0, (0.9, 0.95))


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path):
    whole, first = trainer(tmp_path / "whole"), trainer(tmp_path / "parts")
    whole.run(loss_of(whole.model))
    first.run(loss_of(first.model), should_stop=lambda: first.step == 17)
    second = trainer(tmp_path / "parts")
    assert second.resume()
    assert second.step == 17
    second.run(loss_of(second.model))
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_rate_of_steady_parts_never_falls(tmp_path):
    torch.manual_seed(0)
    settings = TrainSettings(
        0.02, steps=10, warm_up_steps=1, bf16=False, final_fraction=0.0, muon=("layers",), steady=("head",)
    )
    run = Trainer(Net(), settings, tmp_path)
    run.run(loss_of(run.model), should_stop=lambda: run.step == 9)
    before = copy.deepcopy(run.model.state_dict())
    run.train_step(loss_of(run.model))
    moved = {name: (p - before[name]).abs().max().item() for name, p in run.model.named_parameters()}
    assert run.learning_rate() == pytest.approx(0.0)
    assert min(moved["head.weight"], moved["head.bias"]) > 0.001
    assert max(value for name, value in moved.items() if not name.startswith("head.")) < 0.001
    with pytest.raises(ValueError, match=r"head.weight is none"):
        Optimizers(Net(), ["head.weight"], 0.01, 0.0, (0.9, 0.95), steady=["head.weight"])


def test_a_checkpoint_of_other_optimisers_is_refused(tmp_path):
    run = trainer(tmp_path, muon=())
    run.run(loss_of(run.model), should_stop=lambda: run.step == 3)
    with pytest.raises(ValueError, match="trained with adamw, not with adamw and muon; start a new run"):
        trainer(tmp_path).resume()


def test_adamws_own_state_is_taken_up():
    torch.manual_seed(0)
    net, twin = Net(), Net()
    twin.load_state_dict(net.state_dict())
    ours = Optimizers(net, [], 0.01, 0.1, (0.9, 0.95))
    groups = [
        {"params": [p for p in twin.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in twin.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))

    def step(model, optimizer):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.arange(7)), torch.arange(7).flip(0)).backward()
        optimizer.step()

    step(twin, theirs)
    net.load_state_dict(twin.state_dict())
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    step(twin, theirs)
    step(net, ours)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    assert sum(t.nbytes for t in ours.tensors()) >= 8 * sum(p.numel() for p in net.parameters())
