"""Sinusoids that run on from frame to frame."""

import numpy as np
import pytest
import torch

from tinymusician_core.codec.oscillators import QUIET, UNIT, Oscillators
from tinymusician_core.codec.spectral import SpectralCodec, SpectralConfig

RATE_HZ, N_FFT, HOP = 32000, 1280, 320


def playing(*places: int) -> Oscillators:
    """Oscillators of which some sound at amplitude UNIT whatever goes in."""
    bank = Oscillators(4, 100, RATE_HZ, N_FFT, HOP)
    with torch.no_grad():
        bank.loudness.bias.zero_()
        bank.direction.bias.zero_()
        for place in places:
            bank.direction.bias[2 * place] = 1.0
    return bank


def sound_of(columns: torch.Tensor) -> np.ndarray:
    spectrum = torch.cat([columns, columns[:, -1:]], dim=1).transpose(1, 2)
    wave = torch.istft(spectrum, N_FFT, HOP, window=torch.hann_window(N_FFT), center=True)
    return wave[0].detach().numpy()


@pytest.mark.parametrize("place", [36, 50, 73])
def test_an_oscillator_is_a_pure_tone_of_its_pitch_however_that_lies_to_the_frames(place):
    wave = sound_of(playing(place)(torch.zeros(1, 400, 4), 0))[2 * N_FFT : -2 * N_FFT]
    hz = 55 * 2 ** (place / 36)
    time = np.arange(len(wave)) / RATE_HZ
    basis = np.stack([np.cos(2 * np.pi * hz * time), np.sin(2 * np.pi * hz * time)])
    weights, *_ = np.linalg.lstsq(basis.T, wave, rcond=None)
    assert np.hypot(*weights) == pytest.approx(UNIT, rel=1e-3)
    assert np.abs(wave - weights @ basis).max() < 1e-3 * UNIT


def test_a_column_is_the_transform_of_the_windowed_sinusoid():
    place, number = 99, 5
    hz = 55 * 2 ** (place / 36)
    turns = (np.arange(N_FFT) + number * HOP) * hz / RATE_HZ
    window = torch.hann_window(N_FFT, dtype=torch.float64).numpy()
    whole = np.fft.fft(window * np.exp(2j * np.pi * turns))[: N_FFT // 2 + 1] * UNIT / 2
    bank = playing(place)
    made = bank(torch.zeros(1, 1, 4), number)[0, 0].detach().numpy()
    assert bank.silent_bins > 400
    np.testing.assert_allclose(made, whole, atol=2e-5 * np.abs(whole).max(), rtol=0)


def test_columns_go_on_where_earlier_ones_ended():
    bank, x = playing(10, 70), torch.zeros(1, 60, 4)
    whole = bank(x, 0)
    parts = torch.cat([bank(x[:, :7], 0), bank(x[:, 7:31], 7), bank(x[:, 31:], 31)], dim=1)
    torch.testing.assert_close(whole, parts)
    assert not torch.allclose(bank(x[:, 7:31], 0), whole[:, 7:31], atol=0.1)


def test_new_oscillators_are_quiet_all_alike_and_learn_at_once_how_loud_to_be():
    bank, x = Oscillators(4, 30, RATE_HZ, N_FFT, HOP), torch.randn(1, 5, 4)
    spectrum = np.abs(np.fft.rfft(sound_of(bank(torch.zeros(1, 400, 4), 0).detach())[2 * N_FFT : -2 * N_FFT]))
    assert 0 < spectrum.max() / (0.5 * (400 - 4 * N_FFT // HOP) * HOP) < 3 * UNIT * np.exp(QUIET)
    bank(x, 0).abs().square().sum().backward()
    assert bank.loudness.weight.grad.abs().sum(1).min() > 0


def test_a_codec_with_oscillators_is_stored_and_read(tmp_path):
    small = {"codebook_size": 16, "score_dim": 4, "latent_dim": 6, "decoder_dim": 16, "decoder_blocks": 1}
    torch.manual_seed(0)
    codec = SpectralCodec(SpectralConfig(oscillators=24, **small))
    with torch.no_grad():
        codec.decoder.oscillators.direction.weight.normal_()
    codec.save(tmp_path)
    again, codes = SpectralCodec.from_folder(tmp_path), torch.randint(0, 16, (1, 4, 12))
    torch.testing.assert_close(codec.decode(codes), again.decode(codes), atol=2e-3, rtol=0)
    assert again.config.oscillators == 24
