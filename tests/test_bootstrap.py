"""Intervals, and by simulation how often they hold the truth. Every simulation is seeded: none of it can flake."""

import math

import numpy as np
import pytest
from scipy.stats import t

from tinymusician_core.evaluate.bootstrap import Interval, bootstrap, proportion
from tinymusician_core.evaluate.frechet import MIN_EXTRAPOLATED, frechet_extrapolated
from tinymusician_core.evaluate.kernel import kernel_distance


def mean(x: np.ndarray) -> float:
    return float(x.mean())


def ratio(x: np.ndarray, y: np.ndarray) -> float:
    return float(y.mean() / x.mean())


def coverage(truth: float, intervals: list[Interval]) -> float:
    return sum(found.low <= truth <= found.high for found in intervals) / len(intervals)


def percentiles(statistic, a: np.ndarray, b: np.ndarray, rng: np.random.Generator, n: int = 60) -> Interval:
    """The textbook bootstrap that `bootstrap` is not: clips with replacement, and percentiles."""
    drawn = [statistic(a[rng.integers(0, len(a), len(a))], b[rng.integers(0, len(b), len(b))]) for _ in range(n)]
    return Interval(statistic(a, b), *np.quantile(drawn, [0.025, 0.975]), len(a))


@pytest.mark.parametrize("n", [12, 41, 200])
def test_a_means_interval_is_students(n):
    x = np.random.default_rng(n).normal(3.0, 2.0, n)
    found = bootstrap(mean, x, seed=1, n=4000)
    reach = t.ppf(0.975, n - 1) * x.std(ddof=1) / math.sqrt(n)
    assert (found.value, found.n) == (pytest.approx(x.mean()), n)
    assert found.high - found.value == pytest.approx(reach, rel=0.05)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert bootstrap(mean, x, seed=1, n=4000, level=0.5).high < found.high


def test_means_of_skewed_clips_are_covered():
    rng = np.random.default_rng(0)
    intervals = [bootstrap(mean, rng.exponential(size=60), seed=k, n=100) for k in range(400)]
    assert 0.90 <= coverage(1.0, intervals) <= 0.98


def test_ratios_of_paired_means_are_covered_and_pairing_narrows_them():
    rng, paired, apart = np.random.default_rng(1), [], []
    for k in range(300):
        hard = rng.gamma(4.0, 1.0, 60)
        x, y = hard * rng.lognormal(0, 0.2, 60), 1.3 * hard * rng.lognormal(0, 0.2, 60)
        paired.append(bootstrap(ratio, x, y, seed=k, n=100))
        apart.append(bootstrap(ratio, x, y, seed=k, n=100, paired=False))
    assert 0.90 <= coverage(1.3, paired) <= 0.985
    widths = [np.mean([found.high - found.low for found in each]) for each in (paired, apart)]
    assert widths[0] < 0.6 * widths[1]


def test_extrapolated_fad_is_covered():
    rng, width, spread, intervals, textbook = np.random.default_rng(2), 4, 1.5, [], []
    for k in range(60):
        a, b = spread * rng.normal(size=(40, width)), rng.normal(size=(60, width))

        def fad(a: np.ndarray, b: np.ndarray, seed: int = k) -> float:
            return frechet_extrapolated(a, b, seed).value

        intervals.append(bootstrap(fad, a, b, seed=k, n=30, paired=False, least=MIN_EXTRAPOLATED))
        textbook.append(percentiles(fad, a, b, rng, 30))
    truth = width * (spread - 1) ** 2
    assert 0.90 <= coverage(truth, intervals) <= 1.0
    assert coverage(truth, textbook) < coverage(truth, intervals) - 0.05


