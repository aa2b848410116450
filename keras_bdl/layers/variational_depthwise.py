"""Depthwise convolutions whose weights have a posterior."""

from typing import Any

import keras

from keras_bdl import maps
from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import Activation, Initializer
from keras_bdl.layers.drop_in import VariationalLayer
from keras_bdl.posteriors import Posterior
from keras_bdl.priors import Prior


class _Depthwise(VariationalLayer):
    """Mixin of the depthwise convolutions of every rank."""

    weight_map = maps.Depthwise()

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] = 1,
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: int | tuple[int, ...] = 1,
        activation: Activation = None,
        use_bias: bool = True,
        depthwise_initializer: Initializer = "glorot_uniform",
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
            kernel_size,
            strides,
            padding,
            depth_multiplier,
            data_format,
            dilation_rate,
            activation,
            use_bias,
            depthwise_initializer,
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


_DOC = """`keras.layers.DepthwiseConv{rank}D` with a posterior over its weights.

    Positional arguments are those of `keras.layers.DepthwiseConv{rank}D`, which this
    layer can replace.

    Args:
        kernel_size, strides, padding, depth_multiplier, data_format, dilation_rate,
            activation, use_bias, depthwise_initializer, bias_initializer: as in
            `keras.layers.DepthwiseConv{rank}D`. Regularizers and constraints are
            refused: the prior regularises.
        prior, num_examples, kl_weight, posterior, estimator, initial_log_stddev,
            bias_posterior, sample_at_inference, seed: as in `VariationalConv2D`.

    Input and output shape: as in `keras.layers.DepthwiseConv{rank}D`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalDepthwiseConv{rank}D(3, num_examples=60_000)
    >>> outputs = layer(keras.ops.ones({shape}))

    Reference: Wen, Vicol, Ba, Tran and Grosse, "Flipout", 2018, eq. 4.
    """


@register
class VariationalDepthwiseConv1D(_Depthwise, keras.layers.DepthwiseConv1D):
    __doc__ = _DOC.format(rank=1, shape=(2, 16, 3))
    keras_class = keras.layers.DepthwiseConv1D


@register
class VariationalDepthwiseConv2D(_Depthwise, keras.layers.DepthwiseConv2D):
    __doc__ = _DOC.format(rank=2, shape=(2, 16, 16, 3))
    keras_class = keras.layers.DepthwiseConv2D
