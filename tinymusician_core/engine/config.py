"""The shape of a MusicGen decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F

from ..delay import pattern

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
TEXT_PLACES = ("cross", "prepend")


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a MusicGen decoder; `from_dict` reads a transformers MusicgenDecoderConfig.

    Attributes:
        text: where the text's states go: "cross", attended to by every layer, or "prepend", before the music in the
            sequence itself, as MusicGen-Melody has it.
        prefix: positions before a prepended text that all hold one learned state (the melody that is not given).
    """

    width: int
    layers: int
    heads: int
    ffn: int
    codebooks: int
    entries: int
    pad: int
    audio_channels: int = 1
    activation: str = "gelu"
    text: str = "cross"
    prefix: int = 0

    def __post_init__(self):
        for name in ("width", "layers", "heads", "ffn", "codebooks", "entries"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"the decoder's {name} must be a whole number above 0, got {getattr(self, name)!r}")
        if self.width % self.heads or self.width % 2 or self.width < 4:
            raise ValueError(
                "the decoder's width must be even, 4 or more and a multiple of its heads, "
                f"got a width of {self.width} and {self.heads} heads"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"the activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        if self.pad != self.entries:
            raise ValueError(f"the padding token must follow the {self.entries} codebook entries, got {self.pad}")
        if self.text not in TEXT_PLACES:
            raise ValueError(f"the text's place must be one of {', '.join(TEXT_PLACES)}, got {self.text!r}")
        if not isinstance(self.prefix, int) or self.prefix < 0 or (self.prefix and self.text != "prepend"):
            raise ValueError(
                f"a prefix is a number of positions before a prepended text, got {self.prefix!r} with {self.text!r}"
            )
        pattern(self.codebooks, self.audio_channels)

    @classmethod
    def from_dict(cls, config: Mapping) -> DecoderConfig:
        """Read the fields of a MusicgenDecoderConfig; ValueError names the first that is missing."""
        names = {
            "width": "hidden_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "ffn": "ffn_dim",
            "codebooks": "num_codebooks",
            "entries": "vocab_size",
            "pad": "pad_token_id",
        }
        for field in names.values():
            if config.get(field) is None:
                raise ValueError(f"the decoder's configuration lacks {field}")
        return cls(
            **{ours: config[theirs] for ours, theirs in names.items()},
            audio_channels=config.get("audio_channels", 1),
            activation=config.get("activation_function", "gelu"),
        )

    @property
    def delays(self) -> tuple[int, ...]:
        return pattern(self.codebooks, self.audio_channels)
