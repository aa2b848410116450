"""The number of units that a residual block runs, as a random variable.

A block of L units that has run unit l stops after it with probability
h_l = sigmoid(a_l), and always stops after unit L. So q(z = l) = h_l prod_{i<l}
(1 - h_i). All functions take the logits a of the first L - 1 units on the last axis, in
float32 or float64.

Reference: Figurnov, Sobolev and Vetrov, "Probabilistic adaptive computation time",
2017, section 2.
"""

from collections.abc import Sequence

import numpy as np
from keras import ops, random

from keras_bdl.core.typing import Tensor
from keras_bdl.ops.estimators import check_generator

__all__ = [
    "expected_depth",
    "kl_to_prior",
    "log_probs",
    "log_survival",
    "logistic_noise",
    "prior_log_probs",
    "relaxed_survival",
]


def log_survival(logits: Tensor) -> Tensor:
    """log q(z > l) for l = 1 ... L - 1: `(..., L - 1)`, in nats."""
    return ops.cumsum(-ops.softplus(logits), axis=-1)


def log_probs(logits: Tensor) -> Tensor:
    """log q(z = l) for l = 1 ... L: `(..., L)`, in nats."""
    survival = ops.pad(log_survival(logits), _first(logits))
    stops = ops.pad(-ops.softplus(-logits), _last(logits))
    return survival + stops


def expected_depth(logits: Tensor) -> Tensor:
    """E_q z, the mean number of units: `(...)`."""
    return 1.0 + ops.sum(ops.exp(log_survival(logits)), axis=-1)


def prior_log_probs(num_units: int, rate: float) -> np.ndarray:
    """log p(z = l) of the truncated geometric prior, p(z) ~ exp(-rate z): `(L,)`.

    The result is a NumPy array of float64, because `rate` is a number.
    """
    scores = -rate * np.arange(1, num_units + 1, dtype="float64")
    return scores - np.logaddexp.reduce(scores)


def kl_to_prior(logits: Tensor, rate: float) -> Tensor:
    """KL(q || p) to the truncated geometric prior: `(...)`, in nats."""
    log_q = log_probs(logits)
    log_p = ops.cast(prior_log_probs(log_q.shape[-1], rate), log_q.dtype)
    return ops.sum(ops.exp(log_q) * (log_q - log_p), axis=-1)


def logistic_noise(
    shape: Sequence[int], dtype: str, seed: random.SeedGenerator
) -> Tensor:
    """Draws log u - log(1 - u) of uniform u; [a + noise > 0] is Bernoulli(h)."""
    check_generator(seed)
    u = random.uniform(shape, 1e-7, 1.0 - 1e-7, dtype=dtype, seed=seed)
    return ops.log(u) - ops.log1p(-u)


def relaxed_survival(
    logits: Tensor, temperature: float, seed: random.SeedGenerator
) -> Tensor:
    """Draws [z > l], l = 1 ... L - 1, relaxed so that gradients reach the logits.

    The halting variables are binary Concrete: sigmoid((a + log u - log(1 - u)) / t)
    (Maddison, Mnih and Teh, "The Concrete distribution", 2017, eq. 16).
    """
    noise = logistic_noise(ops.shape(logits), logits.dtype, seed)
    return ops.exp(log_survival((logits + noise) / temperature))


def _first(logits):
    return [(0, 0)] * (len(logits.shape) - 1) + [(1, 0)]


def _last(logits):
    return [(0, 0)] * (len(logits.shape) - 1) + [(0, 1)]
