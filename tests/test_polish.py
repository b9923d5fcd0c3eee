"""Polishing the codec: what the discriminators say, whose gradient goes where, and codes that keep their meaning."""

import math

import pytest
import torch
from tiny_codec import FRAME, small_codec, sound, work_folder

from tinymusician_core.codec.spectral import SpectralCodec
from tinymusician_core.pretrain import polish
from tinymusician_core.pretrain.codec import (
    CONVERGENCE_WEIGHT,
    ENERGY_WEIGHT,
    PITCH_WEIGHT,
    SoundDistance,
    as_told,
)
from tinymusician_core.pretrain.discriminator import (
    Discriminators,
    feature_distance,
    passing_for_real,
    telling_apart,
)
from tinymusician_core.pretrain.notes import PLAYERS
from tinymusician_core.pretrain.polish import PolishTraining, polish_codec


def test_energy_is_what_tiles_hold_wherever_in_them_it_lies():
    distance, real = SoundDistance(32000), sound(20)
    found = distance(real / 2, real)
    assert float(found["energy"]) == pytest.approx(math.log(2), rel=1e-4)
    other = distance(sound(20, seed=5), real)
    assert float(other["energy"]) < 0.4 * float(other["mel"])
    parts = other["mel"] + CONVERGENCE_WEIGHT * other["convergence"] + PITCH_WEIGHT * other["pitch"]
    torch.testing.assert_close(other["sound"], parts + ENERGY_WEIGHT * other["energy"])


def test_no_gradient_reaches_the_sound_that_is_compared_with():
    made, real = sound(8).requires_grad_(), sound(8, seed=3).requires_grad_()
    SoundDistance(32000)(made, real)["sound"].backward()
    assert made.grad.abs().sum() > 0
    assert real.grad is None


@pytest.fixture
def judges():
    torch.manual_seed(1)
    return Discriminators((512, 256), channels=4)


def test_the_losses_of_known_verdicts():
    def said(*verdicts):
        return [(torch.tensor(v), [torch.tensor(v)]) for v in verdicts]

    assert telling_apart(said([1.0, 2.0]), said([-1.0, -3.0])) == 0
    assert telling_apart(said([0.0, 0.5]), said([0.0, -0.5])) == pytest.approx(0.75 + 0.75)
    assert passing_for_real(said([1.0, 2.0], [3.0, 4.0])) == pytest.approx(-2.5)
    assert feature_distance(said([2.0, -2.0]), said([1.0, -1.0])) == pytest.approx(0.5)
    assert feature_distance(said([2.0, -2.0]), said([2.0, -2.0])) == 0


def test_frozen_judges_say_the_same_and_learn_nothing(judges):
    wave = sound(4).requires_grad_()
    passing_for_real(judges.detached(wave)).backward()
    assert wave.grad.abs().sum() > 0
    assert all(p.grad is None for p in judges.parameters())
    for (a, _), (b, _) in zip(judges(wave), judges.detached(wave), strict=True):
        assert torch.equal(a, b)


def test_judges_learn_to_tell_noise_from_a_tone(judges):
    tone = 0.1 * torch.sin(torch.arange(4 * FRAME) * 0.1).repeat(2, 1, 1)
    optimizer = torch.optim.Adam(judges.parameters(), 3e-3)
    costs = []
    for step in range(30):
        cost = telling_apart(judges(tone), judges(sound(4, step)))
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert costs[-1] < 0.5 < costs[0]


