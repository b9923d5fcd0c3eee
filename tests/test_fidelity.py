import math

import numpy as np
import pytest
import torch

from tinymusician_core.evaluate.fidelity import MEASURES, MelScales, fidelity, log_mel_l1, si_sdr


def tone(seconds: float = 0.5, hz: float = 440.0, channels: int = 1) -> np.ndarray:
    t = np.arange(round(32000 * seconds)) / 32000
    return np.stack([0.3 * np.sin(2 * np.pi * hz * (c + 1) * t) for c in range(channels)]).astype(np.float32)


def noise(like: np.ndarray, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=like.shape)).astype(np.float32)


def test_si_sdr_of_orthogonal_noise_is_the_ratio_of_powers():
    real = np.array([[1.0, -1.0, 1.0, -1.0]])
    other = np.array([[1.0, 1.0, -1.0, -1.0]])
    for level in (0.01, 0.5, 3.0):
        assert si_sdr(real + level * other, real) == pytest.approx(-20 * math.log10(level))
        assert si_sdr(7.0 * (real + level * other) + 2.0, real) == pytest.approx(-20 * math.log10(level))


def test_si_sdr_at_its_ends():
    real = tone()
    assert si_sdr(0.25 * real, real) == math.inf
    assert si_sdr(np.zeros_like(real), real) == -math.inf
    assert si_sdr(real + noise(real), real) > si_sdr(real + 3 * noise(real), real)


def test_si_sdr_agrees_with_torchmetrics():
    audio = pytest.importorskip(
        "torchmetrics.functional.audio", reason="torchmetrics is not installed (--with audiocraft)"
    )
    real = tone(0.25)
    made = 0.7 * real + noise(real) + 0.05
    theirs = audio.scale_invariant_signal_distortion_ratio(
        torch.from_numpy(made).double(), torch.from_numpy(real).double(), zero_mean=True
    )
    assert si_sdr(made, real) == pytest.approx(float(theirs), abs=1e-6)


def test_log_mel_of_a_level_is_that_level_where_nothing_is_floored():
    real = np.random.default_rng(1).normal(size=(1, 16000)).astype(np.float32)
    assert log_mel_l1(0.5 * real, real, 32000) == pytest.approx(math.log(2), rel=1e-4)
    assert log_mel_l1(real, real, 32000) == 0.0


def test_log_mel_grows_with_noise_and_averages_channels():
    real = tone(channels=2)
    worse = [log_mel_l1(real + scale * noise(real), real, 32000) for scale in (0.0, 0.01, 0.1, 1.0)]
    assert worse == sorted(worse)
    assert worse[1] > 0.0
    made = real + noise(real)
    each = [log_mel_l1(made[c : c + 1], real[c : c + 1], 32000) for c in range(2)]
    assert log_mel_l1(made, real, 32000) == pytest.approx(np.mean(each), rel=1e-5)


def test_log_mel_is_what_the_codec_is_trained_on():
    real = tone()
    made = real + noise(real)
    batch = [torch.from_numpy(x)[None] for x in (made, real)]
    assert log_mel_l1(made, real, 32000) == pytest.approx(float(MelScales(32000)(*batch)[0]), rel=1e-6)


def test_a_clip_gets_both_and_lengths_may_differ_by_a_frame():
    real = tone()
    made = np.concatenate([real + 0.1 * noise(real), np.zeros((1, 1000), np.float32)], axis=1)
    found = fidelity(made, real, 32000)
    assert tuple(found) == MEASURES
    assert found == {
        "log_mel_l1": log_mel_l1(made[:, :16000], real, 32000),
        "si_sdr_db": si_sdr(made[:, :16000], real),
    }
    assert fidelity(real, made[:, :16000], 32000)["log_mel_l1"] > 0.0


def test_bad_input_is_told_in_one_sentence():
    real = tone()
    with pytest.raises(ValueError, match="got silence"):
        si_sdr(real, np.zeros_like(real))
    with pytest.raises(ValueError, match=r"of one shape, got \(1, 16000\) and \(2, 16000\)"):
        fidelity(real, tone(channels=2), 32000)
    with pytest.raises(ValueError, match=r"equally long, to 0.1 s, got 0.50 s and 0.70 s"):
        fidelity(real, tone(0.7), 32000)
    with pytest.raises(ValueError, match="more than 2048 samples, got 1600"):
        fidelity(tone(0.05), tone(0.05), 32000)
