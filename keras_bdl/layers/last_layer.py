"""A last layer with a joint Gaussian posterior, for a network that is plain before it.

MacKay, "The evidence framework applied to classification networks", 1992; Lu, Ie and
Sha, "Mean-field approximation to Gaussian-softmax integral with application to
uncertainty estimation", 2020.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_bdl.core import stochastic, validation
from keras_bdl.core.typing import Initializer, Tensor
from keras_bdl.layers.counterparts import check_conversion, of_posterior
from keras_bdl.layers.posterior_layer import PosteriorLayer
from keras_bdl.maps import Dense
from keras_bdl.posteriors import FullCovariance


@stochastic.register
class BayesianLastLayer(PosteriorLayer, keras.layers.Dense):
    """`keras.layers.Dense` with a joint Gaussian posterior over its weights.

    The weights of all outputs, kernel above bias, are N(mean, C C') with a lower
    triangular C. With "per_output" each output has a separate matrix and outputs are
    independent; with "full" one matrix covers all outputs. `keras_bdl.fit_last_layer`
    sets mean and C to the exact posterior or its Laplace approximation. Nothing is
    trained, and there is no KL term. A new layer has C = I, as without any data.

    Args:
        units: positive integer, size of the output.
        use_bias, kernel_initializer, bias_initializer: as in `keras.layers.Dense`.
        covariance: "per_output" or "full".
        probit: whether inference outside of sampling returns, in place of the mean
            logits, logits whose softmax is the predictive mean to second order.
        sample_at_inference, seed: as in `VariationalDense`.

    Input shape: `(batch, input_dim)`. Output shape: `(batch, units)`.

    Attributes:
        factor: C, `(units, d, d)` or `(1, units d, units d)`, float32, where d is
            `input_dim`, plus one for the bias. "full" orders weights output by output.

    Raises:
        ValueError, TypeError: on a wrong argument.

    Example:

    >>> layer = keras_bdl.BayesianLastLayer(10, covariance="full")
    >>> outputs = layer(keras.ops.ones((2, 5)))
    """

    keras_class = keras.layers.Dense
    weight_map = Dense()
    posterior: FullCovariance

    def __init__(
        self,
        units: int,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        covariance: str = "per_output",
        probit: bool = False,
        **kwargs: Any,
    ) -> None:
        # `keras.layers.Dense` takes its activation in this place.
        if not isinstance(use_bias, bool):
            raise TypeError(
                "Expected `use_bias` to be a bool; `BayesianLastLayer` is linear and "
                "takes no `activation`: put a layer of it behind. "
                f"Received: use_bias={use_bias!r}"
            )
        super().__init__(
            validation.integer("units", units, least=1),
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            **kwargs,
        )
        if self.activation is not keras.activations.linear:
            raise ValueError(
                "`BayesianLastLayer` is linear; put an activation behind it. "
                f"Received: activation={self.activation!r}"
            )
        self.posterior = FullCovariance(covariance)
        self.probit = validation.boolean("probit", probit)
        self.trainable = False

    covariance = of_posterior("covariance")

    # The shape is required, which the mixin leaves open.
    def build(self, input_shape: Any) -> None:  # type: ignore[override]
        if len(input_shape) != 2:
            raise ValueError(
                "Expected inputs `(batch, input_dim)`. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        super().build(input_shape)

    def call_mean(self, inputs: Tensor, **arguments: Any) -> Tensor:
        outputs = super().call_mean(inputs)
        if not self.probit:
            return outputs
        covariance = self.output_covariance(inputs)
        return ops.cast(
            probit_logits(ops.cast(outputs, covariance.dtype), covariance),
            self.compute_dtype,
        )

    def output_covariance(self, inputs: Tensor) -> Tensor:
        """Returns the covariance of the outputs of each row.

        It is `(n, units, units)`, in float32.
        """
        return self.posterior.output_covariance(inputs)

    # Reports, conversion and files

    def to_keras(
        self, weights: str = "mean", seed: int | None = None
    ) -> keras.layers.Layer:
        """Returns the plain `keras.layers.Dense`, with mean or sampled weights.

        Raises:
            ValueError: if `weights` is neither "mean" nor "sample", the layer is not
                built, or `weights` is "mean" and the layer has `probit`.
        """
        check_conversion(self, weights)
        if self.probit and weights == "mean":
            raise ValueError(
                "No plain layer computes the mean of a layer with `probit=True`; fit "
                f"with `probit=False`, or export it. Received: layer={self.name!r}"
            )
        return super().to_keras(weights, seed)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {
            name: config[name]
            for name in (
                "name",
                "trainable",
                "dtype",
                "units",
                "use_bias",
                "kernel_initializer",
                "bias_initializer",
                "sample_at_inference",
                "seed",
            )
        } | {"covariance": self.covariance, "probit": self.probit}


def probit_logits(mean: Tensor, covariance: Tensor) -> Tensor:
    """Returns logits whose softmax approximates E softmax(a), a ~ N(mean, covariance).

    p_k is proportional to 1 / sum_j exp(-(m_k - m_j) / sqrt(1 + pi/8 v_kj)), where v_kj
    is the variance of a_k - a_j (Lu et al., eq. 11). For two classes this is the probit
    approximation. Like the softmax, it ignores what is common to all logits.

    Args:
        mean: `(n, classes)`.
        covariance: `(n, classes, classes)`.
    """
    variances = ops.diagonal(covariance, axis1=-2, axis2=-1)
    differences = ops.expand_dims(variances, -1) + ops.expand_dims(variances, -2)
    differences = ops.maximum(differences - 2.0 * covariance, 0.0)
    gaps = ops.expand_dims(mean, -1) - ops.expand_dims(mean, -2)
    scaled = gaps / ops.sqrt(1.0 + math.pi / 8.0 * differences)
    return -ops.logsumexp(-scaled, axis=-1)
