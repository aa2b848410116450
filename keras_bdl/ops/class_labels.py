"""Labels and predictions of classes, in all their forms.

Predictions are `(..., k)`; those of a binary model are `(..., 1)`, for class 1 alone.
Labels are indices `(...)` or `(..., 1)`, or rows `(..., k)` of class probabilities,
one-hot or soft. With a binary model labels are P(class 1), from 0 to 1.

Invalid labels raise an error where values are known, and give NaN in traced code.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from keras import backend, ops

from keras_bdl.core import validation
from keras_bdl.core.typing import Tensor

__all__ = [
    "align",
    "are_kept",
    "are_rows",
    "as_classes",
    "class_indices",
    "class_probabilities",
    "fill",
    "label_probabilities",
    "mean_over_labels",
    "of_all_classes",
    "probability_of",
    "wide",
]

# The sum of probabilities may differ from 1 by this, in bfloat16 or after rounding.
_TOLERANCE = 0.02

_Shape: TypeAlias = Sequence[int | None]


def wide(x: Tensor) -> Tensor:
    """Casts a tensor to float32; float64 stays float64."""
    x = ops.convert_to_tensor(x)
    if backend.standardize_dtype(x.dtype) == "float64":
        return x
    return ops.cast(x, "float32")


def of_all_classes(predictions: Tensor, from_logits: bool = False) -> Tensor:
    """Returns predictions `(..., k)` of k >= 2 classes, also for a binary model."""
    predictions = wide(predictions)
    if predictions.shape[-1] != 1:
        return predictions
    first = ops.zeros_like(predictions) if from_logits else 1.0 - predictions
    return ops.concatenate([first, predictions], axis=-1)


def class_probabilities(predictions: Tensor) -> Tensor:
    """Returns probabilities `(..., k)` as `of_all_classes`; rows must sum to 1.

    Rows that are not a distribution give NaN in traced code.

    Raises:
        ValueError: if values are known and a row is not a distribution.
    """
    p = of_all_classes(predictions)
    in_range = ops.logical_not(ops.min(p, axis=-1) < -_TOLERANCE)  # NaN stays NaN
    near = ops.logical_not(ops.abs(ops.sum(p, axis=-1) - 1.0) > _TOLERANCE)
    valid = ops.logical_and(in_range, near)
    if validation.is_false(ops.all(_pass(valid, p))):
        wrong = ops.convert_to_numpy(p)[~ops.convert_to_numpy(valid)]
        raise ValueError(
            "Expected rows of probabilities, each at least 0 and with the sum 1; a "
            "metric takes logits by `from_logits=True`, and probabilities of binary "
            f"labels as `(..., 1)`. Received: probabilities such as {wrong[0]}"
        )
    return ops.where(ops.expand_dims(valid, -1), p, float("nan"))


def as_classes(
    labels: Tensor, predictions: Tensor, from_logits: bool = False
) -> tuple[Tensor, Tensor]:
    """Converts labels and predictions of classes to their common forms.

    Args:
        labels, predictions: as described at the top of this module. Predictions `(n,)`
            with labels `(n,)` or `(n, 1)` are those of a binary model.
        from_logits: whether predictions are logits; otherwise they are probabilities.

    Returns:
        Labels as indices `(...)` or rows `(..., k)`, and predictions `(..., k)`.
    """
    predictions = wide(predictions)
    labels = _as_tensor(labels)
    if len(predictions.shape) == 1 and len(labels.shape):
        predictions = ops.expand_dims(predictions, -1)
    is_binary = predictions.shape[-1] == 1
    predictions = of_all_classes(predictions, from_logits)
    labels = align(labels, predictions.shape)
    if is_binary and not are_rows(labels, predictions.shape):
        labels = ops.cast(labels, predictions.dtype)
        labels = ops.stack([1.0 - labels, labels], axis=-1)
    return labels, predictions


def are_rows(labels: Tensor, prediction_shape: _Shape) -> bool:
    """Whether labels are rows of class probabilities rather than indices."""
    return len(labels.shape) == len(prediction_shape)


def _as_tensor(labels):
    """Converts labels to an int32, float32 or float64 tensor."""
    if not ops.is_tensor(labels):
        labels = np.asarray(labels)
    try:
        dtype = backend.standardize_dtype(labels.dtype)
    except ValueError:  # no tensor has this dtype
        dtype = str(labels.dtype)
    if "float" in dtype:
        return wide(labels)
    if "int" in dtype or dtype == "bool":
        return ops.cast(labels, "int32")  # uint8 has no -1
    raise TypeError(
        "Expected labels as numbers: class indices or rows of class probabilities; "
        "`keras.layers.StringLookup` converts words to indices. "
        f"Received: labels of dtype {dtype}"
    )


def align(labels: Tensor, prediction_shape: _Shape) -> Tensor:
    """Returns labels as indices `prediction_shape[:-1]` or rows `prediction_shape`.

    Raises:
        ValueError: if the labels have neither shape.
    """
    labels = _as_tensor(labels)
    sizes = tuple(prediction_shape)
    if are_rows(labels, sizes) and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    if are_rows(labels, sizes):
        labels = wide(labels)
        if labels.shape[-1] is None:  # refuses a column of indices
            labels = ops.reshape(labels, (*ops.shape(labels)[:-1], sizes[-1]))
    else:
        sizes = sizes[:-1]
    fits = len(labels.shape) == len(sizes) and all(
        None in pair or pair[0] == pair[1] for pair in zip(labels.shape, sizes)
    )
    if not fits:
        raise ValueError(
            f"Expected labels as indices of shape {tuple(prediction_shape)[:-1]}, or "
            f"as rows of probabilities or one-hot over {prediction_shape[-1]} classes. "
            f"Received: labels of shape {tuple(labels.shape)}"
        )
    return labels


def are_kept(labels: Tensor, ignore_class: int, prediction_shape: _Shape) -> Tensor:
    """Returns bools `prediction_shape[:-1]`: whether a label is not `ignore_class`.

    Raises:
        ValueError: if the labels are rows of class probabilities.
    """
    labels = align(labels, prediction_shape)
    if are_rows(labels, prediction_shape):
        raise ValueError(
            "Expected labels as class indices with `ignore_class`, which is a class "
            "index; give a sample weight of 0 to other rows that are not to count. "
            f"Received: labels of shape {tuple(labels.shape)}"
        )
    return ops.not_equal(labels, ignore_class)


def fill(
    labels: Tensor, predictions: Tensor, prediction: float, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Replaces the labels and predictions of rows of weight 0 by valid ones.

    Such rows may hold -1, NaN or padding.

    Args:
        labels, predictions: as `as_classes` returns them; labels may be None.
        prediction: new prediction of all classes of such a row.
        weights: weights of rows, `(...)`.

    Returns:
        Labels and predictions.
    """
    counted = ops.not_equal(weights, 0.0)
    row = ops.expand_dims(counted, -1)
    if labels is not None:
        labels = (
            ops.where(row, labels, 1 / predictions.shape[-1])
            if are_rows(labels, predictions.shape)
            else ops.where(counted, labels, ops.zeros_like(labels))
        )
    return labels, ops.where(row, predictions, prediction)


