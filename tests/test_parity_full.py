"""Our engine against transformers' at the full size of MusicGen-Small, on random weights: 3.5 GB, half a minute."""

import pytest
import torch
from conftest import PROMPTS, codec_config, make_tokenizer, text_config
from test_parity import generate_theirs
from transformers import MusicgenConfig, MusicgenDecoderConfig, MusicgenForConditionalGeneration

from tinymusician_core import SamplingSpec
from tinymusician_core.engine import DecoderConfig, frames
from tinymusician_core.engine.weights import from_musicgen

ENTRIES, FRAMES = 2048, 12


@pytest.fixture(params=[1, 2], ids=["mono", "stereo"])
def theirs(request):
    """A MusicGen with a decoder of full size; text encoder and codec are tiny, for their parity stands elsewhere."""
    decoder = MusicgenDecoderConfig(
        vocab_size=ENTRIES,
        pad_token_id=ENTRIES,
        bos_token_id=ENTRIES,
        num_codebooks=4 * request.param,
        audio_channels=request.param,
    )
    assert (decoder.hidden_size, decoder.num_hidden_layers, decoder.ffn_dim) == (1024, 24, 4096)
    codec = codec_config()
    codec.codebook_size, codec.target_bandwidths = ENTRIES, [2.2]
    config = MusicgenConfig(
        text_encoder=text_config().to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict()
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MusicgenForConditionalGeneration(config).eval()
    model.generation_config.update(decoder_start_token_id=ENTRIES, bos_token_id=ENTRIES, pad_token_id=ENTRIES)
    return model


def test_greedy_tokens_of_a_full_size_model_are_those_of_transformers(theirs, monkeypatch):
    inputs = make_tokenizer()(PROMPTS[:1], padding=True, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected, _ = generate_theirs(theirs, inputs, 3.0, monkeypatch)
    with torch.inference_mode():
        states = theirs.enc_to_dec_proj(theirs.text_encoder(**inputs).last_hidden_state)
    shape = DecoderConfig.from_dict(theirs.config.decoder.to_dict())
    ours = from_musicgen(shape, dict(theirs.decoder.state_dict()))
    spec = SamplingSpec(cfg=3.0, greedy=True)
    made = torch.stack(list(frames(ours, states, inputs["attention_mask"], spec, FRAMES)), dim=2)
    assert torch.equal(made, expected)
    assert len(made.unique()) > 8, "a model that repeats one token proves nothing"
