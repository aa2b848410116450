"""A joint Gaussian posterior over the weights of a last layer, set by a fit."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.dtypes import wide
from keras_bdl.core.typing import Tensor
from keras_bdl.posteriors.base import Posterior, register

COVARIANCES = ("per_output", "full")


@register()
class FullCovariance(Posterior):
    """N(mean, C C') over the kernel of a Dense layer and the bias below it.

    C is lower triangular. With "per_output" each output has a separate matrix and
    outputs are independent; with "full" one matrix covers all outputs. C starts at the
    identity and is not trained, so there is no KL. See `BayesianLastLayer`.

    Args:
        covariance: "per_output" or "full".
    """

    takes_prior = False
    own_layers = "`BayesianLastLayer`"

    def __init__(self, covariance: str = "per_output") -> None:
        super().__init__()
        self.covariance = validation.choice("covariance", covariance, COVARIANCES)

    def add_variables(
        self, add_weight: Callable, means: dict[str, keras.Variable]
    ) -> dict[str, keras.Variable]:
        input_dim, self._units = means["kernel"].shape
        blocks, size = self._units, input_dim + ("bias" in means)
        if self.covariance == "full":
            blocks, size = 1, size * self._units
        dtype = keras.backend.standardize_dtype(means["kernel"].dtype)
        self._factor = add_weight(
            name="factor",
            shape=(blocks, size, size),
            initializer=_identities,
            dtype="float64" if dtype == "float64" else "float32",
            trainable=False,
        )
        return {"factor": self._factor}

    def draw(
        self, seed: keras.random.SeedGenerator, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        samples = 1 if num_samples is None else num_samples
        factor, means = wide(self._factor), self.mean()
        blocks, size = factor.shape[:2]
        eps = keras.random.normal(
            (blocks, samples, size), dtype=factor.dtype, seed=seed
        )
        # (blocks, samples, size) -> (samples, d, units)
        deviations = ops.matmul(eps, ops.transpose(factor, (0, 2, 1)))
        deviations = ops.transpose(deviations, (1, 0, 2))
        deviations = ops.reshape(deviations, (samples, self._units, -1))
        deviations = ops.transpose(deviations, (0, 2, 1))
        input_dim = means["kernel"].shape[0]
        weights = {"kernel": means["kernel"] + deviations[:, :input_dim]}
        if "bias" in means:
            weights["bias"] = means["bias"] + deviations[:, input_dim]
        if num_samples is None:
            return {name: weight[0] for name, weight in weights.items()}
        return weights

    def output_covariance(self, inputs: Tensor) -> Tensor:
        """Returns the covariance of the outputs of each row.

        It is `(n, units, units)`, in float32.
        """
        factor = wide(self._factor)
        inputs = ops.cast(inputs, factor.dtype)
        if "bias" in self._means:
            ones = ops.ones_like(inputs[:, :1])
            inputs = ops.concatenate([inputs, ones], axis=-1)
        if self.covariance == "per_output":
            rows = ops.matmul(inputs, factor)  # (units, n, d)
            variances = ops.transpose(ops.sum(ops.square(rows), axis=-1))
            return ops.expand_dims(variances, -1) * ops.eye(
                self._units, dtype=factor.dtype
            )
        size = inputs.shape[-1]
        by_output = ops.reshape(factor[0], (self._units, size, self._units * size))
        rows = ops.matmul(inputs, by_output)  # (units, n, units * d)
        rows = ops.transpose(rows, (1, 0, 2))
        return ops.matmul(rows, ops.transpose(rows, (0, 2, 1)))

    def distribution(self) -> Any:
        """Returns a normal of all weights, output by output, each with its bias last.

        With "per_output" its batch shape is `(units,)` and its event shape `(d,)`.
        With "full" it is over a flat vector `(units d,)`.
        """
        from keras_bdl.interop import tfp

        means = self.mean()
        mean = means["kernel"]
        if "bias" in means:
            mean = ops.concatenate([mean, ops.expand_dims(means["bias"], 0)])
        mean = ops.convert_to_numpy(ops.transpose(mean))
        factor = ops.convert_to_numpy(self._factor)
        if self.covariance == "full":
            mean, factor = mean.reshape(-1), factor[0]
        return tfp.make("MultivariateNormalTriL", loc=mean, scale_tril=factor)

    def get_config(self) -> dict[str, Any]:
        return {"covariance": self.covariance}


def _identities(shape, dtype=None):
    return ops.tile(
        ops.expand_dims(ops.eye(shape[-1], dtype=dtype), 0), (shape[0], 1, 1)
    )
