"""Transposed convolutions whose weights have a posterior."""

from typing import Any

import keras

from keras_bdl import maps
from keras_bdl.core import validation
from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import Activation, Initializer
from keras_bdl.layers.drop_in import VariationalLayer
from keras_bdl.posteriors import Posterior
from keras_bdl.priors import Prior


class _Transposed(VariationalLayer):
    """Mixin of the transposed convolutions of every rank."""

    weight_map = maps.Transposed()

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] = 1,
        padding: str = "valid",
        output_padding: int | tuple[int, ...] | None = None,
        data_format: str | None = None,
        dilation_rate: int | tuple[int, ...] = 1,
        activation: Activation = None,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: None = None,
        bias_regularizer: None = None,
        activity_regularizer: Any = None,
        kernel_constraint: None = None,
        bias_constraint: None = None,
        *,
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
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            output_padding=output_padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
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


_DOC = """`keras.layers.Conv{rank}DTranspose` with a posterior over its weights.

    Positional arguments are those of `keras.layers.Conv{rank}DTranspose`, which this
    layer can replace.

    Args:
        filters, kernel_size, strides, padding, output_padding, data_format,
            dilation_rate, activation, use_bias, kernel_initializer, bias_initializer,
            activity_regularizer: as in `keras.layers.Conv{rank}DTranspose`; the
            initializers are those of the means. Regularizers and constraints of weights
            are refused: the prior regularises.
        prior, num_examples, kl_weight, posterior, estimator, initial_log_stddev,
            bias_posterior, sample_at_inference, seed: as in `VariationalConv2D`.

    Input and output shape: as in `keras.layers.Conv{rank}DTranspose`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalConv{rank}DTranspose(8, 3, num_examples=60_000)
    >>> outputs = layer(keras.ops.ones({shape}))

    Reference: Wen, Vicol, Ba, Tran and Grosse, "Flipout", 2018, eq. 4.
    """


@register
class VariationalConv1DTranspose(_Transposed, keras.layers.Conv1DTranspose):
    __doc__ = _DOC.format(rank=1, shape=(2, 8, 3))
    keras_class = keras.layers.Conv1DTranspose


@register
class VariationalConv2DTranspose(_Transposed, keras.layers.Conv2DTranspose):
    __doc__ = _DOC.format(rank=2, shape=(2, 8, 8, 3))
    keras_class = keras.layers.Conv2DTranspose


@register
class VariationalConv3DTranspose(_Transposed, keras.layers.Conv3DTranspose):
    __doc__ = _DOC.format(rank=3, shape=(2, 4, 4, 4, 3))
    keras_class = keras.layers.Conv3DTranspose

    # Keras has `data_format` before `output_padding` in this class alone.
    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        output_padding: int | tuple[int, ...] | None = None,
        dilation_rate: int | tuple[int, ...] = 1,
        activation: Activation = None,
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: None = None,
        bias_regularizer: None = None,
        activity_regularizer: Any = None,
        kernel_constraint: None = None,
        bias_constraint: None = None,
        *,
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
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            output_padding=output_padding,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
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
