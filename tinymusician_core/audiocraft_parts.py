"""An AudioCraft folder -> the parts of a pipeline, or a whole transformers MusicGen to distil from.

MODEL/state_dict.bin               the language model
MODEL/compression_state_dict.bin   EnCodec, or the name of the one that was trained with
MODEL/t5/                          the text encoder in transformers format, where the hub's is not to be used
MODEL/encodec/                     the named EnCodec in transformers format, where the hub's is not to be used
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .audiocraft_codec import make_codec
from .audiocraft_format import CODEC_FILE, LM_FILE, decoder_settings, read_checkpoint, read_state, rename, text_place
from .bundle import WINDOW_S, Parts
from .engine.decoder import DecoderConfig
from .engine.weights import from_musicgen
from .files import reading
from .hub import fetch
from .records import ModelError
from .stored import (
    check_all_used,
    check_complete,
    combined_identity,
    is_whole,
    open_weights,
    quiet_transformers,
    take_no_melody,
    take_projection,
    tokenizer_files,
)
from .text import TextEncoder

T5_FOLDER, ENCODEC_FOLDER = "t5", "encodec"
T5_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "spiece.model")
ENCODEC_FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True, eq=False)
class AudiocraftModel:
    """An AudioCraft checkpoint in transformers' terms.

    `decoder` and `state` are a MusicgenDecoderConfig as a dict and its weights with those of the projections; `text`
    and `prefix` are as in our DecoderConfig; `encoder` is a T5EncoderModel, `codec` an EncodecModel, `files` all that
    was read.
    """

    decoder: dict[str, Any]
    text: str
    prefix: int
    state: dict[str, Tensor]
    tokenizer: Any
    encoder: nn.Module
    codec: nn.Module
    files: tuple[Path, ...]
    window_s: float


def read_audiocraft(folder: Path) -> AudiocraftModel:
    """Read an AudioCraft folder, its text encoder and its codec.

    Raises:
        ModelError: files are missing, damaged, or describe a model that is not supported.
    """
    lm = folder / LM_FILE
    state, settings = read_state(read_checkpoint(lm), lm)
    with reading(lm):
        decoder, place, renamed = decoder_settings(settings), text_place(settings), rename(state)
    codec, codec_files = _codec(folder, decoder["num_codebooks"] // decoder["audio_channels"])
    t5 = _text_folder(folder, settings.get("conditioners.description.t5.name"))
    text_files, _ = open_weights(t5)
    tokens = tokenizer_files(t5)
    tokenizer, encoder = _text_encoder(t5)
    files = (lm, *codec_files, t5 / "config.json", *text_files, *tokens)
    window_s = settings.get("dataset.segment_duration", WINDOW_S)
    return AudiocraftModel(decoder, *place, renamed, tokenizer, encoder, codec, files, window_s)


def load_audiocraft(folder: Path) -> Parts:
    """Read an AudioCraft folder as the parts of a pipeline.

    Raises:
        ModelError: as `read_audiocraft`; or weights that do not fit their settings.
    """
    from .codec.encodec import EncodecCodec

    model = read_audiocraft(folder)
    with reading(folder):
        shape = replace(DecoderConfig.from_dict(model.decoder), text=model.text, prefix=model.prefix)
        if model.prefix:
            model.state["decoder.prefix.weight"] = take_no_melody(model.state)
        decoder = from_musicgen(shape, model.state, "decoder.")
        text_encoder = TextEncoder(model.tokenizer, model.encoder, take_projection(model.state)).eval()
        check_all_used(model.state, folder / LM_FILE)
        codec = EncodecCodec(model.codec, shape.audio_channels).eval()
    name, identity = folder.resolve().name, combined_identity(model.files)
    return Parts(name, decoder, text_encoder, codec, model.files, identity, model.window_s)


def _codec(folder: Path, codebooks: int) -> tuple[nn.Module, list[Path]]:
    """The EncodecModel of a folder, and the files that it was read from."""
    path = folder / CODEC_FILE
    package = read_checkpoint(path)
    if "pretrained" not in package:
        state, settings = read_state(package, path)
        with reading(path):
            return make_codec(state, settings, codebooks), [path]
    name = str(package["pretrained"])
    if "/encodec_" not in name:
        raise ModelError(f"{path} names the codec {name}, and only EnCodec is supported, as facebook/encodec_32khz")
    place = folder / ENCODEC_FOLDER
    if not place.is_dir():
        way = f"{path} only names its codec: put the config.json and model.safetensors of {name} into {place}"
        place = fetch(name, ENCODEC_FILES, _has_weights, way)
    files, _ = open_weights(place)
    from transformers import EncodecModel

    with _from_folder(place) as options:
        model, info = EncodecModel.from_pretrained(place, **options)
        check_complete(info, place)
    model.config._name_or_path = ""  # it names this machine's folders, and is saved with quantized models
    return model.eval(), [path, place / "config.json", *files]


def _text_folder(folder: Path, name: str) -> Path:
    """The T5 that a checkpoint was trained with: beside it, in the hub's cache, or from the hub."""
    place = folder / T5_FOLDER
    if place.is_dir():
        return place
    repository = name if "/" in name else f"google-t5/{name}"
    way = (
        f"AudioCraft keeps no text encoder in its checkpoints: put the config.json, model.safetensors and tokenizer of "
        f"{name} into {place}"
    )
    return fetch(repository, T5_FILES, is_whole, way)


def _text_encoder(folder: Path) -> tuple[Any, nn.Module]:
    from transformers import AutoTokenizer, T5EncoderModel

    with _from_folder(folder) as options:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder, info = T5EncoderModel.from_pretrained(folder, **options)
        check_complete(info, folder)
    encoder.config._name_or_path = ""
    return tokenizer, encoder.eval()


@contextmanager
def _from_folder(folder: Path) -> Iterator[dict[str, Any]]:
    """Quiet loading by transformers from a folder alone: the options of its from_pretrained."""
    with reading(folder), quiet_transformers():
        yield {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True, "output_loading_info": True}


def _has_weights(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ENCODEC_FILES)
