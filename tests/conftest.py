"""Tiny models with random weights, made on the spot: no music, but every path that a real model takes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import nn

WORDS = ["a", "an", "the", "and", "in", "of", "calm", "lively", "slow", "fast", "piano", "flute", "violin", "guitar"]
WORDS += ["drums", "bass", "waltz", "jig", "march", "major", "minor", "g", "d", "c"]
PROMPTS = ["a calm piano waltz in g major", "lively flute", "a slow march in d minor and drums"]


def scramble(module: nn.Module, seed: int, std: float = 0.15) -> nn.Module:
    """Random weights that are big enough for logits to differ clearly; the global random state stays as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.parameters():
            noise = torch.randn(tensor.shape, generator=generator) * std
            tensor.copy_(noise if tensor.ndim > 1 else 1 + noise)
    return module.eval()


def make_tokenizer():
    """A word-level tokenizer in the manner of the demo family's: lower case, `</s>` at the end."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )


def decoder_config(layers: int, entries: int, codebooks: int = 4, channels: int = 1):
    from transformers import MusicgenDecoderConfig

    return MusicgenDecoderConfig(
        vocab_size=entries,
        pad_token_id=entries,
        bos_token_id=entries,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        ffn_dim=48,
        num_codebooks=codebooks,
        audio_channels=channels,
    )


def text_config():
    from transformers import T5Config

    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5Config(vocab_size=len(WORDS) + 3, pad_token_id=0, eos_token_id=1, **sizes)


def save_tiny_musicgen(folder: Path, channels: int = 1) -> Path:
    """A random MusicGen in transformers format: 32 kHz, 50 frames a second, four codebooks a channel."""
    from transformers import EncodecConfig, MusicgenConfig, MusicgenForConditionalGeneration

    codec = EncodecConfig(
        target_bandwidths=[1.2],
        sampling_rate=32000,
        audio_channels=1,
        normalize=False,
        hidden_size=8,
        num_filters=2,
        upsampling_ratios=[8, 5, 4, 4],
        codebook_size=64,
        codebook_dim=8,
        use_causal_conv=False,
        num_lstm_layers=1,
    )
    config = MusicgenConfig(
        text_encoder=text_config().to_dict(),
        audio_encoder=codec.to_dict(),
        decoder=decoder_config(3, 64, 4 * channels, channels).to_dict(),
    )
    model = scramble(MusicgenForConditionalGeneration(config), seed=1)
    generator = torch.Generator().manual_seed(2)
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.copy_(torch.randn(layer.codebook.embed.shape, generator=generator))
    model.generation_config.update(decoder_start_token_id=64, bos_token_id=64, pad_token_id=64)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_family(models: Path) -> Path:
    """A random teacher and student around one text encoder and one spectral codec, laid out like assets/models."""
    from transformers import MusicgenForCausalLM, T5EncoderModel

    from tinymusician_core.bundle import save_family
    from tinymusician_core.codec.spectral import SpectralCodec, SpectralConfig

    scramble(T5EncoderModel(text_config()), seed=3).save_pretrained(models / "text")
    make_tokenizer().backend_tokenizer.save(str(models / "text" / "tokenizer.json"))
    sizes = SpectralConfig(
        codebook_size=64, score_dim=8, latent_dim=8, encoder_dim=16, encoder_blocks=1, decoder_dim=16, decoder_blocks=1
    )
    scramble(codec := SpectralCodec(sizes), seed=4)
    codec.save(models / "codec")
    for name, layers, seed in (("teacher", 4, 5), ("student", 2, 6)):
        config = decoder_config(layers, 64)
        decoder = scramble(MusicgenForCausalLM(config), seed=seed)
        projection = scramble(nn.Linear(24, 32), seed=seed + 10)
        state = {f"decoder.{key}": tensor for key, tensor in decoder.state_dict().items()}
        state |= {f"enc_to_dec_proj.{key}": tensor for key, tensor in projection.state_dict().items()}
        save_family(models / name, name, config.to_dict(), state)
    return models


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_works():
    """Ctrl-C interrupts, also where whoever started the tests ignores it, as a shell does for background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_musicgen(tmp_path_factory) -> Path:
    """The folder of a random mono MusicGen in transformers format. Read only: copy it to change it."""
    return save_tiny_musicgen(tmp_path_factory.mktemp("tiny") / "tiny-musicgen")


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory) -> Path:
    """A folder like assets/models with a random teacher and student. Read only: copy it to change it."""
    return save_tiny_family(tmp_path_factory.mktemp("assets") / "models")


@pytest.fixture
def demo_family(tiny_family, monkeypatch) -> Path:
    """`tiny_family` in the place of the demo family: `load("student")` finds it."""
    monkeypatch.setenv("TINYMUSICIAN_ASSETS", str(tiny_family.parent))
    return tiny_family
