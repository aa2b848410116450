"""Layers that multiply their inputs by noise, with or without a wrapped layer.

A posterior of `posteriors.input_noise` defines the noise. The noise has one value per
channel, which all positions share.
"""

import functools
from typing import Any, Self

import keras
from keras import ops

from keras_bdl import maps
from keras_bdl.core import scopes
from keras_bdl.core.copies import live_config
from keras_bdl.core.dtypes import with_channels
from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.core.stochastic import StochasticLayer
from keras_bdl.core.typing import Tensor, Weights
from keras_bdl.layers.bayesian import BayesianLayer
from keras_bdl.layers.counterparts import (
    check_conversion,
    check_plain,
    filled,
    obstacle,
    weight_options,
)
from keras_bdl.ops import estimators
from keras_bdl.posteriors import InputNoise

_WRAPPED = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)


class InputNoiseLayer(BayesianLayer, keras.layers.Layer):
    """Base class of layers that multiply inputs by noise before a wrapped layer.

    A subclass can also be used without a wrapped layer. Its constructor sets
    `posterior`, a `posteriors.InputNoise` of its own.

    Args:
        layer: Dense or convolution layer to wrap, or None.
        **kwargs: arguments of `BayesianLayer` and of `keras.layers.Layer`.
    """

    posterior: InputNoise  # type: ignore[assignment]  # replaces the old method

    def __init__(self, layer: keras.layers.Layer | None = None, **kwargs: Any) -> None:
        if "prior" in kwargs:
            raise ValueError(
                f"`{type(self).__name__}` takes no `prior`; see its docstring. "
                f"Received: prior={kwargs['prior']!r}"
            )
        super().__init__(autocast=False, **kwargs)  # the wrapped layer casts itself
        self.layer = check_wrapped(type(self).__name__, layer)
        self.supports_masking = True

    @property
    def rate(self) -> float:
        """Learned dropout rate, or the mean of several rates."""
        return self.posterior.rate

    @property
    def is_identity(self) -> bool:  # type: ignore[override]
        return self.layer is None

    def build(self, input_shape: Any) -> None:
        if self.layer is not None and not self.layer.built:
            self.layer.build(input_shape)
        self._channel_axis = -1
        if self.layer is not None:
            axes: Any = maps.of(self.layer).input_axes(self.layer)
            (self._channel_axis,) = axes
        self.num_channels = input_shape[self._channel_axis]
        if self.num_channels is None:
            raise ValueError(
                f"`{type(self).__name__}` expected inputs with a known number of "
                f"channels. Received: input_shape={tuple(input_shape)}"
            )
        super().build(input_shape)

    def build_posterior(self) -> None:
        means = {} if self.layer is None else {"kernel": self.layer.kernel}
        made = self.posterior.build(self.add_weight, means, self.num_channels)
        for name, variable in made.items():
            setattr(self, name, variable)

    def kl(self) -> Tensor:
        return self.posterior.kl(self.prior, self._prior_variables, self.noise)

    def posterior_distribution(self) -> Any:
        """Returns the posterior as a TensorFlow Probability joint distribution."""
        return self.posterior.distribution()

    def call_mean(self, inputs: Tensor) -> Tensor:
        if self.layer is None:
            return ops.cast(inputs, self.compute_dtype)
        return self.layer(inputs)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        inputs = with_channels(inputs, self.num_channels, self._channel_axis)
        return super().call(inputs, training=training)

    def call_noisy(self, inputs: Tensor) -> Tensor:
        if self.posterior.has_moments:
            return self._with_noisy_weights(inputs)
        factors = self._factors(inputs, ops.shape(inputs)[0])
        return self.call_mean(inputs * ops.cast(factors, inputs.dtype))

    def call_sampled(self, inputs: Tensor, scope: scopes.SamplingScope) -> Tensor:
        if self.posterior.has_moments:
            return self._with_sampled_weights(inputs, scope)
        factors = self._factors(inputs, scope.num_samples)
        return self.call_mean(estimators.multiply_by_sample(inputs, factors))

    def _factors(self, inputs, rows):
        shape = [rows] + [1] * (len(inputs.shape) - 1)
        shape[self._channel_axis] = self.num_channels
        return self.posterior.factors(shape, self.noise, self._channel_axis)

    def _with_noisy_weights(self, inputs):
        inputs = ops.cast(inputs, self.layer.compute_dtype)
        ((kernel, log_stddev),) = self.posterior.moments().values()
        options = {}
        estimate = estimators.local_reparameterization
        if len(inputs.shape) > 2:
            estimate = estimators.flipout
            options["channel_axis"] = self._channel_axis
        outputs = estimate(
            functools.partial(maps.of(self.layer).linear, self.layer),
            inputs,
            ops.cast(kernel, inputs.dtype),
            log_stddev,
            seed=self.noise,
            **options,
        )
        return self._finish(outputs)

    def _with_sampled_weights(self, inputs, scope):
        inputs = ops.cast(inputs, self.layer.compute_dtype)
        (kernels,) = self.posterior.draw(self.noise, scope.num_samples).values()
        outputs = maps.of(self.layer).linear_per_sample(
            self.layer, inputs, ops.cast(kernels, inputs.dtype), shared=False
        )
        return self._finish(outputs)

    def _finish(self, outputs):
        """Adds the bias of the wrapped layer and applies its activation."""
        bias = self.layer.bias
        if bias is not None:
            bias = ops.cast(bias, outputs.dtype)
        return maps.of(self.layer).finish(self.layer, outputs, bias)

    def compute_output_shape(self, input_shape: Any) -> Any:
        if self.layer is None:
            return input_shape
        return self.layer.compute_output_shape(input_shape)

    @classmethod
    def replaces(cls, layer: keras.layers.Layer) -> bool:
        return type(layer) in _WRAPPED

    @classmethod
    def obstacle(cls, layer: keras.layers.Layer) -> str | None:
        grouped = getattr(layer, "groups", 1) != 1
        return "is a grouped convolution" if grouped else obstacle(layer)

    @classmethod
    def from_keras(cls, layer: keras.layers.Layer, **options: Any) -> Self:
        """Returns a layer of this class around a copy of a built layer.

        Args:
            layer: built `keras.layers.Dense`, `Conv1D`, `Conv2D` or `Conv3D`.
            **options: arguments of this class, such as `num_examples`.

        Raises:
            ValueError: if the layer is of another class, or not built.
        """
        if not cls.replaces(layer) or not layer.built:
            raise ValueError(
                f"`{cls.__name__}.from_keras` expected a built Dense or convolution "
                f"layer. Received: layer={layer!r}"
            )
        check_plain(layer, cls.obstacle(layer))
        wrapped = copy_plain(layer, regularized=False)
        options = {"name": layer.name, "dtype": layer.dtype_policy, **options}
        wrapper = cls(layer=wrapped, trainable=layer.trainable, **options)
        wrapper.build(layer.get_build_config()["input_shape"])
        return wrapper

    def to_keras(
        self, weights: Weights = "mean", seed: int | None = None
    ) -> keras.layers.Layer:
        """Returns the wrapped layer as a plain Keras layer.

        Args:
            weights: "mean" for a layer that is exactly equal to this layer at
                inference, or "sample" for a layer whose kernel is multiplied by one
                draw of the noise. Without a wrapped layer, "mean" gives the Keras
                layer of the same noise at the learned rate.
            seed: integer for a repeatable sample, or None.

        Raises:
            ValueError: if `weights` is neither of the two, the layer is not built, or
                `weights` is "sample" and there is no wrapped layer.
        """
        check_conversion(self, weights)
        if self.layer is None:
            return self._plain_dropout(weights)
        plain = copy_plain(self.layer)
        if weights == "sample":
            noise = NoiseGenerator(seed, salt=self.name)
            plain.kernel.assign(self.posterior.draw(noise)["kernel"])
        return plain

    def _plain_dropout(self, weights):
        if weights == "sample":
            refuse_sample(self)
        return self.plain_dropout()

    def plain_dropout(self) -> keras.layers.Layer:
        """Returns the Keras layer of fixed noise if this layer wraps no other."""
        raise NotImplementedError

    def saved_variables(self) -> dict[str, keras.Variable]:
        return {**self.posterior.variables(), **super().saved_variables()}

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["prior"]
        layer = None
        if self.layer is not None:
            layer = keras.saving.serialize_keras_object(self.layer)
            layer.pop("build_config", None)  # the constructor takes no built layer
        return {**config, **self.posterior.get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        config["layer"] = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**config)


