"""Negative log-likelihoods of classes and of bits."""

from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.event_loss import EventLoss, align_weights, blocks
from keras_bdl.core.stochastic import PACKAGE
from keras_bdl.core.typing import DType, Tensor
from keras_bdl.ops import class_labels, likelihoods

_ROUNDING = 1e-3  # tolerance for probabilities in half precision


@keras.saving.register_keras_serializable(PACKAGE)
class CategoricalNLL(EventLoss):
    """-log softmax(logits)[label], summed over event axes, mean over examples.

    For a soft label it is the cross-entropy, -sum_k y_k log softmax(logits)_k.

    Args:
        reduction, name, dtype: as in `keras.losses.Loss`.
        ignore_class: label of events without a class, such as -1 or 255, or None. As
            in Keras's losses they add nothing, and the mean is over the examples that
            have a class (`num_examples` of Bayesian layers counts these).

    Call arguments:
        y_true: labels `(n,)`, `(n, 1)`, or rows of class probabilities
            `(n, classes)`, one-hot or soft. There may be event axes after n, over
            which the loss is summed.
        y_pred: logits `(n, ..., classes)`.

    The `class_weight` of `keras.Model.fit` never reaches a loss. For labels `(n, T)`
    Keras makes weights of rows, by the argmax over the last axis. Weigh such labels by
    a `sample_weight` `(n, T)`; `BayesianClassifier` does this itself.

    Raises:
        ValueError: if the logits have a single class. Also if values are known and a
            label with a weight other than 0 is not a class or a distribution over
            classes; in traced code (in `fit`) the loss is NaN then.

    Example:

    >>> model.compile("adam", keras_bdl.losses.CategoricalNLL())
    """

    outputs_kind = "logits"

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_nll",
        dtype: DType = None,
        ignore_class: int | None = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.ignore_class = (
            None
            if ignore_class is None
            else validation.integer("ignore_class", ignore_class)
        )

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> Tensor:
        if self.ignore_class is not None:
            kept = self._are_kept(y_true, ops.convert_to_tensor(y_pred).shape)
            kept = ops.reshape(kept, (ops.shape(kept)[0], -1))
            rows = ops.cast(ops.any(kept, axis=-1), self.dtype)
            if self.reduction in ("sum_over_batch_size", "mean"):
                # Keras divides by all rows.
                rows = rows / ops.maximum(ops.mean(rows), 1e-12)
            if sample_weight is None:
                sample_weight = rows
            else:
                weights = ops.cast(sample_weight, self.dtype)
                shape = (-1,) + (1,) * (len(weights.shape) - 1)
                sample_weight = weights * ops.reshape(rows, shape)
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if self.ignore_class is not None:
            labels, *weights = y_true if isinstance(y_true, tuple) else (y_true,)
            kept = ops.cast(self._are_kept(labels, y_pred.shape), y_pred.dtype)
            for weight in weights:
                kept = kept * align_weights(weight, kept)
            y_true = (labels, kept)
        return super().call(y_true, y_pred)

    def _are_kept(self, labels, prediction_shape):
        return class_labels.are_kept(labels, self.ignore_class, prediction_shape)

    def terms(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        check_logits(y_pred.shape[-1])
        labels, logits = class_labels.as_classes(y_true, y_pred, from_logits=True)
        if class_labels.are_rows(labels, logits.shape):
            return -class_labels.mean_over_labels(labels, ops.log_softmax(logits))
        labels = class_labels.class_indices(labels, logits.shape)
        terms = ops.sparse_categorical_crossentropy(
            ops.maximum(labels, 0), logits, from_logits=True
        )
        return ops.where(labels < 0, float("nan"), terms)

    def fill(self, y_true: Tensor, y_pred: Tensor, weights: Tensor) -> Tensor:
        check_logits(y_pred.shape[-1])
        labels, logits = class_labels.as_classes(y_true, y_pred, from_logits=True)
        weights = align_weights(weights, logits[..., 0])
        return class_labels.fill(labels, logits, 0.0, weights)[0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ignore_class": self.ignore_class}


@keras.saving.register_keras_serializable(PACKAGE)
class BernoulliNLL(EventLoss):
    """-log p(y) of independent bits, summed over event axes, mean over examples.

    Args:
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: 0 or 1, `(n, ...)`. A value between them is a probability, for which
            the loss is the cross-entropy.
        y_pred: logits, `(n, ...)`.

    Raises:
        ValueError: if predictions have another width. Also if values are known and a
            target is below 0 or above 1; in traced code the loss is NaN then.
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "bernoulli_nll",
        dtype: DType = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def terms(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y, logits = blocks(y_true, y_pred, 1)
        valid = ops.logical_and(y >= -_ROUNDING, y <= 1.0 + _ROUNDING)
        if validation.is_false(ops.all(valid)):
            raise ValueError(
                "Expected bits or probabilities, from 0 to 1; divide pixels by their "
                "largest value, or use another likelihood. Received: y_true from "
                f"{float(ops.min(y)):.4g} to {float(ops.max(y)):.4g}"
            )
        terms = -likelihoods.bernoulli_log_prob(y, logits)
        return ops.where(valid, terms, float("nan"))

    def fill(self, y_true: Tensor, y_pred: Tensor, weights: Tensor) -> Tensor:
        counted = ops.not_equal(align_weights(weights, y_true), 0.0)
        return ops.where(counted, y_true, ops.zeros_like(y_true))


def check_logits(num_classes: int | None) -> None:
    """Raises an error on a single logit, whose softmax is always 1.

    Raises:
        ValueError: if `num_classes` is 1.
    """
    if num_classes == 1:
        raise ValueError(
            "Expected one logit per class on the last axis; a binary problem has two "
            "classes, so end the network with a layer of 2 units. "
            f"Received: classes={num_classes}"
        )
