"""Negative log-likelihoods as Keras losses, in nats per example."""

import keras
from keras import ops

from keras_bdl.ops import uncertainty

PACKAGE = "keras_bdl"


@keras.saving.register_keras_serializable(PACKAGE)
class CategoricalNLL(keras.losses.Loss):
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

    def call(self, y_true, y_pred):
        num_classes = y_pred.shape[-1]
        check_logits(num_classes)
        if len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == num_classes:
            terms = -ops.sum(y_true * ops.log_softmax(y_pred, axis=-1), axis=-1)
        else:
            labels = uncertainty.class_indices(y_true, y_pred.shape)
            terms = ops.sparse_categorical_crossentropy(
                labels, y_pred, from_logits=True
            )
        return ops.sum(ops.reshape(terms, (ops.shape(terms)[0], -1)), axis=-1)


def check_logits(num_classes):
    """Refuses a single logit, of which a softmax is always 1."""
    if num_classes == 1:
        raise ValueError(
            "Expected one logit per class on the last axis; a binary problem has two "
            "classes: end the network in a layer of 2 units. "
            f"Received: classes={num_classes}"
        )
