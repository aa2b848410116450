"""Log densities and log probabilities in nats, one value per element."""

import math

from keras import ops

from keras_bdl.core.typing import Tensor
from keras_bdl.ops import divergences

__all__ = [
    "bernoulli_log_prob",
    "discretized_logistic_log_prob",
    "discretized_logistic_mean",
    "log_gamma_ratio",
    "student_t_log_prob",
]

_LOG_PI = math.log(math.pi)

# A mean over more levels is computed with this number of steps.
_MOST_STEPS = 4096
# Smaller scales act like 0, and their reciprocals overflow in float32.
_LEAST_LOG_SCALE = -60.0


def bernoulli_log_prob(y: Tensor, logits: Tensor) -> Tensor:
    """y log p + (1 - y) log(1 - p) with p = sigmoid(logits)."""
    # softplus(x) = max(x, 0) + log1p(exp(-|x|)) keeps the digits of a small loss.
    linear = y * logits - ops.maximum(logits, 0.0)
    return linear - ops.log1p(ops.exp(-ops.abs(logits)))


def student_t_log_prob(
    y: Tensor, location: Tensor, log_scale: Tensor, log_df: Tensor
) -> Tensor:
    """Log density of location + scale * t for Student's t.

    Its degrees of freedom v are `exp(log_df)`:
    log G((v+1)/2) - log G(v/2) - log(v pi)/2 - log s - (v+1)/2 log(1 + z^2/v).
    """
    df = ops.exp(log_df)
    z = (y - location) * ops.exp(-log_scale)
    normaliser = log_gamma_ratio(0.5 * df) - 0.5 * (log_df + _LOG_PI) - log_scale
    tail = divergences.log1p_square(z * ops.exp(-0.5 * log_df))
    return normaliser - 0.5 * (df + 1.0) * tail


def log_gamma_ratio(x: Tensor) -> Tensor:
    """Computes log G(x + 1/2) - log G(x) for x > 0, up to float32 rounding.

    Four steps of G(x + 1) = x G(x) make x large enough for the asymptotic series
    log(x)/2 - 1/(8x) + 1/(192x^3) - 1/(640x^5) + 17/(14336x^7) (Tricomi and Erdelyi,
    "The asymptotic expansion of a ratio of gamma functions", 1951). A difference of two
    log gammas would lose all digits at large x.
    """
    steps = sum(ops.log((x + k) / (x + k + 0.5)) for k in range(4))
    x = x + 4.0
    inverse = 1.0 / ops.square(x)
    series = -1 / 8 + inverse * (
        1 / 192 + inverse * (-1 / 640 + inverse * (17 / 14336))
    )
    return steps + 0.5 * ops.log(x) + series / x


def discretized_logistic_log_prob(
    y: Tensor, mean: Tensor, log_scale: Tensor, width: float, low: float, high: float
) -> Tensor:
    """Log mass of a logistic density in the bin of `width` around each y.

    The mass is sigmoid((y + w/2 - m)/s) - sigmoid((y - w/2 - m)/s). The bins of `low`
    and `high` extend to minus and plus infinity, so that all bins sum to 1 (Salimans,
    Karpathy, Chen and Kingma, "PixelCNN++", 2017, eq. 2).
    """
    precision = ops.exp(-log_scale)
    upper = (y - mean + 0.5 * width) * precision
    lower = (y - mean - 0.5 * width) * precision
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))
    below, above = ops.log_sigmoid(upper), ops.log_sigmoid(-lower)
    inside = below + above + _log1mexp(width * precision)
    inside = ops.where(y < low + 0.5 * width, below, inside)
    return ops.where(y > high - 0.5 * width, above, inside)


def discretized_logistic_mean(
    location: Tensor, log_scale: Tensor, levels: int, low: float, high: float
) -> Tensor:
    """Mean of the distribution of `discretized_logistic_log_prob`.

    It is low + w sum_j P(y > low + (j - 1/2) w) over the steps of width w between
    levels, with the survival function of the logistic at the middle of each step. The
    location is not the mean, because values beyond `low` and `high` count as these. The
    sum is exact up to 4,097 levels. More levels are treated as 4,097, with an error of
    at most 1e-4 of the range.

    Args:
        location, log_scale: tensors of one shape.
        levels, low, high: as in `losses.DiscretizedLogisticNLL`.
    """
    steps = min(levels - 1, _MOST_STEPS)
    width = (high - low) / steps
    precision = ops.exp(-ops.maximum(log_scale, _LEAST_LOG_SCALE))

    def add(step, total):
        middle = low + (ops.cast(step, location.dtype) + 0.5) * width
        return total + ops.sigmoid((location - middle) * precision)

    # A loop: all steps at once would need 255 times the memory of an image.
    total = ops.fori_loop(0, steps, add, ops.zeros_like(location))
    return low + width * total


def _log1mexp(x):
    """Computes log(1 - exp(-x)) for x > 0.

    Maechler, "Accurately computing log1mexp", 2012.
    """
    small = x < math.log(2.0)
    near = ops.log(-ops.expm1(-ops.where(small, x, 1.0)))
    far = ops.log1p(-ops.exp(-ops.where(small, 1.0, x)))
    return ops.where(small, near, far)