def class_indices(labels: Tensor, prediction_shape: _Shape) -> Tensor:
    """Returns labels as int32 class indices of shape `prediction_shape[:-1]`.

    Args:
        labels: indices of that shape, or with a last axis of 1, or one-hot.
        prediction_shape: shape of the predictions, classes last.

    Returns:
        Indices; in traced code an invalid label gives -1.

    Raises:
        ValueError: if values are known and a label is not exactly one class.
    """
    labels = align(labels, prediction_shape)
    valid = _are_labels(labels, prediction_shape)
    if are_rows(labels, prediction_shape):
        one_hot = ops.max(labels, axis=-1) >= 1.0 - _TOLERANCE
        if validation.is_false(ops.all(one_hot)):
            raise ValueError(
                "Expected labels of one class each, as an index or one-hot. Received: "
                f"soft labels of shape {tuple(labels.shape)}"
            )
        valid = ops.logical_and(valid, one_hot)
        labels = ops.argmax(labels, axis=-1)
    return ops.where(valid, ops.cast(labels, "int32"), -1)


def mean_over_labels(labels: Tensor, values: Tensor) -> Tensor:
    """Computes sum_k P(label = k) values_k, or `values[label]` for label indices.

    Args:
        labels: as `as_classes` returns them.
        values: `(..., k)`.
    """
    if are_rows(labels, values.shape):
        labels = label_probabilities(labels, values.shape, values.dtype)
        # Here 0 times minus infinity is 0.
        terms = ops.where(ops.equal(labels, 0.0), 0.0, labels * values)
        return ops.sum(terms, axis=-1)
    labels = class_indices(labels, values.shape)
    index = ops.expand_dims(ops.maximum(labels, 0), -1)
    chosen = ops.squeeze(ops.take_along_axis(values, index, axis=-1), axis=-1)
    return ops.where(labels < 0, float("nan"), chosen)


