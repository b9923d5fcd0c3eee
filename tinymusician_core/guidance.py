"""Guidance in one pass: one scale that is built in, or any of a range that the language model is told of.

A model that takes the scale as an input (Meng et al. 2023, arXiv 2210.03142, section 3.1) gets it through its text: a
gain and a shift on the text's states (Perez et al. 2018, arXiv 1709.07871), linear in Fourier features of the scale.
That is computed once for a prompt and touches no step of the decoder. The features are zero at the range's base, so
that the other weights alone, as plain transformers reads them, are the model at that scale.
B prompts, S text tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from .made_for import USUAL_CFG
from .records import ModelError, check_cfg

GUIDANCE = "distilled_guidance"  # in config.json: a scale that is built in, or a `ScaleRange`
WEIGHT = "guidance.weight"  # among a model's weights
FEATURES = 8


@dataclass(frozen=True)
class ScaleRange:
    """The guidance scales that a model can be told of, and the one that it has where it is told none.

    Raises:
        ValueError: they are no scales, or not in order.
    """

    low: float
    high: float
    base: float | None = None  # None: MusicGen's usual one, or what lies nearest to it

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, check_cfg(getattr(self, name)))
        if not self.low < self.high:
            raise ValueError(f"guidance goes from {self.low:g} to {self.high:g}; the lower scale first is allowed")
        base = self._nearest(USUAL_CFG) if self.base is None else check_cfg(self.base)
        object.__setattr__(self, "base", base)
        if not self.low <= base <= self.high:
            raise ValueError(f"guidance goes from {self.low:g} to {self.high:g}; a base of {base:g} is not in it")

    def _nearest(self, scale: float) -> float:
        return min(max(scale, self.low), self.high)

    def around(self, scale: float) -> ScaleRange:
        """The same range with another base: this scale, or what lies nearest to it."""
        return replace(self, base=self._nearest(scale))

    def __contains__(self, scale: float) -> bool:
        return self.low <= scale <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def draw(self, rng: torch.Generator, count: int) -> Tensor:
        """Scales float32 [count], any as likely as any other."""
        return self.low + (self.high - self.low) * torch.rand(count, generator=rng)


Guidance = float | ScaleRange | None


class ScaleInput(nn.Module):
    """Tells text states of a guidance scale. It changes nothing until it is trained, nor at the range's base.

    Args:
        scales: the range.
        width: of the text states, D.
    """

    def __init__(self, scales: ScaleRange, width: int):
        super().__init__()
        self.scales = scales
        self.weight = nn.Parameter(torch.zeros(FEATURES, 2 * width))

    def features(self, scale: Tensor) -> Tensor:
        """Scales [B] -> cosines of 1 to `FEATURES` half turns over the range, less those of the base [B,F]."""
        turns = math.pi * torch.arange(1, FEATURES + 1, device=scale.device)
        low, high, base = self.scales.low, self.scales.high, torch.tensor(self.scales.base, device=scale.device)
        place = (torch.stack([scale.float(), base.expand_as(scale)]) - low) / (high - low)
        at, there = (place.unsqueeze(2) * turns).cos()
        return at - there

    def forward(self, states: Tensor, scale: Tensor) -> Tensor:
        """Text states [B,S,D] and scales [B] -> text states [B,S,D]."""
        gain, shift = (self.features(scale) @ self.weight).unsqueeze(1).chunk(2, dim=2)
        return states * (1.0 + gain) + shift


def parse_guidance(text: str | None) -> Guidance:
    """ "fixed:3" -> 3.0, "input:1-6" -> a range; ValueError for anything else."""
    if text is None:
        return None
    kind, _, rest = text.partition(":")
    numbers = [_number(part) for part in rest.split("-")]
    if None in numbers or len(numbers) != {"fixed": 1, "input": 2}.get(kind):
        raise ValueError(
            f"guidance is {text!r}; fixed with a scale, as fixed:3, "
            "or input with a range of them, as input:1-6, is allowed"
        )
    if kind == "input":
        return ScaleRange(*numbers)
    value = check_cfg(numbers[0])
    if value == 1.0:
        raise ValueError("guidance is fixed:1, which is none at all; a scale above 1 is allowed")
    return value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def guidance_record(guidance: Guidance) -> dict:
    """What config.json says of it; nothing where there is none."""
    if guidance is None:
        return {}
    return {GUIDANCE: asdict(guidance) if isinstance(guidance, ScaleRange) else guidance}


def read_guidance(record: object, name: str) -> Guidance:
    """What a model's config.json says; ModelError, which names the model, where that makes no sense."""
    try:
        if isinstance(record, dict):
            return ScaleRange(**record)
        return None if record is None else check_cfg(record)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the model {name} has a guidance of {record!r}: {error}") from error


def take_scale_input(state: MutableMapping[str, Tensor], guidance: Guidance, width: int) -> ScaleInput | None:
    """Take the weights of a model's scale input out of its state; None where its guidance is no input.

    Raises:
        ModelError: they are missing, or have the wrong shape.
    """
    if not isinstance(guidance, ScaleRange):
        return None
    made = ScaleInput(guidance, width)
    if WEIGHT not in state or state[WEIGHT].shape != made.weight.shape:
        found = tuple(state[WEIGHT].shape) if WEIGHT in state else "missing"
        raise ModelError(f"the weights of the guidance's input must be {tuple(made.weight.shape)}, they are {found}")
    made.load_state_dict({"weight": state.pop(WEIGHT).float()})
    return made
