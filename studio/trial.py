"""Blind listening: which two clips are heard together, in which order, what a vote means and what the votes add up to.

Nothing here knows a user interface. A pair is two clips of the same prompt and settings by different models. Its order
and its public id come from a secret seed, so that neither tells anything about the models behind it.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from studio.store import ClipRow, Take, VoteRow

Choice = Literal["a", "b", "same"]
MIN_LISTEN_S = 4.0
WHOLE_CLIP = 0.9
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Pair:
    """Two clips to be judged blind. `id` is opaque; `a` plays as A and `b` as B."""

    id: str
    prompt: str
    a: ClipRow
    b: ClipRow

    @property
    def needed_s(self) -> float:
        """Seconds of each clip that must be heard before a vote counts: 4 s, or most of a clip that is shorter."""
        return min(MIN_LISTEN_S, WHOLE_CLIP * min(self.a.audio_s, self.b.audio_s))


@dataclass(frozen=True)
class Vote:
    """One judgement of a pair. Raises ValueError on an unknown choice or when a clip was not heard for long enough."""

    pair: Pair
    choice: Choice
    heard_a_s: float
    heard_b_s: float

    def __post_init__(self) -> None:
        if self.choice not in get_args(Choice):
            raise ValueError(f"a vote is one of a, b and same; got {self.choice!r}")
        for side, heard in (("A", self.heard_a_s), ("B", self.heard_b_s)):
            if not (math.isfinite(heard) and heard >= self.pair.needed_s - 0.05):
                raise ValueError(
                    f"listen to at least {self.pair.needed_s:.1f} s of {side} before you vote; you heard {heard:.1f} s"
                )

    def row(self) -> VoteRow:
        a, b = self.pair.a, self.pair.b
        return VoteRow(
            self.pair.id, self.choice, self.heard_a_s, self.heard_b_s,
            a.model, a.model_hash, b.model, b.model_hash, a.id, b.id,
        )  # fmt: skip


@dataclass(frozen=True)
class Preference:
    """What the votes on two models add up to; `share` and `interval` are `first`'s, of the votes that chose a side."""

    first: str
    second: str
    first_wins: int
    second_wins: int
    same: int

    @property
    def votes(self) -> int:
        return self.first_wins + self.second_wins + self.same

    @property
    def decided(self) -> int:
        return self.first_wins + self.second_wins

    @property
    def share(self) -> float | None:
        """Part of the decided votes that went to `first`; None while there are none."""
        return self.first_wins / self.decided if self.decided else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% Wilson interval of `share`; None while there are no decided votes."""
        return wilson(self.first_wins, self.decided) if self.decided else None

    @property
    def leader(self) -> str | None:
        """The model that is preferred beyond chance (the interval leaves one half out), or None."""
        if self.interval is None or self.interval[0] <= 0.5 <= self.interval[1]:
            return None
        return self.first if self.interval[0] > 0.5 else self.second


def pairs_of(takes: Iterable[Take], seed: str) -> list[Pair]:
    """Every pair that the takes allow, in a fixed order that the seed shuffles.

    Takes with the same prompt and settings count as one; of each model in it the newest whole clip is used. Loops and
    continuations are left out: they are not a model's own piece.
    """
    pairs = []
    for (prompt, _), group in _grouped(takes).items():
        for one, two in itertools.combinations(sorted(group.values(), key=lambda clip: clip.id), 2):
            key = f"{one.id}:{two.id}"
            a, b = (two, one) if _digest(seed, f"order:{key}")[0] & 1 else (one, two)
            pairs.append(Pair(_digest(seed, f"id:{key}").hex()[:16], prompt, a, b))
    return sorted(pairs, key=lambda pair: _digest(seed, f"turn:{pair.id}"))


def unveiled(takes: Iterable[Take], votes: Iterable[VoteRow]) -> list[Take]:
    """The takes that may be shown with names: of those made for listening only what has been judged through."""
    judged = {frozenset((vote.clip_a, vote.clip_b)) for vote in votes}

    def through(take: Take) -> bool:
        both = itertools.combinations([clip.id for clip in take.clips], 2)
        return all(frozenset(pair) in judged for pair in both)

    return [take for take in takes if not take.blind or through(take)]


def next_pair(pairs: Sequence[Pair], votes: Sequence[VoteRow]) -> Pair | None:
    """The next pair without a vote: the two models that were judged least come first, ties by the seeded order."""
    judged = {vote.pair for vote in votes}
    heard = Counter(_match_up(vote.model_a, vote.model_b) for vote in votes)
    waiting = [pair for pair in pairs if pair.id not in judged]
    return min(waiting, key=lambda pair: heard[_match_up(pair.a.model, pair.b.model)], default=None)


def preferences(votes: Iterable[VoteRow], order: Sequence[str] = ()) -> list[Preference]:
    """Votes added up for each two models, in `order` where it names them; each version of a model stands alone."""
    votes = list(votes)
    names = _labels(votes)
    rank = {name: place for place, name in enumerate(order)}
    counts: dict[tuple[str, str], Counter[str]] = {}
    for vote in votes:
        a, b = names[vote.model_a, vote.hash_a], names[vote.model_b, vote.hash_b]
        first, second = sorted((a, b), key=lambda name: (rank.get(name, len(rank)), name))
        winner = {"a": a, "b": b}.get(vote.choice, "same")
        counts.setdefault((first, second), Counter())[winner] += 1
    ordered = sorted(counts, key=lambda both: [(rank.get(name, len(rank)), name) for name in both])
    return [Preference(x, y, counts[x, y][x], counts[x, y][y], counts[x, y]["same"]) for x, y in ordered]


def wilson(wins: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927): stays inside [0, 1] and honest at small counts.

    Raises ValueError unless 0 <= wins <= total and total > 0.
    """
    if not 0 <= wins <= total or total <= 0:
        raise ValueError(f"a share needs 0 <= wins <= total and total > 0; got {wins} of {total}")
    share = wins / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (middle - half if wins else 0.0), (middle + half if wins < total else 1.0)


def _grouped(takes: Iterable[Take]) -> dict[tuple[str, str], dict[str, ClipRow]]:
    groups: dict[tuple[str, str], dict[str, ClipRow]] = {}
    for take in sorted((take for take in takes if not take.form), key=lambda take: take.id):
        group = groups.setdefault((take.prompt, repr(sorted(take.settings.items()))), {})
        group.update({clip.model: clip for clip in take.clips if not clip.stopped})
    return groups


def _digest(seed: str, text: str) -> bytes:
    return hmac.new(seed.encode(), text.encode(), hashlib.sha256).digest()


def _match_up(one: str, two: str) -> frozenset[str]:
    return frozenset((one, two))


def _labels(votes: Sequence[VoteRow]) -> dict[tuple[str, str], str]:
    """A name for each (model, hash): the model's own, with the start of its hash where several versions were judged."""
    seen = {(vote.model_a, vote.hash_a) for vote in votes} | {(vote.model_b, vote.hash_b) for vote in votes}
    versions = Counter(model for model, _ in seen)
    return {(model, key): f"{model} ({key[:8]})" if versions[model] > 1 else model for model, key in seen}
