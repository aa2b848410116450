"""The noise of a regressor's targets around the outputs of its network."""

import math

import keras
import numpy as np
from keras import ops

from keras_bdl import losses
from keras_bdl.core import finding
from keras_bdl.core.dtypes import to_numpy, wide_dtype
from keras_bdl.graphs import heads
from keras_bdl.ops import divergences, likelihoods, mixtures

NOISES = ("heteroscedastic", "homoscedastic", "student_t")

# softplus(_RAW_DF) = 3, so that training begins with five degrees of freedom.
_RAW_DF = math.log(math.expm1(3.0))


# The largest log standard deviation of a standardised target that is the network's own.
_FREE = 6.0


def _restrained(x):
    """Returns x up to a size, and sign(x) (size + log(1 + |x| - size)) beyond it.

    Without this, inputs far from the data and targets that are matched exactly have log
    standard deviations of which the likelihood overflows.
    """
    beyond = ops.log1p(ops.relu(ops.abs(x) - _FREE))
    return ops.clip(x, -_FREE, _FREE) + ops.sign(x) * beyond


def output_shape(network, input_shape):
    """Returns the shape of a network's outputs, or a nest of shapes."""
    if finding.is_graph(network):
        return network.output_shape
    inputs = keras.tree.map_shape_structure(
        lambda shape: keras.Input(batch_shape=shape), input_shape
    )
    return keras.tree.map_structure(lambda output: output.shape, network(inputs))


