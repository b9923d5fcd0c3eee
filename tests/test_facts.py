"""The probes that ask a teacher for the facts of a piece."""

import math

import pytest
import torch

from tinymusician_core.pretrain.facts import FACTS, FactProbe, classes_of

FIRST = {
    "instrument": "piano",
    "style": "jig",
    "meter": "6/8",
    "tempo": "fast",
    "mode": "major",
    "tonic": 7,
    "texture": "solo",
    "accompanist": "",
    "bpm": 125,
}
SECOND = FIRST | {"instrument": "flute", "tempo": "slow", "tonic": 2}


def test_classes_are_the_values_that_occur():
    classes = classes_of([FIRST, SECOND, FIRST])
    assert tuple(classes) == FACTS
    assert classes["instrument"] == ("flute", "piano")
    assert classes["tonic"] == (2, 7)
    assert classes["mode"] == ("major",)


def test_a_probe_that_knows_nothing_is_at_chance_and_learns_what_is_there():
    torch.manual_seed(0)
    probe, weights = FactProbe(4, classes_of([FIRST, SECOND])), torch.ones(2, 3)
    for head in probe.heads.values():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    states = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])[:, None].expand(2, 3, 4)
    # three of the eight facts have two classes, the others one
    assert float(probe(states, [FIRST, SECOND], weights).detach()) == pytest.approx(3 * math.log(2) / 8)
    optimizer = torch.optim.Adam(probe.parameters(), 0.1)
    for _ in range(50):
        optimizer.zero_grad()
        probe(states, [FIRST, SECOND], weights).backward()
        optimizer.step()
    assert float(probe(states, [FIRST, SECOND], weights).detach()) < 0.01
    assert float(probe(states, [SECOND, FIRST], weights).detach()) > 1.0


def test_what_has_no_weight_does_not_count():
    torch.manual_seed(0)
    probe, states = FactProbe(4, classes_of([FIRST, SECOND])), torch.randn(2, 3, 4)
    weights = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    before = probe(states, [FIRST, SECOND], weights)
    states = states.clone()
    states[0, 1], states[1] = 9.0, -9.0
    torch.testing.assert_close(probe(states, [FIRST, FIRST], weights), before)
    assert float(probe(states, [FIRST, SECOND], torch.zeros(2, 3)).detach()) == 0.0
