"""Dense and convolutional layers whose weights have a posterior."""

from typing import Any

import keras

from keras_bdl import maps
from keras_bdl.core import validation
from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import Activation, Initializer
from keras_bdl.layers.drop_in import VariationalLayer
from keras_bdl.posteriors import Posterior
from keras_bdl.priors import Prior


@register
class VariationalDense(VariationalLayer, keras.layers.Dense):
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
            variable. `callbacks.KLWarmup` applies a growing share of it in training.
        estimator: "local_reparameterization" (default for inputs of rank 2:
            fresh noise per row and unit), "flipout" (default for higher ranks:
            one weight draw per row, which its positions share) or
            "reparameterization" (one draw per batch).
        posterior: a `keras_bdl.posteriors.Posterior` over the weights, or its name.
            Default "gaussian", with independent weights. In "low_rank" weights vary
            together.
        initial_log_stddev: initial log standard deviation of every weight, for a
            posterior that is given by its name; None for its own default, -5.
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

    keras_class = keras.layers.Dense
    weight_map = maps.Dense()

    def __init__(
        self,
        units: int,
        activation: Activation = None,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        *args: Any,
        prior: str | Prior = "normal",
        posterior: str | Posterior = "gaussian",
        num_examples: int | None = None,
        kl_weight: float = 1.0,
        estimator: str | None = None,
        initial_log_stddev: float | None = None,
        bias_posterior: bool = True,
        sample_at_inference: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units,
            activation,
            use_bias,
            kernel_initializer,
            bias_initializer,
            *args,
            prior=prior,
            posterior=posterior,
            num_examples=num_examples,
            kl_weight=kl_weight,
            estimator=estimator,
            initial_log_stddev=initial_log_stddev,
            bias_posterior=bias_posterior,
            sample_at_inference=sample_at_inference,
            seed=seed,
            **kwargs,
        )


class _Conv(VariationalLayer):
    """Mixin of the convolutions of every rank."""

    weight_map = maps.Conv()

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, ...] = 1,
        groups: int = 1,
        activation: Activation = None,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        *args: Any,
        prior: str | Prior = "normal",
        posterior: str | Posterior = "gaussian",
        num_examples: int | None = None,
        kl_weight: float = 1.0,
        estimator: str | None = None,
        initial_log_stddev: float | None = None,
        bias_posterior: bool = True,
        sample_at_inference: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        validation.integer("filters", filters, least=1)
        super().__init__(
            filters,
            kernel_size,
            strides,
            padding,
            data_format,
            dilation_rate,
            groups,
            activation,
            use_bias,
            kernel_initializer,
            bias_initializer,
            *args,
            prior=prior,
            posterior=posterior,
            num_examples=num_examples,
            kl_weight=kl_weight,
            estimator=estimator,
            initial_log_stddev=initial_log_stddev,
            bias_posterior=bias_posterior,
            sample_at_inference=sample_at_inference,
            seed=seed,
            **kwargs,
        )


_CONV_DOC = """`keras.layers.Conv{rank}D` with a Gaussian posterior over its weights.

    Positional arguments are those of `keras.layers.Conv{rank}D`, which this layer
    can replace. The default estimator is "flipout", where every row uses one weight
    draw at all its positions. "local_reparameterization" draws fresh noise per
    position, an approximation that understates the variance of anything pooled over
    positions.

    Args:
        filters, kernel_size, strides, padding, data_format, dilation_rate,
            groups, activation, use_bias, kernel_initializer, bias_initializer:
            as in `keras.layers.Conv{rank}D`. Regularizers and constraints are
            refused: the prior regularises.
        prior, num_examples, kl_weight, posterior, estimator, initial_log_stddev,
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
class VariationalConv1D(_Conv, keras.layers.Conv1D):
    __doc__ = _CONV_DOC.format(rank=1, shape=(2, 16, 3))
    keras_class = keras.layers.Conv1D


@register
class VariationalConv2D(_Conv, keras.layers.Conv2D):
    __doc__ = _CONV_DOC.format(rank=2, shape=(2, 16, 16, 3))
    keras_class = keras.layers.Conv2D


@register
class VariationalConv3D(_Conv, keras.layers.Conv3D):
    __doc__ = _CONV_DOC.format(rank=3, shape=(2, 8, 8, 8, 3))
    keras_class = keras.layers.Conv3D