class ObservationNoise(keras.layers.Layer):
    """Maps outputs of a network to parameters of the noise.

    The outputs are `(n, 2 d)` for heteroscedastic noise and `(n, d)` otherwise. The
    parameters are in the units of the targets: `(n, 2 d)` means and log standard
    deviations, or for Student's t `(n, 3 d)` locations, log scales and log degrees of
    freedom. Scales that the network does not give are weights of this layer.

    Args:
        noise: one of `NOISES`.
        targets: the `Standardization` of the targets, or None.
    """

    def __init__(self, noise, targets):
        super().__init__(dtype=wide_dtype(), autocast=False)
        self.noise = noise
        self.targets = targets
        self.num_targets = None  # known when built

    def build(self, input_shape):
        width = input_shape[-1]
        if len(input_shape) != 2 or not isinstance(width, int):
            raise ValueError(
                "Expected the outputs of `network` to be one tensor `(n, width)`. "
                f"Received: outputs of shape {input_shape}"
            )
        per_example = self.noise == "heteroscedastic"
        if per_example and width % 2:
            raise ValueError(
                "Expected an even number of outputs of `network` for "
                "noise='heteroscedastic': d means, then d log standard deviations. "
                f"Received: width={width}"
            )
        self.num_targets = width // 2 if per_example else width
        if self.targets is not None and not self.targets.built:
            self.targets.build((None, self.num_targets))
        options = {"shape": (self.num_targets,), "autocast": False}
        if not per_example:
            self.log_scale = self.add_weight(
                name="log_scale", initializer="zeros", **options
            )
        if self.noise == "student_t":
            initializer = keras.initializers.Constant(_RAW_DF)
            self.raw_df = self.add_weight(
                name="raw_df", initializer=initializer, **options
            )

    def call(self, outputs):
        location = ops.cast(outputs, self.dtype)
        if self.noise == "heteroscedastic":
            location, log_scale = ops.split(location, 2, axis=-1)
            if self.targets is not None:
                log_scale = _restrained(log_scale)
        else:
            log_scale = ops.broadcast_to(self.log_scale, ops.shape(location))
        if self.targets is not None:
            location = location * self.targets.stddev + self.targets.mean
            log_scale = log_scale + ops.log(self.targets.stddev)
        parameters = [location, log_scale]
        if self.noise == "student_t":
            log_df = ops.log(self._df())
            parameters.append(ops.broadcast_to(log_df, ops.shape(location)))
        return ops.concatenate(parameters, axis=-1)

    def to_keras(self):
        """Returns the same map as plain layers that are not trained, in a list."""
        d = self.num_targets
        width = 2 * d if self.noise == "heteroscedastic" else d
        layer = keras.layers.Dense(
            (3 if self.noise == "student_t" else 2) * d,
            trainable=False,
            dtype=self.dtype,
            name="observation_noise",
        )
        layer.build((None, width))
        layers = [layer]
        if self.noise == "heteroscedastic" and self.targets is not None:
            inputs = keras.Input((width,), dtype=self.dtype)
            parts = ops.split(inputs, 2, axis=-1)
            parts[1] = _restrained(parts[1])
            outputs = ops.concatenate(parts, axis=-1)
            layers.insert(0, keras.Model(inputs, outputs, name="log_stddev"))
        bias = ops.convert_to_numpy(self(ops.zeros((1, width))))[0]
        kernel = np.eye(width, len(bias))
        if self.targets is not None:
            stddev = ops.convert_to_numpy(self.targets.stddev)
            kernel[np.arange(d), np.arange(d)] = stddev
        layer.set_weights([kernel, bias])
        return layers

    def _df(self):
        return 2.0 + ops.softplus(self.raw_df)  # above 2: the variance is finite

    def check_head(self, network):
        """Refuses a network that ends in an activation which does not fit the noise.

        Raises:
            ValueError: on such a network.
        """
        head = heads.find(network)
        if head is None:
            return
        if self.noise == "heteroscedastic":
            head = heads.last_branch(network, head)
        if head.activation == heads.LINEAR:
            return
        if self.noise == "heteroscedastic":
            expected = (
                "means, then log standard deviations, of any sign (an activation of "
                "the means alone goes before a `keras.layers.Concatenate` of both)"
            )
        elif self.targets is not None:
            expected = "locations of standardised targets, of any sign"
        elif head.activation not in heads.OF_MEANS:
            expected = f"locations of any sign, or after one of {heads.OF_MEANS}"
        else:
            return
        heads.refuse(network, head, "network", expected)

    def columns(self, y):
        """Returns the checked targets of an array as NumPy `(n, d)`.

        Raises:
            ValueError: if they are not finite numbers, or have another width.
        """
        y = to_numpy(y)
        try:
            if y.dtype.kind in "cmM":  # NumPy would convert a part of them
                raise TypeError
            targets = y.astype(keras.config.floatx())
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Expected `y` to be numbers. Received: y of dtype {y.dtype}"
            ) from error
        if targets.ndim == 1:
            targets = targets[:, None]
        self.check_width(targets.shape)
        if not np.isfinite(targets).all():
            raise ValueError(
                "Expected finite targets. Received: y with "
                f"{(~np.isfinite(targets)).sum()} values NaN or infinite"
            )
        return targets

    def check_width(self, shape):
        """Refuses targets unless their shape is `(n,)` or `(n, d)`.

        Raises:
            ValueError: on another shape.
        """
        fits = len(shape) in (1, 2)
        width = (*shape, 1)[1] if fits else None  # None if a data set does not tell
        known = None not in (width, self.num_targets)
        if not fits or (known and width != self.num_targets):
            raise ValueError(
                f"Expected targets `(n, {self.num_targets or 'd'})`, the width that "
                f"the network's outputs have for noise={self.noise!r}. "
                f"Received: y.shape={tuple(shape)}"
            )

    def loss(self):
        """Returns the Keras loss that takes these parameters."""
        return (
            losses.StudentTNLL() if self.noise == "student_t" else losses.GaussianNLL()
        )

    def location(self, parameters):
        """Returns the means or locations, `(..., n, d)`."""
        return parameters[..., : self.num_targets]

    def log_prob(self, y, parameters):
        """Returns log p(y | parameters) in nats, summed over targets, `(..., n)`."""
        y = ops.reshape(ops.cast(y, parameters.dtype), (-1, self.num_targets))
        if self.noise == "student_t":
            parts = ops.split(parameters, 3, axis=-1)
            log_probs = likelihoods.student_t_log_prob(y, *parts)
        else:
            parts = ops.split(parameters, 2, axis=-1)
            log_probs = divergences.normal_log_prob(y, *parts)
        return ops.sum(log_probs, axis=-1)

    def mixture_log_prob(self, y, draws):
        """Returns the log density `(n,)` of a mixture of samples `(samples, n, .)`."""
        return mixtures.log_mean_exp(self.log_prob(y, draws))

    def variance(self, parameters):
        """Returns the variance of the noise, `(..., n, d)`."""
        log_scale = parameters[..., self.num_targets : 2 * self.num_targets]
        variance = ops.exp(2.0 * log_scale)
        if self.noise == "student_t":  # df / (df - 2) without a difference
            variance = variance * (1.0 + 2.0 / ops.softplus(self.raw_df))
        return variance

    def mixture_cdf(self, draws):
        """Returns the distribution function of each target under the mixture.

        Args:
            draws: parameters of samples, `(samples, n, .)`.

        Returns:
            Function of y `(levels, n, d)`.
        """
        draws = ops.expand_dims(draws, 1)
        location = self.location(draws)
        precision = ops.exp(-draws[..., self.num_targets : 2 * self.num_targets])
        standard = (
            mixtures.student_t_cdf(self._df())
            if self.noise == "student_t"
            else mixtures.normal_cdf
        )
        return lambda y: ops.mean(standard((y - location) * precision), axis=0)
