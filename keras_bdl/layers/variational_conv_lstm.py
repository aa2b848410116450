"""Convolutional LSTM layers whose weights have a posterior."""

from typing import Any

import keras

from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import Activation, Initializer
from keras_bdl.layers.variational_recurrent import RecurrentLayer
from keras_bdl.posteriors import Posterior
from keras_bdl.priors import Prior


class _ConvLSTM(RecurrentLayer):
    """Mixin of the convolutional LSTM layers of every rank."""

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, ...] = 1,
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        recurrent_initializer: Initializer = "orthogonal",
        bias_initializer: Initializer = "zeros",
        unit_forget_bias: bool = True,
        kernel_regularizer: None = None,
        recurrent_regularizer: None = None,
        bias_regularizer: None = None,
        activity_regularizer: Any = None,
        kernel_constraint: None = None,
        recurrent_constraint: None = None,
        bias_constraint: None = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        *,
        prior: str | Prior = "normal",
        posterior: str | Posterior = "gaussian",
        num_examples: int | None = None,
        kl_weight: float = 1.0,
        initial_log_stddev: float | None = None,
        bias_posterior: bool = True,
        sample_at_inference: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            unit_forget_bias=unit_forget_bias,
            kernel_regularizer=kernel_regularizer,
            recurrent_regularizer=recurrent_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            recurrent_constraint=recurrent_constraint,
            bias_constraint=bias_constraint,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            seed=seed,
            return_sequences=return_sequences,
            return_state=return_state,
            go_backwards=go_backwards,
            stateful=stateful,
            prior=prior,
            posterior=posterior,
            num_examples=num_examples,
            kl_weight=kl_weight,
            initial_log_stddev=initial_log_stddev,
            bias_posterior=bias_posterior,
            sample_at_inference=sample_at_inference,
            **kwargs,
        )


_DOC = """`keras.layers.ConvLSTM{rank}D` with a posterior over kernels and bias.

    Positional arguments are those of `keras.layers.ConvLSTM{rank}D`, which this layer
    can replace. In training each batch uses one draw of the weights at all its steps
    and positions. Inference uses the means.

    Args:
        filters, kernel_size, strides, padding, data_format, dilation_rate,
            activation, recurrent_activation, use_bias, kernel_initializer,
            recurrent_initializer, bias_initializer, unit_forget_bias,
            activity_regularizer, dropout, recurrent_dropout, return_sequences,
            return_state, go_backwards, stateful: as in `keras.layers.ConvLSTM{rank}D`;
            the initializers are those of the means. Regularizers and constraints of
            weights are refused: the prior regularises.
        seed: integer or None, for the noise of the weights and for dropout.
        prior, posterior, num_examples, kl_weight, initial_log_stddev, bias_posterior,
            sample_at_inference: as in `VariationalDense`.

    Call arguments, input and output shape: as in `keras.layers.ConvLSTM{rank}D`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalConvLSTM{rank}D(4, 3, num_examples=60_000)
    >>> outputs = layer(keras.ops.ones({shape}))

    Reference: Fortunato, Blundell and Vinyals, "Bayesian recurrent neural networks",
    2017, section 3.
    """


@register
class VariationalConvLSTM1D(_ConvLSTM, keras.layers.ConvLSTM1D):
    __doc__ = _DOC.format(rank=1, shape=(2, 5, 8, 3))
    keras_class = keras.layers.ConvLSTM1D


@register
class VariationalConvLSTM2D(_ConvLSTM, keras.layers.ConvLSTM2D):
    __doc__ = _DOC.format(rank=2, shape=(2, 5, 8, 8, 3))
    keras_class = keras.layers.ConvLSTM2D


@register
class VariationalConvLSTM3D(_ConvLSTM, keras.layers.ConvLSTM3D):
    __doc__ = _DOC.format(rank=3, shape=(2, 5, 8, 8, 8, 3))
    keras_class = keras.layers.ConvLSTM3D
