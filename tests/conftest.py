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
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


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


def codec_config():
    from transformers import EncodecConfig

    return EncodecConfig(
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


def save_tiny_musicgen(folder: Path, channels: int = 1, melody: bool = False) -> Path:
    """A random MusicGen in transformers format: 32 kHz, 50 frames a second, four codebooks a channel."""
    from transformers import (
        MusicgenConfig,
        MusicgenForConditionalGeneration,
        MusicgenMelodyConfig,
        MusicgenMelodyForConditionalGeneration,
    )

    parts = {
        "text_encoder": text_config().to_dict(),
        "audio_encoder": codec_config().to_dict(),
        "decoder": decoder_config(3, 64, 4 * channels, channels).to_dict(),
    }
    if melody:
        parts["decoder"]["model_type"] = "musicgen_melody_decoder"
        model = MusicgenMelodyForConditionalGeneration(MusicgenMelodyConfig(**parts, num_chroma=12, chroma_length=7))
    else:
        model = MusicgenForConditionalGeneration(MusicgenConfig(**parts))
    scramble(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.copy_(torch.randn(layer.codebook.embed.shape, generator=generator))
    model.generation_config.update(decoder_start_token_id=64, bos_token_id=64, pad_token_id=64)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_family(models: Path, teacher_layers: int = 4) -> Path:
    """A random teacher and student around one text encoder and one spectral codec, laid out like assets/models."""
    from transformers import MusicgenForCausalLM, T5EncoderModel

    from tinymusician_core.bundle import save_family
    from tinymusician_core.codec.spectral import SpectralCodec, SpectralConfig

    scramble(T5EncoderModel(text_config()), seed=3).save_pretrained(models / "text")
    make_tokenizer().backend_tokenizer.save(str(models / "text" / "tokenizer.json"))
    sizes = SpectralConfig(
        codebook_size=64,
        score_dim=8,
        harmony_dim=8,
        players_dim=8,
        oscillators=24,
        latent_dim=8,
        encoder_dim=16,
        encoder_blocks=1,
        decoder_dim=16,
        decoder_blocks=1,
    )
    scramble(codec := SpectralCodec(sizes), seed=4)
    codec.save(models / "codec")
    for name, layers, seed in (("teacher", teacher_layers, 5), ("student", 2, 6)):
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


AUDIOCRAFT_LM = """
lm_model: transformer_lm
codebooks_pattern: {modeling: delay, delay: {delays: [0, 1, 2, 3], flatten_first: 0, empty_initial: 0}}
transformer_lm:
  {dim: 32, num_heads: 4, num_layers: 3, hidden_scale: 1.5, n_q: 4, card: 64, activation: gelu, norm_first: true,
   causal: true, layer_scale: null, positional_embedding: sin, norm: layer_norm, qk_layer_norm: false}
fuser: {cross_attention_pos_emb: false, sum: [], prepend: [], cross: [description], input_interpolate: []}
conditioners:
  description: {model: t5, t5: {name: t5-base, finetune: false, normalize_text: false}}
dataset: {segment_duration: 12}
"""
AUDIOCRAFT_CODEC = """
sample_rate: 32000
channels: 1
compression_model: encodec
encodec:
  {autoencoder: seanet, quantizer: rvq, sample_rate: "${sample_rate}", channels: "${channels}", causal: false}
seanet:
  {dimension: 8, channels: "${channels}", causal: "${encodec.causal}", n_filters: 2, n_residual_layers: 1,
   ratios: [8, 5, 4, 4], norm: weight_norm, pad_mode: reflect, true_skip: false, lstm: 1,
   decoder: {trim_right_ratio: 1.0, final_activation: null}, encoder: {}}
rvq: {n_q: 4, bins: 64}
"""


def audiocraft_lm_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A MusicgenForConditionalGeneration's language model and projection under AudioCraft's names."""
    state = {
        "condition_provider.conditioners.description.output_proj." + k: v
        for k, v in model.enc_to_dec_proj.state_dict().items()
    }
    inner = model.decoder.model.decoder
    state |= {f"emb.{k}.weight": table.weight for k, table in enumerate(inner.embed_tokens)}
    state |= {f"linears.{k}.weight": head.weight for k, head in enumerate(model.decoder.lm_heads)}
    state |= {f"out_norm.{k}": v for k, v in inner.layer_norm.state_dict().items()}
    for i, layer in enumerate(inner.layers):
        prefix = f"transformer.layers.{i}."
        for name, attention in (("self_attn", layer.self_attn), ("cross_attention", layer.encoder_attn)):
            fused = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
            state[f"{prefix}{name}.in_proj_weight"] = torch.cat(fused)
            state[f"{prefix}{name}.out_proj.weight"] = attention.out_proj.weight
        norms = {"norm1": layer.self_attn_layer_norm, "norm_cross": layer.encoder_attn_layer_norm}
        for name, norm in {**norms, "norm2": layer.final_layer_norm}.items():
            state |= {f"{prefix}{name}.{k}": v for k, v in norm.state_dict().items()}
        state |= {f"{prefix}linear1.weight": layer.fc1.weight, f"{prefix}linear2.weight": layer.fc2.weight}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def audiocraft_codec_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A transformers EncodecModel's weights under AudioCraft's names."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("quantizer."):
            state[name.replace("quantizer.layers", "quantizer.vq.layers").replace(".codebook.", "._codebook.")] = tensor
            continue
        owner, _, convolution = name.partition(".conv.")
        if convolution:
            wrapped = "convtr.convtr" if "Transpose" in type(model.get_submodule(owner)).__name__ else "conv.conv"
            name = f"{owner}.{wrapped}.{convolution}"
        name = name.replace(".layers.", ".model.")
        name = name.replace("parametrizations.weight.original0", "weight_g")
        state[name.replace("parametrizations.weight.original1", "weight_v")] = tensor
    return state


def save_tiny_audiocraft(folder: Path, musicgen: Path) -> Path:
    """The model of a tiny transformers folder as an AudioCraft checkpoint, in float16, with its T5 beside it."""
    from transformers import MusicgenForConditionalGeneration

    model = MusicgenForConditionalGeneration.from_pretrained(musicgen)
    model.text_encoder.save_pretrained(folder / "t5")
    make_tokenizer().save_pretrained(folder / "t5")
    lm = {name: tensor.half() for name, tensor in audiocraft_lm_state(model).items()}
    common = {"version": "1.3.0", "exported": True}
    torch.save({"best_state": lm, "xp.cfg": AUDIOCRAFT_LM, **common}, folder / "state_dict.bin")
    codec = {"best_state": audiocraft_codec_state(model.audio_encoder), "xp.cfg": AUDIOCRAFT_CODEC, **common}
    torch.save(codec, folder / "compression_state_dict.bin")
    return folder


@pytest.fixture(scope="session")
def tiny_audiocraft(tiny_musicgen, tmp_path_factory) -> Path:
    """`tiny_musicgen` as an AudioCraft checkpoint. Read only: copy it to change it."""
    return save_tiny_audiocraft(tmp_path_factory.mktemp("tiny") / "tiny-audiocraft", tiny_musicgen)
