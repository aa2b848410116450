"""Dropout whose rate is learned: Gal, Hron and Kendall, "Concrete dropout", 2017."""

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.dtypes import wide
from keras_bdl.core.stochastic import register
from keras_bdl.layers.input_noise import InputNoiseLayer
from keras_bdl.ops import divergences, estimators

# The source's temperatures: masks of features, and of channels of a convolution.
_TEMPERATURE, _SPATIAL_TEMPERATURE = 0.1, 2.0 / 3.0


@register
class ConcreteDropout(InputNoiseLayer):
    """Dropout with a learned rate, before a wrapped layer or by itself.

    The inputs of the wrapped layer are multiplied by (1 - z) / (1 - p), z a relaxed
    Bernoulli(p) per row and channel (positions share it). Read as a posterior over
    the rows of the layer's kernel W under the prior N(0, 1 / l^2), l = `length_scale`,
    its KL is, up to a constant,

        kl() = l^2 / 2 * sum(W^2) / (1 - p) - d H(p)    nats,

    with d input channels and the entropy H(p) = -p log p - (1 - p) log(1 - p). It is
    added to the loss as kl_weight * kl() / num_examples, beside a loss that is a mean
    negative log-likelihood with its true factors (a cross-entropy in nats,
    `losses.GaussianNLL`). The kernel of a draw is W (1 - z) / (1 - p), row by row, so
    that the mean of its square is W^2 / (1 - p). The source's factors, l^2 / N and
    2 / N, are twice these, because its loss drops the 1/2 of the Gaussian
    log-likelihood. `kl()` can be negative. Biases have no prior.

    Without a wrapped layer only -d H(p) is left, which alone drives p to 1/2: the
    data must hold against it, and weight decay on what follows is yours to add.

    At inference nothing is dropped; `keras_bdl.predict` draws one mask per sample.
    The relaxation is biased (`ops.estimators.concrete_keep_mask`): with the default
    temperature of convolutions a mask's mean is 5 % below 1 at p = 0.1, so judge such
    a network by its sampled prediction.

    Args:
        layer: `keras.layers.Dense`, `Conv1D`, `Conv2D` or `Conv3D`, or None to stand
            where a `keras.layers.Dropout` stood.
        length_scale: positive float, l; 1 / l is the prior standard deviation of a
            weight. Larger means smoother functions.
        initial_rate: p at the start, between 0 and 1.
        temperature: positive float, or None for the source's choice: 2/3 around a
            convolution, 0.1 otherwise.
        num_examples, kl_weight, sample_at_inference, seed: as in `VariationalDense`.

    Input and output shape: those of the wrapped layer, or equal.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.ConcreteDropout(keras.layers.Dense(64), num_examples=1000)
    >>> outputs = layer(keras.ops.ones((2, 5)))
    >>> layer.rate
    0.1

    Reference: Gal, Hron and Kendall, "Concrete dropout", 2017, eqs. 3 to 5.
    """

    method = "concrete_dropout"

    def __init__(
        self,
        layer=None,
        *,
        length_scale=0.01,
        initial_rate=0.1,
        temperature=None,
        **kwargs,
    ):
        super().__init__(layer, **kwargs)
        self.length_scale = validation.positive("length_scale", length_scale)
        self.initial_rate = validation.share("initial_rate", initial_rate)
        if temperature is not None:
            temperature = validation.positive("temperature", temperature)
        self.temperature = temperature
        self.rate_logit = None

    def build_posterior(self):
        self.rate_logit = self.add_rate("rate_logit")

    @property
    def rate(self):
        """The dropout rate p, a float."""
        if not self.built:
            return self.initial_rate
        return float(ops.convert_to_numpy(ops.sigmoid(wide(self.rate_logit))))

    def resolved_temperature(self):
        """The temperature in use: the given one or the default."""
        if self.temperature is not None:
            return self.temperature
        dense = self.layer is None or isinstance(self.layer, keras.layers.Dense)
        return _TEMPERATURE if dense else _SPATIAL_TEMPERATURE

    def draw_noise(self, shape, noise=None):
        return estimators.concrete_keep_mask(
            wide(self.rate_logit),
            shape,
            self.resolved_temperature(),
            self.noise if noise is None else noise,
        )

    def plain_dropout(self):
        """`keras.layers.Dropout` of channels at the rate learned."""
        rank = len(self.get_build_config()["input_shape"])
        shape = (None, *[1] * (rank - 2), None)
        return keras.layers.Dropout(self.rate, shape, name=self.name, dtype=self.dtype)

    def kl(self):
        logit = wide(self.rate_logit)
        kl = -self.num_channels * divergences.bernoulli_entropy(logit)
        if self.layer is None:
            return kl
        squares = ops.sum(ops.square(wide(self.layer.kernel)))
        return kl + 0.5 * self.length_scale**2 * squares / ops.sigmoid(-logit)

    def posterior_distribution(self):
        """The bits `keep` of the input channels, which multiply the kernel's rows.

        A TensorFlow Probability joint distribution; not relaxed.
        """
        from keras_bdl.interop import tfp

        return tfp.bernoulli_masks(self.rate, (self.num_channels,))

    def saved_variables(self):
        return {"rate_logit": self.rate_logit, **super().saved_variables()}

    def get_config(self):
        return {
            **super().get_config(),
            "length_scale": self.length_scale,
            "initial_rate": self.initial_rate,
            "temperature": self.temperature,
        }
