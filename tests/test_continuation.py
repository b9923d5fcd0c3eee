"""Going on from a sound of the user's own."""

import numpy as np
import pytest
import torch
from conftest import scramble

import tinymusician_core as tm
from tinymusician_core import Cancelled, ModelError, SamplingSpec, Waveform
from tinymusician_core.codec.spectral import SpectralEncoder
from tinymusician_core.continuation import FADE_S, fit, joined
from tinymusician_core.engine import loop

SPEC = SamplingSpec(seconds=1.2, seed=7)
FADE = round(FADE_S * 32000)


def tone(seconds, rate=32000, channels=1, hertz=220.0):
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return Waveform(np.tile(wave.astype(np.float32), (channels, 1)) * np.linspace(1, 0.5, channels)[:, None], rate)


def noise(seconds):
    return Waveform(np.random.default_rng(1).uniform(-1, 1, (1, round(seconds * 32000))), 32000)


@pytest.fixture(scope="module")
def model(tiny_family):
    """A student whose codec has an encoder."""
    student = tm.load(tiny_family / "student")
    student.codec._encoder = scramble(SpectralEncoder(student.codec.config), seed=8)
    return student


@pytest.fixture
def given_codes(monkeypatch):
    """The codes that the decoder was given by each generation."""
    seen = []
    window = loop.Window

    def spy(codes, *args):
        seen.append(codes)
        return window(codes, *args)

    monkeypatch.setattr(loop, "Window", spy)
    return seen


@pytest.mark.parametrize(("rate", "channels"), [(32000, 1), (44100, 2), (16000, 1), (48000, 6)])
def test_a_clip_is_the_users_sound_and_the_music_that_goes_on_from_it(model, rate, channels):
    sound = tone(1.7, rate, channels)
    clip = model.generate("a jig", SPEC, continue_from=sound)
    expected = fit(sound, 32000, 1)
    joint = expected.shape[1]
    assert abs(joint - 1.7 * 32000) <= 1
    assert clip.audio.shape == (1, joint + 30 * 1280)
    assert clip.codes.shape == (4, 30)
    np.testing.assert_array_equal(clip.audio[:, : joint - FADE], expected[:, :-FADE])


def test_the_music_depends_on_the_sound_and_its_codes_are_what_the_sound_encodes_to(model, given_codes):
    low, hiss = tone(1.7), noise(1.7)
    clips = [model.generate("a jig", SPEC, continue_from=sound) for sound in (low, hiss)]
    assert (clips[0].codes != clips[1].codes).any()
    again = model.generate("a jig", SPEC, continue_from=low)
    np.testing.assert_array_equal(again.audio, clips[0].audio)
    assert given_codes[0].shape == (1, 4, 42)
    assert torch.equal(given_codes[0], model.codec.encode(torch.from_numpy(low.audio)[None, :, -42 * 1280 :]))


def test_the_new_music_is_decoded_as_if_the_sound_had_been_made_by_the_model(model, given_codes):
    clip = model.generate("a jig", SPEC, continue_from=tone(0.9))
    codes = torch.cat([given_codes[0], torch.from_numpy(clip.codes)[None]], dim=2)
    whole = model.codec.decode(codes)[0, :, -30 * 1280 :].clamp(-1, 1).numpy()
    np.testing.assert_allclose(clip.audio[:, -30 * 1280 :], whole, atol=1e-4)


def test_a_musicgen_goes_on_from_a_sound_too(tiny_musicgen, given_codes):
    clip = tm.load(tiny_musicgen).generate("a jig", SPEC, continue_from=tone(0.9, 44100, 2))
    assert given_codes[0].shape == (1, 4, 45)
    assert clip.audio.shape == (1, 28800 + 60 * 640)


def test_only_as_much_of_a_long_sound_is_read_as_leaves_room_in_the_window(model, given_codes, monkeypatch):
    monkeypatch.setattr(model, "window_frames", 50)
    for seconds, context in ((0.5, 38), (1.2, 20), (1.9, 8), (30, 8)):
        model.generate("a jig", SamplingSpec(seconds, cfg=1), continue_from=tone(4))
        assert given_codes[-1].shape == (1, 4, context)