def label_probabilities(labels: Tensor, prediction_shape: _Shape, dtype: str) -> Tensor:
    """Returns labels as rows of class probabilities, of shape `prediction_shape`."""
    if not are_rows(labels, prediction_shape):
        labels = class_indices(labels, prediction_shape)
        valid = labels >= 0
        rows = ops.one_hot(ops.maximum(labels, 0), prediction_shape[-1], dtype=dtype)
    else:
        valid = _are_labels(labels, prediction_shape)
        rows = ops.cast(labels, dtype)
    return ops.where(ops.expand_dims(valid, -1), rows, float("nan"))


def probability_of(
    classes: Tensor, labels: Tensor, prediction_shape: _Shape, dtype: str
) -> Tensor:
    """Computes P(label = class) for one class of each row.

    It is 0 or 1 if labels are indices or one-hot.
    """
    if are_rows(labels, prediction_shape):
        rows = label_probabilities(labels, prediction_shape, dtype)
        index = ops.expand_dims(classes, -1)
        return ops.squeeze(ops.take_along_axis(rows, index, axis=-1), axis=-1)
    labels = class_indices(labels, prediction_shape)
    hit = ops.cast(ops.equal(ops.cast(classes, "int32"), labels), dtype)
    return ops.where(labels < 0, float("nan"), hit)


def _are_labels(labels, prediction_shape):
    """Returns bools `prediction_shape[:-1]`: whether labels are valid.

    Raises:
        ValueError: if values are known and a label is invalid.
    """
    if are_rows(labels, prediction_shape):
        near = ops.abs(ops.sum(labels, axis=-1) - 1.0) <= _TOLERANCE
        valid = ops.logical_and(near, ops.min(labels, axis=-1) >= -_TOLERANCE)
        passed = _pass(valid, labels)
    else:
        valid = labels >= 0
        if prediction_shape[-1] is not None:
            valid = ops.logical_and(valid, labels < prediction_shape[-1])
        if "float" in backend.standardize_dtype(labels.dtype):
            valid = ops.logical_and(valid, ops.equal(labels, ops.floor(labels)))
        passed = valid
    if validation.is_false(ops.all(passed)):
        _refuse(
            *(ops.convert_to_numpy(x) for x in (labels, valid)), prediction_shape[-1]
        )
    return valid


def _pass(valid, rows):
    """Returns which rows pass: valid rows, and rows of ones.

    On PyTorch Keras may call metrics on tensors of ones, to infer shapes.
    """
    return ops.logical_or(valid, ops.all(ops.equal(rows, 1.0), axis=-1))


def _refuse(labels, valid, num_classes):
    wrong = labels[~valid]
    if labels.ndim > valid.ndim:
        raise ValueError(
            "Expected labels as class indices, or as rows of class probabilities, each "
            "at least 0 and with the sum 1. Several independent labels of a row are "
            "not a distribution over classes: score each as a binary one, with "
            f"predictions `(..., labels, 1)`. Received: labels such as {wrong[0]}"
        )
    raise ValueError(
        f"Expected labels as whole numbers from 0 to {num_classes - 1}; exclude rows "
        "without a class by `ignore_class` or a sample weight of 0. "
        f"Received: labels such as {wrong[0]}"
    )
