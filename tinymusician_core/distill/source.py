"""The teacher as a model folder: read for training, and the folder that a student of the same format is written to."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import MusicgenDecoderConfig, MusicgenForCausalLM, MusicgenForConditionalGeneration

from ..bundle import WINDOW_S, load_text_encoder, read_config, save_family
from ..delay import pattern
from ..files import check_safetensors, reading, verify_files
from ..folders import whole_folder
from ..records import ModelError
from ..stored import (
    TOKENIZER_NAMES,
    check_complete,
    combined_identity,
    open_weights,
    quiet_transformers,
    take_projection,
    weight_files,
)
from ..text import TextEncoder

POSITIONS = "embed_positions"  # computed, never learned


@dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher, frozen: its decoder, its text encoder with the projection, and where it came from.

    `frame_rate_hz` is that of its codec; `whole` is the transformers model around it, for the "musicgen" format.
    """

    folder: Path
    config: dict
    decoder: MusicgenForCausalLM
    text_encoder: TextEncoder
    frame_rate_hz: float
    whole: MusicgenForConditionalGeneration | None = None

    @property
    def delays(self) -> tuple[int, ...]:
        return pattern(self.decoder.config.num_codebooks, self.decoder.config.audio_channels)

    @property
    def start(self) -> int:
        """The token before the first, which is the number of a codebook's entries."""
        return self.decoder.config.pad_token_id

    def write(self, student: MusicgenForCausalLM, out_dir: Path) -> None:
        """Write a student as a whole model folder in this teacher's format; nothing is left behind where that fails."""
        with whole_folder(out_dir, self.config["model_type"]) as partial:
            if self.whole is None:
                self._write_family(student, partial, out_dir)
            else:
                self._write_musicgen(student, partial)

    def _write_family(self, student: MusicgenForCausalLM, partial: Path, out_dir: Path) -> None:
        """Beside its teacher a student shares text encoder and codec; elsewhere it gets copies of its own."""
        shared = out_dir.resolve().parent == self.folder.resolve().parent
        places = {name: self.config[name] if shared else name for name in ("text", "codec")}
        if not shared:
            for name, place in places.items():
                shutil.copytree(self.folder / self.config[name], partial / place)
        state = {f"decoder.{k}": v for k, v in student.state_dict().items() if POSITIONS not in k}
        projection = self.text_encoder.projection
        if isinstance(projection, nn.Linear):
            state |= {f"enc_to_dec_proj.{k}": v for k, v in projection.state_dict().items()}
        window_s = self.config.get("window_s", WINDOW_S)
        save_family(partial, out_dir.resolve().name, student.config.to_dict(), state, **places, window_s=window_s)

    def _write_musicgen(self, student: MusicgenForCausalLM, partial: Path) -> None:
        teacher, config = self.whole.decoder, self.whole.config.decoder
        try:
            self.whole.decoder, self.whole.config.decoder = student, student.config
            with quiet_transformers():
                self.whole.save_pretrained(partial)
        finally:
            self.whole.decoder, self.whole.config.decoder = teacher, config
        for name in TOKENIZER_NAMES:
            if (self.folder / name).is_file():
                shutil.copy(self.folder / name, partial / name)


def read_teacher(folder: Path, device: str = "cpu") -> Teacher:
    """Read a teacher's folder of either float format.

    Raises:
        ValueError: the folder is no model, or a quantized one.
        ModelError: its files are missing, damaged or changed.
    """
    config = read_config(folder)
    kind = config["model_type"]
    if kind == "tinymusician":
        return _read_family(folder, config, device)
    if kind == "musicgen":
        return _read_musicgen(folder, config, device)
    raise ValueError(f"{folder} holds a {kind} model; a teacher is a float model, tinymusician or musicgen")


def _frozen(module: nn.Module, device: str) -> nn.Module:
    return module.eval().requires_grad_(False).to(device)


def _read_family(folder: Path, config: dict, device: str) -> Teacher:
    from ..codec.spectral import SpectralCodec

    verify_files(folder, config.get("files"))
    weights = folder / "model.safetensors"
    check_safetensors(weights)
    with reading(folder):
        state = {name: tensor.float() for name, tensor in load_file(weights).items()}
        text_encoder = load_text_encoder(folder / config["text"], take_projection(state))
        decoder = MusicgenForCausalLM(MusicgenDecoderConfig.from_dict(config["decoder"]))
        ours = {k.removeprefix("decoder."): v for k, v in state.items() if k.startswith("decoder.")}
        lacking = [k for k in decoder.load_state_dict(ours, strict=False).missing_keys if POSITIONS not in k]
        if lacking:
            raise ModelError(f"{weights} lacks {len(lacking)} weights, among them {lacking[0]}")
        codec = SpectralCodec.from_folder(folder / config["codec"])
    return Teacher(folder, config, _frozen(decoder, device), _frozen(text_encoder, device), codec.frame_rate_hz)


def _read_musicgen(folder: Path, config: dict, device: str) -> Teacher:
    from transformers import AutoTokenizer

    open_weights(folder)  # names what is missing or damaged
    with reading(folder), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        whole, info = MusicgenForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        check_complete(info, folder)
    projection = getattr(whole, "enc_to_dec_proj", None)
    text_encoder = _frozen(TextEncoder(tokenizer, whole.text_encoder, projection), device)
    codec = whole.config.audio_encoder
    rate = codec.sampling_rate / codec.hop_length
    return Teacher(folder, config, _frozen(whole.decoder, device), text_encoder, rate, whole)


def hash_of(teacher: Teacher) -> str:
    """Tells one teacher from another: a hash over its config.json and its weights."""
    return combined_identity([teacher.folder / "config.json", *weight_files(teacher.folder)])
