"""The teacher as a model folder: read for training, and the folder that its student is written to.

A student has its teacher's format; that of an AudioCraft teacher is written in transformers format.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
)

from ..bundle import WINDOW_S, is_audiocraft, load_text_encoder, read_config, save_family
from ..delay import pattern
from ..files import check_safetensors, reading, verify_files
from ..folders import whole_folder
from ..guidance import (
    GUIDANCE,
    WEIGHT,
    Guidance,
    ScaleInput,
    guidance_record,
    read_guidance,
)
from ..made_for import MadeFor, read_made_for
from ..records import ModelError
from ..stored import (
    TOKENIZER_NAMES,
    check_all_used,
    check_complete,
    combined_identity,
    open_weights,
    quiet_transformers,
    take_projection,
    tokenizer_files,
)
from ..text import TextEncoder

POSITIONS = "embed_positions"  # computed, never learned


@dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher, frozen: its decoder, its text encoder with the projection, and where it came from.

    `frame_rate_hz` is that of its codec, `files` tell it from others; `whole` is the transformers model around it, for
    the "musicgen" format.
    """

    folder: Path
    config: dict
    decoder: MusicgenForCausalLM
    text_encoder: TextEncoder
    frame_rate_hz: float
    files: tuple[Path, ...]
    whole: MusicgenForConditionalGeneration | None = None

    @property
    def delays(self) -> tuple[int, ...]:
        return pattern(self.decoder.config.num_codebooks, self.decoder.config.audio_channels)

    @property
    def start(self) -> int:
        """The token before the first, which is the number of a codebook's entries."""
        return self.decoder.config.pad_token_id

    @property
    def guidance(self) -> Guidance:
        """What it has built in itself, or takes as an input, where it is a guidance-distilled model."""
        return read_guidance(self.config.get(GUIDANCE), self.folder.name)

    @property
    def made_for(self) -> MadeFor:
        """What it is to be played with where nothing else is asked for."""
        record = self.config if self.whole is None else self.whole.generation_config.to_dict()
        return read_made_for(record, self.folder.name)

    def check_width(self, width: int) -> None:
        """ValueError where a student of that width cannot be written in the teacher's format.

        MusicGen's format has no text projection where the text encoder's width is the decoder's.
        """
        if self.whole is None or width == self.decoder.config.hidden_size:
            return
        if width == self.whole.config.text_encoder.hidden_size:
            raise ValueError(
                f"the student's width is {width}, the text encoder's, which leaves its text projection no place in "
                "MusicGen's format; any other width is allowed"
            )

    def write(
        self,
        student: MusicgenForCausalLM,
        out_dir: Path,
        projection: nn.Linear | None = None,
        guidance: Guidance = None,
        told: ScaleInput | None = None,
    ) -> None:
        """Write a student as a whole model folder; nothing is left behind where that fails.

        Args:
            student: its decoder.
            out_dir: where to.
            projection: its own text projection, where it has one.
            guidance: the scale that it has built in, or the range of them that it takes as an input.
            told: the weights of that input.
        """
        projection = self.text_encoder.projection if projection is None else projection
        with whole_folder(out_dir, self.config["model_type"]) as partial:
            if self.whole is None:
                self._write_family(student, partial, out_dir, projection, guidance, told)
            else:
                self._write_musicgen(student, partial, projection, guidance, told)

    def _write_family(
        self,
        student: MusicgenForCausalLM,
        partial: Path,
        out_dir: Path,
        projection: nn.Module,
        guidance: Guidance,
        told: ScaleInput | None,
    ) -> None:
        """Beside its teacher a student shares text encoder and codec; elsewhere it gets copies of its own."""
        shared = out_dir.resolve().parent == self.folder.resolve().parent
        places = {name: self.config[name] if shared else name for name in ("text", "codec")}
        if not shared:
            for name, place in places.items():
                shutil.copytree(self.folder / self.config[name], partial / place)
        state = {f"decoder.{k}": v for k, v in student.state_dict().items() if POSITIONS not in k}
        if isinstance(projection, nn.Linear):
            state |= {f"enc_to_dec_proj.{k}": v for k, v in projection.state_dict().items()}
        if told is not None:
            state[WEIGHT] = told.weight.detach()
        shape, name = student.config.to_dict(), out_dir.resolve().name
        window_s = self.config.get("window_s", WINDOW_S)
        made = {"window_s": window_s, "guidance": guidance, "made_for": self.made_for}
        save_family(partial, name, shape, state, **places, **made)

    def _write_musicgen(
        self,
        student: MusicgenForCausalLM,
        partial: Path,
        projection: nn.Module,
        guidance: Guidance,
        told: ScaleInput | None,
    ) -> None:
        """The model around the teacher, with the student in its place.

        A student with guidance built in is a plain MusicGen that is to be run without: so says its generation config.
        Where the scale is an input, transformers passes its weights over and plays at the range's base.
        """
        whole = copy.copy(self.whole)
        whole._modules = dict(self.whole._modules) | {"decoder": student}
        if isinstance(projection, nn.Linear):
            whole._modules["enc_to_dec_proj"] = projection
        if told is not None:
            whole._modules["guidance"] = told
        whole.config = copy.deepcopy(self.whole.config)
        whole.config.decoder = student.config
        whole.generation_config = copy.deepcopy(self.whole.generation_config)
        if guidance is not None:
            setattr(whole.config, GUIDANCE, guidance_record(guidance)[GUIDANCE])
            whole.generation_config.guidance_scale = 1.0
        with quiet_transformers():
            whole.save_pretrained(partial)
        for file in self.files:
            if file.name in TOKENIZER_NAMES:
                shutil.copy(file, partial / file.name)


