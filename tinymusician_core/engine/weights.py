"""From transformers' weight names to ours: q, k and v are laid one under the other, and so are the heads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..records import ModelError
from .decoder import POSITIONS, Decoder, DecoderConfig, sinusoids

_SAME = {
    "self_norm.weight": "self_attn_layer_norm.weight",
    "self_norm.bias": "self_attn_layer_norm.bias",
    "out.weight": "self_attn.out_proj.weight",
    "cross_norm.weight": "encoder_attn_layer_norm.weight",
    "cross_norm.bias": "encoder_attn_layer_norm.bias",
    "cross_q.weight": "encoder_attn.q_proj.weight",
    "cross_out.weight": "encoder_attn.out_proj.weight",
    "ffn_norm.weight": "final_layer_norm.weight",
    "ffn_norm.bias": "final_layer_norm.bias",
    "fc1.weight": "fc1.weight",
    "fc2.weight": "fc2.weight",
}
_STACKED = {
    "qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "cross_kv.weight": ("encoder_attn.k_proj.weight", "encoder_attn.v_proj.weight"),
}


def sources(config: DecoderConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each of our weight names with the MusicgenForCausalLM names that it is stacked from."""
    for k in range(config.codebooks):
        yield f"embeddings.{k}.weight", (f"model.decoder.embed_tokens.{k}.weight",)
    for i in range(config.layers):
        theirs = f"model.decoder.layers.{i}."
        for name, parts in {**{name: (source,) for name, source in _SAME.items()}, **_STACKED}.items():
            if config.text == "cross" or not name.startswith("cross"):
                yield f"layers.{i}.{name}", tuple(theirs + part for part in parts)
    if config.prefix:
        yield "prefix.weight", ("prefix.weight",)
    yield "norm.weight", ("model.decoder.layer_norm.weight",)
    yield "norm.bias", ("model.decoder.layer_norm.bias",)
    yield "heads.weight", tuple(f"lm_heads.{k}.weight" for k in range(config.codebooks))


def from_musicgen(config: DecoderConfig, state: dict[str, Tensor], prefix: str = "") -> Decoder:
    """Build a decoder in float32 from a MusicgenForCausalLM state dict whose names start with `prefix`.

    The entries are taken out of `state` as they are used, so that the weights are never held twice.

    Raises:
        ModelError: a weight is missing or has the wrong shape.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    ours = {}
    for name, parts in sources(config):
        missing = [part for part in parts if prefix + part not in state]
        if missing:
            raise ModelError(f"the decoder's weights lack {prefix + missing[0]}")
        tensors = [state.pop(prefix + part).float() for part in parts]
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        expected = tuple(decoder.get_parameter(name).shape)
        if tuple(tensor.shape) != expected:
            raise ModelError(f"the decoder's {name} is {tuple(tensor.shape)}, its configuration says {expected}")
        ours[name] = tensor
    decoder.positions = sinusoids(POSITIONS, config.width)
    decoder.load_state_dict(ours, assign=True)
    return decoder.eval()