def test_a_stream_gives_the_sound_first_and_its_timing_is_that_of_the_new_music(model):
    seen = []
    stream = model.stream("a jig", SPEC, continue_from=tone(2.0), on_progress=seen.append)
    first = next(stream)
    assert first.shape == (1, 64000 - FADE)
    assert stream.codes.shape == (4, 0)
    rest = sum(chunk.shape[1] for chunk in stream)
    assert rest == FADE + 30 * 1280
    assert stream.timing.steps == 33
    assert {progress.total for progress in seen if progress.stage == "lm"} == {33}


def test_a_stop_keeps_the_sound_and_what_was_made(model):
    for steps, made in ((0, None), (10, 5)):
        answers = iter([False] * steps + [True])

        def should_stop(answers=answers):
            return next(answers)

        with pytest.raises(Cancelled) as caught:
            model.generate("a jig", SPEC, continue_from=tone(0.6), should_stop=should_stop)
        clip = caught.value.clip
        assert (clip is None) == (made is None)
        if made:
            assert clip.codes.shape == (4, made)
            assert clip.audio.shape == (1, 19200 + made * 1280)


def test_a_stream_stopped_before_any_new_frame_gives_the_sound_alone(model):
    answers = iter([False, False, True])
    stream = model.stream("a jig", SPEC, should_stop=lambda: next(answers), continue_from=tone(0.6))
    audio = np.concatenate(list(stream), axis=1)
    np.testing.assert_array_equal(audio, tone(0.6).audio)
    assert stream.stopped


def test_channels_are_mixed_to_one_or_that_one_doubled():
    stereo = tone(0.5, channels=2)
    np.testing.assert_allclose(fit(stereo, 32000, 1)[0], stereo.audio.mean(0), atol=1e-7)
    mono = tone(0.5)
    np.testing.assert_array_equal(fit(mono, 32000, 2), np.concatenate([mono.audio] * 2))
    np.testing.assert_array_equal(fit(stereo, 32000, 2), stereo.audio)
    assert fit(tone(0.5, 44100), 32000, 1).shape == (1, 16000)


def test_the_join_does_not_click():
    rate, seconds = 32000, 0.5
    sound = tone(seconds, hertz=330).audio
    phase = sound.shape[1] - 6400
    twin = 0.27 * np.sin(2 * np.pi * 330 * (phase + np.arange(rate + 6400)) / rate + 1.0)[None, None]
    chunks = iter(np.split(twin.astype(np.float32), [1000, 9000], axis=2))
    whole = np.concatenate(list(joined(sound, chunks, 6400, rate)), axis=2)
    assert whole.shape == (1, 1, sound.shape[1] + rate)
    steepest = 0.3 * 2 * np.pi * 330 / rate
    assert np.abs(np.diff(whole)).max() <= 1.15 * steepest


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        ("a.wav", "continue_from must be a Waveform, as audio.read gives it, got str"),
        (tone(0.4), "a sound to go on from must last 0.5 s or more, got 0.4 s"),
    ],
)
def test_what_is_no_sound_to_go_on_from_is_told_at_once(model, sound, message):
    with pytest.raises(ValueError, match=message):
        model.stream("a jig", SPEC, continue_from=sound)


def test_a_model_without_a_codec_encoder_says_so(tiny_family):
    with pytest.raises(ModelError, match="saved without its codec's encoder: it cannot go on from a sound"):
        tm.generate(tm.load(tiny_family / "student"), "a jig", continue_from=tone(1.0))


def test_generate_goes_on_from_a_sound_with_one_prompt(model):
    clip = tm.generate(model, "a jig", seconds=0.6, continue_from=tone(0.6))
    assert clip.seconds == pytest.approx(1.2)
    with pytest.raises(ValueError, match="continue_from takes one prompt, got a list"):
        tm.generate(model, ["a jig", "a waltz"], continue_from=tone(0.6))
