"""A Gaussian posterior whose weights vary together along a few directions.

Tomczak, Swaroop and Turner, "Efficient low rank Gaussian variational inference for
neural networks", 2020.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops, random

from keras_bdl.core import validation
from keras_bdl.core.dtypes import wide
from keras_bdl.core.typing import Tensor
from keras_bdl.posteriors.base import Posterior, register
from keras_bdl.posteriors.gaussian import add_log_stddevs, check_log_stddev
from keras_bdl.priors import Prior


@register("low_rank")
class LowRank(Posterior):
    """N(mean, D + V' V) over all weights of a layer together.

    D is diagonal. V has `rank` rows, each a direction in which kernel and bias vary
    together: w = mean + s eps + sum_k z_k V_k, with D = diag(s^2) and independent
    standard normal eps (one per weight) and z (one per direction). V = 0 gives
    `Gaussian`.

    For a prior of independent weights, the KL is that of independent Gaussians with the
    same variances, plus the entropy that is lost to correlations. The determinant lemma
    gives this loss in closed form: log |D + V' V| = log |D| + log |I + V D^-1 V'|.

    Args:
        rank: positive integer, the number of directions.
        initial_log_stddev: start of the logarithms of s, from -40 to 10. The directions
            start at random with the same total variance.

    Example:

    >>> posterior = keras_bdl.posteriors.LowRank(rank=4)
    >>> layer = keras_bdl.VariationalDense(10, posterior=posterior)

    Reference: Tomczak, Swaroop and Turner, "Efficient low rank Gaussian variational
    inference for neural networks", 2020.
    """

    has_moments = True

    def __init__(self, rank: int = 2, initial_log_stddev: float = -5.0) -> None:
        super().__init__()
        self.rank = validation.integer("rank", rank, least=1, most=10**4)
        self.initial_log_stddev = check_log_stddev(initial_log_stddev)

    def add_variables(
        self, add_weight: Callable, means: dict[str, keras.Variable]
    ) -> dict[str, keras.Variable]:
        self._log_stddevs, variables = add_log_stddevs(
            add_weight, means, self.initial_log_stddev
        )
        stddev = math.exp(self.initial_log_stddev) / math.sqrt(self.rank)
        self._factors = {
            name: add_weight(
                name=f"{name}_factor",
                shape=(self.rank, *mean.shape),
                initializer=keras.initializers.RandomNormal(stddev=stddev),
            )
            for name, mean in means.items()
        }
        return variables | {f"{n}_factor": v for n, v in self._factors.items()}

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            name: (mean, wide(self._log_stddevs[name]))
            for name, mean in self.mean().items()
        }

    def directions(self) -> dict[str, Tensor]:
        return {name: wide(factor) for name, factor in self._factors.items()}

    def _flat_factor(self, name):
        return ops.reshape(wide(self._factors[name]), (self.rank, -1))

    def draw(
        self, seed: keras.random.SeedGenerator, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        samples = 1 if num_samples is None else num_samples
        weights, z = {}, None
        for name, mean in self.mean().items():
            if z is None:  # all tensors of the layer share these factors
                z = random.normal((samples, self.rank), dtype=mean.dtype, seed=seed)
            shape = (samples, *mean.shape)
            noise = random.normal(shape, dtype=mean.dtype, seed=seed)
            noise = noise * ops.exp(wide(self._log_stddevs[name]))
            noise = noise + ops.reshape(ops.matmul(z, self._flat_factor(name)), shape)
            weights[name] = mean + (noise[0] if num_samples is None else noise)
        return weights

    def kl(
        self,
        prior: Prior,
        prior_variables: dict[str, keras.Variable],
        seed: keras.random.SeedGenerator,
    ) -> Tensor:
        total, scaled = 0.0, []
        for name, mean in self.mean().items():
            log_stddev = wide(self._log_stddevs[name])
            variance, factor = ops.exp(2.0 * log_stddev), wide(self._factors[name])
            spread = variance + ops.sum(ops.square(factor), axis=0)
            log_spread = 0.5 * ops.log(spread)
            variables = prior.of(name, prior_variables)
            independent = prior.kl(mean, log_spread, variables, seed)
            total = total + ops.sum(independent + log_spread - log_stddev)
            scaled.append(ops.reshape(factor * ops.exp(-log_stddev), (self.rank, -1)))
        # The triangle of [I, A]' gives |I + A A'| without losing digits to a square.
        identity = ops.eye(self.rank, dtype=scaled[0].dtype)
        tall = ops.transpose(ops.concatenate([identity, *scaled], axis=-1))
        _, triangle = ops.qr(tall)
        return total - ops.sum(ops.log(ops.abs(ops.diagonal(triangle))))

    def distribution(self) -> Any:
        """Returns a TensorFlow Probability normal over one vector, kernel first."""
        from keras_bdl.interop import tfp

        def flat(tensors):
            return np.concatenate([ops.convert_to_numpy(x).ravel() for x in tensors])

        names = list(self._means)
        stddevs = flat(ops.exp(wide(self._log_stddevs[name])) for name in names)
        factor = [ops.convert_to_numpy(self._flat_factor(name)) for name in names]
        return tfp.make(
            "MultivariateNormalDiagPlusLowRankCovariance",
            loc=flat(self.mean().values()),
            cov_diag_factor=np.square(stddevs),
            cov_perturb_factor=np.concatenate(factor, axis=-1).T,
        )

    def get_config(self) -> dict[str, Any]:
        return {"rank": self.rank, "initial_log_stddev": self.initial_log_stddev}
