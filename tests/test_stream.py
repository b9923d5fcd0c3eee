"""Music handed out while it is made: chunks, stops, batches, long pieces."""

import weakref

import numpy as np
import pytest
import torch
from conftest import PROMPTS

import tinymusician_core as tm
from tinymusician_core import Cancelled, ModelError, SamplingSpec
from tinymusician_core.stream import CHUNK_S, FIRST_S

SPEC = SamplingSpec(seconds=4.2, seed=7)


@pytest.fixture(scope="module")
def student(tiny_family):
    return tm.load(tiny_family / "student")


@pytest.fixture(scope="module")
def musicgen(tiny_musicgen):
    return tm.load(tiny_musicgen)


def test_the_first_chunk_is_short_and_the_later_ones_last_a_second(student, musicgen):
    for model in (student, musicgen):
        lengths = [chunk.shape[1] / model.sample_rate_hz for chunk in model.stream("a jig", SPEC)]
        assert FIRST_S <= lengths[0] <= FIRST_S + 1 / model.frame_rate_hz
        assert all(abs(length - CHUNK_S) <= 1e-9 for length in lengths[1:-1])
        assert sum(lengths) == pytest.approx(4.2, abs=0.5 / model.frame_rate_hz + 1e-9)


def test_a_stream_and_a_clip_are_the_same_to_the_last_bit(student):
    stream = student.stream("a jig", SPEC)
    audio = np.concatenate(list(stream), axis=1)
    heard = []
    clip = student.generate("a jig", SPEC, on_audio=heard.append)
    np.testing.assert_array_equal(clip.audio, audio)
    np.testing.assert_array_equal(np.concatenate(heard, axis=1), audio)
    np.testing.assert_array_equal(clip.codes, stream.codes)
    assert (clip.audio.dtype, clip.codes.dtype, stream.stopped) == (np.float32, np.int64, False)
    whole = student.codec.decode(torch.from_numpy(clip.codes)[None])[0].clamp(-1, 1).numpy()
    np.testing.assert_allclose(audio, whole, atol=1e-4)


def test_music_comes_while_the_rest_is_still_to_be_made(student):
    seen = []
    stream = student.stream("a jig", SPEC, on_progress=seen.append)
    next(stream)
    needed = round(FIRST_S * 25) + student.codec.lookahead_frames
    assert stream.codes.shape == (4, needed)
    assert (seen[-1].stage, seen[-1].done, seen[-1].total) == ("lm", needed + 3, 105 + 3)
    assert stream.timing.steps == needed + 3
    first_sound_s = stream.timing.total_s
    for _ in stream:
        pass
    assert (seen[-1].stage, seen[-1].done) == ("codec", 1)
    assert stream.timing.first_sound_s == first_sound_s < stream.timing.total_s
    stages = (stream.timing.text_s, stream.timing.lm_s, stream.timing.codec_s)
    assert all(stages)
    assert sum(stages) == pytest.approx(stream.timing.total_s)


def test_steps_of_a_small_model_run_on_one_thread_and_its_codec_on_all(student, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.append(count))
    threads, steps, decodes = [7], set(), set()
    step, stream = student.decoder.step, student.codec.stream
    monkeypatch.setattr(student.decoder, "step", lambda *args: steps.add(threads[-1]) or step(*args))

    def watched(batch):
        inner = stream(batch)
        push = inner.push
        inner.push = lambda codes: decodes.add(threads[-1]) or push(codes)
        return inner

    monkeypatch.setattr(student.codec, "stream", watched)
    student.generate("a jig", SPEC)
    assert (steps, decodes, threads[-1]) == ({1}, {7}, 7)


@pytest.mark.parametrize("after", [0, 1, 4, 5, 30, 60, 108])
def test_a_stop_keeps_what_was_made(student, after):
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) > after

    whole = student.generate("a jig", SPEC)
    with pytest.raises(Cancelled, match="stopped after .* of 4.2 seconds") as caught:
        student.generate("a jig", SPEC, should_stop=should_stop)
    assert len(asked) == after + 1, "a stop is heeded before the next step"
    made = max(0, after - 1 - 3)
    clip = caught.value.clip
    if not made:
        assert clip is None
        return
    np.testing.assert_array_equal(clip.codes, whole.codes[:, :made])
    assert clip.audio.shape == (1, made * 1280)
    heard = student.codec.decode(torch.from_numpy(clip.codes)[None])[0].clamp(-1, 1).numpy()
    np.testing.assert_allclose(clip.audio, heard, atol=1e-4)


def test_a_stopped_stream_says_so_and_ends(student):
    answers = iter([False] * 40 + [True])
    stream = student.stream("a jig", SPEC, should_stop=lambda: next(answers))
    samples = sum(chunk.shape[1] for chunk in stream)
    assert stream.stopped
    assert samples == stream.codes.shape[1] * 1280 == 36 * 1280
    assert stream.timing.steps == 39


