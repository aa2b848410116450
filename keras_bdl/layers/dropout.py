"""Dropout as inference: fixed masks, masks of weights, and Gaussian noise.

Gal and Ghahramani, "Dropout as a Bayesian approximation", 2016; Wan, Zeiler, Zhang,
LeCun and Fergus, "Regularization of neural networks using DropConnect", 2013;
Kingma, Salimans and Welling, "Variational dropout and the local reparameterization
trick", 2015.
"""

from typing import Any, Self

import keras

from keras_bdl import maps
from keras_bdl.core import scopes, validation
from keras_bdl.core.copies import live_config
from keras_bdl.core.renamed import renamed
from keras_bdl.core.stochastic import StochasticLayer, register
from keras_bdl.core.typing import Activation, Initializer, Tensor, Weights
from keras_bdl.layers.counterparts import check_conversion, of_posterior
from keras_bdl.layers.drop_in import DropInLayer
from keras_bdl.layers.input_noise import InputNoiseLayer, refuse_sample
from keras_bdl.ops import estimators
from keras_bdl.posteriors import GaussianNoise, WeightMask

# Number of position axes. Spatial dropout shares its mask over these axes.
_DROPOUTS = {
    keras.layers.Dropout: 0,
    keras.layers.SpatialDropout1D: 1,
    keras.layers.SpatialDropout2D: 2,
    keras.layers.SpatialDropout3D: 3,
}