def test_kad_is_covered_apart_and_at_one_source_where_the_textbook_bootstrap_is_not():
    rng, h, shift = np.random.default_rng(3), 3.0, 0.5
    far, near, textbook = [], [], []
    for k in range(200):
        a, b = rng.normal(size=(40, 6)), rng.normal(size=(60, 6))

        def kad(a: np.ndarray, b: np.ndarray) -> float:
            return kernel_distance(a, b, h)

        far.append(bootstrap(kad, a + shift, b, seed=k, n=60, paired=False))
        near.append(bootstrap(kad, a, b, seed=k, n=60, paired=False))
        textbook.append(percentiles(kad, a, b, rng))
    total = h * h + 2
    truth = 200 * (h * h / total) ** 3 * (1 - math.exp(-6 * shift**2 / (2 * total)))
    assert 0.90 <= coverage(truth, far) <= 1.0
    assert coverage(0.0, near) >= 0.95
    assert coverage(0.0, textbook) < 0.6


def test_columns_of_one_label_share_their_clips():
    x, other = np.arange(20.0), np.arange(30.0) + 100
    seen = []

    def watch(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        seen.append((a, b, c))
        return float(a.mean() + c.mean())

    bootstrap(watch, x, x + 1000, other, n=50, paired=("clips", "clips", "reference"))
    assert len(seen) == 51
    for a, b, c in seen[1:]:
        assert (b == a + 1000).all()
        assert len(set(a)) == len(a) == 10
        assert len(set(c)) == len(c) == 15
    assert len({tuple(a) for a, _, _ in seen[1:]}) > 40


def test_odd_counts_take_either_half():
    sizes = set()
    bootstrap(lambda x: sizes.add(len(x)) or float(x.mean()), np.arange(7.0), n=30)
    assert sizes == {7, 3, 4}


def test_the_same_seed_gives_the_same_interval():
    x = np.random.default_rng(4).normal(size=33)
    assert bootstrap(mean, x, seed=5, n=50) == bootstrap(mean, x, seed=5, n=50)
    assert bootstrap(mean, x, seed=5, n=50) != bootstrap(mean, x, seed=6, n=50)


def test_what_cannot_be_had_is_none():
    x = np.array([1.0, 2.0, 3.0])
    assert bootstrap(mean, x) == Interval(2.0, None, None, 3)
    assert bootstrap(mean, np.arange(12.0), n=5, least=7) == Interval(5.5, None, None, 12)
    assert bootstrap(lambda x: None, np.arange(9.0)) == Interval(None, None, None, 9)
    sparse = np.array([1.0] + [np.nan] * 9)
    assert bootstrap(lambda x: None if np.isnan(x).all() else float(np.nanmean(x)), sparse, n=50) == Interval(
        1.0, None, None, 10
    )


def test_limits_cut_the_interval():
    x = np.array([1.0] * 19 + [0.0])
    free = bootstrap(mean, x, n=200)
    assert free.high > 1.0
    assert bootstrap(mean, x, n=200, limits=(0.0, 1.0)) == Interval(0.95, free.low, 1.0, 20)


def test_proportion_is_wilsons_interval():
    found = proportion([1] * 15 + [0] * 5 + [np.nan])
    assert (found.value, found.n) == (0.75, 20)
    for bound in (found.low, found.high):  # Wilson's bounds solve |share - p| = z sqrt(p (1 - p) / n)
        assert abs(0.75 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 20), rel=1e-5)
    sure = proportion(np.ones(200))
    assert (sure.value, sure.high) == (1.0, 1.0)
    assert 0.97 < sure.low < 0.99
    assert proportion([np.nan]) == Interval(None, None, None, 0)


def test_bad_input_is_told_in_one_sentence():
    with pytest.raises(ValueError, match="at least one column with at least one row"):
        bootstrap(mean)
    with pytest.raises(ValueError, match=r"same number of rows, got \[3, 4\]"):
        bootstrap(ratio, np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="one label a column, got 1 for 2 columns"):
        bootstrap(ratio, np.ones(3), np.ones(3), paired=("clips",))
    with pytest.raises(ValueError, match="between 0 and 1, both excluded, got 95"):
        bootstrap(mean, np.ones(4), level=95)
    with pytest.raises(ValueError, match="at least 2 halves must be drawn, got 1"):
        bootstrap(mean, np.ones(4), n=1)
    with pytest.raises(ValueError, match="hits must be 0, 1 or nan"):
        proportion([0.5])
