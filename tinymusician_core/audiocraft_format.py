"""AudioCraft checkpoints, read without AudioCraft: a folder with `state_dict.bin` and `compression_state_dict.bin`.

What `audiocraft.utils.export` (1.3.0) writes: {"best_state": weights, "xp.cfg": the run's settings as YAML}. They are
unpickled by torch's `weights_only` reader, which runs no code. The frozen T5 text encoder is not in them; see
`audiocraft_parts`. A melody checkpoint is read for text alone.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from torch import Tensor

from .delay import pattern
from .files import first_line
from .records import ModelError

LM_FILE, CODEC_FILE = "state_dict.bin", "compression_state_dict.bin"
DESCRIPTION, MELODY = (f"condition_provider.conditioners.{name}." for name in ("description", "self_wav"))
_MISSING = object()
DEEPEST = 8  # references that lead to references
_DECODER = "model.decoder."
_MODULES = {
    "self_attn.out_proj": "self_attn.out_proj",
    "cross_attention.out_proj": "encoder_attn.out_proj",
    "linear1": "fc1",
    "linear2": "fc2",
    "norm1": "self_attn_layer_norm",
    "norm_cross": "encoder_attn_layer_norm",
    "norm2": "final_layer_norm",
}
_ATTENTION = {"self_attn": "self_attn", "cross_attention": "encoder_attn"}
# Where conditions may go: MusicGen attends to the text; MusicGen-Melody has melody and text before the music.
_FUSING = {("cross", ("description",)): "cross", ("prepend", ("self_wav", "description")): "prepend"}
_CHROMA = "conditioners.self_wav.chroma_stem."
_CHROMA_DEMANDS = {
    "conditioners.self_wav.model": ("chroma_stem", False),
    f"{_CHROMA}argmax": (True, False),
    f"{_CHROMA}nfft": (None, True),
    f"{_CHROMA}winlen": (None, True),
    f"{_CHROMA}winhop": (None, True),
}
# What `LMModel` can be told to do and the MusicGen decoder does not: setting -> the value that is supported, and
# whether a checkpoint may leave it out because that is AudioCraft's default.
_DEMANDS = {
    "lm_model": ("transformer_lm", False),
    "codebooks_pattern.delay.flatten_first": (0, True),
    "codebooks_pattern.delay.empty_initial": (0, True),
    "transformer_lm.norm": ("layer_norm", True),
    "transformer_lm.norm_first": (True, False),
    "transformer_lm.causal": (True, False),
    "transformer_lm.past_context": (None, True),
    "transformer_lm.layer_scale": (None, True),
    "transformer_lm.positional_embedding": ("sin", True),
    "transformer_lm.positional_scale": (1.0, True),
    "transformer_lm.max_period": (10000, True),
    "transformer_lm.qk_layer_norm": (False, True),
    "transformer_lm.qk_layer_norm_cross": (False, True),
    "transformer_lm.kv_repeat": (1, True),
    "fuser.cross_attention_pos_emb": (False, True),
    "conditioners.description.model": ("t5", False),
    "conditioners.description.t5.finetune": (False, True),
    "conditioners.description.t5.normalize_text": (False, True),
    "interleave_stereo_codebooks.per_timestep": (False, True),
}


class Settings:
    """The settings of the run that made a checkpoint: YAML in which ${a.b} stands for another setting."""

    def __init__(self, text: object, source: Path):
        try:
            tree = yaml.safe_load(text) if isinstance(text, str) else None
        except yaml.YAMLError as error:
            raise ModelError(f"the settings in {source} are damaged: {first_line(error)}") from error
        if not isinstance(tree, dict):
            raise ModelError(f"{source} holds no settings (xp.cfg); AudioCraft's export functions write them")
        self.source, self._tree = source, tree

    def get(self, path: str, default: Any = _MISSING) -> Any:
        """One setting by its dotted path; ModelError where it is missing and there is no default."""
        value = self._look(path, 0)
        if value is not _MISSING:
            return value
        if default is _MISSING:
            raise ModelError(f"the settings in {self.source} lack {path}")
        return default

    def _look(self, path: str, depth: int) -> Any:
        value = self._tree
        for name in path.split("."):
            if not isinstance(value, Mapping) or name not in value:
                return _MISSING
            value = value[name]
            if isinstance(value, str) and (reference := re.fullmatch(r"\$\{([\w.]+)\}", value)):
                if depth == DEEPEST:
                    raise ModelError(f"the settings in {self.source} refer to one another in a circle: {value}")
                value = self._look(reference.group(1), depth + 1)
        return value

    def demand(self, demands: Mapping[str, tuple[Any, bool]]) -> None:
        """ModelError that names the first setting that is not the supported one."""
        for path, (allowed, optional) in demands.items():
            found = self.get(path, allowed) if optional else self.get(path)
            if found != allowed:
                raise ModelError(f"{self.source} has {path} {found!r}, and only {allowed!r} is supported")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What an AudioCraft checkpoint holds; its tensors stay in the file until they are used.

    Raises:
        ModelError: it is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    try:
        package = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        raise ModelError(f"{path} is damaged, or no plain checkpoint: {first_line(error)}") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, IndexError) as error:
        raise ModelError(f"{path} is damaged or cut short: {first_line(error)}") from error
    if not isinstance(package, dict):
        raise ModelError(f"{path} is no AudioCraft checkpoint: it holds a {type(package).__name__}")
    return package


def read_state(package: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], Settings]:
    """The weights and the settings of a checkpoint that `read_checkpoint` gave."""
    state = package.get("best_state")
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ModelError(f"{path} holds no weights (best_state); AudioCraft's export functions write them")
    return dict(state), Settings(package.get("xp.cfg"), path)


def decoder_settings(settings: Settings) -> dict[str, Any]:
    """The sizes of the language model, named as in transformers' MusicgenDecoderConfig.

    Raises:
        ModelError: it does something that the MusicGen decoder does not.
    """
    settings.demand(_DEMANDS)
    codebooks, entries, width = (settings.get(f"transformer_lm.{name}") for name in ("n_q", "card", "dim"))
    channels = 2 if settings.get("interleave_stereo_codebooks.use", False) else 1
    delays, wanted = _delays(settings, codebooks), list(pattern(codebooks, channels))
    if delays != wanted:
        raise ModelError(f"{settings.source} has codebook delays {delays}, and only {wanted} are supported")
    return {
        "vocab_size": entries,
        "pad_token_id": entries,
        "bos_token_id": entries,
        "hidden_size": width,
        "num_hidden_layers": settings.get("transformer_lm.num_layers"),
        "num_attention_heads": settings.get("transformer_lm.num_heads"),
        "ffn_dim": int(settings.get("transformer_lm.hidden_scale", 4) * width),
        "num_codebooks": codebooks,
        "audio_channels": channels,
        "activation_function": settings.get("transformer_lm.activation", "relu"),
        "max_position_embeddings": 2048,
    }


def _delays(settings: Settings, codebooks: int) -> list[int]:
    """The delay of each codebook; the oldest checkpoints name the pattern elsewhere, and mean 0, 1, 2, ..."""
    named = settings.get("codebooks_pattern.modeling", None)
    modeling = named or settings.get("transformer_lm.q_modeling", None)
    if modeling != "delay":
        raise ModelError(f"{settings.source} has the codebook pattern {modeling!r}, and only 'delay' is supported")
    listed = settings.get("codebooks_pattern.delay.delays", None) if named else None
    return list(range(codebooks)) if listed is None else list(listed)


def text_place(settings: Settings) -> tuple[str, int]:
    """Where a language model has the text, as in `DecoderConfig`, and how many positions of melody stand before it.

    Raises:
        ModelError: it is conditioned on something else, or in another way.
    """
    fused = {way: tuple(settings.get(f"fuser.{way}", ())) for way in ("cross", "prepend", "sum", "input_interpolate")}
    used = [(way, names) for way, names in fused.items() if names]
    place = _FUSING.get(used[0]) if len(used) == 1 else None
    known = {name for _, names in used for name in names} | {"args"}
    others = sorted(set(settings.get("conditioners")) - known)
    if place is None or others:
        found = ", ".join(f"{name} by {way}" for way, names in used for name in names) or "nothing"
        found = f"{others[0]}, unused" if others and place else found
        raise ModelError(
            f"{settings.source} is conditioned on {found}; a description by cross, or self_wav and description by "
            "prepend, are supported"
        )
    if place == "cross":
        return place, 0
    settings.demand(_CHROMA_DEMANDS)
    window = 2 ** settings.get(f"{_CHROMA}radix2_exp")
    samples = int(settings.get(f"{_CHROMA}sample_rate") * settings.get("dataset.segment_duration"))
    return place, 1 + max(samples, window) // (window // 4)


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """LMModel's weights under the names that transformers gives them.

    The language model's are "decoder.", the projections' "enc_to_dec_proj." and "audio_enc_to_dec_proj."; the fused q,
    k and v are cut apart. What else the melody conditioner has is left aside: it looks at melodies, and none is given.
    A name that has no place there stays as it is, for `check_all_used` to tell.
    """
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(MELODY) and not name.startswith(f"{MELODY}output_proj."):
            continue
        plain = name.replace(".mha.", ".")  # LMModel without its own attention wraps torch's
        if found := re.fullmatch(r"transformer\.layers\.(\d+)\.(\w+)\.in_proj_weight", plain):
            prefix = f"decoder.{_DECODER}layers.{found.group(1)}.{_ATTENTION.get(found.group(2), found.group(2))}."
            renamed |= {f"{prefix}{part}_proj.weight": t for part, t in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            renamed[_renamed(plain)] = tensor
    return renamed


def _renamed(name: str) -> str:
    if found := re.fullmatch(r"transformer\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        layer, module, kind = found.groups()
        return f"decoder.{_DECODER}layers.{layer}.{_MODULES.get(module, module)}.{kind}"
    for ours, theirs in (
        ("emb.", f"decoder.{_DECODER}embed_tokens."),
        ("linears.", "decoder.lm_heads."),
        ("out_norm.", f"decoder.{_DECODER}layer_norm."),
        (f"{DESCRIPTION}output_proj.", "enc_to_dec_proj."),
        (f"{MELODY}output_proj.", "audio_enc_to_dec_proj."),
    ):
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name
