"""librosa's opinion of music that is made here, so that its beat and its key are known."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from tinymusician_core.evaluate.second_opinion import (
    BPM,
    PROFILES,
    Opinion,
    autocorrelation,
    count_beats,
    nearest_key,
    second_opinion,
)

RATE_HZ = 32000
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
NOTHING = Opinion(None, None, None, None, None)


def note(pitch, seconds, loud):
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    hz = 440 * 2 ** ((pitch - 69) / 12)
    wave = sum(np.sin(2 * np.pi * hz * k * t) / k**2 for k in (1, 2, 3))
    return loud * wave * np.exp(-6 * t / seconds) * np.minimum(1, t * 200)


def tune(bpm, divisions, beats_a_bar, tonic=0, mode="major", seconds=10.0):
    """Notes of half or a third of a beat, louder on the beat and the bar, where the triad stands: sound [1,N].

    Compound time goes quarter and eighth, but for every fourth beat; simple time has a quarter on every other beat.
    """
    rng, step = np.random.default_rng(7), 60 / bpm / divisions
    audio, scale = np.zeros(int(seconds * RATE_HZ) + RATE_HZ), SCALES[mode]
    for i in range(int(seconds / step)):
        on_beat, on_bar = i % divisions == 0, i % (divisions * beats_a_bar) == 0
        beat, part = divmod(i, divisions)
        if part == 1 and (beat % 4 if divisions == 3 else beat % 2):
            continue
        degree = 0 if on_bar else int(rng.choice((0, 2, 4))) if on_beat else int(rng.integers(7))
        start = int(i * step * RATE_HZ)
        sound = note(60 + tonic + scale[degree], step, 0.3 if on_bar else 0.2 if on_beat else 0.1)
        audio[start : start + len(sound)] += sound
    return audio[None, : int(seconds * RATE_HZ)].astype(np.float32)


@pytest.mark.parametrize(
    ("bpm", "divisions", "beats_a_bar", "wanted"),
    [
        (125, 2, 4, "moderate"),
        (94, 2, 3, "moderate"),
        (75, 2, 4, "slow"),
        (100, 3, 2, "moderate"),
        (83, 3, 2, "moderate"),
    ],
)
def test_the_beat_of_a_tune_is_found(bpm, divisions, beats_a_bar, wanted):
    found = second_opinion(tune(bpm, divisions, beats_a_bar), RATE_HZ)
    assert found.bpm == pytest.approx(bpm, rel=0.03)
    assert found.compound == (divisions == 3)
    assert found.tempo == found.best("tempo") == wanted


@pytest.mark.parametrize("tonic", [0, 3, 7, 10])
@pytest.mark.parametrize("mode", ["major", "minor"])
def test_the_key_of_a_tune_is_found(tonic, mode):
    found = second_opinion(tune(100, 2, 4, tonic, mode), RATE_HZ)
    assert (found.tonic, found.mode, found.best("mode")) == (tonic, mode, mode)
    assert (
        found.key
        == f"{['c', 'c sharp', 'd', 'e flat', 'e', 'f', 'f sharp', 'g', 'a flat', 'a', 'b flat'][tonic]} {mode}"
    )


def test_level_channels_and_rate_do_not_matter():
    loud = tune(125, 2, 4, tonic=2)
    found = second_opinion(loud, RATE_HZ)
    assert second_opinion(loud * np.float32(0.01), RATE_HZ) == found
    assert second_opinion(np.concatenate([loud, loud]), RATE_HZ) == found
    slower_rate = second_opinion(loud[:, ::2], RATE_HZ // 2)
    assert (slower_rate.bpm, slower_rate.key) == (pytest.approx(found.bpm, rel=0.02), found.key)
    assert second_opinion(loud, RATE_HZ) == found


def test_what_holds_no_music_gets_no_opinion():
    assert second_opinion(np.zeros((1, RATE_HZ), np.float32), RATE_HZ) == NOTHING
    assert NOTHING.key is None
    assert NOTHING.best("tempo") is None
    assert autocorrelation(np.full(100, 3.0)) is None
    assert nearest_key(np.full(12, 0.5)) is None


def test_a_clip_of_a_second_is_enough_and_less_is_refused():
    short = tune(125, 2, 4)[:, :RATE_HZ]
    assert second_opinion(short, RATE_HZ).mode is not None
    with pytest.raises(ValueError, match="at least 1 s of sound, got 0.5 s"):
        second_opinion(short[:, : RATE_HZ // 2], RATE_HZ)


def test_an_opinion_is_on_tempo_and_mode_and_survives_json():
    found = second_opinion(tune(125, 2, 4), RATE_HZ)
    assert Opinion(**json.loads(json.dumps(asdict(found)))) == found
    with pytest.raises(ValueError, match="on tempo and mode, got 'style'"):
        found.best("style")


def test_every_rotation_of_a_profile_is_its_own_key():
    for mode, profile in PROFILES.items():
        assert len(profile) == 12
        for tonic in range(12):
            assert nearest_key(3 * np.roll(profile, tonic) + 1) == (tonic, mode)


def test_beats_are_counted_in_the_octave_that_the_prior_prefers():
    """A click every half second is alike to itself at every multiple: 120, 60, and any other count of it."""
    frames_per_minute = 6000.0
    likeness = np.zeros(1000)
    likeness[::50] = 1.0
    bpm, compound = count_beats(np.convolve(likeness, [0.5, 1, 0.5], "same"), frames_per_minute)
    ratio = bpm / 120
    assert min(abs(np.log2(ratio * k)) for k in (1, 2, 3, 1 / 2, 1 / 3)) < 0.03
    assert BPM[0] <= bpm <= BPM[-1]
    assert bpm < 120
    assert isinstance(compound, bool)


def test_autocorrelation_agrees_with_its_definition():
    values = np.random.default_rng(0).normal(size=64)
    centred = values - values.mean()
    slow = [float(centred[: 64 - lag] @ centred[lag:]) for lag in range(64)]
    np.testing.assert_allclose(autocorrelation(values), np.array(slow) / slow[0], atol=1e-9)
