import pytest
import torch

from tinymusician_core.engine import Sampler
from tinymusician_core.engine.sampling import guide
from tinymusician_core.records import SamplingSpec


def test_guidance_is_the_formula():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 2, 5, generator=generator)
    conditional, unconditional = logits[:2].clone(), logits[2:].clone()
    torch.testing.assert_close(guide(logits, 3.0), unconditional + 3.0 * (conditional - unconditional))


def draws(logits, count, **settings_):
    sampler = Sampler(SamplingSpec(**settings_))
    return torch.cat([sampler(logits.expand(1, 500, -1)).flatten() for _ in range(count // 500)])


def test_draws_follow_the_softmax_of_the_logits():
    logits = torch.tensor([[[2.0, 1.0, 0.0, -1.0, 0.5]]])
    for temperature, top_k in ((1.0, 0), (0.7, 0), (1.5, 5), (1.0, 4)):
        drawn = draws(logits, 20_000, temperature=temperature, top_k=top_k, seed=4)
        expected = (logits[0, 0] / temperature).softmax(-1)
        if top_k == 4:
            expected[3] = 0
            expected /= expected.sum()
        share = torch.bincount(drawn, minlength=5) / len(drawn)
        torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("settings_", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_k": 0, "top_p": 0.5}, {0}),
        ({"top_k": 0, "top_p": 0.7}, {0, 1}),
        ({"top_k": 3, "top_p": 0.96}, {0, 1, 4}),
        ({"top_k": 0, "top_p": 0.0}, {0, 1, 2, 3, 4}),
        ({"top_k": 0, "top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"greedy": True}, {0}),
    ],
)
def test_only_allowed_tokens_are_drawn(settings_, allowed):
    logits = torch.tensor([[[2.0, 1.0, 0.0, -1.0, 0.5]]])  # probabilities 0.55, 0.20, 0.07, 0.03, 0.12
    assert set(draws(logits, 5000, **settings_).tolist()) == allowed


def test_top_p_and_top_k_keep_what_transformers_keeps():
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 40, 30, generator=torch.Generator().manual_seed(6)) * 2
    spec = SamplingSpec(top_k=12, top_p=0.8, temperature=0.9)
    scores, tokens = Sampler(spec)._keep(logits.clone())
    ours = torch.full_like(logits, float("-inf")).scatter(-1, tokens, scores)
    theirs = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(12)(None, logits[0] / 0.9))
    torch.testing.assert_close(ours[0], theirs)
