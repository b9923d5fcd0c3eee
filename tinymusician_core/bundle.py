"""A MusicGen-family model on disk: told apart by config.json's `model_type`, all but the last.

"musicgen"               what transformers writes; safetensors only
"musicgen_melody"        the same; used for text alone
"tinymusician"           a language model beside a shared text encoder and codec, every file with its sha256
"tinymusician-quantized" self-contained, written by `quant.apply`, read by `quant.loading`
AudioCraft               state_dict.bin and compression_state_dict.bin, without a config.json; see `audiocraft_parts`
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .audiocraft_format import LM_FILE
from .engine.decoder import DecoderConfig
from .engine.weights import from_musicgen
from .files import check_safetensors, combined_hash, first_line, reading, sha256_of, verify_files, whole_file
from .guidance import (
    GUIDANCE,
    Guidance,
    ScaleInput,
    guidance_record,
    read_guidance,
    take_scale_input,
)
from .made_for import USUAL, MadeFor, read_made_for
from .records import ModelError
from .stored import check_complete, quiet_transformers, take_projection
from .text import TextEncoder

FORMATS = ("musicgen", "musicgen_melody", "tinymusician", "tinymusician-quantized")
WINDOW_S = 30.0  # what MusicGen was trained on, arXiv 2306.05284
TEXT_FILES = ("config.json", "model.safetensors", "tokenizer.json")
CODEC_FILES = ("config.json", "decoder.safetensors")


@dataclass(frozen=True, eq=False)
class Parts:
    """A model read from disk: what the pipeline is made of.

    `files` is everything that generating reads, `hash` the first 16 digits of a sha256 over all of it, `window_s` the
    seconds of music that the language model can see at once: as long as those that it was trained on. `guidance` is the
    scale that a guidance-distilled model has built in, or the range of them that it takes as an input: it needs one
    pass where others need two. `made_for` is what it plays with where nothing else is asked for.

    Raises:
        ModelError: `window_s` is no number above 0.
    """

    name: str
    decoder: nn.Module
    text_encoder: TextEncoder
    codec: nn.Module
    files: tuple[Path, ...]
    hash: str
    window_s: float = WINDOW_S
    guidance: Guidance = None
    made_for: MadeFor = USUAL

    def __post_init__(self) -> None:
        if not _is_window(self.window_s):
            raise ModelError(f"the model {self.name} has a window_s of {self.window_s!r}; a number above 0 is allowed")


def _is_window(seconds: object) -> bool:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0.0 < seconds < math.inf


def read_config(folder: Path) -> dict:
    """config.json of a model folder.

    Raises:
        ValueError: the folder has none, or one of another kind of model.
        ModelError: it cannot be read.
    """
    path = folder / "config.json"
    allowed = f"a model folder has a config.json whose model_type is one of {', '.join(FORMATS)}"
    if not path.is_file():
        raise ValueError(f"{folder} is no model: {allowed}, or AudioCraft's {LM_FILE}, and there is none")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in FORMATS:
        raise ValueError(f"{folder} is no model that can be loaded: {allowed}, got {kind!r}")
    return config


def is_audiocraft(folder: Path) -> bool:
    """Whether a folder holds an AudioCraft checkpoint; where transformers' files stand beside it, those are taken."""
    return (folder / LM_FILE).is_file() and not (folder / "config.json").is_file()


def load_parts(folder: str | Path) -> Parts:
    """Read a model folder of any of these formats, onto the CPU.

    Raises:
        ValueError: the folder is no model.
        ModelError: it is one, but its files are missing, damaged or changed.
    """
    folder = Path(folder)
    if is_audiocraft(folder):
        from .audiocraft_parts import load_audiocraft

        return load_audiocraft(folder)
    config = read_config(folder)
    kind = config["model_type"]
    if kind in ("musicgen", "musicgen_melody"):
        from .musicgen_format import load_musicgen

        return load_musicgen(folder)
    verify_files(folder, config.get("files"))
    if kind == "tinymusician":
        return load_family(folder, config)
    from .quant.loading import load_quantized

    with reading(folder):
        return load_quantized(folder)


