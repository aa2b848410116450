"""Dropout with a learned rate: Gal, Hron and Kendall, "Concrete dropout", 2017."""

from typing import Any

import keras

from keras_bdl.core.stochastic import register
from keras_bdl.layers.counterparts import of_posterior
from keras_bdl.layers.input_noise import InputNoiseLayer
from keras_bdl.posteriors import ConcreteNoise


@register
class ConcreteDropout(InputNoiseLayer):
    """Dropout with a learned rate, before a wrapped layer or by itself.

    The inputs of the wrapped layer are multiplied by (1 - z) / (1 - p), where z is a
    relaxed Bernoulli(p) per row and channel (positions share it). Seen as a posterior
    over the rows of the layer's kernel W under the prior N(0, 1 / l^2) with
    l = `length_scale`, the KL is, up to a constant,

        kl() = l^2 / 2 * sum(W^2) / (1 - p) - d H(p)    nats,

    with d input channels and the entropy H(p) = -p log p - (1 - p) log(1 - p).
    kl_weight * kl() / num_examples is added to the loss. The loss must be a mean
    negative log-likelihood with its true factors (a cross-entropy in nats,
    `losses.GaussianNLL`). The kernel of a draw is W (1 - z) / (1 - p), row by row, so
    that the mean of its square is W^2 / (1 - p). The factors in the paper, l^2 / N and
    2 / N, are twice these, because its loss drops the 1/2 of the Gaussian
    log-likelihood. `kl()` can be negative. Biases have no prior.

    Without a wrapped layer only the term -d H(p) is left. By itself it drives p to 1/2,
    so the data must counteract it. Add weight decay to the following layers yourself.

    At inference nothing is dropped. `keras_bdl.predict` draws one mask per sample.
    The relaxation is biased (`ops.estimators.concrete_keep_mask`): with the default
    temperature of convolutions, the mean of a mask is 5 % below 1 at p = 0.1. So judge
    such a network by its sampled prediction.

    Args:
        layer: `keras.layers.Dense`, `Conv1D`, `Conv2D` or `Conv3D`, or None to use the
            layer by itself, like `keras.layers.Dropout`.
        length_scale: l, positive float. The prior standard deviation of a weight is
            1 / l. A larger value means smoother functions.
        initial_rate: p at the start, between 0 and 1.
        temperature: positive float, or None for the value of the paper: 2/3 around a
            convolution, 0.1 otherwise.
        num_examples, kl_weight, sample_at_inference, seed: as in `VariationalDense`.

    Input and output shape: those of the wrapped layer. Without a wrapped layer the two
    are equal.

    Raises:
        ValueError, TypeError: if an argument is wrong. `fit` and `evaluate` raise a
            ValueError while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.ConcreteDropout(keras.layers.Dense(64), num_examples=1000)
    >>> outputs = layer(keras.ops.ones((2, 5)))
    >>> layer.rate
    0.1

    Reference: Gal, Hron and Kendall, "Concrete dropout", 2017, eqs. 3 to 5.
    """

    method = "concrete_dropout"
    posterior: ConcreteNoise

    def __init__(
        self,
        layer: keras.layers.Layer | None = None,
        *,
        length_scale: float = 0.01,
        initial_rate: float = 0.1,
        temperature: float | None = None,
        num_examples: int | None = None,
        kl_weight: float = 1.0,
        sample_at_inference: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            layer,
            num_examples=num_examples,
            kl_weight=kl_weight,
            sample_at_inference=sample_at_inference,
            seed=seed,
            **kwargs,
        )
        self.posterior = ConcreteNoise(length_scale, initial_rate, temperature)
        self.rate_logit = None

    length_scale, initial_rate, temperature = map(
        of_posterior, ("length_scale", "initial_rate", "temperature")
    )

    def resolved_temperature(self) -> float:
        """Returns the temperature in use, which is the given one or the default."""
        return self.posterior.resolved_temperature()

    def plain_dropout(self) -> keras.layers.Layer:
        """Returns `keras.layers.Dropout` of channels at the learned rate."""
        rank = len(self.get_build_config()["input_shape"])
        shape = (None, *[1] * (rank - 2), None)
        return keras.layers.Dropout(self.rate, shape, name=self.name, dtype=self.dtype)