def test_each_side_gets_the_gradient_of_its_own_loss():
    codec, encoder = small_codec()
    codec._encoder = encoder
    model, audio = PolishTraining(codec), sound(6)
    codes = codec.encode(audio).clone()
    losses = model(audio, codes)
    losses["loss"].backward()
    judges_grad = [p.grad.clone() for p in model.judges.parameters()]
    decoder_grad = codec.decoder.widen.weight.grad.clone()
    model.zero_grad()
    model(audio, codes)["judged"].backward()
    assert codec.decoder.widen.weight.grad is None
    for grad, parameter in zip(judges_grad, model.judges.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad)
    model.zero_grad()
    again = model(audio, codes)
    (again["loss"] - again["judged"]).backward()
    torch.testing.assert_close(decoder_grad, codec.decoder.widen.weight.grad)
    assert codec.decoder.score_codebook.weight.grad is None


def test_who_plays_is_always_told_and_the_other_notes_in_some_windows():
    heard, notes = torch.zeros(400, 3, 5, dtype=torch.long), torch.ones(400, 3, 5, dtype=torch.long)
    given = as_told(heard, notes, torch.Generator().manual_seed(0))
    assert torch.all(given[:, PLAYERS] == 1)
    told = given[:, :PLAYERS].float().mean(dim=(1, 2))
    assert set(told.tolist()) == {0.0, 1.0}
    assert 0.4 < float(told.mean()) < 0.6
    assert torch.all(heard == 0)


def test_judges_take_part_after_a_while_and_count_little_by_little():
    assert polish.heed_at(0.0) is None
    assert polish.heed_at(polish.JUDGED_FROM - 0.01) is None
    assert polish.heed_at(polish.JUDGED_FROM) == 0.0
    assert polish.heed_at(polish.JUDGED_FROM + polish.HEEDED_AFTER / 2) == pytest.approx(0.5)
    assert polish.heed_at(1.0) == 1.0
    assert polish.heed_at(0.99, 1.0) is None


def test_unheeded_judges_learn_and_change_nothing_that_the_decoder_learns():
    codec, encoder = small_codec()
    codec._encoder = encoder
    model, audio = PolishTraining(codec), sound(6)
    codes = codec.encode(audio).clone()
    grads = []
    for heed in (None, 0.0):
        model.zero_grad()
        losses = model(audio, codes, heed)
        losses["loss"].backward()
        grads.append(codec.decoder.widen.weight.grad.clone())
    torch.testing.assert_close(*grads)
    assert losses["judged"] > 0
    assert any(p.grad.abs().sum() > 0 for p in model.judges.parameters())


@pytest.fixture
def work(tmp_path):
    return work_folder(tmp_path)


def test_a_codec_without_oscillators_gets_some_that_can_be_left_alone(work):
    plain, richer = SpectralCodec.from_folder(work / "codec" / "model"), polish.to_polish(work / "codec" / "model")
    assert plain.decoder.oscillators is None
    assert richer.config.oscillators > 0
    x = torch.randn(2, 6, plain.config.decoder_dim)
    with torch.inference_mode():
        before, held = plain.decoder.spectrum(x), richer.decoder.oscillators(richer.decoder.norm(x), 0)
        after = richer.decoder.spectrum(x, alone=torch.tensor([False, True]))
    torch.testing.assert_close(after[0], before[0] + held[0])
    reach = round(55 * 2 ** (215 / 36) / 32000 * 1280) + 1
    torch.testing.assert_close(after[1, :, :reach], held[1, :, :reach])
    torch.testing.assert_close(after[1, :, reach:], before[1, :, reach:] + held[1, :, reach:])


def test_polishing_changes_the_sound_and_no_code_of_it(work, monkeypatch):
    class Few(polish.TrainSettings):
        def __init__(self, minutes, **settings):
            super().__init__(steps=4, **settings)

    monkeypatch.setattr(polish, "TrainSettings", Few)
    polish_codec(work, minutes=1, batch=2)
    before, after = (SpectralCodec.from_folder(work / part / "model") for part in ("codec", "polish"))
    audio = sound(40, batch=1)
    codes = before.encode(audio)
    assert torch.equal(codes, after.encode(audio))
    assert not torch.equal(before.decode(codes), after.decode(codes))
    assert (work / "polish" / "log.jsonl").exists()
