import math

import numpy as np
import pytest

from tinymusician_core.evaluate.kernel import kernel_distance, median_distance


def sample(seed: int, n: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width))


def naive(a: np.ndarray, b: np.ndarray, h: float) -> float:
    """Gretton et al. 2012, equation 3, term by term, times 100."""

    def k(x, y):
        return math.exp(-sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) / (2 * h * h))

    m, n = len(a), len(b)
    first = sum(k(a[i], a[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    second = sum(k(b[i], b[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return 100 * (first + second - 2 * sum(k(x, y) for x in a for y in b) / (m * n))


def population(mean: np.ndarray, spread: float, h: float) -> float:
    """KAD between N(mean, spread^2 I) and N(0, I), in closed form: Gaussians under a Gaussian kernel."""
    width = len(mean)

    def expected(variance: float, shift: np.ndarray) -> float:
        total = h * h + variance
        return (h * h / total) ** (width / 2) * math.exp(-(shift @ shift) / (2 * total))

    same, other = expected(2 * spread**2, 0 * mean), expected(2.0, 0 * mean)
    return 100 * (same + other - 2 * expected(spread**2 + 1, mean))


@pytest.mark.parametrize("bandwidth", [None, 0.7, 5.0])
def test_equals_the_double_loop(bandwidth):
    a, b = 0.4 + sample(1, 9, 5), sample(2, 13, 5)
    h = median_distance(b) if bandwidth is None else bandwidth
    assert kernel_distance(a, b, bandwidth) == pytest.approx(naive(a, b, h), rel=1e-10)


def test_the_bandwidth_is_the_median_over_pairs_of_the_reference():
    b = sample(3, 8, 4)
    pairs = [np.linalg.norm(b[i] - b[j]) for i in range(8) for j in range(i)]
    assert median_distance(b) == pytest.approx(np.median(pairs), rel=1e-12)
    assert kernel_distance(2 + b[:5], b) != pytest.approx(kernel_distance(b, 2 + 3 * b[:5]))


def test_the_same_rows_give_exactly_zero():
    a = sample(4, 20, 6)
    assert kernel_distance(a, a) == 0.0
    assert kernel_distance(a, a[::-1]) == 0.0


def test_it_is_unbiased_at_few_clips():
    mean, spread, h = np.full(6, 0.3), 1.2, 3.0
    values = [kernel_distance(mean + spread * sample(k, 12, 6), sample(k + 5000, 15, 6), h) for k in range(600)]
    assert np.mean(values) == pytest.approx(population(mean, spread, h), abs=3 * np.std(values) / np.sqrt(600))
    halves = [kernel_distance(sample(k, 12, 6), sample(k + 5000, 15, 6), h) for k in range(600)]
    assert abs(np.mean(halves)) < 3 * np.std(halves) / np.sqrt(600)
    assert min(halves) < 0 < max(halves)


def test_growing_noise_grows_the_distance():
    a, b, noise = sample(5, 80, 8), sample(6, 80, 8), sample(7, 80, 8)
    h = median_distance(b)
    for clips, paired in ((a, False), (b, True)):
        distances = [kernel_distance(clips + scale * noise, b, h, paired) for scale in (0.0, 0.5, 1.0, 2.0, 4.0)]
        assert distances == sorted(distances)
        assert distances[-1] > 1.0


def test_the_same_clips_made_worse_are_not_taken_for_likeness():
    b, noise = sample(8, 40, 6), sample(9, 40, 6)
    h = median_distance(b)
    assert kernel_distance(b + 1e-6 * noise, b, h, paired=True) == pytest.approx(0.0, abs=1e-3)
    assert kernel_distance(b + 1e-6 * noise, b, h) < -0.5
    off = [(i, j) for i in range(40) for j in range(40) if i != j]
    worse = b + noise
    between = np.mean([math.exp(-((worse[i] - b[j]) ** 2).sum() / (2 * h * h)) for i, j in off])
    within = [np.mean([math.exp(-((x[i] - x[j]) ** 2).sum() / (2 * h * h)) for i, j in off]) for x in (worse, b)]
    assert kernel_distance(worse, b, h, paired=True) == pytest.approx(100 * (sum(within) - 2 * between), rel=1e-9)


def test_bad_input_is_told_in_one_sentence():
    good = sample(7, 6, 3)
    with pytest.raises(ValueError, match="bandwidth must be a finite number above 0, got 0"):
        kernel_distance(good, good, 0)
    with pytest.raises(ValueError, match="one width, got 3 and 2"):
        kernel_distance(good, good[:, :2])
    with pytest.raises(ValueError, match="paired sets must be of one size, got 6 and 5"):
        kernel_distance(good, good[:5], paired=True)
    with pytest.raises(ValueError, match="their median distance is 0"):
        kernel_distance(good, np.zeros((6, 3)))