def refuse_sample(layer):
    """Raises the error for a draw of noise from a layer that wraps no other.

    Such a draw multiplies the weights of another layer.
    """
    raise ValueError(
        "One draw of noise without a wrapped layer has no plain Keras layer; convert "
        "with weights='mean' (of an ensemble, convert `ensemble.member(index)`). "
        f"Received: weights='sample', layer={layer.name!r}"
    )


def check_wrapped(name, layer):
    """Returns the layer to wrap, or raises an error if it cannot be wrapped."""
    if layer is None:
        return None
    if not isinstance(layer, _WRAPPED) or isinstance(layer, StochasticLayer):
        raise TypeError(
            f"`{name}` wraps a `keras.layers.Dense`, `Conv1D`, `Conv2D` or `Conv3D`, "
            f"or nothing. Received: layer={layer!r}"
        )
    for option in ("kernel_regularizer", "kernel_constraint"):
        if getattr(layer, option) is not None:
            raise ValueError(
                f"`{name}` regularises the kernel itself; leave `{option}` out of the "
                f"wrapped layer. Received: {option}={getattr(layer, option)!r}"
            )
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(
            f"`{name}` wraps no grouped convolution. Received: groups={layer.groups}"
        )
    return layer


def copy_plain(layer, regularized=True):
    """Returns a built copy of a plain Keras layer with its weights."""
    config = live_config(type(layer), layer)
    if not regularized:
        config |= dict.fromkeys(weight_options(config, "_regularizer"))
    weight_map = maps.of(layer)
    copy = type(layer).from_config(config)
    return filled(copy, layer, weight_map, weight_map.variables(layer))
