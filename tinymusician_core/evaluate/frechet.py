"""Fréchet distance between two sets of embeddings, and what it would be with endlessly many clips.

FAD (Kilgour et al., "Fréchet Audio Distance", Interspeech 2019) fits a Gaussian to each set and takes

    |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2)

(Dowson and Landau, 1982). From n clips it comes out too large by about c/n, with a c of its own for every model: small
sets must not be compared by it (Chong and Forsyth, "Effectively Unbiased FID", CVPR 2020). So the distance of smaller
and smaller subsets is laid against 1/n, and the line's value at 1/n = 0 is read off (as Gui et al., "Adapting Fréchet
Audio Distance for Generative Music Evaluation", ICASSP 2024, do for music).

n embeddings a set, D width. Everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GROUPS = (3, 5, 8)  # into how many groups the sets are cut, of which one at a time is left out
MIN_EXTRAPOLATED = 10


@dataclass(frozen=True)
class Extrapolated:
    """FAD for n -> infinity.

    Attributes:
        value: where the line meets 1/n = 0; no bias of the order 1/n is left. It may be a little below 0.
        error: the standard error of that intercept in the fit: how far the points lie from a line, NOT how far other
            clips would have led. That is what `bootstrap.bootstrap` is for.
        sizes: embeddings of `a` in a subset, on average; the whole set first.
        distances: mean FAD of the subsets of each size.
    """

    value: float
    error: float
    sizes: tuple[float, ...]
    distances: tuple[float, ...]


def as_embeddings(values: np.ndarray, name: str = "embeddings") -> np.ndarray:
    """The values as float64 [n, D].

    Raises:
        ValueError: another shape, fewer than 2 rows, or a value that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
        raise ValueError(f"{name} must be [n, width] with n of 2 or more, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).any(1).sum())} rows that are not")
    return array


def as_pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of embeddings [n_a, D] and [n_b, D] as float64; ValueError as `as_embeddings`, or for unlike widths."""
    first, second = as_embeddings(a, "the first set"), as_embeddings(b, "the second set")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"both sets must have one width, got {first.shape[1]} and {second.shape[1]}")
    return first, second


def same_set(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two sets [n, D] hold the same rows, in whatever order."""
    return a.shape == b.shape and np.array_equal(a[np.lexsort(a.T)], b[np.lexsort(b.T)])


def total_variance(a: np.ndarray) -> float:
    """The trace of the covariance of embeddings [n, D]: the mean squared distance from the mean, over n - 1."""
    return float(as_embeddings(a).var(axis=0, ddof=1).sum())


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """FAD between embeddings a [n_a, D] and b [n_b, D]; 0 exactly for two sets of the same rows.

    The trace of the root is the sum of the singular values of A B^T, where A and B are the centred sets over
    sqrt(n - 1): no root of a product of covariances is taken, and sets smaller than D do no harm.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 rows, or values that are not finite.
    """
    a, b = as_pair(a, b)
    return 0.0 if same_set(a, b) else max(0.0, _distance(a, b))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    mean = a.mean(axis=0) - b.mean(axis=0)
    roots = [_root(x) for x in (a, b)]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(mean @ mean + sum((root**2).sum() for root in roots) - 2.0 * shared)


def _root(x: np.ndarray) -> np.ndarray:
    """A matrix R with R^T R the covariance of x [n, D], of no more than D rows."""
    centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return centred if len(x) <= x.shape[1] else np.linalg.qr(centred, mode="r")


def frechet_extrapolated(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Extrapolated:
    """FAD for n -> infinity, by a straight line through FAD against 1/n.

    Two choices of ours. Chong and Forsyth shrink the evaluated set alone, against a reference of fifty thousand; our
    reference is a few hundred clips and has its own share of the bias, so both sets are shrunk alike. And no clip
    weighs more than another: for each size the sets are cut into groups, each of which is left out once, where subsets
    drawn at random add their own noise. With n of several times the width what bias is left is small; with less the
    distance bends away from the line, and the value comes out too low.

    Args:
        a, b: embeddings [n_a, D] and [n_b, D].
        seed: of the groups.

    Raises:
        ValueError: as `frechet_distance`, or fewer than 10 rows in a set.
    """
    a, b = as_pair(a, b)
    if min(len(a), len(b)) < MIN_EXTRAPOLATED:
        raise ValueError(f"an extrapolation needs {MIN_EXTRAPOLATED} embeddings a set, got {len(a)} and {len(b)}")
    if same_set(a, b):
        return Extrapolated(0.0, 0.0, (float(len(a)),), (0.0,))
    rng = np.random.default_rng(seed)
    sizes, distances = [float(len(a))], [_distance(a, b)]
    for groups in GROUPS:
        parts = zip(_without_each(a, groups, rng), _without_each(b, groups, rng), strict=True)
        sizes.append(len(a) * (1.0 - 1.0 / groups))
        distances.append(float(np.mean([_distance(*pair) for pair in parts])))
    value, error = _intercept(1.0 / np.array(sizes), np.array(distances))
    return Extrapolated(value, error, tuple(sizes), tuple(distances))


def _without_each(x: np.ndarray, groups: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The rows of x cut into random groups of one size, or nearly; for each group the rows outside it."""
    order = rng.permutation(len(x))
    return [np.delete(x, group, axis=0) for group in np.array_split(order, groups)]


def _intercept(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept of the least-squares line, and its standard error."""
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    value = y.mean() - slope * x.mean()
    variance = ((y - value - slope * x) ** 2).sum() / (len(x) - 2)
    return float(value), float(np.sqrt(variance * (1.0 / len(x) + x.mean() ** 2 / spread)))
