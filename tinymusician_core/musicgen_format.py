"""Folders that transformers writes: "musicgen" and "musicgen_melody", with their tokenizer.

A melody model (MusicgenMelodyForConditionalGeneration) is read for text alone: it is told that no melody is given.
Instead of attending to the text it has it before the music, [melody][text][music], in one sequence.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .bundle import WINDOW_S, Parts
from .engine.decoder import DecoderConfig
from .engine.weights import from_musicgen
from .files import reading
from .guidance import GUIDANCE, read_guidance, take_scale_input
from .made_for import USUAL, MadeFor, read_made_for
from .records import ModelError
from .stored import (
    check_all_used,
    check_complete,
    combined_identity,
    open_weights,
    quiet_transformers,
    take_no_melody,
    take_projection,
    tokenizer_files,
)
from .text import TextEncoder

GENERATION = "generation_config.json"


def load_musicgen(folder: Path) -> Parts:
    """Read a transformers folder: small, medium, large, melody, stereo, or a student of one; fp32, fp16 or bf16.

    Its hash rests on `identity_of` each file: see there what that tells apart.

    Raises:
        ModelError: files are missing or damaged, or do not fit together.
    """
    from transformers import AutoConfig, AutoTokenizer

    from .codec.encodec import EncodecCodec

    name = folder.resolve().name
    files, weights = open_weights(folder)
    tokens = tokenizer_files(folder)
    with reading(folder), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        shape = DecoderConfig.from_dict(config.decoder.to_dict())
        guidance, made_for = read_guidance(getattr(config, GUIDANCE, None), name), _made_for(folder, name)
        if config.model_type == "musicgen_melody":
            shape = replace(shape, text="prepend", prefix=config.chroma_length)
            weights["decoder.prefix.weight"] = take_no_melody(weights)
        decoder = from_musicgen(shape, weights, "decoder.")
        encoder = _part("t5", config.text_encoder, weights.take("text_encoder."), folder)
        text_encoder = TextEncoder(
            tokenizer, encoder, take_projection(weights), take_scale_input(weights, guidance, shape.width)
        ).eval()
        codec = _part("encodec", config.audio_encoder, weights.take("audio_encoder."), folder)
        codec = EncodecCodec(codec, shape.audio_channels).eval()
        check_all_used(weights, folder)
    read = (folder / "config.json", *files, *tokens)
    return Parts(name, decoder, text_encoder, codec, read, combined_identity(read), WINDOW_S, guidance, made_for)


def _made_for(folder: Path, name: str) -> MadeFor:
    """What its generation config names, if there is one."""
    from transformers import GenerationConfig

    if not (folder / GENERATION).is_file():
        return USUAL
    return read_made_for(GenerationConfig.from_pretrained(folder, local_files_only=True).to_dict(), name)


def _part(kind: str, config, state: dict[str, Tensor], folder: Path) -> nn.Module:
    from transformers import EncodecModel, T5EncoderModel

    if config.model_type != kind:
        raise ModelError(f"{folder} has a part of the kind {config.model_type!r} where {kind!r} is supported")
    made = {"t5": T5EncoderModel, "encodec": EncodecModel}[kind]
    model, info = made.from_pretrained(
        None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    check_complete(info, folder)
    return model.eval()
