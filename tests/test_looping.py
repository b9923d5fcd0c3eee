"""Loops: exact lengths, no jump where the sound begins anew, and an even level through the seam."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymusician_core.looping import LoopLength, loop_length, make_loop
from tinymusician_core.records import MAX_SECONDS, Waveform

RATE = 8000


def noise(seconds: float, channels: int = 1, seed: int = 0, level: float = 0.2) -> Waveform:
    """Music-like noise [C,N]: its steps from sample to sample are small beside its level."""
    random = np.random.default_rng(seed).standard_normal((channels, round(seconds * RATE) + 64))
    smooth = np.apply_along_axis(np.convolve, 1, random, np.hanning(65), "valid")
    return Waveform(np.clip(level * smooth / smooth.std(), -1, 1), RATE)


def tone(seconds: float, hz: float, level: float = 0.5) -> Waveform:
    return Waveform(level * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)[None], RATE)


@pytest.mark.parametrize(
    ("seconds", "bpm", "expected"),
    [
        (8, None, LoopLength(8.0)),
        (8, 120, LoopLength(8.0, 16, 4)),
        (8.9, 120, LoopLength(8.0, 16, 4)),
        (9, 120, LoopLength(10.0, 20, 5)),
        (2.1, 120, LoopLength(2.0, 4, 1)),
        (1.9, 120, LoopLength(2.0, 4, 1)),
        (1.4, 120, LoopLength(1.5, 3, None)),
        (0.5, 20, LoopLength(3.0, 1, None)),
        ("8", "90", LoopLength(8.0, 12, 3)),
    ],
)
def test_a_tempo_gives_whole_bars_or_beats(seconds, bpm, expected):
    assert loop_length(seconds, bpm) == expected


@given(seconds=st.floats(0.5, 590), bpm=st.floats(20, 300))
def test_no_whole_number_of_bars_lies_nearer(seconds, bpm):
    length, beat_s = loop_length(seconds, bpm), 60 / bpm
    unit = 4 if seconds >= 4 * beat_s else 1
    others = [unit * count * beat_s for count in range(1, round(seconds / (unit * beat_s)) + 3)]
    assert abs(length.seconds - seconds) <= min(abs(other - seconds) for other in others) + 1e-9
    assert length.seconds == pytest.approx(length.beats * beat_s)
    assert length.bars == (length.beats / 4 if length.beats % 4 == 0 else None)
    assert 0.5 <= length.seconds + length.tail_s <= MAX_SECONDS


@pytest.mark.parametrize("bpm", [0, 19.9, 300.1, -90, float("nan"), float("inf"), "fast", True, None])
def test_a_tempo_out_of_range_is_refused(bpm):
    if bpm is None:
        assert loop_length(8, bpm).beats is None
    else:
        with pytest.raises(ValueError, match="bpm must be a number from 20 to 300, got"):
            loop_length(8, bpm)


def test_a_loop_leaves_room_for_its_tail():
    assert loop_length(MAX_SECONDS - 1).seconds == MAX_SECONDS - 1
    with pytest.raises(ValueError, match="a loop can be up to 599 seconds long, got 599.5 seconds"):
        loop_length(599.5)
    with pytest.raises(ValueError, match="seconds must be a number from 0.5 to 600, got 601"):
        loop_length(601)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(16, 3000),
    share=st.floats(0.01, 1),
    channels=st.integers(1, 2),
    level=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)
def test_a_loop_goes_on_where_it_ended(samples, share, channels, level, seed):
    tail = max(1, round(share * samples))
    sound = noise((samples + tail) / RATE, channels, seed, level)
    loop = make_loop(sound, samples / RATE)
    assert loop.audio.shape == (channels, samples)
    assert np.abs(loop.audio).max() <= 1
    untouched = sound.audio[:, tail : samples + 1]  # what follows the crossfade, up to the sample after the loop
    turned_down = np.concatenate([loop.audio[:, tail:], loop.audio[:, :1]], axis=1)
    scale = np.abs(turned_down).max() / (np.abs(untouched).max() or 1.0)
    np.testing.assert_allclose(turned_down, untouched * scale, atol=1e-6)


def test_the_step_at_the_wrap_is_as_small_as_any_other():
    sound = noise(5, channels=2)
    twice = np.tile(make_loop(sound, 4).audio, 2)
    steps = np.abs(np.diff(twice, axis=1))
    wrap = twice.shape[1] // 2 - 1
    assert steps[:, wrap].max() <= np.quantile(steps, 0.99)
    assert steps.max() <= 1.5 * np.abs(np.diff(sound.audio, axis=1)).max()
    cut = np.tile(sound.audio[:, : 4 * RATE], 2)  # the same without the crossfade jumps
    assert np.abs(cut[:, wrap + 1] - cut[:, wrap]).max() > 10 * steps[:, wrap].max()


@pytest.mark.parametrize("same", [False, True], ids=["unlike sounds", "the same sound"])
def test_the_level_through_the_seam_is_even(same):
    levels = []
    for seed in range(20):
        sound = tone(5, hz=200) if same else noise(5, seed=seed)  # 200 Hz: a whole number of periods in 4 s
        audio = make_loop(sound, 4).audio
        levels.append([(part**2).mean() for part in np.split(audio[:, : 2 * RATE], 8, axis=1)])
    parts = 10 * np.log10(np.mean(levels, axis=0))
    assert np.ptp(parts) < 0.6  # the seam takes the first four


def test_a_loud_seam_is_turned_down_and_not_cut_off():
    low, high = tone(5, hz=300, level=1.0).audio, tone(5, hz=410, level=1.0).audio
    sound = Waveform(np.where(np.arange(5 * RATE) < 4 * RATE, low, high), RATE)
    loop = make_loop(sound, 4).audio
    assert np.abs(loop).max() == pytest.approx(1)
    rest = slice(RATE, 4 * RATE)
    scale = np.abs(loop[:, rest]).max()
    assert 0.7 < scale < 0.75  # two sounds at full scale, each at the half of its power: 2 / sqrt(2)
    np.testing.assert_allclose(loop[:, rest], scale * sound.audio[:, rest], atol=1e-6)


def test_silence_loops():
    assert not make_loop(Waveform(np.zeros((1, 500)), RATE), 400 / RATE).audio.any()


@pytest.mark.parametrize("seconds", [1.0, 1.5, 0.4])
def test_a_sound_without_a_tail_or_with_too_long_a_one_is_refused(seconds):
    with pytest.raises(ValueError, match=f"a loop of {seconds:g} seconds needs a sound that is longer"):
        make_loop(noise(1), seconds)
