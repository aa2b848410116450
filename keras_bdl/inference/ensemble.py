"""Ensembles: several networks of one architecture that are trained side by side."""

import inspect
import random
from collections.abc import Callable
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_bdl.conversion.whole import BayesianModel
from keras_bdl.core import finding, masking, noise, scopes, validation
from keras_bdl.core.stochastic import PACKAGE
from keras_bdl.core.typing import Tensor
from keras_bdl.graphs.copy import own_copy, trainable_copy
from keras_bdl.inference.members import (
    check_network,
    drawn_anew,
    only_computes,
    unstacked,
)
from keras_bdl.posteriors import Particles
from keras_bdl.training import class_weights, data

# Keys of the outputs in training, which are of each member, and of their masks.
MEMBERS = "members"
MASKS = "masks"

DIVERSITIES = ("init", "bootstrap", "init+bootstrap")


@keras.saving.register_keras_serializable(PACKAGE)
class Ensemble(BayesianModel):
    """Several networks of one architecture, trained by one `fit`.

    Each member starts from weights of its own, and takes the steps that it would take
    alone, on the same batches. `model(x)` and `predict` give the mean prediction: the
    mean of the probabilities for a loss of logits, the mixture for
    `losses.GaussianNLL`, and the mean of the outputs otherwise.
    `keras_bdl.predict_uncertainty` measures how much the members disagree.

    The network may have layers that sample, such as `MCDropout` or `VariationalDense`.
    Then each member has a posterior of its own, and the posterior predictive is the
    mixture of theirs: `keras_bdl.predict` draws samples of the members in turn. In
    `model(x)` each member is its posterior-mean network.

    The reported loss of training is the mean over members; that of `evaluate` is of the
    mean prediction. Both have the mean of the members' regularizers. The KL of layers
    is in the loss of training alone.

    Args:
        network: built Keras model, of which the first member is a copy, or a function
            without arguments that returns a new built model in each call, for models
            that cannot be copied. Frozen layers are shared by all members.
        size: number of members, a positive integer.
        diversity: "init" for new initial weights of every member but the first,
            "bootstrap" for weights of the training examples that are drawn with
            replacement, from the same initial weights, or "init+bootstrap" for both.
        seed: integer for the initial weights and the examples, or None.
        name: name of this model, or None.

    Call arguments:
        inputs: inputs of the network.
        training: whether a step of `fit` runs; see `outputs_of_members`.

    Raises:
        TypeError: if `network` is neither a Keras model nor such a function.
        ValueError: on another wrong argument; if the network is not built, or has
            layers that do not know the number of training examples; if two members
            start alike; in `fit` for an optimizer that clips the gradient of all
            weights together.

    Example:

    >>> model = keras_bdl.Ensemble(network, size=5)
    >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    >>> model.fit(x, y, epochs=10)
    >>> uncertainty = keras_bdl.predict_uncertainty(model, x_test)
    >>> first = keras_bdl.to_keras(model, "sample", index=0)

    Reference: Lakshminarayanan, Pritzel and Blundell, "Simple and scalable predictive
    uncertainty estimation using deep ensembles", 2017, algorithm 1 (without adversarial
    training). The bootstrap is of Osband, Blundell, Pritzel and Van Roy, "Deep
    exploration via bootstrapped DQN", 2016, section 3.
    """

    def __init__(
        self,
        network: keras.Model | Callable[[], keras.Model],
        size: int = 5,
        diversity: str = "init",
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        size = validation.integer("size", size, least=1, most=1000)
        diversity = validation.choice("diversity", diversity, DIVERSITIES)
        seed = noise.seed_or_new(seed)
        make = None
        if not isinstance(network, keras.layers.Layer):
            if not callable(network):
                raise TypeError(
                    "Expected `network` to be a Keras model, or a function that "
                    f"returns one. Received: network={network!r}"
                )
            make, network = network, network()
        if not isinstance(network, keras.Model):
            raise TypeError(
                f"Expected `network` to be a Keras model. Received: network={network!r}"
            )
        if not network.built:
            raise ValueError(
                "Expected `network` to be built: call it on a batch, or give it an "
                f"`Input`. Received: network={network!r}"
            )
        check_network(network)
        super().__init__(
            network if make else trainable_copy(network),
            name=name,
            weights="all",
            posterior=Particles(size),
            seed=seed,
        )
        self.size, self.diversity, self.seed = size, diversity, seed
        self._weighs_members = False  # while `fit` has weights of each member
        if "init" in diversity and size > 1:
            self._start_apart(make)
            self._check_apart()

    @property
    def posterior(self) -> Particles:
        """The weights of all members."""
        return self.bayesian.posterior  # type: ignore[return-value]

    def member(self, index: int) -> keras.Model:
        """Returns a copy of one member, a network like the given one, not compiled.

        Args:
            index: number of the member, from 0 to `size - 1`.
        """
        copy = own_copy(self.wrapped_model)
        return self.bayesian.assign_to(copy, "sample", None, index)

    def _start_apart(self, make):
        """Draws the initial weights of all members but the first."""
        state = random.getstate()
        # Keras draws the seeds of initializers of it. The first member may be drawn of
        # `keras.utils.set_random_seed` with the same number.
        random.seed(f"members {self.seed}")
        try:
            drawn = make or (lambda: drawn_anew(self.wrapped_model))
            others = [self.bayesian.weights_of(drawn()) for _ in range(1, self.size)]
        finally:
            random.setstate(state)
        self.posterior.assign_all([self.posterior.particle(0), *others])

    def _check_apart(self):
        stacks = map(ops.convert_to_numpy, self.posterior.stacks().values())
        if all(np.array_equal(stack[0], stack[1]) for stack in stacks):
            raise ValueError(
                "Two members start from the same weights: the initializers of the "
                "network have seeds of their own. Leave these out, or use "
                "`diversity='bootstrap'`. "
                f"Received: diversity={self.diversity!r}, "
                f"network={self.wrapped_model!r}"
            )

    # Training

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        """Runs one step of `fit`, with the outputs of each member."""
        with scopes.TrainingOfMembers():
            return super().train_step(*args, **kwargs)

    def outputs_of_members(self, inputs: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the outputs of each member in training, for a custom loop.

        Args:
            inputs: inputs of the network.
            **kwargs: further arguments of its `call`.

        Returns:
            Dictionary whose "members" are outputs with a first axis of members,
            `(size, batch, ...)`. `compute_loss` takes the dictionary.
        """
        with scopes.TrainingOfMembers():
            return self(inputs, training=True, **kwargs)

    def call(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        if not training or scopes.SamplingScope.current() is not None:
            return super().call(inputs, training=training, **kwargs)
        if scopes.TrainingOfMembers.current() is None:
            raise ValueError(
                "An ensemble trains as a model by itself: expected its own `fit`, or "
                "`outputs_of_members` in a custom loop, and layers inside of the "
                f"network instead of around it. Received: training={training!r}"
            )
        return self._train_each(inputs, kwargs)

    def _train_each(self, inputs, arguments):
        """Returns the outputs of each member in training, and keeps its statistics.

        All members go through one operation for each layer where that is faster, on
        JAX, and the layers do nothing but compute; otherwise they take turns.
        """
        stacks = self.posterior.stacks()
        values = {n: ops.convert_to_tensor(stack) for n, stack in stacks.items()}
        masks: list[Any] = []

        def of_member(weights):
            outputs, state = self.bayesian.weight_map.apply_with_state(
                self.bayesian, (inputs,), weights, is_training=True, **arguments
            )
            outputs, masks[:] = masking.take_masks(outputs)
            return outputs, state

        if keras.backend.backend() == "jax" and only_computes(self.wrapped_model):
            outputs, state = ops.vectorized_map(of_member, values)
        else:
            found = list(map(of_member, unstacked(values, self.size)))
            outputs, state = keras.tree.map_structure(lambda *t: ops.stack(t), *found)
        for name, value in state.items():
            stacks[name].assign(value)
        # A mask depends on the inputs, and not on the weights.
        return {MEMBERS: outputs, MASKS: masks}

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        *args: Any,
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains all members, as in `keras.Model.fit`."""
        if "bootstrap" not in self.diversity:
            return super().fit(x, y, *args, sample_weight=sample_weight, **kwargs)
        given = inspect.signature(keras.Model.fit).bind_partial(self, x, y, *args)
        for name in ("self", "x", "y"):
            given.arguments.pop(name)
        options = {**given.arguments, **kwargs}
        x, y, weights = self._drawn_rows(x, y, sample_weight, options)
        self._weighs_members = True
        try:
            return super().fit(x, y, sample_weight=weights, **options)
        finally:
            self._weighs_members = False

    def _drawn_rows(self, x, y, sample_weight, options):
        """Returns the data of `fit` with weights of each member, `(rows, size)`."""
        if y is None:
            raise ValueError(
                "`diversity='bootstrap'` draws among the rows of arrays: expected `x` "
                f"and `y` as arrays. Received: x of type {type(x).__name__}, y=None"
            )
        num_rows = len(keras.tree.flatten(x)[0])
        own = np.ones(num_rows) if sample_weight is None else np.asarray(sample_weight)
        if own.shape != (num_rows,):
            raise ValueError(
                "Expected one weight for each row beside `diversity='bootstrap'`. "
                f"Received: sample_weight of shape {own.shape}"
            )
        x, y, own = data.hold_out(x, y, own, options)
        class_weight = options.pop("class_weight", None)
        if class_weight is not None:
            labels = np.asarray(y).reshape(len(own), -1)
            labels = labels.argmax(axis=-1) if labels.shape[-1] > 1 else labels[:, 0]
            num_classes = int(max(labels.max(), *class_weight)) + 1
            own = class_weights.of_labels(labels, class_weight, num_classes, own)
        rows = len(own)
        rng = np.random.default_rng(self.seed)
        counts = rng.multinomial(rows, np.full(rows, 1.0 / rows), self.size).T
        weights = (counts * own[:, None]).astype("float32")
        # Keras asks for weights that are nested like the targets.
        return x, y, keras.tree.map_structure(lambda _: weights, y)

    @property
    def losses(self) -> list[Tensor]:
        """Losses of layers and regularizers, which `compute_loss` scales itself."""
        return [] if scopes.LossOfMember.current() is not None else super().losses

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Returns the loss: the mean over members, with the gradient of the sum.

        So each member is trained as it would be alone.
        """
        floatx = keras.config.floatx()
        total = sum(ops.cast(ops.sum(loss), floatx) for loss in self.losses)
        with scopes.LossOfMember():
            if not _is_of_members(y_pred):
                weights = self._weights_of_member(sample_weight)
                loss = super().compute_loss(x, y, y_pred, weights, training)
                return loss + total / self.size
            self._check_optimizer()
            for index, outputs in enumerate(unstacked(y_pred[MEMBERS], self.size)):
                outputs = masking.put_masks(outputs, y_pred[MASKS])
                weights = self._weights_of_member(sample_weight, index)
                total += super().compute_loss(x, y, outputs, weights, training)
        return total + ops.stop_gradient(total / self.size - total)

    def _check_optimizer(self):
        optimizer = finding.inner_optimizer(self.optimizer)
        norm = getattr(optimizer, "global_clipnorm", None)
        if norm is not None:
            raise ValueError(
                "`global_clipnorm` would clip the gradient of all members together; "
                f"use `clipnorm` or `clipvalue`. Received: global_clipnorm={norm}"
            )

    def _weights_of_member(self, sample_weight, index=None):
        """Returns the weights of one member, or the mean of all, `(batch,)`."""
        if not self._weighs_members or sample_weight is None:
            return sample_weight

        def of_member(weights):
            shape = tuple(weights.shape or ())  # TensorFlow may not know the rank
            if len(shape) != 2 or shape[1] != self.size:
                return weights  # of validation
            return ops.mean(weights, axis=-1) if index is None else weights[:, index]

        return keras.tree.map_structure(of_member, sample_weight)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Updates the metrics by the mean prediction, and returns their values."""
        if _is_of_members(y_pred):
            y_pred = self.mean_of_draws(y_pred[MEMBERS], y_pred[MASKS])
        sample_weight = self._weights_of_member(sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    # Files

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {
            "network": config["model"],
            "size": self.size,
            "diversity": self.diversity,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        network = keras.saving.deserialize_keras_object(
            config["network"], custom_objects=custom_objects
        )
        ensemble = cls(**{**config, "network": network, "diversity": "bootstrap"})
        ensemble.diversity = config["diversity"]
        if "init" in ensemble.diversity:
            ensemble._start_apart(None)  # a file has other weights, and a clone has not
        return ensemble


def _is_of_members(outputs):
    return isinstance(outputs, dict) and MEMBERS in outputs
