"""Setting the number of training examples, and inferring it from the data."""

import warnings
from typing import Any

import keras

from keras_bdl.core import stochastic, validation
from keras_bdl.layers.bayesian import counted_layers
from keras_bdl.training.data import num_training_rows

__all__ = ["infer_num_examples", "set_num_examples", "tell_num_examples"]


def set_num_examples(
    model: keras.layers.Layer, num_examples: int
) -> keras.layers.Layer:
    """Sets the number N of training examples in every Bayesian layer of a model.

    Args:
        model: a Keras model or layer that contains keras_bdl layers.
        num_examples: positive integer.

    Returns:
        The model.

    Raises:
        ValueError: if the model has no Bayesian layer or N is below 1.
        TypeError: if N is not an integer.

    Example:

    >>> keras_bdl.set_num_examples(model, len(x_train))
    """
    num_examples = validation.integer("num_examples", num_examples, least=1)
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            f"Expected `model` to be a Keras model or layer. Received: model={model!r}"
        )
    if not stochastic.whole_layers(model):
        raise ValueError(
            "Expected `model` to have keras_bdl layers; this one has none. "
            f"Received: model={model!r}"
        )
    stochastic.check_no_recurrent_cells(model)
    for layer in counted_layers(model):
        layer.set_num_examples(num_examples)
    return model


def tell_num_examples(model: keras.Model, x: Any, extent: dict[str, Any]) -> None:
    """Infers N from the data of `fit`, for layers whose N is not set.

    Args:
        model: Keras model.
        x: argument of `fit`.
        extent: arguments of `fit` that decide which rows it trains on, see
            `training.data.extent_of`.

    Raises:
        ValueError: if N cannot be inferred.
    """
    unknown = [layer for layer in counted_layers(model) if layer.num_examples is None]
    if not unknown:
        return
    rows = infer_num_examples(x, **extent)
    if rows is None:
        raise ValueError(
            "Cannot infer the number of training examples from this data. Give it as "
            f"`{type(model).__name__}(..., num_examples=n)` or by "
            f"`keras_bdl.set_num_examples(model, n)`. Received: x={x!r}"
        )
    for layer in unknown:
        layer.set_num_examples(rows, inferred=True)


def infer_num_examples(
    x: Any,
    batch_size: int | None = None,
    validation_split: float | None = 0.0,
    validation_data: Any = None,
    steps_per_epoch: int | None = None,
) -> int | None:
    """Infers the number of training rows in the data of `fit`.

    For arrays it is the number of rows that `validation_split` leaves. For a finite
    `tf.data.Dataset` it is the number of rows, counted in one pass. For a torch
    `DataLoader` it is the length of its data set. Otherwise it is the number of steps
    times the rows of one batch, and a warning states the number.

    Returns:
        The number, or None if it is unknown.
    """
    if hasattr(x, "cardinality"):
        return _count_tf_data(x, steps_per_epoch)
    if isinstance(x, keras.utils.PyDataset):
        steps = steps_per_epoch or x.num_batches
        return _steps_times_batch(steps, lambda: _num_rows(x[0]))
    if hasattr(x, "dataset") and hasattr(x.dataset, "__len__"):
        return len(x.dataset)
    if hasattr(x, "__next__") or callable(x):
        return None
    rows = _num_rows(x)
    if rows is None:
        return None
    return num_training_rows(rows, validation_split, validation_data)


def _num_rows(batch):
    """Returns the number of rows of the first array in a nest, or None without one."""
    for leaf in keras.tree.flatten(batch):
        if hasattr(leaf, "shape"):
            return int(leaf.shape[0])
    return None


def _count_tf_data(dataset, steps_per_epoch):
    cardinality = int(dataset.cardinality())  # -1: infinite, -2: unknown
    if cardinality >= 0 or (cardinality == -2 and steps_per_epoch is None):
        rows = sum(_num_rows(batch) for batch in dataset)
        from keras_bdl.interop import tensorflow

        if tensorflow.repeats(dataset):
            warnings.warn(
                f"The number of training examples was taken to be {rows}, but this "
                "`tf.data.Dataset` repeats its rows. The number scales the KL term; "
                "give the true number as `num_examples`, or remove `repeat` and raise "
                "`epochs`.",
                stacklevel=4,
            )
        return rows
    return _steps_times_batch(
        steps_per_epoch, lambda: _num_rows(next(iter(dataset.take(1))))
    )


def _steps_times_batch(steps, rows_of_batch):
    if steps is None:
        return None
    rows = int(steps) * rows_of_batch()
    warnings.warn(
        f"The number of training examples was taken to be {rows}: {steps} steps of "
        "one batch each. The number scales the KL term; give the true number as "
        "`num_examples` if it differs.",
        stacklevel=4,
    )
    return rows
