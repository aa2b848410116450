"""Kullback-Leibler divergences KL(q || p) in nats, one value per element.

Arguments broadcast. The functions sum nothing, so that callers choose the event axes.
"""

import math

from keras import ops

from keras_bdl.core.typing import Tensor

__all__ = [
    "bernoulli_entropy",
    "dawson",
    "kl_bernoulli",
    "kl_categorical",
    "kl_monte_carlo",
    "kl_multivariate_normal",
    "kl_normal_laplace",
    "kl_normal_log_uniform",
    "kl_normal_log_uniform_approximate",
    "kl_normal_normal",
    "kl_normal_normal_log",
    "log1p_square",
    "log_abs",
    "log_alpha",
    "normal_entropy",
    "normal_log_prob",
]

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_SMALLEST = 1.2e-38  # number of float32 that is not rounded to 0


def kl_normal_normal(
    q_mean: Tensor, q_stddev: Tensor, p_mean: Tensor, p_stddev: Tensor
) -> Tensor:
    """KL(N(q_mean, q_stddev^2) || N(p_mean, p_stddev^2)).

    log(p/q) + (q^2 + (q_mean - p_mean)^2) / (2 p^2) - 1/2.
    """
    return kl_normal_normal_log(
        q_mean, ops.log(q_stddev), p_mean, ops.log(ops.convert_to_tensor(p_stddev))
    )


def kl_normal_normal_log(
    q_mean: Tensor, q_log_stddev: Tensor, p_mean: Tensor, p_log_stddev: Tensor
) -> Tensor:
    """Computes `kl_normal_normal` from log standard deviations, without a division."""
    # exp(2 q), as the estimators write it, so that a compiler computes it once.
    squares = ops.exp(2.0 * q_log_stddev) + ops.square(q_mean - p_mean)
    ratio = squares * ops.exp(-2.0 * p_log_stddev)
    return p_log_stddev - q_log_stddev + 0.5 * (ratio - 1.0)


def kl_multivariate_normal(
    q_mean: Tensor, q_scale_tril: Tensor, p_mean: Tensor, p_scale_tril: Tensor
) -> Tensor:
    """KL(N(q_mean, Q Q^T) || N(p_mean, P P^T)), summed over the d dimensions.

    log|P| - log|Q| + (|P^-1 Q|^2 + |P^-1 (q_mean - p_mean)|^2 - d) / 2.

    Args:
        q_mean, p_mean: `(..., d)`.
        q_scale_tril, p_scale_tril: Q and P, lower triangular `(..., d, d)`.
    """
    q_mean, q_scale, p_mean, p_scale = (
        ops.convert_to_tensor(x) for x in (q_mean, q_scale_tril, p_mean, p_scale_tril)
    )
    offset = ops.expand_dims(q_mean - p_mean, -1)
    p_scale = ops.broadcast_to(p_scale, ops.shape(q_scale))
    scaled = ops.solve_triangular(
        p_scale, ops.concatenate([q_scale, offset], axis=-1), lower=True
    )
    squares = ops.sum(ops.square(scaled), axis=(-2, -1))
    logs = (
        ops.sum(ops.log(ops.diagonal(x, axis1=-2, axis2=-1)), axis=-1)
        for x in (p_scale, q_scale)
    )
    return next(logs) - next(logs) + 0.5 * (squares - q_mean.shape[-1])


def normal_entropy(log_stddev: Tensor) -> Tensor:
    """Differential entropy of N(., exp(log_stddev)^2)."""
    return log_stddev + _HALF_LOG_2PI + 0.5


def normal_log_prob(x: Tensor, mean: Tensor, log_stddev: Tensor) -> Tensor:
    """log N(x | mean, exp(log_stddev)^2), in the dtype of x."""
    log_stddev = ops.cast(log_stddev, x.dtype)
    z = (x - mean) * ops.exp(-log_stddev)
    return -0.5 * ops.square(z) - log_stddev - _HALF_LOG_2PI


def kl_normal_laplace(
    q_mean: Tensor, q_log_stddev: Tensor, p_mean: float, p_scale: float
) -> Tensor:
    """KL(N(q_mean, s^2) || Laplace(p_mean, p_scale)), in closed form.

    Uses E|w - c| = s sqrt(2/pi) exp(-d^2/(2 s^2)) + d erf(d / (s sqrt 2)) with
    d = q_mean - c, the mean of a folded normal (Leone, Nelson and Nottingham,
    "The folded normal distribution", 1961).
    """
    stddev = ops.exp(q_log_stddev)
    offset = q_mean - p_mean
    z = offset * ops.exp(-q_log_stddev)  # no power of z overflows in its gradient
    distance = stddev * math.sqrt(2.0 / math.pi) * ops.exp(
        -0.5 * ops.square(z)
    ) + offset * ops.erf(z / math.sqrt(2.0))
    return math.log(2.0 * p_scale) + distance / p_scale - normal_entropy(q_log_stddev)


def kl_categorical(
    q_probabilities: Tensor, p_probabilities: Tensor, axis: int = -1
) -> Tensor:
    """sum_k q_k log(q_k / p_k); terms with q_k = 0 are 0."""
    q = ops.convert_to_tensor(q_probabilities)
    p = ops.convert_to_tensor(p_probabilities)
    ratio = ops.log(ops.maximum(q, 1e-30)) - ops.log(ops.maximum(p, 1e-30))
    return ops.sum(q * ratio, axis=axis)


def kl_bernoulli(q_probability: Tensor, p_probability: Tensor) -> Tensor:
    """KL(Bernoulli(q) || Bernoulli(p))."""
    q = ops.convert_to_tensor(q_probability)
    p = ops.convert_to_tensor(p_probability)
    return kl_categorical(
        ops.stack([q, 1.0 - q], axis=-1), ops.stack([p, 1.0 - p], axis=-1)
    )


