import numpy as np
import pytest

from tinymusician_core.evaluate.frechet import (
    frechet_distance,
    frechet_extrapolated,
    total_variance,
)


def sample(seed: int, n: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width))


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def between_gaussians(mean_a, cov_a, mean_b, cov_b) -> float:
    """The textbook formula, with the root of the product as (A^1/2 B A^1/2)^1/2."""
    middle = root(root(cov_a) @ cov_b @ root(cov_a))
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * middle))


def with_moments(seed: int, n: int, mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """n points whose sample mean and covariance are exactly these."""
    raw = sample(seed, n, len(mean))
    raw -= raw.mean(0)
    raw = np.linalg.solve(np.linalg.cholesky(np.cov(raw.T)), raw.T).T
    return mean + raw @ root(cov)


def random_covariance(seed: int, width: int) -> np.ndarray:
    x = sample(seed, 3 * width, width)
    return x.T @ x / len(x)


def test_diagonal_gaussians_give_the_sum_over_dimensions():
    mean, spread_a, spread_b = np.array([0.5, -1.0, 0.0]), np.array([1.0, 2.0, 0.3]), np.array([2.0, 2.0, 0.1])
    a = with_moments(1, 50, np.zeros(3), np.diag(spread_a**2))
    b = with_moments(2, 70, mean, np.diag(spread_b**2))
    assert frechet_distance(a, b) == pytest.approx((mean**2).sum() + ((spread_a - spread_b) ** 2).sum(), rel=1e-9)


def test_full_covariances_give_the_closed_form():
    mean, cov_a, cov_b = sample(3, 1, 12)[0], random_covariance(4, 12), random_covariance(5, 12)
    a, b = with_moments(6, 60, np.zeros(12), cov_a), with_moments(7, 90, mean, cov_b)
    expected = between_gaussians(np.zeros(12), cov_a, mean, cov_b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sizes", [(9, 7), (40, 8), (5, 60), (2, 2)])
def test_sets_smaller_than_their_width_give_the_formula_of_their_covariances(sizes):
    a, b = sample(8, sizes[0], 20), 0.5 + 2.0 * sample(9, sizes[1], 20)
    expected = between_gaussians(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_the_same_rows_give_exactly_zero_and_others_never_less():
    a = sample(10, 30, 16).astype(np.float32)
    assert frechet_distance(a, a) == 0.0
    assert frechet_distance(a, a[np.random.default_rng(0).permutation(30)]) == 0.0
    assert frechet_extrapolated(a, a[::-1]).value == 0.0
    assert frechet_distance(a, np.concatenate([a, a])) > 0.0  # one distribution over n, another over n - 1
    assert frechet_distance(a, a + 1e-9) >= 0.0


def test_growing_noise_grows_the_distance():
    a, noise = sample(11, 100, 8), sample(12, 100, 8)
    distances = [frechet_distance(a + scale * noise, a) for scale in (0.0, 0.1, 0.3, 1.0, 3.0)]
    assert distances == sorted(distances)
    assert distances[0] == 0.0
    assert distances[1] > 0.0


def test_the_extrapolation_recovers_the_population_where_the_plain_distance_is_biased():
    width, spread = 16, 1.5
    shift = np.full(width, 0.1)
    truth = float((shift**2).sum() + width * (spread - 1) ** 2)
    plain, extrapolated = [], []
    for seed in range(40):
        a, b = shift + spread * sample(2 * seed, 80, width), sample(2 * seed + 1, 120, width)
        plain.append(frechet_distance(a, b))
        extrapolated.append(frechet_extrapolated(a, b, seed).value)
    bias = abs(np.mean(extrapolated) - truth)
    assert np.mean(plain) - truth > 0.15 * truth
    assert bias < 0.1 * (np.mean(plain) - truth)
    assert bias < 3 * np.std(extrapolated) / np.sqrt(40)


def test_two_samples_of_one_source_extrapolate_to_nothing():
    values = [frechet_extrapolated(sample(k, 100, 10), sample(k + 1000, 150, 10), k).value for k in range(30)]
    plain = [frechet_distance(sample(k, 100, 10), sample(k + 1000, 150, 10)) for k in range(30)]
    assert min(plain) > 0.2
    assert abs(np.mean(values)) < min(3 * np.std(values) / np.sqrt(30), 0.05 * np.mean(plain))


def test_the_fit_is_the_least_squares_line_through_its_own_points():
    found = frechet_extrapolated(1.0 + sample(1, 60, 6), sample(2, 90, 6), seed=3)
    x, y = 1.0 / np.array(found.sizes), np.array(found.distances)
    assert found.sizes == pytest.approx((60, 40, 48, 52.5))
    assert y[0] == frechet_distance(1.0 + sample(1, 60, 6), sample(2, 90, 6))
    (slope, value), covariance = np.polyfit(x, y, 1, cov=True)
    assert found.value == pytest.approx(value, rel=1e-9)
    assert found.error == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-6)
    assert slope > 0
    again = frechet_extrapolated(1.0 + sample(1, 60, 6), sample(2, 90, 6), seed=3)
    assert again == found


def test_total_variance_is_the_trace_and_the_distance_to_the_average_clip():
    b = sample(13, 50, 5) @ np.diag([1, 2, 3, 4, 5.0])
    assert total_variance(b) == pytest.approx(np.trace(np.cov(b.T)), rel=1e-12)
    average = np.repeat(b.mean(0, keepdims=True), 50, axis=0)
    assert frechet_distance(average, b) == pytest.approx(total_variance(b), rel=1e-9)


def test_agrees_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed (--with audiocraft)")
    import torch

    a, b = 0.3 + sample(14, 100, 24) @ random_covariance(15, 24), sample(16, 200, 24)
    moments = [torch.from_numpy(m) for x in (a, b) for m in (x.mean(0), np.cov(x.T))]
    assert frechet_distance(a, b) == pytest.approx(float(fid._compute_fid(*moments)), rel=1e-6)


def test_bad_input_is_told_in_one_sentence():
    good = sample(1, 12, 4)
    with pytest.raises(ValueError, match=r"the first set must be \[n, width\] with n of 2 or more, got \(4,\)"):
        frechet_distance(good[0], good)
    with pytest.raises(ValueError, match=r"the second set must be .* got \(1, 4\)"):
        frechet_distance(good, good[:1])
    with pytest.raises(ValueError, match="one width, got 4 and 3"):
        frechet_distance(good, good[:, :3])
    with pytest.raises(ValueError, match="must be finite, got 1 rows that are not"):
        total_variance(np.where(np.arange(48).reshape(12, 4) == 5, np.nan, good))
    with pytest.raises(ValueError, match="needs 10 embeddings a set, got 12 and 9"):
        frechet_extrapolated(good, good[:9])