def read_teacher(folder: Path, device: str = "cpu") -> Teacher:
    """Read a teacher's folder of any float format.

    Raises:
        ValueError: the folder is no model, or a quantized one.
        ModelError: its files are missing, damaged or changed.
    """
    if is_audiocraft(folder):
        return _read_audiocraft(folder, device)
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
    files = (folder / "config.json", weights)
    return Teacher(folder, config, _frozen(decoder, device), _frozen(text_encoder, device), codec.frame_rate_hz, files)


def _read_musicgen(folder: Path, config: dict, device: str) -> Teacher:
    from transformers import AutoTokenizer

    files, _ = open_weights(folder)
    tokens = tokenizer_files(folder)
    with reading(folder), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        whole, info = MusicgenForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        check_complete(info, folder)
    return _around(folder, config, whole, tokenizer, (folder / "config.json", *files, *tokens), device)


def _read_audiocraft(folder: Path, device: str) -> Teacher:
    from ..audiocraft_parts import read_audiocraft

    model = read_audiocraft(folder)
    if model.text != "cross":
        raise ValueError(f"{folder} holds a melody model; a teacher is a model that attends to its text")
    state = dict(model.state)
    state |= {f"text_encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    state |= {f"audio_encoder.{name}": tensor for name, tensor in model.codec.state_dict().items()}
    with reading(folder), quiet_transformers():
        config = MusicgenConfig(
            text_encoder=model.encoder.config.to_dict(),
            audio_encoder=model.codec.config.to_dict(),
            decoder=MusicgenDecoderConfig(**model.decoder).to_dict(),
        )
        whole, info = MusicgenForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
        check_complete(info, folder)
        check_all_used(info["unexpected_keys"], folder)
    start = config.decoder.pad_token_id
    whole.generation_config.update(
        decoder_start_token_id=start, bos_token_id=start, pad_token_id=start, do_sample=True, guidance_scale=3.0
    )
    return _around(folder, {"model_type": "musicgen"}, whole, model.tokenizer, model.files, device)


def _around(
    folder: Path,
    config: dict,
    whole: MusicgenForConditionalGeneration,
    tokenizer: Any,
    files: tuple[Path, ...],
    device: str,
) -> Teacher:
    projection = getattr(whole, "enc_to_dec_proj", None)
    text_encoder = _frozen(TextEncoder(tokenizer, whole.text_encoder, projection), device)
    rate = whole.config.audio_encoder.sampling_rate / whole.config.audio_encoder.hop_length
    return Teacher(folder, config, _frozen(whole.decoder, device), text_encoder, rate, files, whole)


def hash_of(teacher: Teacher) -> str:
    """Tells one teacher from another: a hash over its configuration and its weights."""
    return combined_identity(teacher.files)