def bernoulli_entropy(logit: Tensor) -> Tensor:
    """Entropy of Bernoulli(p) in nats, from the logit of p."""
    dropped, kept = ops.sigmoid(logit), ops.sigmoid(-logit)
    return dropped * ops.softplus(-logit) + kept * ops.softplus(logit)


def kl_monte_carlo(q_log_stddev: Tensor, sample_log_prob: Tensor) -> Tensor:
    """-H(q) - log p(w) at one draw w of a normal q: an unbiased KL.

    Args:
        q_log_stddev: log standard deviations of q.
        sample_log_prob: log p(w) at a draw w from q, same shape.
    """
    return -normal_entropy(q_log_stddev) - sample_log_prob


# --- Log-uniform prior -----------------------------------------------------

# Rational functions of s = u^2 / (c + u^2), fitted (weighted linearised
# minimax) to 60-digit values on [0, inf):
#   2 int_0^u Dawson = 1/2 log(1 + u^2 P/Q), relative error 6.4e-7, c = 4;
#   Dawson(u) = u / (1 + u^2 P/Q),           relative error 9.6e-8, c = 14.
# All terms are positive, so float32 loses little (8e-7 and 5e-7 in all).
_INTEGRAL_SCALE, _DAWSON_SCALE = 4.0, 14.0
_INTEGRAL_P = (1.99999873, -2.3306934, 2.93948039, -4.40374006, 4.0854975, 3.03325325)
_INTEGRAL_Q = (1.0, -3.83202203, 7.59814389, -8.21105648, 4.74599496, -0.553791753)
_DAWSON_P = (
    0.666663736, -1.37312615, 6.10956345, -3.14539502,
    9.05162301, 48.4603433, -110.723194, 290.564307,
)  # fmt: skip
_DAWSON_Q = (
    1.0, -5.79360936, 22.1092565, -41.7655479,
    57.947786, -20.9334045, -25.2669642, 132.507866,
)  # fmt: skip


def _horner(x, coefficients):
    total = ops.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def _rational(s, p, q):
    return _horner(s, p) / _horner(s, q)


def dawson(u: Tensor) -> Tensor:
    """Dawson's integral exp(-u^2) int_0^u exp(t^2) dt.

    The relative error is 5e-7 in float32.
    """
    square = ops.square(u)
    s = square / (_DAWSON_SCALE + square)
    return u / (1.0 + square * _rational(s, _DAWSON_P, _DAWSON_Q))


def log_abs(x: Tensor) -> Tensor:
    """Computes log |x|; 0 counts as the smallest float32, with gradient 0."""
    # `clip`, because `maximum` of Keras on PyTorch casts float64 to float32.
    return ops.log(ops.clip(ops.abs(x), _SMALLEST, math.inf))


def log_alpha(mean: Tensor, log_stddev: Tensor) -> Tensor:
    """Computes log alpha = log(stddev^2 / mean^2).

    It is finite for a mean of 0: about 175 + 2 log s.
    """
    return 2.0 * (log_stddev - log_abs(mean))


def log1p_square(x: Tensor) -> Tensor:
    """Computes log(1 + x^2), also where x^2 overflows."""
    is_large = ops.abs(x) > 1e9
    small = ops.log1p(ops.square(ops.where(is_large, 0.0, x)))
    large = 2.0 * ops.log(ops.where(is_large, ops.abs(x), 1.0))
    return ops.where(is_large, large, small)


def kl_normal_log_uniform(log_alpha: Tensor) -> Tensor:
    """KL(N(m, alpha m^2) || log-uniform), exact up to an infinite constant.

    With u = 1/sqrt(2 alpha) it is 2 int_0^u Dawson(t) dt. Its gradient in log alpha is
    -u Dawson(u), and it falls to 0 as alpha grows. Molchanov, Ashukha and Vetrov,
    "Variational dropout sparsifies deep neural networks", 2017, eq. 14, approximate
    this divergence. The closed form is from Hron, Matthews and Ghahramani,
    "Variational Bayesian dropout: pitfalls and fixes", 2018.
    """

    @ops.custom_gradient
    def value_and_gradient(log_alpha):
        # 1 / u^2 = 2 alpha may round to 0 or to infinity without harm. If u^2 itself
        # did so, the value and the gradient would be lost.
        inverse = 2.0 * ops.exp(log_alpha)
        s = 1.0 / (1.0 + _INTEGRAL_SCALE * inverse)
        ratio = _rational(s, _INTEGRAL_P, _INTEGRAL_Q)
        value = ops.where(
            log_alpha < -20.0,
            ops.log(ratio + inverse) - (log_alpha + math.log(2.0)),
            ops.log1p(ratio / inverse),
        )

        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            s = 1.0 / (1.0 + _DAWSON_SCALE * inverse)
            return -upstream / (inverse + _rational(s, _DAWSON_P, _DAWSON_Q))

        return 0.5 * value, gradient

    # The product makes a tensor of a variable, for which TensorFlow would need a
    # gradient of its own. `custom_gradient` has no symbolic mode; shapes are those of
    # log alpha.
    return value_and_gradient(1.0 * log_alpha)


def kl_normal_log_uniform_approximate(log_alpha: Tensor) -> Tensor:
    """The fit of Molchanov, Ashukha and Vetrov (2017), eq. 14, shifted to be >= 0.

    k1 - k1 sigmoid(k2 + k3 log alpha) + 1/2 log(1 + 1/alpha).
    """
    k1, k2, k3 = 0.63576, 1.87320, 1.48695
    return k1 * ops.sigmoid(-k2 - k3 * log_alpha) + 0.5 * ops.softplus(-log_alpha)
