"""Conversion of class weights to weights of labels."""

import keras
import numpy as np
from keras import ops

from keras_bdl.core import validation


def check(class_weight, num_classes):
    """Returns a checked dict from class index to weight.

    Raises:
        TypeError: if `class_weight` is not a dict.
        ValueError: on unknown classes, or weights below 0.
    """
    if not isinstance(class_weight, dict):
        raise TypeError(
            "Expected `class_weight` to be a dict from class index to weight. "
            f"Received: class_weight={class_weight!r}"
        )
    weights = {}
    for label, weight in class_weight.items():
        index = validation.integer("class_weight", label, least=0)
        if index >= num_classes:
            raise ValueError(
                f"Expected classes from 0 to {num_classes - 1} in `class_weight`. "
                f"Received: class_weight={class_weight!r}"
            )
        weights[index] = validation.number("class_weight", weight, least=0.0)
    return weights


def of_labels(labels, class_weight, num_classes, sample_weight=None):
    """Returns the weight of each label, times `sample_weight`.

    Args:
        labels: array of class indices, `(n, ...)`.
        class_weight: dict; classes that it omits have weight 1.
        num_classes: number of the network's logits.
        sample_weight: None, weights of rows `(n,)`, or weights of labels `(n, ...)`.

    Returns:
        NumPy array with the shape of the indices.
    """
    table = np.ones(num_classes, keras.config.floatx())
    for label, weight in check(class_weight, num_classes).items():
        table[label] = weight
    weights = table[labels.astype("int64")]
    if sample_weight is None:
        return weights
    given = ops.convert_to_numpy(sample_weight)
    if given.ndim == weights.ndim + 1 and given.shape[-1] == 1:
        given = given[..., 0]
    given = given.reshape(given.shape + (1,) * (weights.ndim - given.ndim))
    return weights * given
