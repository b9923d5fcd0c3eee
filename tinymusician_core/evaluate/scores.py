"""The figures of one variant as functions of the rows that count, so that they can be worked out for any half of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..records import Figures
from .adherence import adherence
from .asked import asked
from .frechet import frechet_distance, frechet_extrapolated, total_variance
from .jury import Judged
from .kernel import kernel_distance, median_distance
from .listener import HEADS
from .reference import Reference

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], "float | None"]
"""Takes the rows that count: of the clips, of the held-out windows, and of the reference."""
MIN_ASKED = 20
LIKELIHOODS = ("nll", "perplexity", "kl_to_teacher")


@dataclass(frozen=True, eq=False)
class Row:
    """What was recorded of a variant: its clips as judged, and nats [n,K] of held-out windows where it has any."""

    model: str
    hash: str | None
    figures: Figures
    clips: tuple[Judged, ...]
    nll: np.ndarray | None = None
    kl: np.ndarray | None = None


def remembered(statistic: Callable) -> Callable:
    """The same function of rows; what it gave for the same rows before is not worked out again."""
    known: dict[bytes, object] = {}

    def call(*rows: np.ndarray):
        key = hashlib.blake2b(b"|".join(each.tobytes() for each in rows), digest_size=16).digest()
        if key not in known:
            known[key] = statistic(*rows)
        return known[key]

    return call


class Scores:
    """The statistics of a row.

    Attributes:
        statistics: every figure that the row has, by name, as a function of the rows that count.
        windows: how many held-out windows its likelihood stands on; 0 where it has none.
        attributes: those that `MIN_ASKED` or more of its prompts ask for.
    """

    def __init__(self, row: Row, reference: Reference, seed: int):
        self.row, self._seed = row, seed
        self.windows = 0 if row.nll is None else len(row.nll)
        self._sound = np.stack([each.embedding for each in row.clips]).astype(np.float64)
        self._real = reference.embeddings.astype(np.float64)
        prompts = [each.prompt for each in row.clips]
        self._asked = None if None in prompts else [asked(prompt) for prompt in prompts]
        self._judges = {"listener": [each.heard for each in row.clips]}
        self._judges["second opinion"] = [each.opinion for each in row.clips]
        self._scores = remembered(self._adherence)
        self.attributes = tuple(name for name in HEADS if self._count_asked(name) >= MIN_ASKED)
        self.statistics = self._distances() | self._likelihoods() | self._prompts()

    def count(self, name: str) -> int:
        """How many windows or clips a figure stands on."""
        return self.windows if name in LIKELIHOODS else len(self.row.clips)

    def _count_asked(self, attribute: str) -> int:
        return sum(getattr(each, attribute) is not None for each in self._asked or ())

    def _distances(self) -> dict[str, Statistic]:
        bandwidth = median_distance(self._real)

        def infinity(clips: np.ndarray, windows: np.ndarray, reference: np.ndarray) -> float:
            return frechet_extrapolated(self._sound[clips], self._real[reference], self._seed).value

        found = {
            "fad": lambda c, w, r: frechet_distance(self._sound[c], self._real[r]),
            "fad_infinity": infinity,
            "kad": lambda c, w, r: kernel_distance(self._sound[c], self._real[r], bandwidth),
        }
        found = {name: remembered(statistic) for name, statistic in found.items()}
        return found | {"sound": lambda *at: 1.0 - found["fad_infinity"](*at) / self.variance(at[2])}

    def variance(self, reference: np.ndarray) -> float:
        """The total variance of some of the reference."""
        return total_variance(self._real[reference])

    def _likelihoods(self) -> dict[str, Statistic]:
        found: dict[str, Statistic] = {}
        if self.row.nll is not None:
            found["nll"] = lambda c, w, r: float(self.row.nll[w].mean())
            found["perplexity"] = lambda c, w, r: math.exp(self.row.nll[w].mean())
        if self.row.kl is not None:
            found["kl_to_teacher"] = lambda c, w, r: float(self.row.kl[w].mean())
        return found

    def _prompts(self) -> dict[str, Statistic]:
        found: dict[str, Statistic] = {}
        if self.attributes:
            found["kappa"] = lambda c, w, r: self.mean_kappa(c)
        scores = [each.text_score for each in self.row.clips]
        if None not in scores:
            found["clap_score"] = lambda c, w, r: float(np.mean([scores[i] for i in c]))
        return found

    def kappas(self, clips: np.ndarray) -> list[float] | None:
        """What the listener hears of each of `attributes`; None where one of them is not to be had for these clips."""
        scores = self._scores("listener", clips)
        kappas = [scores[name].kappa for name in self.attributes]
        return None if not kappas or None in kappas else kappas

    def mean_kappa(self, clips: np.ndarray) -> float | None:
        kappas = self.kappas(clips)
        return None if kappas is None else math.fsum(kappas) / len(kappas)
