"""A model's shape without its weights: what a quantized folder's config.json says, and the modules built from it.

Weights are made on the "meta" device, which holds none, so that a quantized model never has a float twin in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..codec.encodec import EncodecCodec
from ..codec.spectral import SpectralCodec, SpectralConfig
from ..engine.decoder import Decoder, DecoderConfig
from ..guidance import GUIDANCE, ScaleInput, ScaleRange, read_guidance
from ..records import ModelError
from ..text import TextEncoder

# What generating never runs, EnCodec's encoder and ours once it has been read: it goes to a file of its own.
ENCODER_FILE = "encoder.safetensors"
ENCODERS = ("codec.encoder.", "codec._encoder.")


class _NoWeights(TorchFunctionMode):
    """`torch.empty`, with which layers make their weights, gives tensors without memory; all else is made for real."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.empty:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


class StoredEncoder(nn.Module):
    """EnCodec's encoder in a file of its own, read when a sound is first encoded: generating never needs it."""

    def __init__(self, config, path: Path):
        super().__init__()
        self._config, self._path = config, path
        self._read: list[nn.Module] = []  # no submodule: a plan does not reach it

    def forward(self, sound: Tensor) -> Tensor:
        """Sound [B,C,N] -> [B,D,T].

        Raises:
            ModelError: the file is not there.
        """
        if not self._read:
            from transformers.models.encodec.modeling_encodec import EncodecEncoder

            if not self._path.is_file():
                raise ModelError(f"this quantized model was saved without its codec's encoder (no {self._path})")
            encoder = EncodecEncoder(self._config)
            encoder.load_state_dict({name: tensor.float() for name, tensor in load_file(self._path).items()})
            self._read.append(encoder.eval())
        return self._read[0](sound)


def encoder_file(record: Mapping, folder: Path) -> Path:
    """Where a quantized folder has its codec's encoder: its own, or one that lies elsewhere in its family."""
    names = [name for name in record.get("files", {}) if Path(name).name == ENCODER_FILE]
    return folder / (names[0] if names else ENCODER_FILE)


def encoder_state(codec: nn.Module) -> dict[str, Tensor]:
    """The weights of a codec's encoder in half precision, as its file holds them; none where it has no encoder."""
    try:
        encoder = codec.encoder
    except FileNotFoundError:
        return {}
    return {name: tensor.half().contiguous() for name, tensor in encoder.state_dict().items()}


def tokenizer_record(tokenizer) -> dict[str, str | None]:
    """The special tokens that a tokenizer.json does not name."""
    return {name: getattr(tokenizer, name) for name in ("unk_token", "pad_token", "eos_token")}


def plain_tokenizer(tokenizer):
    """What is saved of a tokenizer: not how it filled up the last batch, which every call sets anew."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return backend


def describe(modules: nn.ModuleDict) -> dict:
    """The sizes of a pipeline's modules, as JSON: decoder, text (T5 and its projection), codec.

    Raises:
        ValueError: a codec of another kind than ours and EnCodec.
    """
    text_encoder, codec = modules["text_encoder"], modules["codec"]
    projection = text_encoder.projection
    if isinstance(codec, SpectralCodec):
        sound = {"kind": "spectral", "config": asdict(codec.config)}
    elif isinstance(codec, EncodecCodec):
        channels = codec.channels // codec.config.audio_channels
        sound = {"kind": "encodec", "config": codec.config.to_dict(), "audio_channels": channels}
    else:
        raise ValueError(
            f"a {type(codec).__name__} cannot be saved in a quantized model; a spectral codec or EnCodec can"
        )
    return {
        "decoder": asdict(modules["decoder"].config),
        "text": {
            "config": text_encoder.encoder.config.to_dict(),
            "projection": isinstance(projection, nn.Linear),
            "tokenizer": tokenizer_record(text_encoder.tokenizer),
        },
        "codec": sound,
    }


def build(record: Mapping, folder: Path) -> nn.ModuleDict:
    """The modules "decoder", "text_encoder" and "codec" of a config.json with a `describe` record, without weights.

    `folder` holds tokenizer.json, and where it was saved the codec's encoder, or says where that lies.
    """
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    shape = DecoderConfig(**record["decoder"])
    text, guidance = record["text"], read_guidance(record.get(GUIDANCE), str(record.get("name")))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **text["tokenizer"])
    with _NoWeights():
        encoder = T5EncoderModel(T5Config.from_dict(text["config"]))
        projection = nn.Linear(encoder.config.d_model, shape.width) if text["projection"] else None
        told = ScaleInput(guidance, shape.width) if isinstance(guidance, ScaleRange) else None
        modules = {
            "decoder": Decoder(shape),
            "text_encoder": TextEncoder(tokenizer, encoder, projection, told),
            "codec": _codec(record["codec"], encoder_file(record, folder)),
        }
    return nn.ModuleDict(modules).eval().requires_grad_(False)


def _codec(record: Mapping, encoder_file: Path) -> nn.Module:
    if record["kind"] == "spectral":
        return SpectralCodec(SpectralConfig(**record["config"]), encoder_file)
    from transformers import EncodecConfig, EncodecModel

    model = EncodecModel(EncodecConfig.from_dict(record["config"]))
    model.encoder = StoredEncoder(model.config, encoder_file)
    return EncodecCodec(model, record["audio_channels"])
