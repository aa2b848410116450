"""Separable convolutions whose weights have a posterior."""

from typing import Any

import keras
from keras import ops

from keras_bdl import maps
from keras_bdl.core import validation
from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import Activation, Initializer, Tensor
from keras_bdl.layers.drop_in import VariationalLayer
from keras_bdl.posteriors import Posterior
from keras_bdl.priors import Prior


class _Separable(VariationalLayer):
    """Mixin of the separable convolutions of every rank."""

    weight_map = maps.Separable()

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, ...] = 1,
        depth_multiplier: int = 1,
        activation: Activation = None,
        use_bias: bool = True,
        depthwise_initializer: Initializer = "glorot_uniform",
        pointwise_initializer: Initializer = "glorot_uniform",
        bias_initializer: Initializer = "zeros",
        depthwise_regularizer: None = None,
        pointwise_regularizer: None = None,
        bias_regularizer: None = None,
        activity_regularizer: Any = None,
        depthwise_constraint: None = None,
        pointwise_constraint: None = None,
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
            data_format=data_format,
            dilation_rate=dilation_rate,
            depth_multiplier=depth_multiplier,
            activation=activation,
            use_bias=use_bias,
            depthwise_initializer=depthwise_initializer,
            pointwise_initializer=pointwise_initializer,
            bias_initializer=bias_initializer,
            depthwise_regularizer=depthwise_regularizer,
            pointwise_regularizer=pointwise_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            depthwise_constraint=depthwise_constraint,
            pointwise_constraint=pointwise_constraint,
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

    def resolved_estimator(
        self, input_shape: tuple[int | None, ...] | None = None
    ) -> str:
        if self.estimator is None and self.posterior.has_moments:
            return "flipout"
        return super().resolved_estimator(input_shape)

    def call_noisy(self, inputs: Tensor, **arguments: Any) -> Tensor:
        if self.resolved_estimator(inputs.shape) == "reparameterization":
            return super().call_noisy(inputs)
        # Given the outputs of the first step, the second is linear in its weights.
        directions = self._narrow(self.posterior.directions())
        factors: Any = self._factors(directions, inputs) if directions else None
        for step in self.weight_map.steps:
            outputs = self._estimated(step, inputs)
            if directions:
                along = step.affine_per_sample(self, inputs, directions, shared=True)
                along = ops.reshape(along, (factors.shape[0], *ops.shape(outputs)))
                outputs = outputs + ops.sum(along * factors, axis=0)
            inputs = outputs
        return step.activate(self, outputs)

    def _factors(self, directions, inputs):
        """Draws, for every row, a factor of each direction that both kernels share."""
        count = next(iter(directions.values())).shape[0]
        ones = (1,) * (len(inputs.shape) - 1)
        shape = (count, ops.shape(inputs)[0], *ones)
        factors = keras.random.normal(shape, dtype="float32", seed=self.noise)
        return ops.cast(factors, inputs.dtype)


_DOC = """`keras.layers.SeparableConv{rank}D` with a posterior over both kernels.

    Positional arguments are those of `keras.layers.SeparableConv{rank}D`, which this
    layer can replace. In training both kernels have noise of the estimator: of the
    default "flipout", one draw per row for all its positions. Inference uses the means.

    Args:
        filters, kernel_size, strides, padding, data_format, dilation_rate,
            depth_multiplier, activation, use_bias, depthwise_initializer,
            pointwise_initializer, bias_initializer, activity_regularizer: as in
            `keras.layers.SeparableConv{rank}D`; the initializers are those of the
            means. Regularizers and constraints of weights are refused: the prior
            regularises.
        prior, num_examples, kl_weight, posterior, estimator, initial_log_stddev,
            bias_posterior, sample_at_inference, seed: as in `VariationalConv2D`.

    Input and output shape: as in `keras.layers.SeparableConv{rank}D`.

    Raises:
        ValueError, TypeError: on a wrong argument; ValueError in `fit` and
            `evaluate` while `num_examples` is unknown.

    Example:

    >>> layer = keras_bdl.VariationalSeparableConv{rank}D(8, 3, num_examples=60_000)
    >>> outputs = layer(keras.ops.ones({shape}))

    Reference: Wen, Vicol, Ba, Tran and Grosse, "Flipout", 2018, eq. 4.
    """


@register
class VariationalSeparableConv1D(_Separable, keras.layers.SeparableConv1D):
    __doc__ = _DOC.format(rank=1, shape=(2, 16, 3))
    keras_class = keras.layers.SeparableConv1D


@register
class VariationalSeparableConv2D(_Separable, keras.layers.SeparableConv2D):
    __doc__ = _DOC.format(rank=2, shape=(2, 16, 16, 3))
    keras_class = keras.layers.SeparableConv2D
