"""Laplace's approximation of softmax regression, for all weights jointly.

MacKay, "The evidence framework applied to classification networks", 1992; Bishop,
"Pattern recognition and machine learning", 2006, eq. 4.110 (the second derivatives).
"""

import math

import numpy as np
from scipy import linalg, optimize


def add_hessian(hessian, phi, logits):
    """Adds the second derivatives of the summed cross-entropy for pairs of classes.

    Args:
        hessian: `(units, units, d, d)`, changed in place. A sigmoid has one unit.
        phi: features `(n, d)`.
        logits: `(n, units)`.
    """
    units = logits.shape[1]
    if units == 1:
        p = 1.0 / (1.0 + np.exp(-logits))
        hessian[0, 0] += (phi * p * (1.0 - p)).T @ phi
        return
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    for i in range(units):
        for j in range(i + 1):
            weight = p[:, i] * ((i == j) - p[:, j])
            block = (phi * weight[:, None]).T @ phi
            hessian[i, j] += block
            if i != j:
                hessian[j, i] += block


def covariance_factor(hessian, prior_precision, mean):
    """Returns the lower triangular C with C C' = inverse of (Hessian + alpha I).

    Args:
        hessian: `(units, units, d, d)`.
        prior_precision: alpha, or None for the alpha of highest evidence.
        mean: weights `(d, units)`.

    Returns:
        `(units d, units d)`, ordered by output.
    """
    matrix = hessian.transpose(0, 2, 1, 3).reshape(mean.size, mean.size)
    values, vectors = linalg.eigh(matrix)
    values = np.maximum(values, 0.0)
    if prior_precision is None:
        prior_precision = best_prior_precision(values, np.square(mean).sum())
    root = vectors / np.sqrt(values + prior_precision)
    factor = linalg.qr(root.T, mode="r")[0].T
    return factor * np.sign(np.diag(factor))


def best_prior_precision(values, squares):
    """Returns the alpha that maximises -alpha/2 w'w + 1/2 sum log(alpha / (l + alpha)).

    Args:
        values: l, the eigenvalues of the Hessian without the prior, `(P,)`.
        squares: w'w.
    """

    def negative(log_alpha):
        alpha = math.exp(log_alpha)
        return 0.5 * (alpha * squares + np.log1p(values / alpha).sum())

    grid = np.linspace(-15.0, 15.0, 61)
    best = grid[np.argmin([negative(point) for point in grid])]
    bounds = (max(best - 0.5, -15.0), min(best + 0.5, 15.0))
    found = optimize.minimize_scalar(
        negative, bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    return math.exp(float(found.x))
