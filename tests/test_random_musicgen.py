"""A MusicGen of random weights as a folder: what it is for is that everything here takes it for a real one."""

import json
import os

import numpy as np
import pytest
import torch
from commands import run

import tinymusician_core as tm
from tinymusician_core.measure import random_musicgen
from tinymusician_core.measure.random_musicgen import main, make_tokenizer, save_random_musicgen
from tinymusician_core.quant import calibration

PROMPT = "a calm piano waltz in g major"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_random_musicgen(tmp_path_factory.mktemp("random") / "tiny", "tiny", seed=3)


def test_ours_and_plain_transformers_play_the_same_from_it(folder):
    from transformers import AutoProcessor, MusicgenForConditionalGeneration

    theirs, info = MusicgenForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = AutoProcessor.from_pretrained(folder)(text=[PROMPT], padding=True, return_tensors="pt")
    sound = theirs.eval().generate(**inputs, do_sample=False, guidance_scale=3.0, max_new_tokens=28)
    clip = tm.generate(tm.load(folder), PROMPT, seconds=0.5, greedy=True)
    assert clip.codes.shape == (4, 25)
    assert len(np.unique(clip.codes)) > 8, "a model that repeats one token proves nothing"
    assert clip.sample_rate_hz == theirs.config.audio_encoder.sampling_rate == 32000
    length = min(sound.shape[-1], clip.audio.shape[1])
    np.testing.assert_allclose(clip.audio[:, :length], sound[0, :, :length].numpy(), atol=1e-4)


def test_it_says_of_itself_what_musicgen_says(folder):
    settings = json.loads((folder / "generation_config.json").read_text())
    wanted = {"do_sample": True, "guidance_scale": 3.0, "decoder_start_token_id": 256, "pad_token_id": 256}
    assert wanted.items() <= settings.items()
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("musicgen", ["MusicgenForConditionalGeneration"])
    assert config["audio_encoder"]["target_bandwidths"] == [4 * 8 * 50 / 1000]


def test_its_tokenizer_knows_every_word_and_has_about_one_token_for_each(folder):
    model = tm.load(folder)
    prompts = calibration.captions(model, 0, 50)
    assert len(set(prompts)) > 40
    for prompt in (*prompts, "80s synth-pop, 120 BPM!", "Qwertz"):
        assert model.unknown_words(prompt) == []
    tokens = [len(made) for made in make_tokenizer()(prompts)["input_ids"]]
    words = [len(prompt.split()) for prompt in prompts]
    assert all(count == more + 1 for more, count in zip(words, tokens, strict=True)), "each a token, and </s>"
    assert model.unknown_words("a calm \N{SNOWMAN} waltz") == ["\N{SNOWMAN}"]


def test_the_recipes_take_it(folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n")
    how = ("--prompts", str(prompts), "--clips", "4", "--batch", "2", "--seconds", "0.5", "--layers", "1")
    student, small = tmp_path / "student", tmp_path / "small"
    code, _, err = run(capsys, "distill", "--teacher", str(folder), *how, "--steps", "2", "-o", str(student))
    assert (code, err) == (0, "")
    code, _, err = run(capsys, "quantize", "--model", str(student), "--preset", "fast", "-o", str(small))
    assert (code, err) == (0, "")
    assert tm.generate(tm.load(small), PROMPT, seconds=0.5).codes.shape == (4, 25)


def test_the_same_seed_makes_the_same_folder_and_layers_can_be_chosen(folder, tmp_path, capsys):
    from safetensors.torch import load_file

    again = tmp_path / "again"
    assert main(["--shape", "tiny", "--seed", "3", "-o", str(again)]) == 0
    assert f"wrote {again}: " in capsys.readouterr().out
    (tmp_path / "any").touch()
    for name in os.listdir(folder):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
        assert (again / name).stat().st_mode == (tmp_path / "any").stat().st_mode, "as readable as any new file"
    assert main(["--shape", "tiny", "--layers", "1", "--seed", "4", "-o", str(tmp_path / "one")]) == 0
    weights, others = load_file(folder / "model.safetensors"), load_file(tmp_path / "one" / "model.safetensors")
    assert set(others) < set(weights)
    assert not any("layers.1." in name for name in others if name.startswith("decoder."))
    assert not torch.equal(weights["decoder.lm_heads.0.weight"], others["decoder.lm_heads.0.weight"])


def test_what_is_there_already_is_left_alone(folder, tmp_path, capsys, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()
    assert main(["--shape", "tiny", "-o", str(folder)]) == 2
    assert "holds files already; give a new folder or an empty one" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == before
    for options, words in (({"shape": "huge"}, "no such shape: 'huge'"), ({"layers": 0}, "from 1 to 100, got 0")):
        with pytest.raises(ValueError, match=words):
            save_random_musicgen(tmp_path / "new", **options)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(random_musicgen, "make_musicgen", full)
    assert main(["--shape", "tiny", "-o", str(tmp_path / "new")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
