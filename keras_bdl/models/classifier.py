"""A Bayesian classifier around any network of logits."""

import keras
import numpy as np
from keras import ops

from keras_bdl import losses, metrics, prediction, sampler, training, validation
from keras_bdl.layers import base
from keras_bdl.ops import uncertainty

PACKAGE = "keras_bdl"


@keras.saving.register_keras_serializable(PACKAGE)
class BayesianClassifier(keras.Model):
    """Categorical likelihood over a network of logits, with a posterior over weights.

    `fit` minimises the negative evidence lower bound per example,
    -E_q log p(y | x, w) + KL(q || p) / N, and reads N off the data. `predict`
    averages probabilities over posterior samples. `model(x)`, and so `export`,
    gives the logits of the posterior-mean network.

    `evaluate` and `val_*` report `loss`, the negative bound with sampled weights,
    and of the posterior predictive `nll` (nats), `accuracy` and `ece` (15
    equal-width bins). In training these are of the one sample of each step.

    Args:
        network: Keras model from inputs to logits `(n, classes)`, at least two
            classes, that contains keras_bdl layers.
        num_samples: posterior samples of `predict` and `evaluate`.
        num_examples: number of training examples; None reads it off the data.
        name, **kwargs: as in `keras.Model`.

    Raises:
        TypeError: if the network is no Keras model.
        ValueError: if nothing in the network is sampled, or its logits have a
            single class.

    Example:

    >>> network = keras.Sequential([
    ...     keras.Input((784,)),
    ...     keras_bdl.VariationalDense(300, activation="relu"),
    ...     keras_bdl.VariationalDense(10),
    ... ])
    >>> classifier = keras_bdl.BayesianClassifier(network)
    >>> classifier.compile("adam")
    >>> classifier.fit(x_train, y_train, epochs=10)
    >>> probabilities = classifier.predict(x_test)  # (n, 10)

    Reference: Blundell, Cornebise, Kavukcuoglu and Wierstra, "Weight uncertainty
    in neural networks", 2015, eq. 1.
    """

    outputs_kind = "logits"

    def __init__(self, network, num_samples=32, num_examples=None, **kwargs):
        super().__init__(autocast=False, **kwargs)  # the network casts itself
        if not isinstance(network, keras.Model):
            raise TypeError(
                "Expected `network` to be a Keras model of logits. "
                f"Received: network={network!r}"
            )
        self.network = network
        self.num_samples = validation.integer("num_samples", num_samples, 1, 10**9)
        self.num_examples = (
            None
            if num_examples is None
            else validation.integer("num_examples", num_examples, least=1)
        )
        self._likelihood = losses.CategoricalNLL()
        self._nll = metrics.NegativeLogLikelihood(name="nll")
        self._accuracy = keras.metrics.Mean(name="accuracy")
        self._ece = metrics.ExpectedCalibrationError(name="ece")
        if network.built:
            self._check_network()
        if self.num_examples is not None:
            training.set_num_examples(network, self.num_examples)

    @property
    def sampled_network(self):
        """What `keras_bdl.predict` samples."""
        return self.network

    def _check_network(self):
        if not base.bayesian_layers(self.network):
            raise ValueError(
                "Expected `network` to have keras_bdl layers; nothing in it is "
                "sampled. "
                f"Received: network={self.network!r}"
            )
        training.check_no_recurrent_cells(self.network)
        shape = getattr(self.network, "output_shape", None)
        if isinstance(shape, tuple) and shape and shape[-1] is not None:
            losses.check_logits(shape[-1])

    def build(self, input_shape):
        if not self.network.built:  # a symbolic call builds subclassed networks too
            self.network(
                keras.tree.map_shape_structure(
                    lambda shape: keras.Input(batch_shape=shape), input_shape
                )
            )
        self._check_network()
        self.built = True

    def call(self, inputs, training=None):
        return self.network(inputs, training=training)

    def compile(
        self, optimizer="adam", loss=None, metrics=None, weighted_metrics=None, **kwargs
    ):
        """Configures training. The loss is the categorical likelihood.

        Args:
            optimizer: Keras optimizer or its name.
            loss: None, or `keras_bdl.losses.CategoricalNLL()`: the likelihood is
                part of the model.
            metrics, weighted_metrics: more metrics, of the logits of the mean
                network (of the sampled one in training). The names "accuracy",
                "nll" and "ece" among them add nothing: those are always reported.
            **kwargs: as in `keras.Model.compile`.

        Raises:
            ValueError: on another loss, `loss_weights`, or a metric object with
                the name of one that is always reported.
        """
        if loss is not None and not isinstance(loss, losses.CategoricalNLL):
            raise ValueError(
                "`BayesianClassifier` has its own likelihood; leave `loss` out, or "
                "compile the network itself as a plain Keras model. "
                f"Received: loss={loss!r}"
            )
        if loss is not None and loss.reduction != self._likelihood.reduction:
            raise ValueError(
                "Expected the reduction 'sum_over_batch_size', the mean over examples "
                "that the KL term is scaled for. "
                f"Received: loss.reduction={loss.reduction!r}"
            )
        if kwargs.get("loss_weights") is not None:
            raise ValueError(
                "`BayesianClassifier` takes no `loss_weights`; its KL is weighted by "
                "the layers' `kl_weight`. "
                f"Received: loss_weights={kwargs['loss_weights']!r}"
            )
        super().compile(
            optimizer=optimizer,
            loss=self._likelihood,
            metrics=self._other_metrics(metrics),
            weighted_metrics=self._other_metrics(weighted_metrics),
            **kwargs,
        )

    def _other_metrics(self, metrics):
        """Metrics of the user's, without names that are reported anyway."""
        if not isinstance(metrics, (list, tuple)):
            metrics = [] if metrics is None else [metrics]
        own = {"acc", *(m.name for m in (self._nll, self._accuracy, self._ece))}
        for metric in metrics:
            if getattr(metric, "name", None) in own:
                raise ValueError(
                    "`BayesianClassifier` reports a metric of this name itself; give "
                    f"yours another. Received: metric={metric.name!r}"
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

        Labels are `(n,)`, `(n, 1)` or one-hot `(n, classes)`.

        Raises:
            ValueError: if the number of examples cannot be told (a generator):
                give `num_examples` to the constructor.
        """
        y = self._class_labels(y)
        validation = kwargs.get("validation_data")
        if isinstance(validation, (tuple, list)) and len(validation) > 1:
            x_val, y_val, *weights = validation
            kwargs["validation_data"] = (x_val, self._class_labels(y_val), *weights)
        if self.num_examples is None:
            self._infer_num_examples(x, kwargs)
        return super().fit(x, y, batch_size=batch_size, epochs=epochs, **kwargs)

    def _infer_num_examples(self, x, options):
        unknown = [
            layer
            for layer in base.bayesian_layers(self.network)
            if layer.num_examples is None
        ]
        if not unknown:
            return
        names = ("validation_split", "validation_data", "steps_per_epoch")
        rows = training.infer_num_examples(
            x,
            **{name: options[name] for name in names if name in options},
        )
        if rows is None:
            raise ValueError(
                "Cannot tell the number of training examples from this data. Give "
                "it as `BayesianClassifier(network, num_examples=n)` or by "
                f"`keras_bdl.set_num_examples(model, n)`. Received: x={x!r}"
            )
        for layer in unknown:
            layer.set_num_examples(rows, inferred=True)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`: loss, nll, accuracy and ece (class docstring)."""
        with training.weights_kept(self):
            return super().evaluate(x, self._class_labels(y), *args, **kwargs)

    def _class_labels(self, y):
        """Labels in an array as indices `(n,)`, unless they are soft.

        One form for all calls, because Keras would trace unequal ranks as unknown.
        Other data, such as a `tf.data.Dataset`, passes through.
        """
        shape = getattr(self.network, "output_shape", None)
        if not isinstance(shape, tuple) or not hasattr(y, "shape"):
            return y
        num_classes = shape[-1]
        labels = ops.convert_to_numpy(y)
        if labels.ndim == len(shape) and labels.shape[-1] == num_classes:
            total = labels.sum(axis=-1)
            if not (labels.min(initial=0) >= 0 and np.allclose(total, 1, atol=1e-3)):
                raise ValueError(
                    "Expected rows of class probabilities, at least 0 with the sum 1; "
                    "labels that hold independently of each other are not one "
                    "categorical variable. Received: labels with row sums from "
                    f"{total.min()} to {total.max()}"
                )
            one_hot = ((labels == 1) | (labels == 0)).all()
            return labels.argmax(axis=-1) if one_hot else labels
        if labels.ndim == len(shape) and labels.shape[-1] == 1:
            labels = labels[..., 0]
        if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
            raise ValueError(
                f"Expected labels from 0 to {num_classes - 1}, one for each of the "
                f"network's {num_classes} logits. Received: labels from "
                f"{labels.min()} to {labels.max()}"
            )
        return labels

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Negative evidence lower bound per example; also updates the metrics."""
        y_pred, sample_weight = losses.unmask(y_pred, sample_weight)
        total = super().compute_loss(x, y, y_pred, sample_weight, training=training)
        if training:
            probabilities = ops.softmax(base.wide(ops.stop_gradient(y_pred)), axis=-1)
        else:
            logits, probabilities = self._sample_logits(x)
            # Puts the expected likelihood in place of that of the mean weights.
            # Taken last: the forward passes above clear the terms of `add_loss`.
            total = total - self._likelihood(y, y_pred, sample_weight)
            total = total + self._expected_nll(y, logits, sample_weight)
        self._update_metrics(y, probabilities, sample_weight)
        return total

    def _sample_logits(self, x):
        """Logits `(samples, n, classes)` and mean probabilities `(n, classes)`."""
        stack = sampler.make_sampler(self, self.num_samples, "samples", None)
        logits = ops.swapaxes(stack.sample(x, seed=0), 0, 1)
        return logits, ops.mean(ops.softmax(base.wide(logits), axis=-1), axis=0)

    def _expected_nll(self, y, logits, sample_weight):
        """Mean over samples, as the mean over the rows of all samples."""
        y, sample_weight = (
            None if v is None else ops.concatenate([v] * self.num_samples)
            for v in (y, sample_weight)
        )
        logits = ops.reshape(logits, (-1, *logits.shape[2:]))
        return self._likelihood(y, logits, sample_weight)

    def _update_metrics(self, y, probabilities, sample_weight):
        labels = uncertainty.class_indices(y, probabilities.shape)
        self._nll.update_state(labels, probabilities, sample_weight)
        hits = ops.equal(ops.cast(ops.argmax(probabilities, axis=-1), "int32"), labels)
        self._accuracy.update_state(
            ops.cast(hits, "float32"), sample_weight=sample_weight
        )
        self._ece.update_state(labels, probabilities, sample_weight)

    def predict(
        self,
        x,
        batch_size=None,
        verbose="auto",
        steps=None,
        callbacks=None,
        num_samples=None,
        seed=None,
    ):
        """Posterior predictive probabilities `(n, classes)`, NumPy.

        Args:
            x, batch_size, verbose, steps, callbacks: as in `keras.Model.predict`.
            num_samples: posterior samples; None takes the constructor's.
            seed: integer for repeatable results.
        """
        return prediction.predict(
            self,
            x,
            self.num_samples if num_samples is None else num_samples,
            batch_size=batch_size,
            steps=steps,
            verbose=verbose,
            callbacks=callbacks,
            seed=seed,
        )

    def predict_on_batch(self, x):
        """`predict` of one batch."""
        rows = keras.tree.flatten(x)[0].shape[0]
        return self.predict(x, batch_size=rows, verbose=0)

    def predict_uncertainty(self, x, num_samples=None, **kwargs):
        """`keras_bdl.predict_uncertainty` of this model: a named tuple.

        Args:
            x: as in `keras.Model.predict`.
            num_samples: posterior samples; None takes the constructor's.
            **kwargs: as in `keras_bdl.predict_uncertainty`.
        """
        return prediction.predict_uncertainty(
            self,
            x,
            self.num_samples if num_samples is None else num_samples,
            **kwargs,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "num_samples": self.num_samples,
            "num_examples": self.num_examples,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["network"] = keras.saving.deserialize_keras_object(
            config["network"], custom_objects=custom_objects
        )
        return cls(**config)
