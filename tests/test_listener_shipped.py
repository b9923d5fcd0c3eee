"""The listener that is shipped: as right as we promise, right about FluidSynth's sound, and not deaf to bad sound."""

import numpy as np
import pytest
from listening import RATE, make_piece
from scipy.signal import butter, sosfilt

from tinymusician_core.evaluate.frechet import frechet_distance
from tinymusician_core.evaluate.listener import Listener
from tinymusician_core.pretrain.accompany import INSTRUMENTS, LEAD, Note, Track
from tinymusician_core.pretrain.pieces import read_audio
from tinymusician_core.pretrain.render import find_soundfont, render_together
from tinymusician_core.variants import assets_folder

STEPS = (0, 2, 4, 5, 7, 9, 11, 12, 11, 9, 7, 5, 4, 2)
PROMISED = {"instrument": 0.95, "tempo": 0.85, "mode": 0.80}


@pytest.fixture(scope="module")
def listener():
    return Listener.from_folder()


def test_it_is_small_and_its_accuracy_on_real_audio_is_what_we_promise(listener):
    files = list((assets_folder() / "listener").iterdir())
    assert sum(path.stat().st_size for path in files) <= 1_200_000
    for head, promised in PROMISED.items():
        real = listener.accuracy[head]["real"]
        assert real["value"] >= promised, head
        assert real["value"] > real["majority"], head
        assert real["low"] <= real["value"] <= real["high"]
        assert listener.accuracy[head]["codec"]["n"] == real["n"]


def melody(hertz, frames, seconds=10.0):
    """Eighth notes of a falling and rising scale with six partials, fading."""
    t = np.arange(frames * RATE // 25) / RATE
    notes = []
    for i in range(round(seconds * 25 / frames)):
        pitch = hertz * 2 ** (STEPS[i % len(STEPS)] / 12)
        notes.append(sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 7)) * np.exp(-4 * t))
    return (0.2 * np.concatenate(notes)).astype(np.float32)


@pytest.fixture(scope="module")
def melodies():
    return [melody(hertz, frames) for hertz in (262, 294, 330, 392) for frames in (5, 8, 10)]


def with_noise(clip, ratio, seed):
    return clip + ratio * clip.std() * np.random.default_rng(seed).standard_normal(len(clip))


def low_passed(clip, hertz, seed):
    return sosfilt(butter(8, hertz, fs=RATE, output="sos"), clip)


def shuffled(clip, seconds, seed):
    chunks = clip[: len(clip) // round(seconds * RATE) * round(seconds * RATE)].reshape(-1, round(seconds * RATE))
    return np.random.default_rng(seed).permutation(chunks).reshape(-1)


@pytest.mark.parametrize(
    ("harm", "strengths"),
    [(with_noise, (0.01, 0.1, 1.0)), (low_passed, (8000, 2000, 700)), (shuffled, (2.0, 0.7, 0.1))],
)
def test_the_embedding_moves_further_the_worse_the_sound(listener, melodies, harm, strengths):
    def heard(clips):
        return np.stack([listener.hear(np.clip(c, -1, 1).astype(np.float32)[None], RATE).embedding for c in clips])

    clean = heard(melodies)
    distances = [frechet_distance(clean, heard([harm(c, s, i) for i, c in enumerate(melodies)])) for s in strengths]
    assert 0 < distances[0] < distances[1] < distances[2]


def has_fluidsynth():
    try:
        find_soundfont()
    except FileNotFoundError:
        return False
    return True


@pytest.mark.skipif(not has_fluidsynth(), reason="FluidSynth or its soundfont is not installed")
def test_it_knows_the_instruments_that_fluidsynth_plays(listener, tmp_path):
    (tmp_path / "audio").mkdir()
    pieces = []
    for instrument in INSTRUMENTS.values():
        low = (instrument.low + instrument.high) // 2 - 6
        notes = (Note(10 * i, 10 * i + 10, low + STEPS[i % len(STEPS)], 90) for i in range(25))
        tracks = (Track(LEAD, instrument.program, tuple(notes)),)
        pieces.append(make_piece(instrument.name.replace(" ", "-"), tracks, frames=260, instrument=instrument.name))
    render_together(pieces, tmp_path)
    heard = {p.facts.instrument: listener.hear(read_audio(tmp_path, p)[None], RATE).best("instrument") for p in pieces}
    assert sum(name == best for name, best in heard.items()) >= len(heard) - 2, heard
