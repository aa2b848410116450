"""Layers with a posterior: a Keras class, a weight map and a posterior together."""

import functools
from typing import Any, Self

import keras
from keras import backend, ops

from keras_bdl.core import scopes, validation
from keras_bdl.core.copies import live_config
from keras_bdl.core.dtypes import wide
from keras_bdl.core.finding import flatten_layers
from keras_bdl.core.stochastic import StochasticLayer
from keras_bdl.core.typing import Tensor
from keras_bdl.layers.counterparts import (
    check_conversion,
    check_plain,
    filled,
    obstacle,
    weight_options,
)
from keras_bdl.maps import LinearMap, WeightMap
from keras_bdl.ops import estimators
from keras_bdl.posteriors import Posterior

ESTIMATORS = ("local_reparameterization", "flipout", "reparameterization")


def check_estimator(estimator):
    """Returns a valid estimator or None, and raises an error for any other value."""
    if estimator is None:
        return None
    return validation.choice("estimator", estimator, (None, *ESTIMATORS))


class PosteriorLayer(StochasticLayer):
    """Mixin that gives a Keras layer forward passes with weights from a posterior.

    A subclass sets `keras_class` and `weight_map`. Its constructor sets `posterior`, a
    `keras_bdl.posteriors.Posterior` that no other layer has.

    Args:
        *args, **kwargs: arguments of `StochasticLayer` and of the Keras layer.
    """

    keras_class: Any = None
    weight_map: WeightMap = None  # type: ignore[assignment]  # set by subclasses
    posterior: Posterior
    estimator: str | None = None  # for training; None stands for the default
    bias_posterior: bool = True
    takes_shared_inputs = True

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        # Posterior parameters stay in their own dtype under mixed precision.
        return super().add_weight(*args, **{**kwargs, "autocast": False})

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        if not self.posterior.built:
            self.build_posterior()
        self._built_positions = self.weight_map.num_positions(self, input_shape)

    def build_posterior(self) -> None:
        """Makes the posterior's variables beside those of the Keras layer."""
        means = self.weight_map.variables(self)
        if not (self.bias_posterior and self.posterior.of_biases):
            # The bias is None in a map without one, and no weight has that name.
            means.pop(self.weight_map.bias, None)  # type: ignore[arg-type]
        if not self.posterior.of_biases:
            means = {n: v for n, v in means.items() if len(v.shape) > 1}
        for name, variable in self.posterior.build(self.add_weight, means).items():
            setattr(self, name, variable)
        if not self.posterior.trains_means:
            self.freeze_weights()

    @property
    def trainable(self) -> bool:
        """Whether the layer is trained."""
        return keras.layers.Layer.trainable.fget(self)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        if self.posterior.built and not self.posterior.trains_means:
            self.freeze_weights()  # Keras has set the trainability of each variable

    def freeze_weights(self) -> None:
        """Freezes the variables of the Keras layer, but not those of the posterior."""
        for variable in self.weight_map.variables(self).values():
            variable.trainable = False

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        # Some Keras layers override it with a method that takes no `training`.
        return keras.layers.Layer.compute_output_spec(self, *args, **kwargs)

    # Weights

    def own_variables(self) -> dict[str, keras.Variable]:
        """Returns the variables of posterior and weights by their names in files.

        The layers inside save their weights themselves.
        """
        inside = {
            id(weight)
            for layer in flatten_layers(self)
            if layer is not self
            for weight in layer.weights
        }
        means = self.weight_map.variables(self)
        own = {name: v for name, v in means.items() if id(v) not in inside}
        return {**self.posterior.variables(), **own}

    def mean_kernel(self) -> Tensor:
        """Returns the kernel at inference."""
        return self.inference_means()[self.linear_map.kernel]

    def inference_means(self) -> dict[str, Tensor]:
        """Returns the weights at inference by name, in float32 (or float64)."""
        return self._with_points(self.posterior.mean())

    def drawn_weights(
        self, seed: keras.random.SeedGenerator, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        """Draws weights by name: one set, or `(num_samples, ...)` if that is given."""
        drawn = self.posterior.draw(seed, num_samples)
        return self._with_points(drawn, num_samples)

    def _with_points(self, weights, num_samples=None):
        """Adds the weights that have no posterior."""
        for name, variable in self.weight_map.variables(self).items():
            if name not in weights:
                value = wide(variable)
                if num_samples is not None:
                    value = ops.broadcast_to(value, (num_samples, *value.shape))
                weights[name] = value
        return weights

    def _narrow(self, weights):
        return {n: ops.cast(w, self.compute_dtype) for n, w in weights.items()}

    # The forward passes

    def prepare_inputs(self, inputs: Tensor) -> Tensor:
        return self.weight_map.prepare(self, inputs)

    @property
    def linear_map(self) -> LinearMap:
        """The weight map of a layer that is linear in its kernel."""
        return self.weight_map  # type: ignore[return-value]

    @property
    def has_moments(self) -> bool:
        """Whether the moments of the outputs follow from those of the weights."""
        return self.weight_map.is_linear and self.posterior.has_moments

    def call_mean(self, inputs: Tensor, **arguments: Any) -> Any:
        weights = self._narrow(self.inference_means())
        return self.weight_map.apply(self, inputs, weights, **arguments)

    def call_noisy(self, inputs: Tensor, **arguments: Any) -> Any:
        if self.posterior.splits_rows:
            drawn = self.posterior.members(self.noise)
            count = next(iter(drawn.values())).shape[0]
            weights = self._narrow(self._with_points(drawn, count))
            return self.weight_map.apply_to_parts(self, inputs, weights, **arguments)
        if not self.has_moments:
            weights = self._narrow(self.drawn_weights(self.noise))
            return self.weight_map.apply(self, inputs, weights, **arguments)
        name = self.resolved_estimator(inputs.shape)
        directions = self._narrow(self.posterior.directions())
        if directions and name == "reparameterization":
            weights = self._narrow(self.drawn_weights(self.noise))
            return self.weight_map.apply(self, inputs, weights)
        outputs = self._estimated(self.linear_map, inputs)
        bias = self.weight_map.bias
        if not self._bias_is_own() and bias in self.posterior.shapes:
            outputs = outputs + self._noise_of_bias(outputs)
        if directions:
            outputs = outputs + self._along(directions, inputs)
        return self.linear_map.activate(self, outputs)

    def _estimated(self, linear_map, inputs):
        """Returns noisy outputs of a linear map of the weights, by the estimator."""
        name = self.resolved_estimator(inputs.shape)
        options: dict[str, Any] = {}
        if name == "flipout":
            axes = linear_map.input_axes(self)
            options["channel_axis"] = axes or ()
            options["output_axis"] = linear_map.output_axes(self)
            options["flip_inputs"] = axes is not None
        elif name == "local_reparameterization":
            options["square"] = functools.partial(linear_map.square, self)
        return getattr(estimators, name)(
            functools.partial(linear_map.linear, self),
            inputs,
            *self._moments_of_weights(linear_map),
            seed=self.noise,
            **options,
        )

    def _along(self, directions, inputs):
        """Returns noise along the directions of the weights, with factors per row."""
        outputs = self.linear_map.affine_per_sample(self, inputs, directions, True)
        count = directions[self.linear_map.kernel].shape[0]
        row = ops.shape(outputs)[1:]
        outputs = ops.reshape(outputs, (count, -1, *row))
        shape = (count, ops.shape(outputs)[1], *(1,) * len(row))
        factors = keras.random.normal(shape, dtype="float32", seed=self.noise)
        return ops.sum(outputs * ops.cast(factors, outputs.dtype), axis=0)

    def _bias_is_own(self):
        """Whether outputs with different weights also have different biases."""
        return self.linear_map.bias_is_own(self)

    def _noise_of_bias(self, outputs):
        """Draws, for every row, the noise of a bias that several outputs share."""
        _, log_stddev = self.posterior.moments()[self.linear_map.bias]
        shape = self.linear_map.bias_shape(self, tuple(log_stddev.shape))
        ones = (1,) * (len(outputs.shape) - 1 - len(shape))
        shape = (ops.shape(outputs)[0], *ones, *shape)
        noise = keras.random.normal(shape, dtype=log_stddev.dtype, seed=self.noise)
        stddev = self.linear_map.expand_bias(self, ops.exp(log_stddev))
        return ops.cast(noise * stddev, outputs.dtype)

    def resolved_estimator(
        self, input_shape: tuple[int | None, ...] | None = None
    ) -> str:
        """Returns the estimator that training uses, the given one or the default.

        Args:
            input_shape: shape of the inputs of a call, or None for the shape that the
                layer was built with.
        """
        if self.estimator is not None:
            return self.estimator
        if not self.has_moments:
            return "reparameterization"
        positions = self._positions(input_shape)
        return "flipout" if positions else "local_reparameterization"

    def _positions(self, input_shape):
        if input_shape is None:
            return self._built_positions
        return self.weight_map.num_positions(self, input_shape)

    def call_sampled(
        self, inputs: Tensor, scope: scopes.SamplingScope, **arguments: Any
    ) -> Any:
        if id(self) in scope.moment_layers:
            mean, stddev = self.moments(inputs)
            shape = (scope.num_samples, -1, *mean.shape[1:])
            return self.sample_moments(
                ops.reshape(mean, shape), ops.reshape(stddev, shape), scope
            )
        weights = self._narrow(self.drawn_weights(self.noise, scope.num_samples))
        shared = id(self) in scope.shared_layers
        return self.weight_map.apply_per_sample(
            self, inputs, weights, shared, **arguments
        )

    # Moments of the outputs

    def supports_moments(
        self, input_shape: tuple[int | None, ...] | None = None
    ) -> bool:
        """Whether samples can be drawn from the moments of the outputs.

        Args:
            input_shape: as in `resolved_estimator`.
        """
        posterior = self.posterior
        independent = self.has_moments and not posterior.directions()
        if self.weight_map.bias in posterior.shapes:
            independent = independent and self._bias_is_own()
        return independent and self._positions(input_shape) == 0

    def moments(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of the outputs before the activation."""
        if backend.is_float_dtype(backend.standardize_dtype(inputs.dtype)):
            inputs = ops.cast(inputs, self.compute_dtype)  # Keras has not cast them
        return estimators.moments(
            functools.partial(self.linear_map.linear, self),
            inputs,
            *self._moments_of_weights(self.linear_map),
            square=functools.partial(self.linear_map.square, self),
        )

    def moment_shapes(self, input_shape: tuple) -> tuple[tuple, tuple]:
        return (self.compute_output_shape(input_shape),) * 2

    def sample_moments(
        self, mean: Tensor, stddev: Tensor, scope: scopes.SamplingScope
    ) -> Tensor:
        """Draws outputs from their moments, with one noise vector for all rows.

        The draws are exact for each single row of a layer that is called once.

        Returns outputs `(samples * rows, ...)`.

        Args:
            mean, stddev: `(rows, ...)` for all samples, or `(samples, rows, ...)`.
            scope: `SamplingScope`.
        """
        scope.restart(self.noise)
        row = stddev.shape[len(stddev.shape) - self._row_rank() :]
        shape = (scope.num_samples, 1, *row)
        noise = keras.random.normal(shape, dtype=stddev.dtype, seed=self.noise)
        outputs = mean + ops.cast(stddev * noise, mean.dtype)
        return self.linear_map.activate(self, ops.reshape(outputs, (-1, *row)))

    def _row_rank(self):
        """Returns the number of axes of a row of outputs, without positions."""
        return len(self.linear_map.output_axes(self))

    def _moments_of_weights(self, linear_map):
        """Returns the arguments of the estimators that follow the inputs."""
        moments = self.posterior.moments()
        kernel, log_stddev = moments[linear_map.kernel]
        bias, bias_log_stddev = moments.get(linear_map.bias, (None, None))
        if bias is None:
            bias = self._with_points({}).get(linear_map.bias)
        if bias is not None:
            bias = linear_map.expand_bias(self, ops.cast(bias, self.compute_dtype))
        if bias_log_stddev is not None and not linear_map.bias_is_own(self):
            bias_log_stddev = None  # drawn separately
        if bias_log_stddev is not None:
            bias_log_stddev = linear_map.expand_bias(self, bias_log_stddev)
        return ops.cast(kernel, self.compute_dtype), log_stddev, bias, bias_log_stddev

    # Reports, conversion and files

    def inference_weights(self) -> list[Tensor]:
        if not self.built:
            return super().inference_weights()
        known = set(map(id, self.own_variables().values()))
        others = [w for w in super().inference_weights() if id(w) not in known]
        means = self.inference_means()
        means.pop(self.weight_map.bias, None)  # type: ignore[arg-type]
        return [*means.values(), *others]

    def posterior_distribution(self) -> Any:
        """Returns the weight posterior as a TensorFlow Probability distribution."""
        return self.posterior.distribution()

    @classmethod
    def replaces(cls, layer: keras.layers.Layer) -> bool:
        """Whether this class replaces the class of a plain layer."""
        return type(layer) is cls.keras_class

    @classmethod
    def obstacle(cls, layer: keras.layers.Layer) -> str | None:
        """Returns why this class cannot replace a plain layer, or None."""
        return obstacle(layer)

    @classmethod
    def from_keras(cls, layer: keras.layers.Layer, **options: Any) -> Self:
        """Makes a layer of this class whose means are the weights of a Keras layer.

        The prior takes the place of regularizers, which are dropped.

        Args:
            layer: a built layer of the class that this one replaces.
            **options: arguments of this class, such as `num_examples`.

        Raises:
            ValueError: if the layer is of another class, is not built or has
                constraints.
        """
        if not cls.replaces(layer) or not layer.built:
            raise ValueError(
                f"`{cls.__name__}.from_keras` expected a built "
                f"`keras.layers.{cls.keras_class.__name__}`. Received: layer={layer!r}"
            )
        check_plain(layer, cls.obstacle(layer))
        config = live_config(cls.keras_class, layer)
        config |= dict.fromkeys(weight_options(config, "_regularizer"))
        bayesian = cls(**{**config, **options})
        return filled(bayesian, layer, cls.weight_map, cls.weight_map.variables(layer))

    def to_keras(
        self, weights: str = "mean", seed: int | None = None
    ) -> keras.layers.Layer:
        """Returns the plain Keras layer with posterior-mean or sampled weights.

        Args:
            weights: "mean", which equals this layer's inference exactly, or "sample".
            seed: integer for a repeatable sample, or None.

        Raises:
            ValueError: if `weights` is another value, or the layer is not built.
        """
        check_conversion(self, weights)
        if weights == "mean":
            values = self.inference_means()
        else:
            values = self.drawn_weights(keras.random.SeedGenerator(seed))
        plain = self.keras_class.from_config(live_config(self.keras_class, self))
        return filled(plain, self, self.weight_map, values)

    def load_own_variables(self, store: Any) -> None:
        known = self.saved_variables() if self.built else store.keys()
        weights = tuple(f"{name}_" for name in self.weight_map.attributes)
        lost = [n for n in store.keys() if n.startswith(weights) and n not in known]
        if lost:
            raise ValueError(
                f"The file has another posterior of the weights of layer "
                f"'{self.name}' than this one can hold. Received: a file with "
                f"{', '.join(sorted(lost))}, posterior={self.posterior!r}"
            )
        super().load_own_variables(store)

    def saved_variables(self) -> dict[str, keras.Variable]:
        return {**self.own_variables(), **super().saved_variables()}