def load_text_encoder(folder: Path, projection: nn.Module | None, guidance: ScaleInput | None = None) -> TextEncoder:
    """A T5EncoderModel folder with a tokenizer.json whose special tokens are <unk>, <pad> and </s>."""
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

    check_safetensors(folder / "model.safetensors")
    with reading(folder), quiet_transformers():
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
        )
        encoder, info = T5EncoderModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        check_complete(info, folder)
        encoder.config._name_or_path = ""  # it names this machine's folders, and is saved with quantized models
        return TextEncoder(tokenizer, encoder.eval(), projection, guidance).eval()


def load_codec(folder: Path) -> nn.Module:
    """A spectral codec folder."""
    from .codec.spectral import SpectralCodec

    check_safetensors(folder / "decoder.safetensors")
    with reading(folder):
        return SpectralCodec.from_folder(folder).eval()


def load_family(folder: Path, config: Mapping) -> Parts:
    """The "tinymusician" format, whose hashes `verify_files` has compared already."""
    with reading(folder / "config.json"):
        text_folder, codec_folder = folder / config["text"], folder / config["codec"]
        name, shape = str(config["name"]), DecoderConfig.from_dict(config["decoder"])
    weights = folder / "model.safetensors"
    check_safetensors(weights)
    guidance, state = read_guidance(config.get(GUIDANCE), name), load_file(weights)
    with reading(weights):
        told = take_scale_input(state, guidance, shape.width)
        text_encoder = load_text_encoder(text_folder, take_projection(state), told)
        decoder = from_musicgen(shape, state, "decoder.")
    read = [folder / "config.json", weights]
    read += [text_folder / file for file in TEXT_FILES] + [codec_folder / file for file in CODEC_FILES]
    hashes = {"config.json": sha256_of(folder / "config.json"), **config["files"]}
    codec = load_codec(codec_folder)
    window_s, made_for = config.get("window_s", WINDOW_S), read_made_for(config, name)
    return Parts(name, decoder, text_encoder, codec, tuple(read), combined_hash(hashes), window_s, guidance, made_for)


def save_family(
    folder: str | Path,
    name: str,
    decoder: Mapping,
    state: Mapping[str, Tensor],
    text: str = "../text",
    codec: str = "../codec",
    dtype: torch.dtype = torch.float16,
    window_s: float = WINDOW_S,
    guidance: Guidance = None,
    made_for: MadeFor = USUAL,
) -> Path:
    """Write a "tinymusician" folder beside a text encoder and a codec that are there already.

    Plain transformers reads its language model, and the text encoder with T5EncoderModel.from_pretrained(text):

        config = MusicgenDecoderConfig(**json.loads((folder / "config.json").read_text())["decoder"])
        lm = MusicgenForCausalLM.from_pretrained(folder, config=config, key_mapping={r"^decoder\\.": ""})

    Args:
        folder: where to; made if need be.
        name: the variant's name.
        decoder: a MusicgenDecoderConfig as a dict.
        state: MusicgenForCausalLM's weights under the prefix "decoder.", "enc_to_dec_proj.weight" and ".bias", and
            where guidance is an input "guidance.weight".
        text: the text encoder's folder, relative to `folder`.
        codec: the codec's folder, relative to `folder`.
        dtype: what the weights are stored in; they run in float32.
        window_s: the longest windows that the language model was trained on, in seconds.
        guidance: the scale that the language model has built in, or the range of them that it takes as an input.
        made_for: what it is to play with where nothing else is asked for.

    Returns:
        The folder. config.json comes last, so that a folder that was cut off in the middle is no model.

    Raises:
        ValueError: `window_s` is no number above 0.
    """
    if not _is_window(window_s):
        raise ValueError(f"window_s is {window_s!r}; a number above 0 is allowed")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "model.safetensors") as path:
        save_file({key: tensor.to(dtype).contiguous() for key, tensor in state.items()}, path)
    names = ["model.safetensors"]
    names += [f"{text}/{file}" for file in TEXT_FILES] + [f"{codec}/{file}" for file in CODEC_FILES]
    config = {
        "model_type": "tinymusician",
        "format": 1,
        "name": name,
        "decoder": dict(decoder),
        "text": text,
        "codec": codec,
        "window_s": window_s,
        **made_for.as_record(),
        **guidance_record(guidance),
        "files": {file: sha256_of(folder / file) for file in names},
    }
    with whole_file(folder / "config.json") as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder
