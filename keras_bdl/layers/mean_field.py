"""A Gaussian posterior over every weight of a layer, independent per weight.

q(w) = N(m, s^2) ("mean field"): Blundell, Cornebise, Kavukcuoglu and Wierstra,
"Weight uncertainty in neural networks", 2015.
"""

import keras
from keras import ops

from keras_bdl import priors
from keras_bdl.core import validation
from keras_bdl.core.copies import assign_copy, copy_activation, live_config
from keras_bdl.core.dtypes import wide
from keras_bdl.layers.drop_in import DropInLayer, check_conversion
from keras_bdl.maps import Conv, Dense
from keras_bdl.ops import estimators

# Of weights that MOPED finds at 0, such as biases: their KL stays below 10 nats.
_LEAST_STDDEV = 1e-4

ESTIMATORS = ("local_reparameterization", "flipout", "reparameterization")


class MeanFieldLayer(DropInLayer):
    """Gaussian posterior of a kernel and a bias; subclasses say how it is applied.

    Args:
        *args: positional arguments of the Keras layer.
        estimator: "local_reparameterization", "flipout", "reparameterization",
            or None for the layer's default.
        initial_log_stddev: where the log standard deviations start.
        bias_posterior: whether the bias has a posterior too.
        **kwargs: of `BayesianLayer` and of the Keras layer.
    """

    method = "variational"
    takes_shared_inputs = True

    def __init__(
        self,
        *args,
        estimator=None,
        initial_log_stddev=-5.0,
        bias_posterior=True,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if estimator is not None:
            estimator = validation.choice("estimator", estimator, (None, *ESTIMATORS))
        initial_log_stddev = validation.number("initial_log_stddev", initial_log_stddev)
        if not -40.0 <= initial_log_stddev <= 10.0:
            raise ValueError(
                "Expected `initial_log_stddev` between -40 and 10. "
                f"Received: initial_log_stddev={initial_log_stddev!r}"
            )
        self.estimator = estimator
        self.initial_log_stddev = initial_log_stddev
        self.bias_posterior = validation.boolean("bias_posterior", bias_posterior)
        self.kernel_log_stddev = None
        self.bias_log_stddev = None

    def build(self, input_shape):
        self._num_positions = self.weight_map.num_positions(self, input_shape)
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

    def prior_shapes(self):
        return {name: tuple(mean.shape) for name, (mean, _) in self.gaussians().items()}

    def kl(self):
        total = 0.0
        for name, (mean, log_stddev) in self.gaussians().items():
            variables = self.prior.of(name, self._prior_variables)
            terms = self.prior.kl(mean, log_stddev, variables, self.noise)
            total = total + ops.sum(terms)
        return total

    def inform(self, delta):
        """Sets prior and posterior by the means, taken for trained (MOPED).

        With `priors.NormalPerWeight`, whose means become those of the posterior. The
        posterior's standard deviations become delta |mean|, and at least 1e-4.

        Args:
            delta: positive float, relative standard deviation.

        Reference: Krishnan, Subedar and Tickoo, "Specifying weight priors in Bayesian
        deep neural networks with empirical Bayes", 2020, eq. 6.
        """
        spread = {"kernel": self.kernel_log_stddev, "bias": self.bias_log_stddev}
        for name, (mean, _) in self.gaussians().items():
            prior = self.prior.of(name, self._prior_variables)
            assign_copy(prior["mean"], mean)
            stddev = ops.maximum(delta * ops.abs(mean), _LEAST_STDDEV)
            spread[name].assign(ops.log(stddev))

    def posterior_as_prior(self):
        config = live_config(type(self), self)
        config |= {"prior": priors.NormalPerWeight(), "num_examples": None}
        copy = type(self).from_config(config)
        copy.build(self.get_build_config()["input_shape"])
        copy_activation(self, copy)
        for name, variable in self.posterior_variables().items():
            assign_copy(copy.posterior_variables()[name], variable)
        for name, moments in copy.gaussians().items():
            prior = copy.prior.of(name, copy._prior_variables)
            for part, value in zip(("mean", "log_stddev"), moments):
                assign_copy(prior[part], value)
        return copy

    def posterior(self):
        from keras_bdl.interop import tfp

        return tfp.independent_normals(self.gaussians())

    def to_keras(self, weights="mean", seed=None):
        """The plain Keras layer with posterior-mean or sampled weights.

        Args:
            weights: "mean", equal to this layer's inference exactly, or "sample".
            seed: integer for a repeatable sample, or None.

        Raises:
            ValueError: if `weights` is neither, or the layer is not built.
        """
        check_conversion(self, weights)
        generator = keras.random.SeedGenerator(seed)
        sample = weights == "sample"
        kernel = self.centre_kernel() if sample else self.mean_kernel()
        values = [kernel, self.bias]
        if sample:
            noise = [self.kernel_log_stddev, self.bias_log_stddev]
            values = [
                mean
                if log_stddev is None
                else mean + estimators.gaussian_noise(log_stddev, mean.dtype, generator)
                for mean, log_stddev in zip(values, noise)
            ]
        return self.plain_layer(*values)

    def linear(self, inputs, kernel):
        return self.weight_map.linear(self, inputs, kernel)

    def centre_kernel(self):
        """The kernel about which draws are spread: the posterior mean."""
        return self.kernel

    def _mean_bias(self):
        if self.bias is None:
            return None
        bias = ops.cast(self.bias, self.compute_dtype)
        return self.weight_map.expand_bias(self, bias)

    def _weights(self):
        """Arguments of the estimators after the inputs."""
        kernel = ops.cast(self.centre_kernel(), self.compute_dtype)
        bias = self._mean_bias()
        bias_log_stddev = None
        if self.bias_log_stddev is not None:
            bias_log_stddev = self.weight_map.expand_bias(
                self, wide(self.bias_log_stddev)
            )
        return kernel, wide(self.kernel_log_stddev), bias, bias_log_stddev

    def _activate(self, outputs):
        return outputs if self.activation is None else self.activation(outputs)

    def call_mean(self, inputs):
        bias = self._mean_bias()
        outputs = self.linear(inputs, ops.cast(self.mean_kernel(), self.compute_dtype))
        return self._activate(outputs if bias is None else outputs + bias)

    def resolved_estimator(self):
        """The estimator that training uses: the given one or the default."""
        if self.estimator is not None:
            return self.estimator
        return "flipout" if self._num_positions else "local_reparameterization"

    def call_noisy(self, inputs):
        name = self.resolved_estimator()
        options = {}
        if name == "flipout":
            options["channel_axis"] = self.weight_map.input_axes(self)
            options["output_axis"] = self.weight_map.output_axes(self)
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
        weights = {"kernel": kernels} | ({} if biases is None else {"bias": biases})
        shared = id(self) in scope.shared_layers
        return self.weight_map.apply_per_sample(self, inputs, weights, shared)

    def posterior_variables(self):
        """Variables of the posterior, and a bias without one, by name."""
        variables = {
            "kernel_log_stddev": self.kernel_log_stddev,
            "kernel": self._kernel,
            "bias": self.bias,
            "bias_log_stddev": self.bias_log_stddev,
        }
        return {name: v for name, v in variables.items() if v is not None}

    def saved_variables(self):
        return {**self.posterior_variables(), **super().saved_variables()}

    def get_config(self):
        return {
            **super().get_config(),
            "estimator": self.estimator,
            "initial_log_stddev": self.initial_log_stddev,
            "bias_posterior": self.bias_posterior,
        }


class MeanFieldDense(MeanFieldLayer):
    """Draws from the moments of a Dense layer's outputs."""

    weight_map = Dense()

    def supports_moments(self):
        """Whether samples can be drawn from the moments of the outputs."""
        return self._num_positions == 0

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

    weight_map = Conv()

    def __init__(self, filters, kernel_size, *args, **kwargs):
        validation.integer("filters", filters, least=1)
        super().__init__(filters, kernel_size, *args, **kwargs)
