import math

import pytest
import torch

from tinymusician_core.codec.pitch import BINS_PER_OCTAVE, LOWEST_HZ, PitchSpectrum, pitch_filters

RATE, FFT, HOP = 32000, 8192, 1280


def tone(hz, frames=12):
    return torch.sin(2 * math.pi * hz * torch.arange(frames * HOP) / RATE)[None]


def test_every_filter_sums_to_one_and_none_is_empty():
    filters = pitch_filters(RATE, FFT)
    assert filters.shape == (FFT // 2 + 1, 180)
    torch.testing.assert_close(filters.sum(0), torch.ones(180))
    assert float(filters.min()) == 0.0


@pytest.mark.parametrize("hz", [110.0, 261.63, 440.0, 1046.5])
def test_a_tone_is_strongest_at_its_pitch(hz):
    seen = PitchSpectrum(RATE, FFT, HOP)(tone(hz))
    assert seen.shape == (1, 12, 180)
    assert int(seen[0, 6].argmax()) == pytest.approx(BINS_PER_OCTAVE * math.log2(hz / LOWEST_HZ), abs=1.5)


def test_a_frame_looks_around_its_own_middle():
    spectrum, click = PitchSpectrum(RATE, FFT, HOP), torch.zeros(1, 20 * HOP)
    click[0, 10 * HOP + HOP // 2] = 1.0
    power = spectrum(click)[0].exp().mean(1)
    assert int(power.argmax()) == 10
    torch.testing.assert_close(power[9], power[11], rtol=1e-3, atol=0)
    assert float(power[6]) < 1e-4  # four frames off: beyond the window
