"""Recurrent layers whose weights have a posterior."""

from typing import Any

import keras

from keras_bdl import maps
from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import Activation, Initializer, Tensor
from keras_bdl.layers.drop_in import VariationalLayer
from keras_bdl.posteriors import Posterior
from keras_bdl.priors import Prior


class RecurrentLayer(VariationalLayer):
    """Mixin of layers whose steps share one draw of the weights of their cell.

    Args:
        *args, **kwargs: arguments of `VariationalLayer` and of the Keras layer.
    """

    weight_map = maps.Recurrent()
    shares_seed = True
    # Outputs can be nested, and masks have the rows of the inputs.
    takes_shared_inputs = False

    # The arguments are those of Keras, which reads their names to record shapes.
    def build(  # type: ignore[override]
        self, sequences_shape: Any, initial_state_shape: Any = None
    ) -> None:
        super().build(sequences_shape)

    def call(  # type: ignore[override]
        self,
        sequences: Tensor,
        initial_state: Any = None,
        mask: Tensor | None = None,
        training: bool = False,
    ) -> Any:
        return self.call_in_mode(
            sequences,
            training,
            initial_state=initial_state,
            mask=mask,
            is_training=training,
        )


@register
class VariationalSimpleRNN(RecurrentLayer, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` with a posterior over kernels and bias.

    Positional arguments are those of `keras.layers.SimpleRNN`, which this layer can
    replace. In training each batch uses one draw of the weights at all its steps.
    Inference uses the means.

    Args:
        units, activation, use_bias, kernel_initializer, recurrent_initializer,
            bias_initializer, activity_regularizer, dropout, recurrent_dropout,
            return_sequences, return_state, go_backwards, stateful, unroll: as
            in `keras.layers.SimpleRNN`;
            the initializers are those of the means. Regularizers and constraints of
            weights are refused: the prior regularises.
        seed: integer or None, for the noise of the weights and for dropout.
        prior, posterior, num_examples, kl_weight, initial_log_stddev, bias_posterior,
            sample_at_inference: as in `VariationalDense`.

    Call arguments, input and output shape: as in `keras.layers.SimpleRNN`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalSimpleRNN(8, num_examples=60_000)
    >>> outputs = layer(keras.ops.ones((2, 5, 3)))

    Reference: Fortunato, Blundell and Vinyals, "Bayesian recurrent neural networks",
    2017, section 3.
    """

    keras_class = keras.layers.SimpleRNN

    def __init__(
        self,
        units: int,
        activation: Activation = "tanh",
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        recurrent_initializer: Initializer = "orthogonal",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: None = None,
        recurrent_regularizer: None = None,
        bias_regularizer: None = None,
        activity_regularizer: Any = None,
        kernel_constraint: None = None,
        recurrent_constraint: None = None,
        bias_constraint: None = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        seed: int | None = None,
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
            units=units,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            recurrent_regularizer=recurrent_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            recurrent_constraint=recurrent_constraint,
            bias_constraint=bias_constraint,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            return_sequences=return_sequences,
            return_state=return_state,
            go_backwards=go_backwards,
            stateful=stateful,
            unroll=unroll,
            seed=seed,
            prior=prior,
            posterior=posterior,
            num_examples=num_examples,
            kl_weight=kl_weight,
            initial_log_stddev=initial_log_stddev,
            bias_posterior=bias_posterior,
            sample_at_inference=sample_at_inference,
            **kwargs,
        )


@register
class VariationalGRU(RecurrentLayer, keras.layers.GRU):
    """`keras.layers.GRU` with a posterior over kernels and bias.

    Positional arguments are those of `keras.layers.GRU`, which this layer can
    replace. In training each batch uses one draw of the weights at all its steps.
    Inference uses the means.

    Args:
        units, activation, recurrent_activation, use_bias, kernel_initializer,
            recurrent_initializer, bias_initializer, activity_regularizer,
            dropout, recurrent_dropout, return_sequences, return_state,
            go_backwards, stateful, unroll, reset_after, use_cudnn: as in
            `keras.layers.GRU`;
            the initializers are those of the means. Regularizers and constraints of
            weights are refused: the prior regularises.
        seed: integer or None, for the noise of the weights and for dropout.
        prior, posterior, num_examples, kl_weight, initial_log_stddev, bias_posterior,
            sample_at_inference: as in `VariationalDense`.

    Call arguments, input and output shape: as in `keras.layers.GRU`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalGRU(8, num_examples=60_000)
    >>> outputs = layer(keras.ops.ones((2, 5, 3)))

    Reference: Fortunato, Blundell and Vinyals, "Bayesian recurrent neural networks",
    2017, section 3.
    """

    keras_class = keras.layers.GRU

    def __init__(
        self,
        units: int,
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        recurrent_initializer: Initializer = "orthogonal",
        bias_initializer: Initializer = "zeros",
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
        unroll: bool = False,
        reset_after: bool = True,
        use_cudnn: bool | str = "auto",
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
            units=units,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
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
            unroll=unroll,
            reset_after=reset_after,
            use_cudnn=use_cudnn,
            prior=prior,
            posterior=posterior,
            num_examples=num_examples,
            kl_weight=kl_weight,
            initial_log_stddev=initial_log_stddev,
            bias_posterior=bias_posterior,
            sample_at_inference=sample_at_inference,
            **kwargs,
        )


@register
class VariationalLSTM(RecurrentLayer, keras.layers.LSTM):
    """`keras.layers.LSTM` with a posterior over kernels and bias.

    Positional arguments are those of `keras.layers.LSTM`, which this layer can
    replace. In training each batch uses one draw of the weights at all its steps.
    Inference uses the means.

    Args:
        units, activation, recurrent_activation, use_bias, kernel_initializer,
            recurrent_initializer, bias_initializer, unit_forget_bias,
            activity_regularizer, dropout, recurrent_dropout, return_sequences,
            return_state, go_backwards, stateful, unroll, use_cudnn: as in
            `keras.layers.LSTM`;
            the initializers are those of the means. Regularizers and constraints of
            weights are refused: the prior regularises.
        seed: integer or None, for the noise of the weights and for dropout.
        prior, posterior, num_examples, kl_weight, initial_log_stddev, bias_posterior,
            sample_at_inference: as in `VariationalDense`.

    Call arguments, input and output shape: as in `keras.layers.LSTM`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalLSTM(8, num_examples=60_000)
    >>> outputs = layer(keras.ops.ones((2, 5, 3)))

    Reference: Fortunato, Blundell and Vinyals, "Bayesian recurrent neural networks",
    2017, section 3.
    """

    keras_class = keras.layers.LSTM

    def __init__(
        self,
        units: int,
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
        unroll: bool = False,
        use_cudnn: bool | str = "auto",
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
            units=units,
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
            unroll=unroll,
            use_cudnn=use_cudnn,
            prior=prior,
            posterior=posterior,
            num_examples=num_examples,
            kl_weight=kl_weight,
            initial_log_stddev=initial_log_stddev,
            bias_posterior=bias_posterior,
            sample_at_inference=sample_at_inference,
            **kwargs,
        )
