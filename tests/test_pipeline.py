import copy
import json

import numpy as np
import pytest
import torch

import tinymusician_core as tm
from tinymusician_core import Cancelled, ModelError, SamplingSpec
from tinymusician_core.audio import read, read_tags

SHORT = SamplingSpec(seconds=0.6, seed=7, cfg=3.0, top_p=0.0)


@pytest.fixture(scope="module")
def student(tiny_family):
    return tm.load(tiny_family / "student")


def test_a_prompt_becomes_a_clip(student):
    clip = student.generate("  a calm piano waltz ", SHORT)
    assert clip.codes.shape == (4, 15)
    assert clip.codes.max() < 64
    assert clip.audio.shape == (1, 19200)
    assert clip.audio.dtype == np.float32
    assert clip.seconds == 0.6
    assert np.abs(clip.audio).max() <= 1
    assert (clip.prompt, clip.sampling, clip.model, clip.model_hash) == (
        "a calm piano waltz",
        SHORT,
        "student",
        student.hash,
    )


def test_the_sound_is_what_the_codes_decode_to(student):
    clip = student.generate("a jig", SHORT)
    decoded = student.codec.decode(torch.from_numpy(clip.codes)[None])[0].clamp(-1, 1).numpy()
    np.testing.assert_allclose(clip.audio, decoded, atol=1e-4)


def test_the_same_seed_gives_the_same_file_and_another_seed_another(student, tiny_family, tmp_path):
    again = tm.load(tiny_family / "student")
    one = student.generate("a jig", SHORT).save(tmp_path / "one.wav").read_bytes()
    two = again.generate("a jig", SHORT).save(tmp_path / "two.wav").read_bytes()
    three = student.generate("a jig", SamplingSpec(seconds=0.6, seed=8)).save(tmp_path / "three.wav").read_bytes()
    assert one == two
    assert one != three


def test_the_prompt_matters(student):
    greedy = SamplingSpec(seconds=0.6, greedy=True)
    codes = [student.generate(prompt, greedy).codes for prompt in ("a calm piano waltz", "lively flute jig")]
    assert (codes[0] != codes[1]).any()


def test_the_files_tags_say_how_it_was_made(student, tmp_path):
    path = student.generate("a calm waltz 🎹", SHORT).save(tmp_path / "a.wav")
    tags = read_tags(path)
    assert tags["title"] == "a calm waltz 🎹"
    assert tags["software"].startswith(f"TinyMusician {tm.__version__}")
    comment = json.loads(tags["comment"])
    assert comment == {"model": "student", "model_hash": student.hash, "seed": 7, "settings": SHORT.as_dict()}
    assert read(path).sample_rate_hz == 32000
    with pytest.raises(ValueError, match=r"must end in \.wav, got 'a\.mp3'"):
        student.generate("a jig", SHORT).save(tmp_path / "a.mp3")


def test_generate_takes_plain_arguments(student):
    clip = tm.generate(student, "a jig", seconds=0.6, seed=7)
    assert (clip.codes == student.generate("a jig", SHORT).codes).all()
    with pytest.raises(ValueError, match="model must come from tinymusician_core.load, got str"):
        tm.generate("student", "a jig")
    with pytest.raises(ValueError, match="seconds must be a number from 0.5 to 600"):
        tm.generate(student, "a jig", seconds=0)
    with pytest.raises(ValueError, match="prompt has 10000 characters"):
        tm.generate(student, "x" * 10_000)


@pytest.mark.parametrize("seconds", [0.5, 0.51, 1.0, 2.03])
def test_lengths_are_met_to_half_a_frame(student, seconds):
    clip = student.generate("a jig", SamplingSpec(seconds=seconds))
    assert abs(clip.seconds - seconds) <= 0.5 / student.frame_rate_hz + 1e-9


def test_a_known_word_among_emoji_and_unseen_words_still_plays(student):
    assert student.generate("🎹 piano theremin 🎻", SHORT).seconds == 0.6


def test_progress_runs_through_every_stage_and_step(student):
    seen = []
    clip = student.generate("a jig", SHORT, on_progress=seen.append)
    assert list(dict.fromkeys(progress.stage for progress in seen)) == ["text", "lm", "codec"]
    done = [progress.done for progress in seen if progress.stage == "lm"]
    assert done == [0, *range(4, 19)]
    assert {progress.total for progress in seen if progress.stage == "lm"} == {18}
    assert clip.timing.steps == 18
    stages = clip.timing.text_s + clip.timing.lm_s + clip.timing.codec_s
    assert stages == pytest.approx(clip.timing.total_s, abs=0.01)
    assert clip.timing.first_sound_s == clip.timing.total_s > 0


@pytest.mark.parametrize("after", [0, 1, 5, 18])
def test_it_stops_when_asked_at_every_stage_and_works_on_afterwards(student, after):
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) > after

    with pytest.raises(Cancelled):
        student.generate("a jig", SHORT, should_stop=should_stop)
    assert len(asked) == after + 1
    assert student.generate("a jig", SHORT).seconds == 0.6


def test_a_musicgen_in_transformers_format_plays_too(tiny_musicgen):
    clip = tm.load(tiny_musicgen).generate("a calm piano waltz", SHORT)
    assert clip.codes.shape == (4, 30)
    assert clip.audio.shape == (1, 19200)


def test_weights_that_give_no_sound_are_told(student):
    broken = copy.deepcopy(student)
    with torch.no_grad():
        for tensor in broken.codec.parameters():
            tensor.fill_(float("nan"))
    with pytest.raises(ModelError, match="gave sound that is not finite"):
        broken.generate("a jig", SHORT)


def test_a_plan_can_name_every_module(student):
    names = {name for name, _ in student.modules.named_modules()}
    assert {"decoder.layers.0.qkv", "decoder.layers.1.cross_kv", "decoder.embeddings.3", "decoder.heads"} <= names
    assert "text_encoder.projection" in names
    assert any(name.startswith("codec.") for name in names)


def test_a_small_decoder_steps_on_one_thread_and_gives_the_others_back():
    from tinymusician_core.engine.decoder import DecoderConfig
    from tinymusician_core.engine.threads import step_threads

    sizes = {"heads": 4, "codebooks": 4, "entries": 64, "pad": 64}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with step_threads(DecoderConfig(width=256, layers=8, ffn=768, **sizes)):
            assert torch.get_num_threads() == 1
        with step_threads(DecoderConfig(width=1024, layers=24, ffn=4096, **sizes)):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_prompt_without_one_known_word_is_refused(student):
    with pytest.raises(ValueError, match="'😀 🎹' has no word that this model knows"):
        student.generate("😀 🎹", SHORT)
