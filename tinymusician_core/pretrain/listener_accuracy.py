"""How often the listener is right, and how sure that figure is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Accuracy:
    """The share `value` of `n` windows judged rightly, between `low` and `high` with 95% confidence.

    Windows of one tune are right or wrong together more often than not, so the interval is Wilson's for as many
    judgements as there are `tunes`: wider than for `n`, and never empty. `balanced` is the mean over the classes that
    occur of the share judged rightly, `majority` what always naming the commonest class would reach.
    """

    value: float
    low: float
    high: float
    n: int
    tunes: int
    balanced: float
    majority: float


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval for a share of `n` trials (Wilson, "Probable inference", 1927).

    Raises:
        ValueError: no trials, or a share outside 0 to 1.
    """
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"an interval needs a share from 0 to 1 of at least one trial, got {share!r} of {n!r}")
    z2 = NORMAL_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(truth: np.ndarray, guess: np.ndarray, tunes: list[str]) -> Accuracy:
    """Count what was judged rightly.

    Args:
        truth: the class of each window, int [n].
        guess: what was judged, int [n].
        tunes: the tune that each window comes from.

    Raises:
        ValueError: no windows, or lists of unlike length.
    """
    if not len(truth) == len(guess) == len(tunes) > 0:
        raise ValueError(f"as many truths, guesses and tunes are needed, got {len(truth)}, {len(guess)}, {len(tunes)}")
    right = truth == guess
    classes, counts = np.unique(truth, return_counts=True)
    value, different = float(right.mean()), len(set(tunes))
    low, high = wilson(value, different)
    balanced = float(np.mean([right[truth == c].mean() for c in classes]))
    return Accuracy(value, low, high, len(truth), different, balanced, float(counts.max() / len(truth)))
