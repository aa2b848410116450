"""A posterior over low-rank adapters of frozen weights.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang and Chen, "LoRA: low-rank adaptation of
large language models", 2021, section 4.1; Wang, Shi, Han, Metaxas and Wang, "BLoB:
Bayesian low-rank adaptation by backpropagation for large language models", 2024,
section 3.1.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.dtypes import wide
from keras_bdl.core.typing import Tensor
from keras_bdl.ops import estimators
from keras_bdl.posteriors.base import Posterior, register
from keras_bdl.posteriors.gaussian import check_log_stddev, sum_of_kls
from keras_bdl.priors import Prior


@register("lora")
class LowRankAdaptation(Posterior):
    """Frozen weights W0, and a change of low rank that has a posterior.

    W = W0 + alpha / rank * A B, where W0 has the shape `(inputs, outputs)` after its
    first axes are merged, A is `(inputs, rank)` and B is `(rank, outputs)`. The entries
    of A are `sqrt(2 / inputs)` times independent Gaussians N(mean, exp(log_stddev)^2),
    over which the prior is; B has no noise. B starts at 0, so that the layer starts as
    it was. W0 and the biases are not trained.

    Args:
        rank: positive integer.
        alpha: positive float, or None for the rank.
        initial_log_stddev: start of the log standard deviations, from -40 to 10. The
            means start as draws of N(0, 1).

    Example:

    >>> posterior = keras_bdl.posteriors.LowRankAdaptation(rank=4)
    >>> layer = keras_bdl.VariationalDense(10, posterior=posterior)

    Reference: Wang, Shi, Han, Metaxas and Wang, "BLoB: Bayesian low-rank adaptation by
    backpropagation for large language models", 2024, eqs 3 and 4.
    """

    of_biases = False
    trains_means = False

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        initial_log_stddev: float = -2.0,
    ) -> None:
        super().__init__()
        self.rank = validation.integer("rank", rank, least=1, most=10**4)
        self.alpha = None if alpha is None else validation.positive("alpha", alpha)
        self.initial_log_stddev = check_log_stddev(initial_log_stddev)

    def add_variables(
        self, add_weight: Callable, means: dict[str, keras.Variable]
    ) -> dict[str, keras.Variable]:
        if not means:
            raise ValueError(
                "Adapters of low rank are of weights of at least two axes, and this "
                f"layer has none. Received: posterior={self!r}"
            )
        self._adapters: dict[str, tuple[keras.Variable, ...]] = {}
        variables: dict[str, keras.Variable] = {}
        for name, shape in self.prior_shapes.items():
            parts = {
                f"{name}_lora_a": (shape, keras.initializers.RandomNormal(stddev=1.0)),
                f"{name}_lora_a_log_stddev": (
                    shape,
                    keras.initializers.Constant(self.initial_log_stddev),
                ),
                f"{name}_lora_b": ((self.rank, means[name].shape[-1]), "zeros"),
            }
            added = {
                part: add_weight(name=part, shape=shape, initializer=initializer)
                for part, (shape, initializer) in parts.items()
            }
            self._adapters[name] = tuple(added.values())
            variables |= added
        return variables

    @property
    def prior_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the factors A, over which the prior is, by name."""
        return {
            name: (math.prod(shape[:-1]), self.rank)
            for name, shape in self.shapes.items()
        }

    def _factors(self):
        """Returns mean and log standard deviation of A without its scale, by name."""
        return {n: (wide(a), wide(s)) for n, (a, s, _) in self._adapters.items()}

    def _change(self, name, factor):
        """Returns alpha / rank A B for values of A without its scale."""
        a, _, b = self._adapters[name]
        scale = (self.alpha or self.rank) / self.rank
        return scale * math.sqrt(2.0 / a.shape[0]) * ops.matmul(factor, wide(b))

    def _adapted(self, name, factor, mean):
        """Returns W for values of A without its scale, `(..., inputs, rank)`."""
        shape = (*factor.shape[:-2], *mean.shape)
        return wide(mean) + ops.reshape(self._change(name, factor), shape)

    @property
    def has_rows(self) -> bool:
        return True

    def rows(
        self,
        name: str,
        take: Callable[[Tensor], Tensor],
        noise: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        a, log_stddev, _ = map(wide, self._adapters[name])
        factor = take(a)
        if noise is not None:
            factor = factor + ops.exp(take(log_stddev)) * noise(self.rank)
        return take(wide(self._means[name])) + self._change(name, factor)

    def mean(self) -> dict[str, Tensor]:
        return {
            name: self._adapted(name, wide(self._adapters[name][0]), mean)
            for name, mean in self._means.items()
        }

    def draw(
        self, seed: keras.random.SeedGenerator, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        weights = {}
        for name, mean in self._means.items():
            a, log_stddev, _ = map(wide, self._adapters[name])
            noise = estimators.gaussian_noise(log_stddev, a.dtype, seed, num_samples)
            weights[name] = self._adapted(name, a + noise, mean)
        return weights

    def kl(
        self,
        prior: Prior,
        prior_variables: dict[str, keras.Variable],
        seed: keras.random.SeedGenerator,
    ) -> Tensor:
        return sum_of_kls(self._factors(), prior, prior_variables, seed)

    def distribution(self) -> Any:
        """Returns a TensorFlow Probability distribution of the factors A by name."""
        from keras_bdl.interop import tfp

        return tfp.independent_normals(self._factors())

    def get_config(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "initial_log_stddev": self.initial_log_stddev,
        }
