"""The figures of one variant as functions of the rows that count: they can be worked out for any half of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..guidance import Guidance
from ..records import Figures, SamplingSpec
from .adherence import ATTRIBUTES, Score, hits_of, labels, score
from .asked import asked
from .frechet import frechet_distance, frechet_extrapolated, total_variance
from .jury import Judged
from .kernel import kernel_distance, median_distance
from .reference import Reference

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], "float | None"]
"""Takes the rows that count: of the clips, of the held-out windows, and of the reference."""
MIN_ASKED = 20
LISTENER, SECOND = "listener", "second opinion"
LIKELIHOODS = ("nll", "perplexity", "kl_to_teacher")


@dataclass(frozen=True, eq=False)
class Row:
    """What was recorded of a variant: its clips as judged, and nats [n,K] of held-out windows where it has any.

    `spec` is how its first clip was drawn, `guidance` what the model has built in or takes as an input; a row of real
    music has neither.
    """

    model: str
    hash: str | None
    figures: Figures
    clips: tuple[Judged, ...]
    nll: np.ndarray | None = None
    kl: np.ndarray | None = None
    spec: SamplingSpec | None = None
    guidance: Guidance = None


def remembered(statistic: Callable) -> Callable:
    """The same function of rows; what it gave for the same rows before is not worked out again."""
    known: dict[bytes, object] = {}

    def call(*rows: np.ndarray | str):
        texts = (each.encode() if isinstance(each, str) else each.tobytes() for each in rows)
        key = hashlib.blake2b(b"|".join(texts), digest_size=16).digest()
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
        self._labels = _labels(row.clips)
        self._scores = remembered(self._score)
        self.attributes = tuple(name for name in ATTRIBUTES if self._count_asked(name) >= MIN_ASKED)
        self.statistics = self._distances() | self._likelihoods() | self._prompts()

    def count(self, name: str) -> int:
        """How many windows or clips a figure stands on."""
        return self.windows if name in LIKELIHOODS else len(self.row.clips)

    def _count_asked(self, attribute: str) -> int:
        wanted, _ = self._labels.get((LISTENER, attribute), ((), ()))
        return sum(each is not None for each in wanted)

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
        kappas = [self.score(LISTENER, name, clips).kappa for name in self.attributes]
        return None if not kappas or None in kappas else kappas

    def mean_kappa(self, clips: np.ndarray) -> float | None:
        kappas = self.kappas(clips)
        return None if kappas is None else math.fsum(kappas) / len(kappas)

    def judged(self) -> list[tuple[str, str]]:
        """Judge and attribute, for all that was asked for and that the judge has a say in."""
        return [key for key, (wanted, _) in self._labels.items() if any(each is not None for each in wanted)]

    def hits(self, judge: str, attribute: str) -> np.ndarray:
        """1, 0, or nan where a clip's prompt did not ask; one a clip."""
        return hits_of(*self._labels[judge, attribute])

    def score(self, judge: str, attribute: str, clips: np.ndarray) -> Score:
        """What a judge says of an attribute of some clips."""
        return self._scores(judge, attribute, clips)

    def _score(self, judge: str, attribute: str, clips: np.ndarray) -> Score:
        wanted, heard = self._labels[judge, attribute]
        return score(wanted[clips], heard[clips])


def _labels(clips: Sequence[Judged]) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Judge and attribute -> what was asked for and what was heard of each clip; nothing where a clip had no prompt."""
    if any(each.prompt is None for each in clips):
        return {}
    wishes = [asked(each.prompt) for each in clips]
    judges = {LISTENER: [each.heard for each in clips], SECOND: [each.opinion for each in clips]}
    found = {}
    for judge, attributes in ((LISTENER, ATTRIBUTES), (SECOND, ("tempo", "mode"))):
        for attribute in attributes:
            pair = labels(wishes, judges[judge], attribute)
            found[judge, attribute] = tuple(np.array(each, dtype=object) for each in pair)
    return found
