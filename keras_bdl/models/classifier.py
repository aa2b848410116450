"""A Bayesian classifier around any network of logits."""

import types
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bdl import losses, metrics
from keras_bdl.core import dtypes, finding, stochastic
from keras_bdl.core.dtypes import to_numpy
from keras_bdl.early_exit import depth
from keras_bdl.early_exit.depth import DepthPosterior
from keras_bdl.graphs import heads
from keras_bdl.models import batch_checks, unknown_ranks
from keras_bdl.models.base import LikelihoodModel
from keras_bdl.posteriors import Posterior
from keras_bdl.prediction import predict
from keras_bdl.prediction.predict import ClassificationUncertainty
from keras_bdl.training import class_weights

PACKAGE = "keras_bdl"


@keras.saving.register_keras_serializable(PACKAGE)
class BayesianClassifier(LikelihoodModel):
    """Categorical likelihood over a network of logits, with a posterior over weights.

    `fit` minimises the negative evidence lower bound per example,
    -E_q log p(y | x, w) + KL(q || p) / N, and reads N off the data. `predict`
    averages probabilities over posterior samples. `model(x)`, and so `export`,
    gives the logits of the posterior-mean network.

    A network may end in softmax, or in one unit with sigmoid for two classes. Its
    logits are then computed from its outputs, as log p and (0, log p - log(1 - p)), and
    `to_keras` gives it unchanged. A network without a graph, such as a subclass with
    its own `call`, must give logits. Training refuses it if it gives probabilities.

    `evaluate` and `val_*` report `loss`, the negative bound with sampled weights. They
    also report `nll` (nats), `accuracy` and `ece` (15 equal-width bins) of the
    posterior predictive. In training these are of the one sample of each step. More
    metrics in `compile` are of the logits of the mean network (in training, of the
    sampled one). Labels are `(n,)`, `(n, 1)`, one-hot `(n, classes)` or rows of class
    probabilities, and such metrics see them in this form. For soft labels `nll` is the
    cross-entropy, and `accuracy` counts the likeliest class. A callback that watches
    `val_nll`, `val_ece` or `val_accuracy` needs its `mode`, "min" or "max", because
    Keras knows it only for metrics in `compile`.

    Args:
        network: Keras model from inputs to logits `(n, classes)` of at least two
            classes, or to their softmax, that contains keras_bdl layers; or a plain
            one, beside `posterior`.
        num_samples: number of posterior samples of `predict` and `evaluate`.
        num_examples: number of training examples; None reads it off the data.
        posterior: "gaussian" or another posterior for the weights of a plain network,
            of which `to_bayesian` makes a copy. Its weights are the means.
        name, **kwargs: as in `keras.Model`.

    Raises:
        TypeError: if the network is not a Keras model.
        ValueError: if nothing in the network is sampled, if its logits have a single
            class, or if it ends in another activation than softmax.

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
    _own_metrics = ("nll", "accuracy", "acc", "ece")

    def __init__(
        self,
        network: keras.Model,
        num_samples: int = 32,
        num_examples: int | None = None,
        posterior: str | Posterior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            network, num_samples, num_examples, posterior=posterior, **kwargs
        )
        network = self.network
        self._likelihood = losses.CategoricalNLL()
        self._nll = metrics.NegativeLogLikelihood(name="nll")
        self._accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        self._ece = metrics.ExpectedCalibrationError(name="ece")
        # Keras does not track or save what is in a namespace.
        self._made = types.SimpleNamespace(network=network)
        if finding.is_graph(network):
            self.build(network.input_shape)
        elif network.built:
            self._check_network()

    def _check_network(self):
        if not stochastic.stochastic_layers(self.network):
            raise ValueError(
                "Expected `network` to have keras_bdl layers; nothing in it is "
                'sampled. `posterior="gaussian"` gives its weights a posterior. '
                f"Received: network={self.network!r}"
            )
        stochastic.check_no_recurrent_cells(self.network)
        outputs = getattr(self.network, "outputs", None)
        if outputs and len(keras.tree.flatten(outputs)) > 1:
            raise ValueError(
                "Expected the outputs of `network` to be one tensor of logits "
                "`(n, ..., classes)`; make a model of each. "
                f"Received: {len(keras.tree.flatten(outputs))} outputs"
            )
        self._made.network = heads.logits_network(self.network)
        shape = self._logits_shape()
        if shape and shape[-1] is not None:
            losses.check_logits(shape[-1])

    @property
    def likelihood_network(self) -> keras.Model:
        """The network with logits in place of a final softmax or sigmoid."""
        return self._made.network

    def _logits_shape(self):
        shape = getattr(self.likelihood_network, "output_shape", None)
        return shape if isinstance(shape, tuple) else None

    def build(self, input_shape: Any) -> None:
        self._build_network(input_shape)
        self._check_network()
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.run_network(inputs, training)

    def _check_loss(self, loss):
        if not isinstance(loss, losses.CategoricalNLL):
            super()._check_loss(loss)
        if loss.ignore_class is not None:
            raise ValueError(
                "Expected labels for all rows, because the number of examples counts "
                "them; leave rows without a class out of the data, or give them the "
                f"sample weight 0. Received: loss.ignore_class={loss.ignore_class!r}"
            )
        if loss.reduction != self._likelihood.reduction:
            raise ValueError(
                "Expected the reduction 'sum_over_batch_size', the mean over examples "
                "that the KL term is scaled for. "
                f"Received: loss.reduction={loss.reduction!r}"
            )

    def _targets(self, y):
        """Returns the labels in an array as indices `(n,)`, unless they are soft.

        All calls use this form, because Keras would trace different ranks as unknown.
        One-hot labels stay if metrics of the user may need them. Other data, such as a
        `tf.data.Dataset`, are returned unchanged.
        """
        shape = self._logits_shape()
        if shape is None or not hasattr(y, "shape"):
            return y
        num_classes = shape[-1]
        labels = to_numpy(y)
        if labels.dtype.kind not in "biuf":
            _refuse_dtype(labels.dtype)
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise ValueError(
                "Expected finite labels. Received: labels with "
                f"{(~np.isfinite(labels)).sum()} values NaN or infinite"
            )
        if labels.ndim == len(shape) and labels.shape[-1] == num_classes:
            total = labels.sum(axis=-1)
            if not (labels.min(initial=0) >= 0 and np.allclose(total, 1, atol=1e-3)):
                raise ValueError(
                    "Expected rows of class probabilities, at least 0 with the sum 1; "
                    "independent labels are not one categorical variable. "
                    "Received: labels with row sums from "
                    f"{total.min()} to {total.max()}"
                )
            soft = not ((labels == 1) | (labels == 0)).all()
            return labels if soft or self._reports_more else labels.argmax(axis=-1)
        if labels.ndim == len(shape) and labels.shape[-1] == 1:
            labels = labels[..., 0]
        if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
            raise ValueError(
                f"Expected labels from 0 to {num_classes - 1}, one for each of the "
                f"network's {num_classes} logits. Received: labels from "
                f"{labels.min()} to {labels.max()}"
            )
        if (labels != labels.astype("int64")).any():
            raise ValueError(
                "Expected labels as whole numbers, or rows of class probabilities "
                f"`(n, {num_classes})`. Received: labels such as "
                f"{labels[labels != labels.astype('int64')][0]}"
            )
        return labels

    def _label_weights(self, y, class_weight, sample_weight):
        shape = self._logits_shape()
        if not hasattr(y, "shape") or shape is None:
            raise ValueError(
                "Expected arrays x and y with `class_weight`, and a network that "
                "knows its outputs; give the weights of labels as the third part of "
                "each batch, or as `sample_weight`. Received: y of type "
                f"{type(y).__name__}, class_weight={class_weight!r}"
            )
        labels = self._targets(y)
        if labels.ndim == len(shape):
            labels = labels.argmax(axis=-1)
        return class_weights.of_labels(labels, class_weight, shape[-1], sample_weight)

    def _known_rank(self, y, sample_weight):
        shape = self._logits_shape()
        if shape is None:
            return y, sample_weight
        return unknown_ranks.of_classes(y, sample_weight, shape)

    def _target_problems(self, y):
        shape = self._logits_shape()
        if keras.backend.standardize_dtype(y.dtype) in ("string", "complex64"):
            _refuse_dtype(y.dtype)
        if shape is None:
            return ()
        y = ops.cast(y, "float32")
        if len(y.shape) == len(shape) and y.shape[-1] == shape[-1]:
            off = ops.abs(ops.sum(y, axis=-1) - 1.0)
            right = ops.logical_and(ops.all(y >= 0.0), ops.all(off <= 1e-3))
            return ((ops.logical_not(right), batch_checks.CLASS_PROBABILITIES),)
        right = ops.logical_and(y >= 0.0, y < shape[-1])
        right = ops.all(ops.logical_and(right, y == ops.round(y)))
        return ((ops.logical_not(right), batch_checks.LABELS),)

    def _output_problems(self, y_pred):
        """Finds the outputs of a softmax that `heads` did not see in the graph."""
        wide = dtypes.wide(y_pred)
        sums = ops.abs(ops.sum(wide, axis=-1) - 1.0)
        narrow = keras.backend.standardize_dtype(y_pred.dtype) != wide.dtype
        of_softmax = ops.logical_and(
            ops.all(wide >= 0.0), ops.all(sums < (1e-2 if narrow else 1e-5))
        )
        several = ops.size(sums) >= 8  # with a few rows it may be chance
        return ((ops.logical_and(of_softmax, several), batch_checks.NO_LOGITS),)

    def _update_metrics(self, y, draws, sample_weight):
        probabilities = ops.mean(ops.softmax(dtypes.wide(draws), axis=-1), axis=0)
        self._nll.update_state(y, probabilities, sample_weight)
        self._ece.update_state(y, probabilities, sample_weight)
        if len(y.shape) == len(probabilities.shape) and y.shape[-1] != 1:
            # A soft label counts as its likeliest class, as in Keras.
            y = ops.argmax(y, axis=-1)
        self._accuracy.update_state(y, probabilities, sample_weight)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        steps: int | None = None,
        callbacks: list[keras.callbacks.Callback] | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """Returns posterior predictive probabilities `(n, classes)`, NumPy.

        Args:
            x, batch_size, verbose, steps, callbacks: as in `keras.Model.predict`.
            num_samples: number of posterior samples, or None for the constructor's.
            seed: integer for repeatable results.
        """
        return predict.predict(
            self,
            x,
            self._num_samples(num_samples),
            batch_size=batch_size,
            steps=steps,
            verbose=verbose,
            callbacks=callbacks,
            seed=seed,
        )

    def predict_uncertainty(
        self, x: Any, num_samples: int | None = None, **kwargs: Any
    ) -> ClassificationUncertainty:
        """Returns the predictive and its uncertainty by source, in nats.

        Args:
            x: as in `keras.Model.predict`.
            num_samples: number of posterior samples, or None for the constructor's.
            **kwargs: as in `keras_bdl.predict_uncertainty`.

        Returns:
            `ClassificationUncertainty`, a named tuple of NumPy arrays.
        """
        return predict.predict_uncertainty(
            self,
            x,
            self._num_samples(num_samples),
            **kwargs,
        )

    def predict_depth_posterior(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        num_samples: int | None = None,
        seed: int | None = None,
    ) -> DepthPosterior:
        """Returns the joint posterior of label and depth of early-exit blocks.

        It runs all depths. p(y, z | x) is proportional to p(y | x, z) p(z), with the
        geometric prior of each block. Its marginal in z is that prior, so only its mode
        adapts to the input. A block that runs unit by unit may stop once the mode is
        known, at the latest when max_y p(y | x, l) >= exp(-prior_rate).

        Args:
            x, batch_size, verbose: as in `keras.Model.predict`.
            num_samples: number of posterior samples of the weights, if they have a
                posterior, or None for the constructor's.
            seed: integer for repeatable results.

        Returns:
            `DepthPosterior`, a named tuple of NumPy arrays.

        Raises:
            ValueError: if the network has no early-exit block, more than 64
                combinations of depths, or a label for each of several positions.

        Example:

        >>> result = classifier.predict_depth_posterior(x_test)
        >>> (result.label == y_test).mean(), result.exact_stop.mean()
        """
        return depth.depth_posterior(
            self,
            self.likelihood_network,
            x,
            self._num_samples(num_samples),
            batch_size=batch_size,
            verbose=verbose,
            seed=seed,
        )


def _refuse_dtype(dtype):
    raise TypeError(
        "Expected labels as class indices or one-hot; `keras.layers.StringLookup` "
        f"makes indices of words. Received: labels of dtype {dtype}"
    )
