"""Our engine against transformers' MusicgenForConditionalGeneration, on random weights."""

import json

import pytest
import torch
from conftest import PROMPTS, save_tiny_musicgen
from transformers import (
    AutoTokenizer,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
    MusicgenMelodyForConditionalGeneration,
    T5EncoderModel,
)

from tinymusician_core import SamplingSpec, load
from tinymusician_core.engine import frames

FRAMES = 12


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def pair(request, tiny_musicgen, tmp_path_factory):
    """Their model and inputs, and our pipeline, from the same folder."""
    folder = tiny_musicgen if request.param == 1 else save_tiny_musicgen(tmp_path_factory.mktemp("stereo") / "s", 2)
    theirs = MusicgenForConditionalGeneration.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    assert len(set(inputs["attention_mask"].sum(1).tolist())) == 3, "the prompts must differ in length"
    return theirs, {name: inputs[name] for name in ("input_ids", "attention_mask")}, load(folder)


def generate_theirs(model, inputs, cfg, monkeypatch):
    """Their greedy codes [B,K,T] and sound [B,C,N]."""
    delays = model.config.decoder.num_codebooks // model.config.decoder.audio_channels - 1
    seen = []
    decode = model.audio_encoder.decode

    def spy(codes, **kwargs):
        seen.append(codes[0])
        return decode(codes, **kwargs)

    monkeypatch.setattr(model.audio_encoder, "decode", spy)
    sound = model.generate(**inputs, do_sample=False, guidance_scale=cfg, max_new_tokens=FRAMES + delays)
    return torch.stack(seen, dim=2).flatten(1, 2), sound


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_greedy_tokens_and_sound_are_those_of_transformers(pair, cfg, monkeypatch):
    theirs, inputs, ours = pair
    expected, expected_sound = generate_theirs(theirs, inputs, cfg, monkeypatch)
    states, mask = ours.text_encoder.encode(PROMPTS)
    spec = SamplingSpec(cfg=cfg, greedy=True)
    made = torch.stack(list(frames(ours.decoder, states, mask, spec, FRAMES)), dim=2)
    assert made.shape == expected.shape
    assert torch.equal(made, expected)
    assert len(made.unique()) > 8, "a model that repeats one token proves nothing"
    torch.testing.assert_close(ours.codec.decode(made), expected_sound, atol=1e-5, rtol=1e-4)


def test_logits_are_those_of_transformers(pair):
    theirs, inputs, ours = pair
    config = ours.decoder.config
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.entries + 1, (3, config.codebooks, 9), generator=generator)
    with torch.inference_mode():
        expected = theirs(**inputs, decoder_input_ids=tokens.flatten(0, 1)).logits.view(3, config.codebooks, 9, -1)
        states, mask = ours.text_encoder.encode(PROMPTS)
        cache = ours.decoder.prepare(states, mask, 9)
        stepped = torch.stack([ours.decoder.step(tokens[:, :, t], cache) for t in range(9)], dim=2)
    torch.testing.assert_close(ours.decoder.logits(tokens, states, mask).detach(), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(stepped, expected, atol=1e-4, rtol=0)


def test_unconditional_half_is_the_one_of_transformers(pair):
    theirs, inputs, ours = pair
    config = ours.decoder.config
    tokens = torch.full((6, config.codebooks, 4), 5)
    with torch.inference_mode():
        states = theirs.text_encoder(**inputs).last_hidden_state
        doubled = torch.cat([inputs["attention_mask"], torch.zeros_like(inputs["attention_mask"])])
        expected = theirs(
            encoder_outputs=(torch.cat([states, torch.zeros_like(states)]),),
            attention_mask=doubled,
            decoder_input_ids=tokens.flatten(0, 1),
        ).logits.view(6, config.codebooks, 4, -1)
        ours_states, _ = ours.text_encoder.encode(PROMPTS)
        made = ours.decoder.logits(tokens, torch.cat([ours_states, torch.zeros_like(ours_states)]), doubled)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


def test_our_own_format_loads_in_plain_transformers(tiny_family):
    """In two lines, which the docstring of `save_family` and the README give."""
    folder, ours = tiny_family / "student", load(tiny_family / "student")
    config = MusicgenDecoderConfig(**json.loads((folder / "config.json").read_text())["decoder"])
    theirs, info = MusicgenForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, key_mapping={r"^decoder\.": ""}, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    tokens = torch.randint(0, 65, (1, 4, 9), generator=torch.Generator().manual_seed(0))
    states, mask = ours.text_encoder.encode(PROMPTS[:1])
    with torch.inference_mode():
        expected = theirs.eval()(
            input_ids=tokens.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=mask
        ).logits.view(1, 4, 9, -1)
        torch.testing.assert_close(ours.decoder.logits(tokens, states, mask), expected, atol=1e-4, rtol=0)
        encoder = T5EncoderModel.from_pretrained(tiny_family / "text").eval()
        ids, _ = ours.text_encoder.tokenize(PROMPTS[:1])
        projected = ours.text_encoder.projection(encoder(input_ids=ids).last_hidden_state)
    torch.testing.assert_close(projected, states, atol=1e-5, rtol=0)


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def melody_pair(request, tmp_path_factory):
    """A melody model of theirs, and our pipeline, from the same folder."""
    folder = save_tiny_musicgen(tmp_path_factory.mktemp("melody") / "m", request.param, melody=True)
    return MusicgenMelodyForConditionalGeneration.from_pretrained(folder).eval(), load(folder)


def test_a_melody_model_without_a_melody_has_the_logits_of_transformers(melody_pair):
    theirs, ours = melody_pair
    config = ours.decoder.config
    assert (config.text, config.prefix) == ("prepend", 7)
    ids, mask = ours.text_encoder.tokenize(PROMPTS[:1])
    tokens = torch.randint(0, 65, (1, config.codebooks, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=tokens.flatten(0, 1)).logits
        expected = found[:, -9:].view(1, config.codebooks, 9, -1)
        states, mask = ours.text_encoder.encode(PROMPTS[:1])
        cache = ours.decoder.prepare(states, mask, 9)
        stepped = torch.stack([ours.decoder.step(tokens[:, :, t], cache) for t in range(9)], dim=2)
        torch.testing.assert_close(ours.decoder.logits(tokens, states, mask), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(stepped, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_melody_model_without_a_melody_plays_what_transformers_plays(melody_pair, cfg, prompt, monkeypatch):
    theirs, ours = melody_pair
    ids, mask = ours.text_encoder.tokenize([prompt])
    expected, sound = generate_theirs(theirs, {"input_ids": ids, "attention_mask": mask}, cfg, monkeypatch)
    states, mask = ours.text_encoder.encode([prompt])
    made = torch.stack(list(frames(ours.decoder, states, mask, SamplingSpec(cfg=cfg, greedy=True), FRAMES)), dim=2)
    assert torch.equal(made, expected)
    torch.testing.assert_close(ours.codec.decode(made), sound, atol=1e-5, rtol=1e-4)


def test_a_batch_for_a_melody_model_is_its_single_runs(melody_pair):
    ours = melody_pair[1]
    specs = [SamplingSpec(seconds=0.5, seed=seed) for seed in (1, 2)]
    batch = ours.generate_batch(PROMPTS[:2], specs)
    for clip, prompt, spec in zip(batch, PROMPTS, specs, strict=False):
        assert (clip.codes == ours.generate(prompt, spec).codes).all()
