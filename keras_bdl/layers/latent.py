"""Layers with a latent variable for each row of their inputs."""

import math
from collections.abc import Sequence
from typing import Any, Never

import keras
from keras import ops

from keras_bdl.core import latents, scopes
from keras_bdl.core.finding import flatten_layers
from keras_bdl.core.typing import Tensor
from keras_bdl.layers.kl_weight import WeightedLayer


class LatentLayer(WeightedLayer):
    """Mixin of layers with a latent variable for each row.

    The layer adds a term to the objective, such as a KL to the prior, with one number
    for each row. The term is averaged over the batch, not divided by the number of
    training examples.

    A layer with discrete states sets `num_states` and `estimator` ("score_function"
    or "enumerate") and calls `choose` and `add_term`. A model of `keras_bdl.models`
    then trains it with an unbiased gradient.

    Args:
        *args: positional arguments of the Keras layer.
        **kwargs: arguments of `WeightedLayer`, such as `kl_weight`, and of the Keras
            layer.

    Example of a layer that picks one of two scales for each row:

    >>> class Switch(keras_bdl.layers.LatentLayer, keras.layers.Layer):
    ...     num_states, estimator = 2, "score_function"
    ...
    ...     def build(self, input_shape):
    ...         self.gate = keras.layers.Dense(2)
    ...         self.gate.build(input_shape)
    ...
    ...     def call(self, inputs, training=None):
    ...         log_q = keras.ops.log_softmax(self.gate(inputs))
    ...         state = self.choose(log_q, training)
    ...         kl = keras.ops.sum(keras.ops.exp(log_q) * log_q, -1) + math.log(2)
    ...         self.add_term(kl, training)
    ...         scale = keras.ops.cast(1 + state, inputs.dtype)
    ...         return inputs * keras.ops.expand_dims(scale, -1)
    """

    estimator: str | None = None
    num_states: int | None = None

    def choose(self, log_probs: Tensor, training: bool | None = None) -> Tensor:
        """Returns a state for each row.

        In training states are drawn or enumerated, and in sampled predictions they are
        drawn. Elsewhere each row has its most probable state.

        Args:
            log_probs: `(n, states)`, normalised, in nats.
            training: as in `call`.

        Returns:
            Integers `(n,)`.

        Raises:
            ValueError: in the training of a model that is not from
                `keras_bdl.models`, because the gradient would be wrong.
        """
        scope = latents.LatentScope.current()
        if self.chooses(scope):
            return scope.choose(log_probs, self.noise)
        if scopes.SamplingScope.current() is not None:
            return self._draw(log_probs, scopes.SamplingScope.current())
        if training:
            self.refuse_training()
        return ops.argmax(log_probs, axis=-1)

    def chooses(self, scope: latents.LatentScope | None) -> bool:
        """Whether states are drawn or enumerated in this forward pass."""
        if scope is None or scope.estimator is None:
            return False
        return scope.forced or self.estimator in latents.DISCRETE

    def refuse_training(self) -> Never:
        """Raises the `ValueError` of `choose`."""
        raise ValueError(
            f"Layer '{self.name}' needs the loss of every row to train with "
            f"estimator='{self.estimator}': use a keras_bdl model such as "
            "`keras_bdl.BayesianClassifier`, or another estimator. "
            f"Received: estimator={self.estimator!r} in the training of another model"
        )

    def _draw(self, log_probs, scope):
        """Draws states in a sampled prediction, with one noise per sample."""
        scope.restart(self.noise)
        shape = (scope.num_samples, log_probs.shape[-1])
        uniform = keras.random.uniform(
            shape, 1e-7, 1.0 - 1e-7, dtype=log_probs.dtype, seed=self.noise
        )
        noise = self.repeat_rows(-ops.log(-ops.log(uniform)), log_probs)
        return ops.argmax(log_probs + noise, axis=-1)

    def repeat_rows(self, by_sample: Tensor, rows: Tensor) -> Tensor:
        """Repeats `(samples, ...)` for every row of each sample.

        Args:
            by_sample: `(samples, ...)`.
            rows: tensor whose first axis holds the rows of all samples.

        Returns:
            Tensor `(samples * rows, ...)`.
        """
        repeats = ops.shape(rows)[0] // by_sample.shape[0]
        ones = (1,) * (len(by_sample.shape) - 1)
        tiled = ops.tile(ops.expand_dims(by_sample, 1), (1, repeats, *ones))
        return ops.reshape(tiled, (-1, *by_sample.shape[1:]))

    def add_term(self, values: Tensor, training: bool | None = True) -> None:
        """Adds the mean over rows, times `kl_weight`, to the loss.

        Args:
            values: `(n,)`, in nats.
            training: as in `call`. Outside of training the full weight counts, whatever
                `callbacks.KLWarmup` has set.
        """
        if not self.trainable or scopes.SamplingScope.current() is not None:
            return
        values = values * ops.cast(self.current_kl_weight(training), values.dtype)
        scope = latents.LatentScope.current()
        if scope is not None and scope.estimator is not None:
            scope.add_term(values)
            return
        rows = ops.cast(ops.maximum(ops.shape(values)[0], 1), values.dtype)
        self.add_loss(ops.cast(ops.sum(values) / rows, keras.config.floatx()))


def latent_layers(model: keras.layers.Layer) -> list[LatentLayer]:
    """Returns all layers of a model (or a layer) with latent variables, in order."""
    return [x for x in flatten_layers(model) if isinstance(x, LatentLayer)]


def early_exit_blocks(model: keras.layers.Layer) -> list[Any]:
    """Returns all layers of a model (or a layer) that may skip some of their units."""
    return [x for x in latent_layers(model) if hasattr(x, "halting_heads")]


def discrete_estimator(layers: Sequence[Any]) -> str | None:
    """Returns the estimator that trains discrete latent variables, or None.

    Raises:
        ValueError: if some are drawn and others enumerated.
    """
    names = {layer.estimator for layer in layers} & set(latents.DISCRETE)
    if len(names) > 1:
        raise ValueError(
            "Expected one estimator for all discrete latent variables of a model. "
            f"Received: {sorted(names)}"
        )
    return next(iter(names), None)


def num_combinations(layers: Sequence[Any], most: int = 64) -> int:
    """Returns the number of combinations of the states of enumerated layers.

    Raises:
        ValueError: if there are more than `most`.
    """
    states = [layer.num_states for layer in layers]
    count = math.prod(states)
    if count > most:
        raise ValueError(
            f"Expected at most {most} combinations of states to enumerate; use "
            f"`estimator='score_function'`. Received: {count} of {states} states"
        )
    return count