@register
class MCDropout(StochasticLayer, keras.layers.Dropout):
    """`keras.layers.Dropout` that `keras_bdl.predict` samples by default.

    In training it is `keras.layers.Dropout`. In plain inference it is the identity.
    In sampled prediction each sample has one mask, which rows and batches share. So
    a mask is a draw of the weights that it multiplies. (Plain Dropout layers are
    sampled with `mc_dropout=True`.) The layer has no KL term and needs no
    `num_examples`. The prior over the weights is the weight decay that you give the
    other layers.

    Args:
        rate: share of the inputs to drop, at least 0 and below 1.
        noise_shape: as in `keras.layers.Dropout`.
        sample_at_inference: whether to drop outside of training too.
        seed: integer or None.

    Input shape: any. Output shape: the input shape.

    Raises:
        ValueError, TypeError: if an argument is wrong.

    Example:

    >>> layer = keras_bdl.MCDropout(0.2)
    >>> layer(keras.ops.ones((2, 5)))  # ones

    Reference: Gal and Ghahramani, "Dropout as a Bayesian approximation", 2016.
    """

    method = "mc_dropout"
    is_identity = True

    def __init__(
        self,
        rate: float,
        noise_shape: tuple | None = None,
        *,
        sample_at_inference: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("prior", "num_examples", "kl_weight"):
            if name in kwargs:
                raise ValueError(
                    f"`MCDropout` has no KL term and takes no `{name}`. "
                    f"Received: {name}={kwargs[name]!r}"
                )
        rate = validation.number("rate", rate, least=0.0)
        if rate >= 1.0:
            raise ValueError(f"Expected `rate` below 1. Received: rate={rate}")
        super().__init__(
            rate,
            noise_shape,
            sample_at_inference=sample_at_inference,
            seed=seed,
            **kwargs,
        )

    def call_mean(self, inputs: Tensor) -> Tensor:
        return inputs

    def call_noisy(self, inputs: Tensor) -> Tensor:
        if self.rate == 0.0:
            return inputs
        return keras.random.dropout(
            inputs, self.rate, self.noise_shape, seed=self.noise
        )

    def call_sampled(self, inputs: Tensor, scope: scopes.SamplingScope) -> Tensor:
        if self.rate == 0.0:
            return inputs
        sizes = (self.noise_shape or [None] * len(inputs.shape))[1:]
        return estimators.dropout_per_sample(
            inputs, self.rate, sizes, scope.num_samples, self.noise
        )

    @classmethod
    def replaces(cls, layer: keras.layers.Layer) -> bool:
        return type(layer) in _DROPOUTS

    @classmethod
    def obstacle(cls, layer: keras.layers.Layer) -> str | None:
        return None

    @classmethod
    def from_keras(cls, layer: keras.layers.Layer, **options: Any) -> Self:
        """Returns a layer of this class for a `keras.layers.Dropout` or a spatial one.

        Raises:
            ValueError: if the layer is of another class.
        """
        if not cls.replaces(layer):
            raise ValueError(
                "`MCDropout.from_keras` expected a `keras.layers.Dropout`, or a "
                f"spatial one. Received: layer={layer!r}"
            )
        shape = layer.noise_shape
        if type(layer) is not keras.layers.Dropout:
            positions = (1,) * _DROPOUTS[type(layer)]
            first = getattr(layer, "data_format", None) == "channels_first"
            shape = (None, None, *positions) if first else (None, *positions, None)
        options = {"name": layer.name, "dtype": layer.dtype_policy, **options}
        return cls(layer.rate, shape, trainable=layer.trainable, **options)

    def to_keras(
        self, weights: Weights = "mean", seed: int | None = None
    ) -> keras.layers.Layer:
        """Returns the plain `keras.layers.Dropout`.

        Raises:
            ValueError: if `weights` is not "mean".
        """
        check_conversion(self, weights)
        if weights == "sample":
            refuse_sample(self)
        config = live_config(keras.layers.Dropout, self)
        return keras.layers.Dropout.from_config(config)


@register
class DropConnectDense(DropInLayer, keras.layers.Dense):
    """`keras.layers.Dense` that drops weights instead of inputs.

    The kernel of a draw is W m / (1 - p) with a mask m of independent Bernoulli(1 - p).
    Training draws one mask per forward pass, and `keras_bdl.predict` draws one per
    sample. Inference uses W itself. Seen as a posterior under the prior N(0, 1 / l^2),
    the KL in nats is, up to a constant that depends on the fixed rate,
    kl() = l^2 / 2 * sum(W^2) / (1 - p). This is weight decay.

    Args:
        units: positive integer, size of the output.
        activation, use_bias, kernel_initializer, bias_initializer: as in
            `keras.layers.Dense`. Regularizers and constraints raise an error, because
            the prior regularises. The bias is not dropped.
        rate: p, share of the weights to drop, between 0 and 1.
        length_scale: l, positive float. The prior standard deviation of a weight is
            1 / l.
        num_examples, kl_weight, sample_at_inference, seed: as in `VariationalDense`.

    Input shape: `(batch, ..., input_dim)`. Output shape: `(batch, ..., units)`.

    Raises:
        ValueError, TypeError: if an argument is wrong. `fit` and `evaluate` raise a
            ValueError while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.DropConnectDense(10, rate=0.3, num_examples=1000)
    >>> outputs = layer(keras.ops.ones((2, 5)))

    Reference: Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of neural networks
    using DropConnect", 2013, eq. 2; the KL as in Gal and Ghahramani, 2016.
    """

    method = "drop_connect"
    keras_class = keras.layers.Dense
    weight_map = maps.Dense()

    def __init__(
        self,
        units: int,
        activation: Activation = None,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        *args,
        rate: float = 0.5,
        length_scale: float = 0.01,
        num_examples: int | None = None,
        kl_weight: float = 1.0,
        sample_at_inference: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if "prior" in kwargs:
            raise ValueError(
                "`DropConnectDense` takes no `prior`: its prior is N(0, 1 / "
                f"length_scale^2). Received: prior={kwargs['prior']!r}"
            )
        super().__init__(
            units,
            activation,
            use_bias,
            kernel_initializer,
            bias_initializer,
            *args,
            num_examples=num_examples,
            kl_weight=kl_weight,
            sample_at_inference=sample_at_inference,
            seed=seed,
            **kwargs,
        )
        self.posterior = WeightMask(rate, length_scale)

    rate, length_scale = map(of_posterior, ("rate", "length_scale"))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["prior"]
        return {**config, **self.posterior.get_config()}


@register
class VariationalGaussianDropout(InputNoiseLayer):
    """Gaussian dropout with a learned noise level instead of a fixed rate.

    Inputs are multiplied by noise N(1, alpha), as in `keras.layers.GaussianDropout`
    with alpha = rate / (1 - rate). The layer learns alpha under the log-uniform prior,
    and the KL is exact for every alpha. `alpha_per` chooses how many alphas there are:

    - "layer" or "unit": one alpha for the layer, or one per channel. The noise is
      drawn per row and channel (positions share it). The posterior is over the noise,
      and kl() sums one term per channel.
    - "weight": one alpha per weight of a wrapped layer, w ~ N(W, alpha W^2). kl() sums
      one term per weight, which is d_out times as many. The noise of a row is drawn by
      local reparameterisation, or by flipout if the inputs have positions.

    Args:
        initial_rate: rate at the start, between 0 and 1.
        layer: `keras.layers.Dense`, `Conv1D`, `Conv2D` or `Conv3D` whose inputs or
            weights get the noise, or None to use the layer by itself, like
            `keras.layers.GaussianDropout`.
        alpha_per: "layer", "unit" or "weight".
        num_examples, kl_weight, sample_at_inference, seed: as in `VariationalDense`.

    Input and output shape: those of the wrapped layer. Without a wrapped layer the two
    are equal.

    Raises:
        ValueError, TypeError: if an argument is wrong. `fit` and `evaluate` raise a
            ValueError while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalGaussianDropout(
    ...     0.2, keras.layers.Dense(64), alpha_per="weight", num_examples=1000
    ... )
    >>> outputs = layer(keras.ops.ones((2, 5)))
    >>> layer.rate  # mean over alphas of alpha / (1 + alpha)
    0.2

    Reference: Kingma, Salimans and Welling, "Variational dropout and the local
    reparameterization trick", 2015, section 3. For the exact KL: Hron, Matthews and
    Ghahramani, "Variational Bayesian dropout: pitfalls and fixes", 2018.
    """

    method = "variational_gaussian_dropout"
    posterior: GaussianNoise

    @renamed(rate="initial_rate")
    def __init__(
        self,
        initial_rate: float = 0.5,
        layer: keras.layers.Layer | None = None,
        *,
        alpha_per: str = "layer",
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
        self.posterior = GaussianNoise(initial_rate, alpha_per)
        if alpha_per == "weight" and layer is None:
            raise ValueError(
                "`alpha_per='weight'` needs a `layer` that has weights. "
                f"Received: alpha_per='weight', layer={layer!r}"
            )
        self.log_alpha = None

    alpha_per, initial_rate = map(of_posterior, ("alpha_per", "initial_rate"))

    def plain_dropout(self) -> keras.layers.Layer:
        """Returns `keras.layers.GaussianDropout` at the mean rate."""
        return keras.layers.GaussianDropout(self.rate, name=self.name, dtype=self.dtype)
