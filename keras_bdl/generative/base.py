"""The base of generative models: networks, a likelihood, and a bound as the loss."""

import contextlib
import os
import types
from collections.abc import Callable
from typing import Any, NoReturn, Self

import keras
import numpy as np
from keras import ops

from keras_bdl.core import copies, recovery, validation
from keras_bdl.core.scopes import BoundScope, SharedWeights
from keras_bdl.generative import initialization, observations
from keras_bdl.generative import networks as vae_networks
from keras_bdl.layers.bayesian import bayesian_layers
from keras_bdl.layers.gaussian_latent import GaussianLatent
from keras_bdl.layers.latent import latent_layers
from keras_bdl.models import batch_checks
from keras_bdl.prediction import export
from keras_bdl.priors.codes import LatentPrior
from keras_bdl.training import num_examples
from keras_bdl.training.data import extent_of

# The number of draws of the weights that `evaluate` averages each batch's bound over.
_WEIGHT_DRAWS = 4


class GenerativeModel(keras.Model):
    """Networks around a code z, trained by a bound on the likelihood of x.

    A subclass implements `call`. Within the `BoundScope` of a training or test step
    `call` returns what `compute_loss` takes as `y_pred`.

    Args:
        networks: dict from name to Keras model, which become attributes.
        num_inputs: dict from name to the number of inputs of the network.
        likelihood, prior, kl_weight, preprocessing, seed, num_examples: as in `VAE`.
        **kwargs: as in `keras.Model`.
    """

    built: bool

    def __init__(
        self,
        networks: dict[str, keras.Model],
        num_inputs: dict[str, int],
        likelihood: str | keras.losses.Loss,
        prior: str | LatentPrior,
        kl_weight: float,
        preprocessing: keras.layers.Layer | None,
        seed: int | None,
        num_examples: int | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # the networks cast themselves
        for name, network in networks.items():
            if not isinstance(network, keras.Model):
                raise TypeError(
                    f"Expected `{name}` to be a Keras model. "
                    f"Received: {name}={network!r}"
                )
            vae_networks.check_num_inputs(name, network, num_inputs[name])
            setattr(self, name, network)
        if not (preprocessing is None or isinstance(preprocessing, keras.layers.Layer)):
            raise TypeError(
                "Expected `preprocessing` to be a Keras layer. "
                f"Received: preprocessing={preprocessing!r}"
            )
        self._networks = tuple(networks)
        # Keras does not track or save what is in a namespace.
        self._made = types.SimpleNamespace()
        self.observation = observations.get(likelihood)
        self.preprocessing = preprocessing
        self.seed = seed
        self.num_examples = validation.optional_integer(
            "num_examples", num_examples, least=1
        )
        self.latent = GaussianLatent(
            prior=prior,
            kl_weight=validation.number("kl_weight", kl_weight, least=0.0),
            seed=seed,
            name="latent",
        )
        self._reconstruction = keras.metrics.Mean(name="reconstruction")
        self._kl = keras.metrics.Mean(name="kl")

    def preprocess(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns data as floats in the form that the networks take and explain."""
        x = ops.convert_to_tensor(inputs)
        if not keras.backend.is_float_dtype(x.dtype):
            x = ops.cast(x, keras.config.floatx())
        if self.preprocessing is None:
            return x
        return copies.call_with_training(self.preprocessing, x, training)

    # Posteriors over weights. If there is a bound on log p(x | w) for every w, its mean
    # over draws of w, less the KL of the weights, is a bound on log p(data).

    def weights_drawn_once(
        self, wanted: bool = True
    ) -> contextlib.AbstractContextManager:
        """Returns a context in which all calls share a draw of weights, if `wanted`."""
        if not (wanted and self._posteriors()):
            return contextlib.nullcontext()
        return SharedWeights(self.latent.noise.next())

    def mean_over_weights(
        self, bound: Callable[[], dict[str, Any]], training: bool | None
    ) -> dict[str, Any]:
        """Returns the terms of a bound, in evaluation their mean over weight draws.

        Args:
            bound: function without arguments that returns a dict of tensors.
            training: whether it is a training step, which has a single draw.
        """
        if training or not self._posteriors():
            return bound()
        # Every call adds to the loss the terms of other latent variables.
        others = any(latent_layers(network) for network in self._network_list())
        draws = [bound() for _ in range(1 if others else _WEIGHT_DRAWS)]
        return {
            name: sum(terms[name] for terms in draws) / len(draws) for name in draws[0]
        }

    def _tell_num_examples(self):
        """Tells layers the number of training examples given to the constructor."""
        if self.num_examples is not None:
            num_examples.set_num_examples(self, self.num_examples)

    def _read_num_examples(self, x, options):
        """Reads that number off the data if it was not given.

        `options` are those of `fit`.
        """
        if self.num_examples is None:
            num_examples.tell_num_examples(self, x, extent_of(options))

    def _posteriors(self):
        """Returns the layers of the networks that have a posterior over weights."""
        return [x for network in self._network_list() for x in bayesian_layers(network)]

    def _network_list(self):
        return [getattr(self, name) for name in self._networks]

    def compile(
        self, optimizer: str | keras.optimizers.Optimizer = "adam", **kwargs: Any
    ) -> None:
        """Configures training. The loss is the negative bound.

        Args:
            optimizer: Keras optimizer or its name.
            **kwargs: as in `keras.Model.compile`, without losses and metrics.

        Raises:
            ValueError: on a loss or metrics.
        """
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(
                    f"`{type(self).__name__}` has its own loss and reports its parts; "
                    f"leave `{name}` out. Received: {name}"
                )
        super().compile(optimizer=optimizer, **kwargs)

    def export(
        self, filepath: str | os.PathLike, format: str = "tf_saved_model", **kwargs: Any
    ) -> None:
        """Exports the outputs of `model(x)`, as in `keras.Model.export`."""
        export.mark_called(self)
        return super().export(filepath, format=format, **kwargs)

    def to_keras(self, weights: str = "mean", seed: int | None = None) -> NoReturn:
        """Raises an error, because only the networks can be converted."""
        names = " and ".join(f"`model.{name}`" for name in self._networks)
        raise ValueError(
            f"`{type(self).__name__}` has no plain Keras counterpart; convert its "
            f"networks, {names}. Received: model={self.name!r}"
        )

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        *,
        class_weight: None = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does, without `class_weight`."""
        if class_weight is not None:
            raise ValueError(
                f"`{type(self).__name__}.fit` takes no `class_weight`. "
                f"Received: class_weight={class_weight!r}"
            )
        return super().fit(x, y, batch_size=batch_size, epochs=epochs, **kwargs)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Evaluates as `keras.Model.evaluate` does, with data as in `fit`."""
        initialization.check(self, x)
        if hasattr(x, "shape"):
            self._check_weights(x, sample_weight)
        with recovery.weights_kept(self):
            return super().evaluate(x, y, batch_size, verbose, sample_weight, **kwargs)

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any
    ) -> Any:
        """Trains as `keras.Model.train_on_batch` does, with data as in `fit`."""
        y = self._checked_batch(x, y, sample_weight)
        return super().train_on_batch(x, y, sample_weight, **kwargs)

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any
    ) -> Any:
        """Evaluates as `keras.Model.test_on_batch` does, with data as in `fit`."""
        y = self._checked_batch(x, y, sample_weight)
        return super().test_on_batch(x, y, sample_weight, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Predicts as `keras.Model.predict` does, after checking the shape of x."""
        initialization.check_shape(self, x)
        return super().predict(x, *args, **kwargs)

    def _checked_batch(self, x, y, sample_weight):
        """Checks a batch and returns y in the form that the steps take."""
        initialization.check(self, x)
        self._check_weights(x, sample_weight)
        return y

    def _check_weights(self, x, sample_weight):
        """Refuses wrong sample weights, and weights that do not fit the rows of x."""
        batch_checks.check_one_batch(x, None, sample_weight)
        if sample_weight is None:
            return
        batch_checks.check_weights(sample_weight)
        if len(sample_weight.shape) > len(x.shape):
            raise ValueError(
                "Expected weights `(n,)`, or one for each of the positions of x. "
                f"Received: x of shape {tuple(x.shape)}, sample_weight of shape "
                f"{tuple(sample_weight.shape)}"
            )

    # The arguments of a step end with the data. On JAX the state comes first.
    def train_step(self, *args: Any) -> Any:
        with BoundScope(args[-1]):
            return super().train_step(*args)

    def test_step(self, *args: Any) -> Any:
        with BoundScope(args[-1]):
            return super().test_step(*args)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        return self.get_metrics_result()

    def add_losses(self, value: Any) -> Any:
        """Adds to a loss the terms of layers, such as the KL of weights."""
        added = [ops.cast(ops.sum(term), value.dtype) for term in self.losses]
        return sum(added, value)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            **{name: serialize(getattr(self, name)) for name in self._networks},
            "likelihood": serialize(self.observation.loss),
            "prior": serialize(self.latent.prior),
            "kl_weight": self.latent.full_kl_weight,
            "preprocessing": serialize(self.preprocessing),
            "seed": self.seed,
            "num_examples": self.num_examples,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        config = {
            name: keras.saving.deserialize_keras_object(
                value, custom_objects=custom_objects
            )
            if isinstance(value, dict) and "class_name" in value
            else value
            for name, value in config.items()
        }
        return cls(**config)
