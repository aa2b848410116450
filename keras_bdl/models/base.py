"""What the models with a likelihood of their own have in common."""

import contextlib

import keras
from keras import ops

from keras_bdl import losses, metrics
from keras_bdl.conversion import continual, convert
from keras_bdl.core import copies, finding, latents, recovery, validation
from keras_bdl.layers import latent
from keras_bdl.layers.bayesian import bayesian_layers
from keras_bdl.models.batch_checks import CheckedBatches, Problem, require_targets
from keras_bdl.prediction import export, sampler
from keras_bdl.training import num_examples
from keras_bdl.training.data import extent_of, num_training_rows


class LikelihoodModel(CheckedBatches, keras.Model):
    """A network and the likelihood of its outputs, trained by the evidence bound.

    A subclass sets `_likelihood`, a loss of `keras_bdl.losses` of the outputs of
    the model, and `_own_metrics`, names of those it reports unasked; and has, with
    what `CheckedBatches` needs,

        _targets(y): the targets as training takes them, checked.
        _update_metrics(y, draws, sample_weight): from outputs of posterior
            samples, `(samples, n, ...)`.

    Args:
        network: Keras model.
        num_samples: posterior samples of `predict` and `evaluate`.
        num_examples: number of training examples; None reads it off the data.
        num_latent_samples: draws of discrete latent variables for each training
            example, where layers have some with `estimator="score_function"`.
    """

    mc_dropout = False  # whether plain Dropout layers are sampled

    def __init__(
        self, network, num_samples, num_examples, num_latent_samples=4, **kwargs
    ):
        super().__init__(autocast=False, **kwargs)  # the network casts itself
        if not isinstance(network, keras.Model):
            raise TypeError(
                f"Expected `network` to be a Keras model. Received: network={network!r}"
            )
        self.network = network
        self.num_samples = validation.integer("num_samples", num_samples, 1, 10**9)
        self.num_examples = (
            None
            if num_examples is None
            else validation.integer("num_examples", num_examples, least=1)
        )
        self.num_latent_samples = validation.integer(
            "num_latent_samples", num_latent_samples, least=2
        )
        self._depth = None
        self._reports_more = False  # than its own metrics
        self._problem = Problem()
        self._tell_num_examples()

    def _tell_num_examples(self):
        if self.num_examples is not None and bayesian_layers(self.network):
            num_examples.set_num_examples(self.network, self.num_examples)

    @property
    def likelihood_network(self):
        """The network up to what the likelihood takes."""
        return self.network

    @property
    def sampled_network(self):
        """What `keras_bdl.predict` samples."""
        return self.likelihood_network

    def to_keras(self, weights="mean", seed=None):
        """As `keras_bdl.to_keras`: a plain Keras model with the outputs of this one."""
        return convert.to_keras(self.network, weights, seed)

    def prior_from_posterior(self):
        """As `keras_bdl.prior_from_posterior`: a model like this, not compiled."""
        network = continual.prior_from_posterior(self.network)
        config = {**self.get_config(), "num_examples": None}
        copy = type(self)(**{**config, "network": network})
        if self.built and not copy.built:
            copy.build_from_config(self.get_build_config())
        for old, new in zip(*(m._own_weights() for m in (self, copy)), strict=True):
            copies.assign_copy(new, old)
        return copy

    def _own_weights(self):
        """Scales and noise: weights of the model outside of its network."""
        of_network = {id(w) for w in self.network.weights}
        return [w for w in self.weights if id(w) not in of_network]

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """As `keras.Model.export`: what `model(x)` gives.

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
        self._latent_scope(training=True)  # refuses estimators that do not go together
        if self._depth is None and latent.early_exit_blocks(self.network):
            self._depth = metrics.ExpectedDepth()

    def compile(
        self, optimizer="adam", loss=None, metrics=None, weighted_metrics=None, **kwargs
    ):
        """Configures training. The loss is the likelihood of the model.

        Args:
            optimizer: Keras optimizer or its name.
            loss: None: the likelihood is part of the model.
            metrics, weighted_metrics: more metrics (class docstring: of what). Names
                of those that are always reported add nothing.
            **kwargs: as in `keras.Model.compile`.

        Raises:
            ValueError: on another loss, `loss_weights`, or a metric object with
                the name of one that is always reported.
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
        own = self._likelihood  # which an HDF5 file gives to `compile`
        if type(loss) is type(own) and loss.get_config() == own.get_config():
            return
        raise ValueError(
            f"`{type(self).__name__}` has its own likelihood; leave `loss` out, or "
            "compile the network itself as a plain Keras model. "
            f"Received: loss={loss!r}"
        )

    def _other_metrics(self, metrics):
        """Metrics of the user's, without names that are reported anyway."""
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

    def get_compile_config(self):
        config = super().get_compile_config()
        config.pop("loss", None)
        config.pop("loss_weights", None)
        return config

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, y=None, batch_size=None, epochs=1, **kwargs):
        """As `keras.Model.fit`, after reading the number of examples off the data.

        Targets in the forms that the class docstring names. Of arrays `class_weight`
        weighs every label, also beside `sample_weight`.

        Raises:
            ValueError: if the number of examples cannot be told (a generator):
                give `num_examples` to the constructor. On targets that do not fit,
                inputs that are not finite, and weights below 0: of arrays before
                training; of a batch of a data set, which has the loss NaN and changes
                no weight by its gradient, at the end of the epoch, on PyTorch at once.
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
        self.raise_refused()
        return history

    def _weigh_classes(self, x, y, class_weight, kwargs):
        """Puts the weights of classes into `sample_weight`; the rows to train on.

        Those that `validation_split` sets apart are not weighted, as in Keras.
        """
        weights = kwargs.get("sample_weight")
        share = kwargs.pop("validation_split", 0.0)
        if share and kwargs.get("validation_data") is None and y is not None:
            left = num_training_rows(len(y), share)
            parts = x, y, weights
            x, y, weights = _rows(parts, slice(left))
            kwargs["validation_data"] = _rows(parts, slice(left, None))
            if kwargs["validation_data"][2] is None:
                kwargs["validation_data"] = kwargs["validation_data"][:2]
        kwargs["sample_weight"] = self._label_weights(y, class_weight, weights)
        return x, y

    def _prepare_fit(self, x, y, extent):
        """Called before training, when the targets are known to be right.

        `extent` has those arguments of `fit` that say which rows are trained on.
        """

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`; what it reports is in the class docstring."""
        names = ("batch_size", "verbose", "sample_weight")
        options = {**dict(zip(names, args)), **kwargs}
        y, _ = self._checked_arrays(x, y, options.get("sample_weight"))
        with recovery.weights_kept(self):
            result = super().evaluate(x, y, *args, **kwargs)
        self.raise_refused()
        return result

    def train_step(self, *args):
        with self._latent_scope(training=True):
            return super().train_step(*args)

    def test_step(self, *args):
        with self._latent_scope(training=False):
            return super().test_step(*args)

    def _latent_scope(self, training):
        """Where layers with latent variables tell what `compute_loss` needs."""
        layers = latent.latent_layers(self.network)
        if not layers:
            return contextlib.nullcontext()
        estimator = latent.discrete_estimator(layers) if training else None
        copies = 1
        if estimator == "score_function":
            copies = self.num_latent_samples
        elif estimator == "enumerate":
            copies = latent.num_combinations(
                [x for x in layers if x.estimator == estimator]
            )
        return latents.LatentScope(copies, estimator)

    def run_network(self, inputs, training):
        """The network on the batch, or on copies of it with a state of the latents."""
        scope = latents.LatentScope.current()
        if scope is not None:
            inputs = scope.copy(inputs)
        return self.likelihood_network(inputs, training=training)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Negative evidence lower bound per example; also updates the metrics."""
        require_targets(y)
        loss = self._bound(x, y, y_pred, sample_weight, training)
        return self.refuse_batch(loss, y_pred)

    def _bound(self, x, y, y_pred, sample_weight, training):
        scope = latents.LatentScope.current()
        if scope is not None and self._depth is not None:
            self._depth.update_state(scope.mean_depth())
        if scope is not None and scope.estimator is not None:
            return self._compute_latent_loss(scope, x, y, y_pred, sample_weight)
        y_pred, sample_weight = losses.unmask(y_pred, sample_weight)
        total = super().compute_loss(x, y, y_pred, sample_weight, training=training)
        if training or not self.is_sampled():
            draws = ops.expand_dims(ops.stop_gradient(y_pred), 0)
        else:
            draws = self.draw_outputs(x, self.num_samples, seed=0)
            # Puts the expected likelihood in place of that of the mean weights.
            # Taken last: the forward passes above clear the terms of `add_loss`.
            total = total - self._likelihood(y, y_pred, sample_weight)
            total = total + self._expected_nll(y, draws, sample_weight)
        self._update_metrics(y, draws, sample_weight)
        return total

    def _compute_latent_loss(self, scope, x, y, y_pred, sample_weight):
        """The loss of copies of the batch, `y_pred` of `(copies * n, ...)`."""
        labels = scope.copy(y)
        weights = None if sample_weight is None else scope.copy(sample_weight)
        y_pred, weights = losses.unmask(y_pred, weights)
        if weights is not None:  # those of the mask too
            sample_weight = scope.first_copy(weights)
        mean = ops.stop_gradient(scope.mean(y_pred))
        # Here, where the probabilities of the copies are at hand.
        self.compute_metrics(x, y, mean, sample_weight)
        scope.metrics_are_updated = True
        self._update_metrics(y, ops.expand_dims(mean, 0), sample_weight)
        total = super().compute_loss(x, labels, y_pred, weights, training=True)
        # Keras weighs all copies alike: their losses are put in again.
        total = total - self._likelihood(labels, y_pred, weights)
        return total + scope.loss(self._likelihood.row_losses(labels, y_pred, weights))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """The metrics of `compile`; with copies of the batch, of their mean outputs."""
        scope = latents.LatentScope.current()
        if scope is not None and scope.metrics_are_updated:
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def is_sampled(self):
        """Whether posterior samples differ."""
        return True

    def draw_outputs(self, x, num_samples, seed):
        """Outputs of posterior samples, `(samples, n, ...)`, as tensors."""
        if not self.is_sampled():
            return ops.expand_dims(self(x, training=False), 0)
        outputs = self.make_sampler(num_samples).sample(x, seed)
        return ops.swapaxes(outputs, 0, 1)

    def make_sampler(self, num_samples):
        """What samples the outputs, made once. First outside of traced functions."""
        return sampler.make_sampler(
            self, num_samples, "samples", None, mc_dropout=self.mc_dropout
        )

    def _expected_nll(self, y, draws, sample_weight):
        """Mean over samples, as the mean over the rows of all samples."""
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

    def predict_on_batch(self, x):
        """`predict` of one batch."""
        rows = keras.tree.flatten(x)[0].shape[0]
        return self.predict(x, batch_size=rows, verbose=0)

    def get_config(self):
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "num_samples": self.num_samples,
            "num_examples": self.num_examples,
            "num_latent_samples": self.num_latent_samples,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["network"] = keras.saving.deserialize_keras_object(
            config["network"], custom_objects=custom_objects
        )
        return cls(**config)


def _rows(parts, rows):
    """The rows of a slice of every array in a nest."""
    return keras.tree.map_structure(
        lambda part: None if part is None else part[rows], parts, none_is_leaf=True
    )
