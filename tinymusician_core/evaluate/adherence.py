"""Prompt adherence: how often a clip is what its prompt asked for, and how often it would be by chance.

Chance is the mean accuracy over all orders of the same prompts: every prompt that asks meets every clip equally often,
so it is the sum over the classes of (share of the asking prompts that ask for it) * (share of all clips that are heard
as it). Kappa is (accuracy - chance) / (1 - chance), as Cohen (1960) has it: 1 where every clip is what was asked for,
0 for music that follows other clips' prompts as well as its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .asked import Asked

ATTRIBUTES = ("instrument", "style", "tempo", "mode")


class Judgement(Protocol):
    """What a judge heard: a listener's `Heard`, or an `Opinion`, whose `heads` are the attributes it has a say in."""

    def best(self, head: str) -> str | None:
        """The class of an attribute; None where the judge can't say."""


@dataclass(frozen=True)
class Score:
    """How well clips follow their prompts in one attribute.

    Attributes:
        accuracy: share of the clips that are what was asked for; None where no prompt asked.
        n: the clips whose prompt asked.
        chance: the accuracy to be expected of the same clips with the prompts in any order; None as above.
        kappa: (accuracy - chance) / (1 - chance); None as above, and where chance is 1.
    """

    accuracy: float | None
    n: int
    chance: float | None
    kappa: float | None


def score(wanted: Sequence[str | None], heard: Sequence[str | None]) -> Score:
    """One attribute over clips: the class asked for of each (None: not asked) and the class heard (None: can't say).

    Raises:
        ValueError: not one of each for every clip.
    """
    hits = hits_of(wanted, heard)
    asked_for = Counter(want for want in wanted if want is not None)
    n, heard_as = asked_for.total(), Counter(heard)
    if n == 0:
        return Score(None, 0, None, None)
    accuracy = float(np.nanmean(hits))
    chance = sum(times * heard_as[name] for name, times in asked_for.items()) / (n * len(heard))
    return Score(accuracy, n, chance, (accuracy - chance) / (1 - chance) if chance < 1 else None)


def hits_of(wanted: Sequence[str | None], heard: Sequence[str | None]) -> np.ndarray:
    """float64 [n]: 1 where a clip is what was asked for, 0 where not, nan where nothing was asked.

    Raises:
        ValueError: not one of each for every clip.
    """
    if len(wanted) != len(heard):
        raise ValueError(f"each clip needs what was asked and what was heard, got {len(wanted)} and {len(heard)}")
    pairs = zip(wanted, heard, strict=True)
    return np.array([np.nan if want is None else float(want == hear) for want, hear in pairs], dtype=np.float64)


def labels(
    asked: Sequence[Asked], heard: Sequence[Judgement], attribute: str
) -> tuple[list[str | None], list[str | None]]:
    """The classes of one attribute that were asked for and that were heard, clip by clip."""
    return [getattr(each, attribute) for each in asked], [each.best(attribute) for each in heard]


def judged_by(heard: Sequence[Judgement]) -> tuple[str, ...]:
    """The attributes that the judge has a say in: all of them, unless its judgements tell by `heads`."""
    return tuple(name for name in ATTRIBUTES if all(name in getattr(each, "heads", ATTRIBUTES) for each in heard))


def adherence(asked: Sequence[Asked], heard: Sequence[Judgement]) -> dict[str, Score]:
    """The score of each attribute that the judge has a say in, over the same clips.

    Raises:
        ValueError: not one prompt for each clip.
    """
    return {name: score(*labels(asked, heard, name)) for name in judged_by(heard)}


def hits(asked: Sequence[Asked], heard: Sequence[Judgement]) -> dict[str, np.ndarray]:
    """For the bootstrap, each attribute's hits by clip: float64 [n] of 1, 0, or nan where its prompt did not ask.

    Raises:
        ValueError: not one prompt for each clip.
    """
    return {name: hits_of(*labels(asked, heard, name)) for name in judged_by(heard)}
