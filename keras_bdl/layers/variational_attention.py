"""Attention whose projections have posteriors over their weights."""

from typing import Any

import keras

from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import Initializer
from keras_bdl.layers.group import VariationalGroup
from keras_bdl.posteriors import Posterior
from keras_bdl.priors import Prior


@register
class VariationalMultiHeadAttention(VariationalGroup, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` with a posterior over all its weights.

    Positional arguments are those of `keras.layers.MultiHeadAttention`, which this
    layer can replace. The projections of queries, keys, values and outputs (and of the
    gate) are `VariationalEinsumDense` layers with independent posteriors, listed in
    `layer.projections`. In training every row of a batch has its own draw of their
    weights, which its positions share. Inference uses the means. What lies between the
    projections is computed by Keras.

    Args:
        num_heads, key_dim, value_dim, dropout, use_bias, output_shape, attention_axes,
            sliding_window, flash_attention, kernel_initializer, bias_initializer,
            activity_regularizer, use_gate: as in `keras.layers.MultiHeadAttention`; the
            initializers are those of the means. Regularizers and constraints of weights
            are refused: the prior regularises. Dropout is that of the attention, in
            training only.
        seed: integer or None, for the noise of the weights and for dropout.
        prior, posterior, num_examples, kl_weight, estimator, initial_log_stddev,
            bias_posterior, sample_at_inference: as in `VariationalDense`, for each
            projection. The default estimator is "flipout". Each projection has a
            variable `kl_weight` of its own.

    Call arguments, input and output shape: as in `keras.layers.MultiHeadAttention`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalMultiHeadAttention(2, 4, num_examples=60_000)
    >>> x = keras.ops.ones((2, 5, 8))
    >>> outputs = layer(x, x, use_causal_mask=True)
    >>> layer.kl()  # nats

    Reference: Vaswani et al., "Attention is all you need", 2017, section 3.2.2; Wen,
    Vicol, Ba, Tran and Grosse, "Flipout", 2018.
    """

    keras_class = keras.layers.MultiHeadAttention

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | tuple[int, ...] | None = None,
        attention_axes: int | tuple[int, ...] | None = None,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: None = None,
        bias_regularizer: None = None,
        activity_regularizer: Any = None,
        kernel_constraint: None = None,
        bias_constraint: None = None,
        use_gate: bool = False,
        seed: int | None = None,
        *,
        prior: str | Prior = "normal",
        posterior: str | Posterior = "gaussian",
        num_examples: int | None = None,
        kl_weight: float = 1.0,
        estimator: str | None = None,
        initial_log_stddev: float | None = None,
        bias_posterior: bool = True,
        sample_at_inference: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_heads,
            key_dim,
            value_dim=value_dim,
            dropout=dropout,
            use_bias=use_bias,
            output_shape=output_shape,
            attention_axes=attention_axes,
            sliding_window=sliding_window,
            flash_attention=flash_attention,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            use_gate=use_gate,
            seed=seed,
            prior=prior,
            posterior=posterior,
            num_examples=num_examples,
            kl_weight=kl_weight,
            estimator=estimator,
            initial_log_stddev=initial_log_stddev,
            bias_posterior=bias_posterior,
            sample_at_inference=sample_at_inference,
            **kwargs,
        )


@register
class VariationalGroupQueryAttention(
    VariationalGroup, keras.layers.GroupQueryAttention
):
    """`keras.layers.GroupQueryAttention` with a posterior over all its weights.

    Positional arguments are those of `keras.layers.GroupQueryAttention`, which this
    layer can replace. Heads of queries that share a head of keys and values share its
    draw of the weights. All else is as in `VariationalMultiHeadAttention`.

    Args:
        head_dim, num_query_heads, num_key_value_heads, dropout, use_bias,
            sliding_window, flash_attention, kernel_initializer, bias_initializer,
            activity_regularizer, use_gate: as in `keras.layers.GroupQueryAttention`;
            the initializers are those of the means. Regularizers and constraints of
            weights are refused: the prior regularises. Dropout is that of the
            attention, in training only.
        seed: integer or None, for the noise of the weights and for dropout.
        prior, posterior, num_examples, kl_weight, estimator, initial_log_stddev,
            bias_posterior, sample_at_inference: as in
            `VariationalMultiHeadAttention`.

    Call arguments, input and output shape: as in `keras.layers.GroupQueryAttention`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalGroupQueryAttention(4, 4, 2, num_examples=60_000)
    >>> x = keras.ops.ones((2, 5, 8))
    >>> outputs, scores = layer(x, x, return_attention_scores=True)

    Reference: Ainslie et al., "GQA: Training generalized multi-query transformer models
    from multi-head checkpoints", 2023, section 2.2.
    """

    keras_class = keras.layers.GroupQueryAttention

    def __init__(
        self,
        head_dim: int,
        num_query_heads: int,
        num_key_value_heads: int,
        dropout: float = 0.0,
        use_bias: bool = True,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        kernel_regularizer: None = None,
        bias_regularizer: None = None,
        activity_regularizer: Any = None,
        kernel_constraint: None = None,
        bias_constraint: None = None,
        use_gate: bool = False,
        seed: int | None = None,
        *,
        prior: str | Prior = "normal",
        posterior: str | Posterior = "gaussian",
        num_examples: int | None = None,
        kl_weight: float = 1.0,
        estimator: str | None = None,
        initial_log_stddev: float | None = None,
        bias_posterior: bool = True,
        sample_at_inference: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            head_dim,
            num_query_heads,
            num_key_value_heads,
            dropout=dropout,
            use_bias=use_bias,
            sliding_window=sliding_window,
            flash_attention=flash_attention,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            use_gate=use_gate,
            seed=seed,
            prior=prior,
            posterior=posterior,
            num_examples=num_examples,
            kl_weight=kl_weight,
            estimator=estimator,
            initial_log_stddev=initial_log_stddev,
            bias_posterior=bias_posterior,
            sample_at_inference=sample_at_inference,
            **kwargs,
        )