def test_pieces_longer_than_the_window_go_on_at_any_length(student, monkeypatch):
    monkeypatch.setattr(student, "window_frames", 40)
    long = student.generate("a jig", SamplingSpec(seconds=12, seed=7))
    assert long.codes.shape == (4, 300)
    again = student.generate("a jig", SamplingSpec(seconds=12, seed=7))
    np.testing.assert_array_equal(long.audio, again.audio)
    monkeypatch.undo()
    short = student.generate("a jig", SamplingSpec(seconds=1.5, seed=7))
    np.testing.assert_array_equal(long.codes[:, :26], short.codes[:, :26])


def test_long_music_that_falls_silent_is_taken_up_again(student, monkeypatch):
    monkeypatch.setattr(student, "window_frames", 60)
    spec = SamplingSpec(seconds=6, seed=7)
    sounding = student.generate("a jig", spec).codes
    monkeypatch.setattr("tinymusician_core.silence.QUIET", 2.0)
    monkeypatch.setattr("tinymusician_core.silence.OVER_S", 2.0)
    silent = student.generate("a jig", spec).codes
    np.testing.assert_array_equal(silent[:, :70], sounding[:, :70], "a window of 40 frames slides at 40, 70, 100 ...")
    np.testing.assert_array_equal(silent[0, 70:73], sounding[0, 10:13], "what followed the opening was under way there")
    assert (silent[0, 73:] != sounding[0, 73:]).any()


def test_the_window_is_what_the_models_folder_says(student, musicgen):
    assert student.window_frames == round(30 * 25)
    assert musicgen.window_frames == 1500


def test_a_stream_holds_no_sound(student):
    stream = student.stream("a jig", SamplingSpec(seconds=20, seed=7))
    chunks = [weakref.ref(chunk.base) for chunk in stream]
    assert len(chunks) == 21
    assert all(chunk() is None for chunk in chunks)


def test_a_batch_gives_what_single_runs_give(student):
    specs = [SamplingSpec(seconds=1.4, seed=seed) for seed in (3, 4, 3)]
    clips = student.generate_batch(PROMPTS, specs)
    for clip, prompt, spec in zip(clips, PROMPTS, specs, strict=True):
        single = student.generate(prompt, spec)
        np.testing.assert_array_equal(clip.codes, single.codes)
        np.testing.assert_allclose(clip.audio, single.audio, atol=1e-4)
        assert (clip.prompt, clip.sampling, clip.model) == (prompt, student.settled(spec), "student")
    assert clips[0].timing == clips[2].timing


def test_a_batch_that_is_stopped_keeps_what_was_made(student):
    answers = iter([False] * 20 + [True])
    specs = [SamplingSpec(seconds=1.4, seed=seed) for seed in (3, 4)]
    with pytest.raises(Cancelled) as caught:
        student.generate_batch(PROMPTS[:2], specs, should_stop=lambda: next(answers))
    assert [clip.codes.shape for clip in caught.value.clip] == [(4, 16)] * 2
    with pytest.raises(Cancelled) as caught:
        student.generate_batch(PROMPTS[:2], specs, should_stop=lambda: True)
    assert caught.value.clip is None


def test_generate_takes_lists(student):
    clips = tm.generate(student, PROMPTS[:2], seconds=0.6, seed=[1, 2], top_k=9)
    assert [clip.sampling for clip in clips] == [SamplingSpec(0.6, seed, 3.0, top_k=9, top_p=0.0) for seed in (1, 2)]
    assert [clip.prompt for clip in clips] == PROMPTS[:2]
    assert [clip.sampling.seed for clip in tm.generate(student, PROMPTS[:2], seconds=0.6)] == [7, 7]


def test_lists_that_do_not_fit_are_refused(student):
    with pytest.raises(ValueError, match="seed must be one number or as many as prompts, got 1 beside 2"):
        tm.generate(student, PROMPTS[:2], seconds=0.6, seed=[1])
    with pytest.raises(ValueError, match="a batch needs at least one prompt, got none"):
        tm.generate(student, [])
    with pytest.raises(ValueError, match="seed must be a whole number"):
        tm.generate(student, "a jig", seed=[1, 2])
    with pytest.raises(ValueError, match="same seconds and cfg"):
        student.generate_batch(PROMPTS[:2], [SamplingSpec(1), SamplingSpec(2)])
    with pytest.raises(ValueError, match="has no word that this model knows"):
        student.generate_batch(["a jig", "😀"], [SamplingSpec(1)] * 2)


def test_a_quantized_text_encoder_hears_one_prompt_at_a_time(student, monkeypatch):
    seen = []
    encode = student.text_encoder.encode
    monkeypatch.setattr(student.text_encoder, "encode", lambda texts, scale: seen.append(texts) or encode(texts, scale))
    student.generate_batch(PROMPTS, [SamplingSpec(0.5)] * 3)
    assert seen == [[prompt] for prompt in PROMPTS]


def test_sound_that_is_not_finite_is_told_at_the_first_chunk(student, monkeypatch):
    stream = student.codec.stream

    def broken(batch):
        inner = stream(batch)
        inner.push = lambda codes: torch.full((1, 1, 5), torch.nan)
        return inner

    monkeypatch.setattr(student.codec, "stream", broken)
    with pytest.raises(ModelError, match="gave sound that is not finite"):
        next(student.stream("a jig", SPEC))
