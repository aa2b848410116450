"""Negative log-likelihoods as Keras losses, in nats per example."""

import keras
from keras import ops

from keras_bdl.ops import uncertainty

PACKAGE = "keras_bdl"


class EventLoss(keras.losses.Loss):
    """Summed over event axes (positions, outputs), mean over examples.

    Subclasses implement `terms(y_true, y_pred)`, one value per event: `(n, ...)`.
    Weights `(n,)` count examples, weights `(n, ...)` and Keras masks count events.
    """

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_pred, weights = unmask(y_pred, sample_weight)
        if weights is not None and len(ops.shape(weights)) > 1:
            # Taken in `call`, before events are summed; Keras weights only rows.
            return super().__call__((y_true, weights), y_pred)
        return super().__call__(y_true, y_pred, weights)

    def call(self, y_true, y_pred):
        weights = None
        if isinstance(y_true, tuple):
            y_true, weights = y_true
        terms = self.terms(y_true, y_pred)
        if weights is not None:
            terms = terms * align_weights(weights, terms)
        return ops.sum(ops.reshape(terms, (ops.shape(terms)[0], -1)), axis=-1)


def unmask(y_pred, sample_weight):
    """Predictions without their Keras mask, and weights that are 0 where it was."""
    mask = getattr(y_pred, "_keras_mask", None)
    if mask is None:
        return y_pred, sample_weight
    mask = ops.cast(mask, "float32")
    if sample_weight is not None:
        mask = mask * align_weights(sample_weight, mask)
    return ops.copy(y_pred), mask


def align_weights(sample_weight, values):
    """Weights in the shape of `values`: those of rows hold for all their events."""
    weights = ops.cast(ops.convert_to_tensor(sample_weight), values.dtype)
    num_axes = len(values.shape)
    if len(weights.shape) == num_axes + 1 and weights.shape[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    while len(weights.shape) < num_axes:
        weights = ops.expand_dims(weights, -1)
    return ops.broadcast_to(weights, ops.shape(values))


@keras.saving.register_keras_serializable(PACKAGE)
class CategoricalNLL(EventLoss):
    """-log softmax(logits)[label], summed over event axes, mean over examples.

    Args:
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: labels `(n,)`, `(n, 1)` or one-hot `(n, classes)`; likewise with
            event axes after n, over which the loss is summed.
        y_pred: logits `(n, ..., classes)`.

    Raises:
        ValueError: if the logits have a single class.

    Example:

    >>> model.compile("adam", keras_bdl.losses.CategoricalNLL())
    """

    def __init__(
        self, reduction="sum_over_batch_size", name="categorical_nll", dtype=None
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def terms(self, y_true, y_pred):
        num_classes = y_pred.shape[-1]
        check_logits(num_classes)
        if len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == num_classes:
            return -ops.sum(y_true * ops.log_softmax(y_pred, axis=-1), axis=-1)
        labels = uncertainty.class_indices(y_true, y_pred.shape)
        return ops.sparse_categorical_crossentropy(labels, y_pred, from_logits=True)


def check_logits(num_classes):
    """Refuses a single logit, of which a softmax is always 1."""
    if num_classes == 1:
        raise ValueError(
            "Expected one logit per class on the last axis; a binary problem has two "
            "classes: end the network in a layer of 2 units. "
            f"Received: classes={num_classes}"
        )
