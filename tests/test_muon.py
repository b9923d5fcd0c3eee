"""Our Muon beside torch's: the same updates in bfloat16, and in float32 but for its rounding."""

import pytest
import torch
from torch import nn
from torch.optim import Muon

from tinymusician_core import muon
from tinymusician_core.sharded import ShardedMuon


@pytest.mark.parametrize("ours_is", [muon.FastMuon, ShardedMuon])
@pytest.mark.parametrize(("bf16", "rounding"), [(True, 1e-6), (False, 2e-3)])
@pytest.mark.parametrize("shape", [(12, 33), (33, 12)])
def test_its_updates_are_those_of_torch(monkeypatch, ours_is, bf16, rounding, shape):
    monkeypatch.setattr(muon, "computes_bf16", lambda device: bf16)
    random = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    options = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = ours_is([ours], **options), Muon([theirs], **options)
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=random)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=rounding, rtol=1e-5)
    assert (ours - 1).abs().max() > 10 * rounding


@pytest.mark.parametrize("bf16", [True, False])
def test_singular_values_come_near_one(monkeypatch, bf16):
    monkeypatch.setattr(muon, "computes_bf16", lambda device: bf16)
    found = muon.orthogonal(torch.randn(16, 40, generator=torch.Generator().manual_seed(1)))
    assert found.dtype == (torch.bfloat16 if bf16 else torch.float32)
    sizes = torch.linalg.svdvals(found.float())
    assert 0.5 < sizes.min() <= sizes.max() < 1.3
