"""A last layer with a joint Gaussian posterior over its weights, and the rest plain.

MacKay, "The evidence framework applied to classification networks", 1992; Lu, Ie and
Sha, "Mean-field approximation to Gaussian-softmax integral with application to
uncertainty estimation", 2020.
"""

import math

import keras
from keras import ops

from keras_bdl.core import copies, dtypes, stochastic, validation
from keras_bdl.layers.drop_in import check_conversion
from keras_bdl.maps import Dense

COVARIANCES = ("per_output", "full")


@stochastic.register
class BayesianLastLayer(stochastic.StochasticLayer, keras.layers.Dense):
    """`keras.layers.Dense` of weights with a joint Gaussian posterior.

    The weights of all outputs, kernel above bias, are N(mean, C C') with a lower
    triangular C: with "per_output" each output has a matrix of its own and outputs are
    independent, with "full" one matrix holds all. `keras_bdl.fit_last_layer` sets them
    to the exact posterior or its Laplace approximation; nothing is trained, and there
    is no KL term. A new layer has C = I: no data.

    Args:
        units: positive integer, size of the output.
        use_bias, kernel_initializer, bias_initializer: as in `keras.layers.Dense`.
        covariance: "per_output" or "full".
        probit: whether inference outside of sampling gives logits whose softmax is the
            predictive mean to second order, in place of the mean logits.
        sample_at_inference, seed: as in `VariationalDense`.

    Input shape: `(batch, input_dim)`. Output shape: `(batch, units)`.

    Attributes:
        factor: C, `(units, d, d)` or `(1, units d, units d)`, float32, with d
            `input_dim` and one more for the bias; in "full" output by output.

    Raises:
        ValueError, TypeError: on a wrong argument.

    Example:

    >>> layer = keras_bdl.BayesianLastLayer(10, covariance="full")
    >>> outputs = layer(keras.ops.ones((2, 5)))
    """

    weight_map = Dense()

    def __init__(
        self,
        units,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        covariance="per_output",
        probit=False,
        **kwargs,
    ):
        if not isinstance(use_bias, bool):  # where `keras.layers.Dense` has another
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
        self.covariance = validation.choice("covariance", covariance, COVARIANCES)
        self.probit = validation.boolean("probit", probit)
        self.trainable = False

    def add_weight(self, *args, **kwargs):
        # The posterior stays in its own dtype under mixed precision.
        return super().add_weight(*args, **{**kwargs, "autocast": False})

    def build(self, input_shape):
        if len(input_shape) != 2:
            raise ValueError(
                "Expected inputs `(batch, input_dim)`. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        super().build(input_shape)
        size = input_shape[-1] + self.use_bias
        blocks = self.units
        if self.covariance == "full":
            blocks, size = 1, size * self.units
        self.factor = self.add_weight(
            name="factor",
            shape=(blocks, size, size),
            initializer=_identities,
            dtype="float64" if self.variable_dtype == "float64" else "float32",
            trainable=False,
        )

    # The forward passes

    def call_mean(self, inputs):
        weights = {
            name: ops.cast(variable, self.compute_dtype)
            for name, variable in self.weight_map.variables(self).items()
        }
        outputs = self.weight_map.apply(self, inputs, weights)
        if not self.probit:
            return outputs
        covariance = self.output_covariance(inputs)
        return ops.cast(
            probit_logits(ops.cast(outputs, covariance.dtype), covariance),
            self.compute_dtype,
        )

    def call_noisy(self, inputs):
        return self._apply(inputs, 1)

    def call_sampled(self, inputs, scope):
        return self._apply(inputs, scope.num_samples)

    def _apply(self, inputs, num_samples):
        kernels, biases = self.draw(num_samples, self.noise)
        weights = {"kernel": ops.cast(kernels, self.compute_dtype)}
        if biases is not None:
            weights["bias"] = ops.cast(biases, self.compute_dtype)
        return self.weight_map.apply_per_sample(self, inputs, weights)

    def draw(self, num_samples, noise):
        """Kernels `(samples, input_dim, units)` and biases `(samples, units)` or None.

        Args:
            num_samples: integer.
            noise: seed generator.
        """
        factor = dtypes.wide(self.factor)
        blocks, size = factor.shape[:2]
        eps = keras.random.normal(
            (blocks, num_samples, size), dtype=factor.dtype, seed=noise
        )
        # (blocks, samples, size) -> (samples, units, d)
        deviations = ops.matmul(eps, ops.transpose(factor, (0, 2, 1)))
        deviations = ops.transpose(deviations, (1, 0, 2))
        deviations = ops.reshape(deviations, (num_samples, self.units, -1))
        deviations = ops.transpose(deviations, (0, 2, 1))
        input_dim = self.kernel.shape[0]
        kernels = dtypes.wide(self.kernel) + deviations[:, :input_dim]
        if self.bias is None:
            return kernels, None
        return kernels, dtypes.wide(self.bias) + deviations[:, input_dim]

    def output_covariance(self, inputs):
        """Covariance of the outputs of each row, `(n, units, units)`, float32."""
        factor = dtypes.wide(self.factor)
        inputs = ops.cast(inputs, factor.dtype)
        if self.bias is not None:
            ones = ops.ones_like(inputs[:, :1])
            inputs = ops.concatenate([inputs, ones], axis=-1)
        if self.covariance == "per_output":
            rows = ops.matmul(inputs, factor)  # (units, n, d)
            variances = ops.transpose(ops.sum(ops.square(rows), axis=-1))
            return ops.expand_dims(variances, -1) * ops.eye(
                self.units, dtype=factor.dtype
            )
        size = inputs.shape[-1]
        by_output = ops.reshape(factor[0], (self.units, size, self.units * size))
        rows = ops.matmul(inputs, by_output)  # (units, n, units * d)
        rows = ops.transpose(rows, (1, 0, 2))
        return ops.matmul(rows, ops.transpose(rows, (0, 2, 1)))

    # Reports, conversion and files

    def inference_weights(self):
        return [w for w in super().inference_weights() if w is not self.factor]

    def to_keras(self, weights="mean", seed=None):
        """The plain `keras.layers.Dense`, with mean or sampled weights.

        Raises:
            ValueError: if `weights` is neither "mean" nor "sample", the layer is not
                built, or the mean is asked of a layer with `probit`.
        """
        check_conversion(self, weights)
        if self.probit and weights == "mean":
            raise ValueError(
                "A layer with `probit=True` has no plain counterpart of its mean; fit "
                f"with `probit=False`, or export it. Received: layer={self.name!r}"
            )
        kernel, bias = self.kernel, self.bias
        if weights == "sample":
            kernel, bias = self.draw(1, keras.random.SeedGenerator(seed))
            kernel, bias = kernel[0], None if bias is None else bias[0]
        config = copies.live_config(keras.layers.Dense, self)
        plain = keras.layers.Dense.from_config(config)
        plain.build((None, self.kernel.shape[0]))
        values = [kernel] if bias is None else [kernel, bias]
        plain.set_weights([ops.convert_to_numpy(value) for value in values])
        return plain

    def posterior(self):
        """All weights `(units, d)`, output by output, the bias last: TFP distribution.

        Batch shape `(units,)` with "per_output"; a flat vector `(units d,)` with
        "full".
        """
        from keras_bdl.interop import tfp

        mean = self.kernel
        if self.bias is not None:
            mean = ops.concatenate([mean, ops.expand_dims(self.bias, 0)])
        mean = ops.convert_to_numpy(ops.transpose(mean))
        factor = ops.convert_to_numpy(self.factor)
        if self.covariance == "full":
            mean, factor = mean.reshape(-1), factor[0]
        return tfp.make("MultivariateNormalTriL", loc=mean, scale_tril=factor)

    def saved_variables(self):
        variables = {"kernel": self._kernel, "bias": self.bias, "factor": self.factor}
        variables |= super().saved_variables()
        return {name: v for name, v in variables.items() if v is not None}

    def get_config(self):
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


def _identities(shape, dtype=None):
    return ops.tile(
        ops.expand_dims(ops.eye(shape[-1], dtype=dtype), 0), (shape[0], 1, 1)
    )


def probit_logits(mean, covariance):
    """Logits whose softmax is about E softmax(a), a ~ N(mean, covariance).

    p_k is proportional to 1 / sum_j exp(-(m_k - m_j) / sqrt(1 + pi/8 v_kj)), with v_kj
    the variance of a_k - a_j: of two classes the probit approximation, and blind, as
    the softmax is, to what is common to all logits (Lu et al., eq. 11).

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
