"""The picture of a sound file: what stands where, and what silence and bad files give."""

import math

import numpy as np
import pytest
import soundfile

from tinymusician_core.spectrogram import COLUMNS, HIGH_HZ, LOW_HZ, RANGE_DB, ROWS, WINDOW, spectrogram

RATE = 32000


@pytest.fixture
def picture(tmp_path):
    """Sound [C,N] -> its picture."""

    def of(sound: np.ndarray) -> np.ndarray:
        soundfile.write(tmp_path / "x.wav", sound.T, RATE, subtype="FLOAT")
        return spectrogram(tmp_path / "x.wav")

    return of


def tone(hz: float, seconds: float) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)[None]


@pytest.mark.parametrize("hz", [110.0, 440.0, 1760.0])
def test_a_note_stands_at_its_height(picture, hz):
    levels = picture(tone(hz, 3.0))
    assert levels.shape == (ROWS, COLUMNS)
    height = (ROWS - levels[:, COLUMNS // 2].argmax() - 0.5) / ROWS
    assert LOW_HZ * math.exp(height * math.log(HIGH_HZ / LOW_HZ)) == pytest.approx(hz, rel=0.04)


@pytest.mark.parametrize("seconds", [0.2, 3.0, 30.0])
def test_a_column_is_the_loudest_of_the_windows_around_its_place(picture, seconds):
    """Beside a slow twin that has the whole sound at hand; low down, where a row is narrower than a bin."""
    sound = np.concatenate([tone(110, seconds), 0.2 * tone(150, seconds)[:, ::-1]])
    levels, mono = picture(sound), np.pad(sound.mean(0), WINDOW)
    places = np.linspace(0, sound.shape[1] - 1, COLUMNS).astype(int)
    centres = np.sqrt(np.prod([np.geomspace(LOW_HZ, HIGH_HZ, ROWS + 1)[k : ROWS + k] for k in (0, 1)], axis=0))
    twin = []
    for place in places[::40]:
        window = mono[place + WINDOW // 2 : place + 3 * WINDOW // 2] * np.hanning(WINDOW)
        power = np.abs(np.fft.rfft(window)) ** 2
        twin.append(np.interp(centres[:40], np.arange(len(power)) * RATE / WINDOW, power))
    twin = 10 * np.log10(np.array(twin).T[::-1])
    found = (levels[-40:, ::40] - 1) * RANGE_DB
    seen = found > -RANGE_DB
    difference = (twin - found)[seen]
    assert seen.sum() > 50
    assert np.ptp(difference) < 0.1, "the same but for the level of the peak"


def test_a_short_note_shows_in_a_long_clip(picture):
    sound = np.zeros((1, 300 * RATE), dtype=np.float32)
    sound[:, 151 * RATE : 151 * RATE + RATE // 2] = tone(440, 0.5)
    assert picture(sound).max(axis=0).argmax() / COLUMNS == pytest.approx(151.25 / 300, abs=1.5 / COLUMNS)


def test_silence_and_a_single_sample_have_a_picture_too(picture):
    assert picture(np.zeros((2, 4000), dtype=np.float32)).max() == 0
    assert picture(np.ones((1, 1), dtype=np.float32)).shape == (ROWS, COLUMNS)


def test_a_file_without_sound_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        spectrogram(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("la la la")
    with pytest.raises(ValueError, match="is no WAV, FLAC, OGG or MP3"):
        spectrogram(tmp_path / "text.wav")
