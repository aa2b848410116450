"""Equal-weight mixtures of S distributions, which posterior samples predict.

The first axis is that of the components: `(S, ...)`. Everything else is elementwise.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from keras import ops

from keras_bdl.core.typing import Tensor

__all__ = [
    "log_mean_exp",
    "normal_cdf",
    "quantiles",
    "student_t_cdf",
]

_NUM_CELLS = 4096


def log_mean_exp(log_probs: Tensor) -> Tensor:
    """Log density of the mixture, log(1/S sum_s exp(log_probs_s)).

    Gal and Ghahramani, "Dropout as a Bayesian approximation", 2016, eq. 8.
    """
    return ops.logsumexp(log_probs, axis=0) - math.log(log_probs.shape[0])


def normal_cdf(z: Tensor) -> Tensor:
    """Distribution function of N(0, 1), accurate far out in the lower tail."""
    return 0.5 * ops.erfc(-z / math.sqrt(2.0))


def student_t_cdf(df: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns the distribution function of Student's t.

    With z = 2 tan(angle) the density of the angle is smooth and ends at pi/2. So its
    integral is tabulated on equal cells (trapezoid rule) and interpolated linearly. The
    error is 1e-6 in float32 for more than one degree of freedom.

    Args:
        df: degrees of freedom, `(d,)`.

    Returns:
        Function of z `(..., d)`.
    """
    df = ops.expand_dims(df, -1)
    angles = np.linspace(-0.5 * np.pi, 0.0, _NUM_CELLS + 1)
    tangents = ops.cast(np.tan(angles), df.dtype)  # large at -pi/2, not infinite
    squares = ops.square(tangents)
    log_density = ops.log1p(squares) - 0.5 * (df + 1.0) * ops.log1p(4.0 * squares / df)
    density = ops.exp(log_density)  # (d, cells + 1)
    integral = ops.cumsum(0.5 * (density[:, 1:] + density[:, :-1]), axis=-1)
    integral = ops.pad(integral, [[0, 0], [1, 0]])
    table = ops.reshape(0.5 * integral / integral[:, -1:], (-1,))
    starts = np.arange(df.shape[0]) * (_NUM_CELLS + 1)

    def cdf(z):
        # The angle is measured from -pi/2, which keeps the digits of a tail.
        angle = ops.arctan2(2.0 * ops.ones_like(z), ops.abs(z))
        position = angle * (_NUM_CELLS / (0.5 * math.pi))
        cell = ops.minimum(ops.floor(position), _NUM_CELLS - 1.0)
        index = ops.cast(cell, "int32") + ops.cast(starts, "int32")
        low, high = ops.take(table, index), ops.take(table, index + 1)
        tail = low + (position - cell) * (high - low)
        return ops.where(z < 0.0, tail, 1.0 - tail)

    return cdf


def quantiles(
    cdf: Callable[[Tensor], Tensor],
    levels: Sequence[float],
    mean: Tensor,
    stddev: Tensor,
    num_steps: int = 50,
) -> Tensor:
    """Finds by bisection where a distribution function reaches the levels.

    Args:
        cdf: increasing function, `(levels, ...)` to the same shape.
        levels: Python floats between 0 and 1.
        mean, stddev: mean and standard deviation of the distribution, `(...)`. A
            quantile lies between mean - stddev sqrt((1 - p) / p) and
            mean + stddev sqrt(p / (1 - p)), by the one-sided inequality of Chebyshev
            (Cantelli).
        num_steps: number of bisections.

    Returns:
        Quantiles `(levels, ...)`.
    """
    p = np.reshape(np.asarray(levels, "float64"), (-1,) + (1,) * len(mean.shape))
    below, above = np.sqrt((1.0 - p) / p), np.sqrt(p / (1.0 - p))
    p, below, above = (ops.cast(x, mean.dtype) for x in (p, below, above))

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        is_below = cdf(middle) < p
        return ops.where(is_below, middle, low), ops.where(is_below, high, middle)

    bracket = (mean - stddev * below, mean + stddev * above)
    low, high = ops.fori_loop(0, num_steps, halve, bracket)
    return 0.5 * (low + high)
