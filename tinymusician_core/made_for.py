"""What a model is made to be played with, where nothing else is asked for.

It stands among its settings under the names that transformers has for them: in config.json of a folder of ours, in
generation_config.json of a MusicGen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .records import ModelError, check_cfg, check_top_p

USUAL_CFG = 3.0  # where a model says nothing; MusicGen's
KEYS = {"cfg": ("guidance_scale", check_cfg), "top_p": ("top_p", check_top_p)}


@dataclass(frozen=True)
class MadeFor:
    """How a model plays where nothing else is asked for.

    Attributes:
        cfg: the scale of guidance, where that is a second pass.
        top_p: the share of the probability that tokens are drawn from; 0 for all of it.
    """

    cfg: float = USUAL_CFG
    top_p: float = 0.0

    def as_record(self) -> dict[str, float]:
        """Ready for JSON; `read_made_for` reads it."""
        return {key: getattr(self, name) for name, (key, _) in KEYS.items()}


USUAL = MadeFor()


def read_made_for(record: Mapping, name: str) -> MadeFor:
    """What a model is made for, from its settings; what they say nothing of stays as usual.

    Raises:
        ModelError: a setting makes no sense; the error names the model.
    """
    found = {}
    for field, (key, check) in KEYS.items():
        value = record.get(key)
        if value is None:
            continue
        try:
            found[field] = check(value)
        except ValueError as error:
            raise ModelError(f"the model {name} is made for a {key} of {value!r}: {error}") from error
    return MadeFor(**found)
