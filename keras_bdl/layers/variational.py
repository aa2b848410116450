"""Dense and convolutional layers with a Gaussian posterior over every weight.

q(w) = N(m, s^2), independent per weight ("mean field"): Blundell, Cornebise,
Kavukcuoglu and Wierstra, "Weight uncertainty in neural networks", 2015.
"""

import keras
from keras import ops

from keras_bdl.layers.base import BayesianLayer, check_bool, register, wide
from keras_bdl.ops import estimators

ESTIMATORS = ("local_reparameterization", "flipout", "reparameterization")


class MeanFieldLayer(BayesianLayer):
    """Gaussian posterior of a kernel and a bias; subclasses say how it is applied.

    Args:
        *args: positional arguments of the Keras layer.
        estimator: "local_reparameterization", "flipout", "reparameterization",
            or None for the layer's default.
        initial_log_stddev: where the log standard deviations start.
        bias_posterior: whether the bias has a posterior too.
        **kwargs: of `BayesianLayer` and of the Keras layer.
    """

    def __init__(
        self,
        *args,
        estimator=None,
        initial_log_stddev=-5.0,
        bias_posterior=True,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if estimator is not None and estimator not in ESTIMATORS:
            raise ValueError(
                f"Expected `estimator` to be None or one of {ESTIMATORS}. "
                f"Received: estimator={estimator!r}"
            )
        if isinstance(initial_log_stddev, bool) or not isinstance(
            initial_log_stddev, (int, float)
        ):
            raise TypeError(
                "Expected `initial_log_stddev` to be a number. "
                f"Received: initial_log_stddev={initial_log_stddev!r}"
            )
        if not -40.0 <= initial_log_stddev <= 10.0:
            raise ValueError(
                "Expected `initial_log_stddev` between -40 and 10. "
                f"Received: initial_log_stddev={initial_log_stddev!r}"
            )
        self.estimator = estimator
        self.initial_log_stddev = float(initial_log_stddev)
        self.bias_posterior = check_bool("bias_posterior", bias_posterior)
        self.kernel_log_stddev = None
        self.bias_log_stddev = None

    def build(self, input_shape):
        self._num_positions_axes = len(input_shape) - 2
        super().build(input_shape)

    def build_posterior(self):
        def add_log_stddev(name, mean):
            return self.add_weight(
                name=name,
                shape=tuple(mean.shape),
                initializer=keras.initializers.Constant(self.initial_log_stddev),
            )

        self.kernel_log_stddev = add_log_stddev("kernel_log_stddev", self._kernel)
        if self.bias is not None and self.bias_posterior:
            self.bias_log_stddev = add_log_stddev("bias_log_stddev", self.bias)

    def gaussians(self):
        """Pairs (mean, log stddev) by name, in float32 (or float64)."""
        pairs = {"kernel": (wide(self.kernel), wide(self.kernel_log_stddev))}
        if self.bias_log_stddev is not None:
            pairs["bias"] = (wide(self.bias), wide(self.bias_log_stddev))
        return pairs

    def kl(self):
        total = 0.0
        for mean, log_stddev in self.gaussians().values():
            terms = self.prior.kl(mean, log_stddev, self._prior_variables, self.noise)
            total = total + ops.sum(terms)
        return total

    def posterior(self):
        from keras_bdl.interop import tfp

        return tfp.independent_normals(self.gaussians())

    # The linear map, and the shape in which a bias joins its outputs.

    def linear(self, inputs, kernel):
        raise NotImplementedError

    def channel_axis(self):
        return -1

    def expand_bias(self, bias):
        return bias

    def _mean_weights(self):
        kernel = ops.cast(self.kernel, self.compute_dtype)
        if self.bias is None:
            return kernel, None
        return kernel, self.expand_bias(ops.cast(self.bias, self.compute_dtype))

    def _weights(self):
        """Arguments of the estimators after the inputs."""
        kernel, bias = self._mean_weights()
        bias_log_stddev = None
        if self.bias_log_stddev is not None:
            bias_log_stddev = self.expand_bias(wide(self.bias_log_stddev))
        return kernel, wide(self.kernel_log_stddev), bias, bias_log_stddev

    def _activate(self, outputs):
        return outputs if self.activation is None else self.activation(outputs)

    def call_mean(self, inputs):
        kernel, bias = self._mean_weights()
        outputs = self.linear(inputs, kernel)
        return self._activate(outputs if bias is None else outputs + bias)

    def resolved_estimator(self):
        """The estimator that training uses: the given one or the default."""
        if self.estimator is not None:
            return self.estimator
        return "flipout" if self._num_positions_axes else "local_reparameterization"

    def call_noisy(self, inputs):
        name = self.resolved_estimator()
        options = {"channel_axis": self.channel_axis()} if name == "flipout" else {}
        estimator = getattr(estimators, name)
        return self._activate(
            estimator(self.linear, inputs, *self._weights(), seed=self.noise, **options)
        )

    def call_sampled(self, inputs, scope):
        kernel, kernel_log_stddev, _, _ = self._weights()
        kernels = kernel + estimators.gaussian_noise(
            kernel_log_stddev, kernel.dtype, self.noise, scope.num_samples
        )
        biases = None
        if self.bias is not None:
            biases = ops.broadcast_to(
                ops.cast(self.bias, kernel.dtype),
                (scope.num_samples, *self.bias.shape),
            )
            if self.bias_log_stddev is not None:
                biases = biases + estimators.gaussian_noise(
                    wide(self.bias_log_stddev),
                    kernel.dtype,
                    self.noise,
                    scope.num_samples,
                )
        return self._activate(self.linear_per_sample(inputs, kernels, biases))

    def linear_per_sample(self, inputs, kernels, biases):
        """Applies kernel s to the s-th of equal parts of the rows."""
        outputs = []
        num_samples = kernels.shape[0]
        parts = [inputs] if num_samples == 1 else ops.split(inputs, num_samples)
        for index, part in enumerate(parts):
            output = self.linear(part, kernels[index])
            if biases is not None:
                output = output + self.expand_bias(biases[index])
            outputs.append(output)
        return outputs[0] if num_samples == 1 else ops.concatenate(outputs)

    def saved_variables(self):
        variables = {
            "kernel_log_stddev": self.kernel_log_stddev,
            "kernel": self._kernel,
            "bias": self.bias,
            "bias_log_stddev": self.bias_log_stddev,
            **super().saved_variables(),
        }
        return {name: v for name, v in variables.items() if v is not None}

    def get_config(self):
        return {
            **super().get_config(),
            "estimator": self.estimator,
            "initial_log_stddev": self.initial_log_stddev,
            "bias_posterior": self.bias_posterior,
        }


@register
class VariationalDense(MeanFieldLayer, keras.layers.Dense):
    """`keras.layers.Dense` with a Gaussian posterior over kernel and bias.

    y = activation(x w + b) with w ~ N(kernel, exp(kernel_log_stddev)^2) in
    training, and w = kernel at inference. `kl()` is added to the loss, divided
    by `num_examples`: with a mean log-likelihood loss, `fit` minimises the
    negative evidence lower bound per example.

    Args:
        units: positive integer, size of the output.
        activation, use_bias, kernel_initializer, bias_initializer: as in
            `keras.layers.Dense`; the initializers are those of the means.
            Regularizers and constraints are refused: the prior regularises.
        prior: a `keras_bdl.priors.Prior` or its name. Default "normal", N(0, 1).
        num_examples: number of training examples.
        kl_weight: factor of the KL term, default 1. `layer.kl_weight` is a
            variable, so that `callbacks.KLWarmup` can raise it.
        estimator: "local_reparameterization" (default for inputs of rank 2:
            fresh noise per row and unit), "flipout" (default for higher ranks:
            every row one weight draw, shared by its positions) or
            "reparameterization" (one draw per batch).
        initial_log_stddev: initial log standard deviation of every weight.
        bias_posterior: whether the bias has a posterior.
        sample_at_inference: whether to sample outside training too.
        seed: integer or None.

    Input shape: `(batch, ..., input_dim)`. Output shape: `(batch, ..., units)`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalDense(10, num_examples=60_000)
    >>> outputs = layer(keras.ops.ones((2, 5)))
    >>> layer.kl()  # nats

    Reference: Kingma, Salimans and Welling, "Variational dropout and the local
    reparameterization trick", 2015, eq. 6; Blundell et al., 2015.
    """

    def __init__(self, units, *args, **kwargs):
        super().__init__(units, *args, **kwargs)

    def linear(self, inputs, kernel):
        return ops.matmul(inputs, kernel)

    def linear_per_sample(self, inputs, kernels, biases):
        num_samples, input_dim, units = kernels.shape
        positions = ops.shape(inputs)[1:-1]
        inputs = ops.reshape(inputs, (num_samples, -1, input_dim))
        outputs = ops.matmul(inputs, kernels)  # (samples, rows * positions, units)
        if biases is not None:
            outputs = outputs + ops.expand_dims(biases, 1)
        return ops.reshape(outputs, (-1, *positions, units))

    def supports_moments(self):
        """Whether samples can be drawn from the moments of the outputs."""
        return self._num_positions_axes == 0

    def moments(self, inputs):
        """Mean and standard deviation of the outputs before the activation."""
        return estimators.moments(self.linear, inputs, *self._weights())

    def sample_moments(self, mean, stddev, scope):
        """Draws outputs from their moments, one noise vector for all rows.

        Exact for each row by itself, for a layer that is called once. Takes
        moments `(rows, units)`, of every sample or, sample-major, of each.
        Returns `(num_samples * rows, units)`.
        """
        scope.restart(self.noise)
        shape = (scope.num_samples, 1, self.units)
        noise = keras.random.normal(shape, dtype=stddev.dtype, seed=self.noise)
        outputs = mean + ops.cast(stddev * noise, mean.dtype)
        return self._activate(ops.reshape(outputs, (-1, self.units)))

    def call_sampled(self, inputs, scope):
        if id(self) not in scope.moment_layers:
            return super().call_sampled(inputs, scope)
        shape = (scope.num_samples, -1, self.units)
        mean, stddev = self.moments(inputs)
        return self.sample_moments(
            ops.reshape(mean, shape), ops.reshape(stddev, shape), scope
        )


class MeanFieldConv(MeanFieldLayer):
    """What the convolutions of every rank share."""

    def __init__(self, filters, kernel_size, *args, **kwargs):
        if isinstance(filters, bool) or not isinstance(filters, int):
            raise TypeError(
                f"Expected `filters` to be an integer. Received: filters={filters!r}"
            )
        super().__init__(filters, kernel_size, *args, **kwargs)

    def channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1

    def expand_bias(self, bias):
        positions = (1,) * self.rank
        if self.data_format == "channels_last":
            return ops.reshape(bias, (1, *positions, self.filters))
        return ops.reshape(bias, (1, self.filters, *positions))

    def linear(self, inputs, kernel):
        padding = self.padding
        if padding == "causal":
            left = self.dilation_rate[0] * (self.kernel_size[0] - 1)
            pad = [[0, 0], [0, 0], [0, 0]]
            pad[1 if self.data_format == "channels_last" else 2] = [left, 0]
            inputs, padding = ops.pad(inputs, pad), "valid"
        return ops.conv(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


_CONV_DOC = """`keras.layers.Conv{rank}D` with a Gaussian posterior over kernel and bias.

    Drop-in: positional arguments are those of `keras.layers.Conv{rank}D`. The
    default estimator is "flipout": every row sees one weight draw at all its
    positions. "local_reparameterization" draws fresh noise per position, an
    approximation that understates the variance of anything pooled over
    positions.

    Args:
        filters, kernel_size, strides, padding, data_format, dilation_rate,
            groups, activation, use_bias, kernel_initializer, bias_initializer:
            as in `keras.layers.Conv{rank}D`. Regularizers and constraints are
            refused: the prior regularises.
        prior, num_examples, kl_weight, estimator, initial_log_stddev,
            bias_posterior, sample_at_inference, seed: as in `VariationalDense`.

    Input and output shape: as in `keras.layers.Conv{rank}D`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalConv{rank}D(8, 3, num_examples=60_000)
    >>> outputs = layer(keras.ops.ones({shape}))

    Reference: Wen, Vicol, Ba, Tran and Grosse, "Flipout", 2018, eq. 4; Blundell
    et al., "Weight uncertainty in neural networks", 2015.
    """


@register
class VariationalConv1D(MeanFieldConv, keras.layers.Conv1D):
    __doc__ = _CONV_DOC.format(rank=1, shape=(2, 16, 3))


@register
class VariationalConv2D(MeanFieldConv, keras.layers.Conv2D):
    __doc__ = _CONV_DOC.format(rank=2, shape=(2, 16, 16, 3))


@register
class VariationalConv3D(MeanFieldConv, keras.layers.Conv3D):
    __doc__ = _CONV_DOC.format(rank=3, shape=(2, 8, 8, 8, 3))
