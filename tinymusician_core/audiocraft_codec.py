"""AudioCraft's EnCodec (`compression_state_dict.bin`) as transformers' EncodecModel: the same network, other names."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import Tensor, nn

from .audiocraft_format import Settings
from .records import ModelError

# setting -> the value that transformers' network has built in, and whether a checkpoint may leave it out.
_DEMANDS = {
    "compression_model": ("encodec", False),
    "encodec.autoencoder": ("seanet", False),
    "encodec.quantizer": ("rvq", False),
    "encodec.renormalize": (False, True),
    "seanet.activation": ("ELU", True),
    "seanet.activation_params": ({"alpha": 1.0}, True),
    "seanet.norm": ("weight_norm", False),
    "seanet.encoder": ({}, True),
    "seanet.disable_norm_outer_blocks": (0, True),
    "seanet.decoder.final_activation": (None, True),
}
# EncodecConfig's name -> SEANet's, and its default in AudioCraft.
_SIZES = {
    "hidden_size": ("dimension", 128),
    "num_filters": ("n_filters", 32),
    "num_residual_layers": ("n_residual_layers", 3),
    "upsampling_ratios": ("ratios", [8, 5, 4, 2]),
    "kernel_size": ("kernel_size", 7),
    "last_kernel_size": ("last_kernel_size", 7),
    "residual_kernel_size": ("residual_kernel_size", 3),
    "dilation_growth_rate": ("dilation_base", 2),
    "pad_mode": ("pad_mode", "reflect"),
    "compress": ("compress", 2),
    "num_lstm_layers": ("lstm", 0),
}
_NAMES = (
    (re.compile(r"(encoder|decoder)\.model\."), r"\1.layers."),
    (re.compile(r"\.(conv\.conv|convtr\.convtr)\."), ".conv."),
    (re.compile(r"quantizer\.vq\.layers\.(\d+)\._codebook\."), r"quantizer.layers.\1.codebook."),
)


def codec_settings(settings: Settings, codebooks: int) -> dict[str, Any]:
    """A codec's sizes, named as in transformers' EncodecConfig, with `codebooks` of its codebooks in use.

    Raises:
        ModelError: it does something that transformers' network does not.
    """
    settings.demand(_DEMANDS)
    sizes = {theirs: settings.get(f"seanet.{name}", default) for theirs, (name, default) in _SIZES.items()}
    if not sizes["num_lstm_layers"]:
        raise ModelError(f"{settings.source} has no LSTM in its codec, and only codecs with one are supported")
    rate, entries = settings.get("encodec.sample_rate"), settings.get("rvq.bins")
    there = settings.get("rvq.n_q")
    if codebooks > there:
        raise ModelError(f"{settings.source} has {there} codebooks, and its language model needs {codebooks}")
    frame_rate = math.ceil(rate / math.prod(sizes["upsampling_ratios"]))
    bits = math.ceil(math.log2(entries))
    return sizes | {
        # transformers counts codebooks by bandwidth, rounded down: a hair above what they take keeps the last of them.
        "target_bandwidths": [codebooks * frame_rate * bits / 1000 + 1e-6],
        "sampling_rate": rate,
        "audio_channels": settings.get("encodec.channels"),
        "normalize": False,
        "codebook_size": entries,
        "codebook_dim": sizes["hidden_size"],
        "norm_type": "weight_norm",
        "use_causal_conv": settings.get("encodec.causal", False),
        "trim_right_ratio": settings.get("seanet.decoder.trim_right_ratio", 1.0),
        "use_conv_shortcut": not settings.get("seanet.true_skip", True),
    }


def transformers_name(name: str) -> str:
    """What transformers' EncodecModel calls a weight of AudioCraft's."""
    for old, new in _NAMES:
        name = old.sub(new, name)
    return name


def make_codec(state: dict[str, Tensor], settings: Settings, codebooks: int) -> nn.Module:
    """A transformers EncodecModel with the weights of AudioCraft's; codebooks that are not in use are left out.

    Raises:
        ModelError: settings that are not supported, or weights that do not fit them.
    """
    from transformers import EncodecConfig, EncodecModel

    model = EncodecModel(EncodecConfig(**codec_settings(settings, codebooks)))
    renamed = {}
    for name, tensor in state.items():
        name = transformers_name(name)
        book = re.match(r"quantizer\.layers\.(\d+)\.", name)
        if book is None or int(book.group(1)) < codebooks:
            renamed[name] = tensor.float()
    try:
        model.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        said = " ".join(str(error).split("\n", 1)[-1].split()).rstrip(". ")
        raise ModelError(f"{settings.source} does not hold the codec that its settings describe: {said}") from error
    return model.eval()
