"""KAD: the squared maximum mean discrepancy between two sets of embeddings.

After Chung et al., "KAD: No More FAD! An Effective and Efficient Evaluation Metric for Audio Generation" (arXiv
2502.15602): with a Gaussian kernel k(x, y) = exp(-|x - y|^2 / (2 h^2)), the unbiased estimate of Gretton et al., "A
Kernel Two-Sample Test" (JMLR 2012, equation 3),

    mean k(a, a') over a != a'  +  mean k(b, b') over b != b'  -  2 mean k(a, b)

times 100, the factor of their toolkit kadtk. No Gaussian is fitted, and no clip count biases it. n embeddings a set, D
width. Everything is float64.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist, pdist

from .frechet import as_embeddings, as_pair, same_set

SCALE = 100.0


def median_distance(b: np.ndarray) -> float:
    """The bandwidth: the median distance between two different rows of the reference b [n, D].

    Raises:
        ValueError: bad embeddings, or a median of 0, which no kernel can be made of.
    """
    median = float(np.median(pdist(as_embeddings(b, "the reference"))))
    if median == 0.0:
        raise ValueError("most rows of the reference are the same: their median distance is 0, got no bandwidth")
    return median


def kernel_distance(a: np.ndarray, b: np.ndarray, bandwidth: float | None = None, paired: bool = False) -> float:
    """KAD between embeddings a [n_a, D] and the reference b [n_b, D]; 0 exactly for two sets of the same rows.

    It is unbiased for sets that have nothing to do with one another, so two sets from one source come out as often a
    little below 0 as above.

    Args:
        a, b: the embeddings.
        bandwidth: h; None for the median distance within b. Give `median_distance` of the whole reference wherever
            values are to be compared, as in resampling: another h is another measure.
        paired: row i of both is the same clip, as it was and made worse. A clip is nearer to itself than to any other,
            which would count as likeness of the sets: those n pairs are left out (Gretton et al., equation 4).

    Raises:
        ValueError: shapes that do not fit, fewer than 2 rows, values that are not finite, or a bandwidth that is not
            above 0.
    """
    a, b = as_pair(a, b)
    h = median_distance(b) if bandwidth is None else float(bandwidth)
    if not 0.0 < h < np.inf:
        raise ValueError(f"the bandwidth must be a finite number above 0, got {bandwidth!r}")
    if same_set(a, b):
        return 0.0
    if paired and len(a) != len(b):
        raise ValueError(f"paired sets must be of one size, got {len(a)} and {len(b)}")
    within = [_kernel(pdist(x, "sqeuclidean"), h).mean() for x in (a, b)]
    between = _kernel(cdist(a, b, "sqeuclidean"), h)
    apart = between[~np.eye(len(a), dtype=bool)] if paired else between
    return float(SCALE * (sum(within) - 2.0 * apart.mean()))


def _kernel(squared: np.ndarray, h: float) -> np.ndarray:
    return np.exp(squared * (-0.5 / h**2))
