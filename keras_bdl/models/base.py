"""The base of models that know their likelihood."""

import os
from typing import Any, Self

import keras
from keras import ops

from keras_bdl import metrics
from keras_bdl.conversion import continual, convert
from keras_bdl.core import (
    copies,
    event_loss,
    finding,
    latents,
    recovery,
    validation,
)
from keras_bdl.core.typing import Weights
from keras_bdl.layers import latent
from keras_bdl.layers.bayesian import counted_layers
from keras_bdl.models.batch_checks import CheckedBatches, Problem, require_targets
from keras_bdl.models.latent_scope import latent_scope
from keras_bdl.posteriors import Posterior
from keras_bdl.prediction import export, sampler
from keras_bdl.training import num_examples
from keras_bdl.training.data import extent_of, hold_out


class LikelihoodModel(CheckedBatches):
    """A network and the likelihood of its outputs, trained by the evidence bound.

    A subclass sets `_likelihood`, a loss of `keras_bdl.losses` on the outputs of the
    model, and `_own_metrics`, the names of the metrics that it always reports. Besides
    the methods that `CheckedBatches` needs, it implements

        _targets(y): returns the checked targets in the form that training takes.
        _update_metrics(y, draws, sample_weight): updates the metrics from outputs of
            posterior samples, `(samples, n, ...)`.

    Args:
        network: Keras model.
        num_samples: number of posterior samples of `predict` and `evaluate`; where
            layers have members, it is filled up to a multiple of their number.
        num_examples: number of training examples; None reads it off the data.
        num_latent_samples: number of draws of discrete latent variables for each
            training example, if layers have `estimator="score_function"`.
        posterior: posterior that a plain network gets by `to_bayesian`, or None.
        **kwargs: as in `keras.Model`.
    """

    mc_dropout = False  # whether plain dropout is sampled
    _likelihood: keras.losses.Loss
    _own_metrics: tuple[str, ...]

    def __init__(
        self,
        network: keras.Model,
        num_samples: int,
        num_examples: int | None,
        num_latent_samples: int = 4,
        posterior: str | Posterior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # the network casts itself
        if not isinstance(network, keras.Model):
            raise TypeError(
                f"Expected `network` to be a Keras model. Received: network={network!r}"
            )
        if posterior is not None:
            network = convert.with_posterior(network, posterior)
        self.network = network
        num_samples = validation.integer("num_samples", num_samples, 1, 10**9)
        self.num_samples = sampler.filled_up(num_samples, sampler.cycle_of(network))
        self.num_examples = validation.optional_integer(
            "num_examples", num_examples, least=1
        )
        self.num_latent_samples = validation.integer(
            "num_latent_samples", num_latent_samples, least=2
        )
        self._depth = None
        self._reports_more = False  # whether `compile` got more metrics
        self._problem = Problem()
        self._tell_num_examples()

    def _tell_num_examples(self):
        if self.num_examples is not None and counted_layers(self.network):
            num_examples.set_num_examples(self.network, self.num_examples)

    @property
    def likelihood_network(self) -> keras.Model:
        """The network that gives the likelihood's parameters."""
        return self.network

    @property
    def sampled_network(self) -> keras.Model:
        """The model that `keras_bdl.predict` samples."""
        return self.likelihood_network

    def to_keras(
        self, weights: Weights = "mean", seed: int | None = None
    ) -> keras.Model:
        """Returns a plain Keras model with these outputs; see `keras_bdl.to_keras`."""
        return convert.to_keras(self.network, weights, seed)

    def prior_from_posterior(self) -> Self:
        """Returns a copy, not compiled, as in `keras_bdl.prior_from_posterior`."""
        network = continual.prior_from_posterior(self.network)
        config = {**self.get_config(), "num_examples": None}
        copy = type(self)(**{**config, "network": network})
        if self.built and not copy.built:
            copy.build_from_config(self.get_build_config())
        for old, new in zip(*(m._own_weights() for m in (self, copy)), strict=True):
            copies.assign_copy(new, old)
        return copy

    def _own_weights(self):
        """Returns weights of the model outside of its network, as scales and noise."""
        of_network = {id(w) for w in self.network.weights}
        return [w for w in self.weights if id(w) not in of_network]

    def export(
        self, filepath: str | os.PathLike, format: str = "tf_saved_model", **kwargs: Any
    ) -> None:
        """Exports the outputs of `model(x)`, as in `keras.Model.export`.

        `keras_bdl.export` adds endpoints of the posterior predictive.
        """
        if not self.built and finding.is_graph(self.network):
            self.build(self.network.input_shape)
        export.mark_called(self)
        return super().export(filepath, format=format, **kwargs)

    def _build_network(self, input_shape):
        if not self.network.built:  # a symbolic call builds subclassed networks too
            self.network(
                keras.tree.map_shape_structure(
                    lambda shape: keras.Input(batch_shape=shape), input_shape
                )
            )
            self._tell_num_examples()
        self._latent_scope(training=True)  # refuses estimators that cannot be combined
        if self._depth is None and latent.early_exit_blocks(self.network):
            self._depth = metrics.ExpectedDepth()

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adam",
        loss: keras.losses.Loss | None = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures training. The loss is the likelihood of the model.

        Args:
            optimizer: Keras optimizer or its name.
            loss: None, because the likelihood is part of the model.
            metrics, weighted_metrics: more metrics. The class docstring says which
                outputs they see. Names of metrics that are always reported add nothing.
            **kwargs: as in `keras.Model.compile`.

        Raises:
            ValueError: on another loss, on `loss_weights`, or on a metric object with
                the name of a metric that is always reported.
        """
        if loss is not None:
            self._check_loss(loss)
        if kwargs.get("loss_weights") is not None:
            raise ValueError(
                f"`{type(self).__name__}` takes no `loss_weights`; its KL is weighted "
                "by the layers' `kl_weight`. "
                f"Received: loss_weights={kwargs['loss_weights']!r}"
            )
        metrics = self._other_metrics(metrics)
        weighted_metrics = self._other_metrics(weighted_metrics)
        self._reports_more = bool(metrics or weighted_metrics)
        super().compile(
            optimizer=optimizer,
            loss=self._likelihood,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            **kwargs,
        )

    def _check_loss(self, loss):
        own = self._likelihood  # an HDF5 file passes it to `compile`
        if type(loss) is type(own) and loss.get_config() == own.get_config():
            return
        raise ValueError(
            f"`{type(self).__name__}` has its own likelihood; leave `loss` out, or "
            "compile the network itself as a plain Keras model. "
            f"Received: loss={loss!r}"
        )

    def _other_metrics(self, metrics):
        """Returns the user's metrics without names that are always reported."""
        if not isinstance(metrics, (list, tuple)):
            metrics = [] if metrics is None else [metrics]
        own = self._own_metrics
        for metric in metrics:
            if getattr(metric, "name", None) in own:
                raise ValueError(
                    f"`{type(self).__name__}` reports a metric of this name itself; "
                    f"give yours another. Received: metric={metric.name!r}"
                )
        return [m for m in metrics if not (isinstance(m, str) and m in own)] or None

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        config.pop("loss", None)
        config.pop("loss_weights", None)
        return config

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
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does, and reads the number of examples off x.

        Targets have the forms that the class docstring names. For arrays,
        `class_weight` weighs every label, also together with `sample_weight`.

        Raises:
            ValueError: if the number of examples is unknown (a generator); pass
                `num_examples` to the constructor. Also on targets that do not fit,
                inputs that are not finite, and weights below 0. Arrays are refused
                before training. A batch of a data set has the loss NaN, and its
                gradient changes no weight; it is refused at the end of the epoch, on
                PyTorch at once.
        """
        class_weight = kwargs.pop("class_weight", None)
        if class_weight is not None:
            x, y = self._weigh_classes(x, y, class_weight, kwargs)
        y, _ = self._checked_arrays(x, y, kwargs.get("sample_weight"))
        held_out = kwargs.get("validation_data")
        if isinstance(held_out, (tuple, list)) and len(held_out) > 1:
            x_val, y_val, *weights = held_out
            y_val, _ = self._checked_arrays(x_val, y_val, *weights or [None])
            kwargs["validation_data"] = (x_val, y_val, *weights)
        extent = extent_of(kwargs)
        self._prepare_fit(x, y, extent)
        if self.num_examples is None:
            num_examples.tell_num_examples(self, x, extent)
        history = super().fit(x, y, batch_size=batch_size, epochs=epochs, **kwargs)
        self.check_trained(history)
        return history

    def _weigh_classes(self, x, y, class_weight, kwargs):
        """Puts class weights into `sample_weight` and returns the training rows.

        Rows that `validation_split` sets apart are not weighted, as in Keras.
        """
        x, y, weights = hold_out(x, y, kwargs.get("sample_weight"), kwargs)
        kwargs["sample_weight"] = self._label_weights(y, class_weight, weights)
        return x, y

    def _prepare_fit(self, x, y, extent):
        """Prepares training, once the targets have been checked.

        `extent` has the arguments of `fit` that determine the training rows.
        """

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does.

        The class docstring lists what it reports.
        """
        names = ("batch_size", "verbose", "sample_weight")
        options = {**dict(zip(names, args)), **kwargs}
        y, _ = self._checked_arrays(x, y, options.get("sample_weight"))
        with recovery.weights_kept(self):
            result = super().evaluate(x, y, *args, **kwargs)
        self.raise_refused()
        return result

    def train_step(self, *args: Any) -> Any:
        with self._latent_scope(training=True):
            return super().train_step(*args)

    def test_step(self, *args: Any) -> Any:
        with self._latent_scope(training=False):
            return super().test_step(*args)

    def _latent_scope(self, training):
        return latent_scope(self.network, self.num_latent_samples, training)

    def run_network(self, inputs: Any, training: bool | None) -> Any:
        """Runs the network on the batch, or on copies with different latent states."""
        scope = latents.LatentScope.current()
        if scope is not None:
            inputs = scope.copy(inputs)
        return self.likelihood_network(inputs, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the negative evidence bound per example, and updates the metrics."""
        require_targets(y)
        loss = self._bound(x, y, y_pred, sample_weight, training)
        return self.refuse_batch(loss, y_pred)

    def _bound(self, x, y, y_pred, sample_weight, training):
        scope = latents.LatentScope.current()
        if scope is not None and self._depth is not None:
            self._depth.update_state(scope.mean_depth())
        if scope is not None and scope.estimator is not None:
            return self._compute_latent_loss(scope, x, y, y_pred, sample_weight)
        y_pred, sample_weight = event_loss.unmask(y_pred, sample_weight)
        total = super().compute_loss(x, y, y_pred, sample_weight, training=training)
        if training or not self.is_sampled():
            draws = ops.expand_dims(ops.stop_gradient(y_pred), 0)
        else:
            draws = self.draw_outputs(x, self.num_samples, seed=0)
            # The expected likelihood replaces that of the mean weights. The draws come
            # last, because their forward passes clear the terms of `add_loss`.
            total = total - self._likelihood(y, y_pred, sample_weight)
            total = total + self._expected_nll(y, draws, sample_weight)
        self._update_metrics(y, draws, sample_weight)
        return total

    def _compute_latent_loss(self, scope, x, y, y_pred, sample_weight):
        """Returns the loss of copies of the batch; `y_pred` is `(copies * n, ...)`."""
        labels = scope.copy(y)
        weights = None if sample_weight is None else scope.copy(sample_weight)
        y_pred, weights = event_loss.unmask(y_pred, weights)
        if weights is not None:  # now with those of the mask
            sample_weight = scope.first_copy(weights)
        mean = ops.stop_gradient(scope.mean(y_pred))
        # Metrics are updated here, where the probabilities of the copies are known.
        self.compute_metrics(x, y, mean, sample_weight)
        scope.metrics_are_updated = True
        self._update_metrics(y, ops.expand_dims(mean, 0), sample_weight)
        total = super().compute_loss(x, labels, y_pred, weights, training=True)
        # Keras weighs all copies alike, so their weighted losses replace that term.
        total = total - self._likelihood(labels, y_pred, weights)
        return total + scope.loss(self._likelihood.row_losses(labels, y_pred, weights))

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Returns the metrics of `compile`, of the mean outputs if there are copies."""
        scope = latents.LatentScope.current()
        if scope is not None and scope.metrics_are_updated:
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def is_sampled(self) -> bool:
        """Tells whether posterior samples differ."""
        return True

    def draw_outputs(self, x: Any, num_samples: int, seed: Any) -> Any:
        """Returns outputs of posterior samples, `(samples, n, ...)`, as tensors."""
        if not self.is_sampled():
            return ops.expand_dims(self(x, training=False), 0)
        outputs = self.make_sampler(num_samples).sample(x, seed)
        return ops.swapaxes(outputs, 0, 1)

    def make_sampler(self, num_samples: int) -> sampler.Sampler:
        """Returns the sampler of the outputs, which is made once.

        The first call must be outside of traced functions.
        """
        return sampler.make_sampler(
            self, num_samples, "samples", None, mc_dropout=self.mc_dropout
        )

    def _expected_nll(self, y, draws, sample_weight):
        """Returns the mean over samples as the mean over the rows of all samples."""
        y, sample_weight = (
            None if v is None else ops.concatenate([v] * self.num_samples)
            for v in (y, sample_weight)
        )
        draws = ops.reshape(draws, (-1, *draws.shape[2:]))
        return self._likelihood(y, draws, sample_weight)

    def _num_samples(self, value):
        if value is None:
            return self.num_samples
        return validation.integer("num_samples", value, 1, 10**9)

    def predict_on_batch(self, x: Any) -> Any:
        """Calls `predict` on one batch."""
        rows = keras.tree.flatten(x)[0].shape[0]
        return self.predict(x, batch_size=rows, verbose=0)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "num_samples": self.num_samples,
            "num_examples": self.num_examples,
            "num_latent_samples": self.num_latent_samples,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        config = dict(config)
        config["network"] = keras.saving.deserialize_keras_object(
            config["network"], custom_objects=custom_objects
        )
        return cls(**config)
