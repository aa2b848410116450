"""Single passes through the data of `fit`, in batches."""

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_bdl.core import validation
from keras_bdl.core.dtypes import to_numpy

__all__ = [
    "TrainingPairs",
    "batches",
    "extent_of",
    "hold_out",
    "is_data_set",
    "num_training_rows",
    "training_batches",
]


def extent_of(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of `fit` that decide which rows it trains on."""
    names = ("validation_split", "validation_data", "steps_per_epoch")
    return {name: options[name] for name in names if name in options}


def num_training_rows(
    num_rows: int,
    validation_split: float | None = 0.0,
    validation_data: Any = None,
    steps_per_epoch: int | None = None,
) -> int:
    """Returns the number of rows of arrays that `fit` trains on.

    Keras takes the first rows and rounds down.
    """
    del steps_per_epoch  # does not limit the rows of arrays, which are read again
    if not validation_split or validation_data is not None:
        return num_rows
    return math.floor(num_rows * (1.0 - validation_split))


def rows_of(parts, rows):
    """Takes a slice of the rows of every array in a nest."""
    return keras.tree.map_structure(
        lambda part: None if part is None else part[rows], parts, none_is_leaf=True
    )


def hold_out(
    x: Any, y: Any, sample_weight: Any, options: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """Returns the arrays that `fit` trains on, without those of `validation_split`.

    Args:
        x, y, sample_weight: arguments of `fit`; the weights may be None.
        options: its other arguments. The rows that are held out become
            `validation_data` there, in place of `validation_split`.
    """
    share = options.pop("validation_split", None)
    if not share or options.get("validation_data") is not None or y is None:
        return x, y, sample_weight
    left = num_training_rows(len(keras.tree.flatten(y)[0]), share)
    parts = x, y, sample_weight
    held_out = rows_of(parts, slice(left, None))
    options["validation_data"] = held_out[: 2 if sample_weight is None else 3]
    return rows_of(parts, slice(left))


def is_data_set(data: Any) -> bool:
    """Whether `data` is a data set that can be read again, no array or generator."""
    if isinstance(data, keras.utils.PyDataset):
        return True
    of_tensorflow, of_torch = hasattr(data, "cardinality"), hasattr(data, "dataset")
    return (of_tensorflow or of_torch) and hasattr(data, "__iter__")


def batches(data: Any) -> Iterator[tuple]:
    """Yields the batches of a data set, as tuples.

    Raises:
        ValueError: if a batch has no targets, or the data set is infinite.
    """
    if isinstance(data, keras.utils.PyDataset):
        if data.num_batches is None:
            _refuse_endless(data)
        found = (data[index] for index in range(data.num_batches))
    else:
        if hasattr(data, "cardinality") and int(data.cardinality()) == -1:
            _refuse_endless(data)
        found = iter(data)
    for batch in found:
        if not isinstance(batch, (list, tuple)) or len(batch) < 2:
            raise ValueError(
                "Expected batches of pairs of inputs and targets. "
                f"Received: a batch of type {type(batch).__name__}"
            )
        yield tuple(batch)


def _refuse_endless(data):
    raise ValueError(
        f"Expected a finite data set; `take` some batches. Received: x={data!r}"
    )


class TrainingPairs:
    """Batches of inputs and targets in NumPy, read once and with a progress bar.

    Args:
        x, y, batch_size, verbose: as in `keras_bdl.fit_last_layer`.

    Raises:
        TypeError, ValueError: if x and y are not training data.
    """

    def __init__(self, x: Any, y: Any, batch_size: int, verbose: Any) -> None:
        self._batch_size = validation.integer("batch_size", batch_size, least=1)
        self._verbose = verbose
        if y is not None:
            leaves = keras.tree.flatten(x)
            if not all(hasattr(leaf, "shape") for leaf in leaves):
                raise TypeError(
                    "Expected `x` to be an array, or one for each input of the model; "
                    "`np.asarray` converts a list. Received: x with "
                    f"{type(leaves[0]).__name__ if leaves else 'nothing'} inside"
                )
            y, x = _numbers(y), keras.tree.map_structure(to_numpy, x)
            counts = [len(part) for part in keras.tree.flatten(x)]
            if {*counts} != {len(y)} or not len(y):
                raise ValueError(
                    "Expected as many targets as inputs, and at least one. "
                    f"Received: {counts} inputs, {len(y)} targets"
                )
        elif not (is_data_set(x) or hasattr(x, "__next__")):
            raise ValueError(
                "Expected targets in addition to x, or a data set of both. "
                f"Received: y=None, x of type {type(x).__name__}"
            )
        self._x, self._y = x, y

    def __iter__(self):
        count = self._count()
        bar = keras.utils.Progbar(count, verbose=1 if self._verbose else 0)
        index = -1
        for index, (x, y) in enumerate(self._batches()):
            yield x, _numbers(y)
            bar.update(index + 1)
        if index < 0:
            raise ValueError(
                "Expected training data with at least one batch. "
                f"Received: x={self._x!r}, which has none"
            )
        if count is None:
            bar.update(index + 1, finalize=True)

    def _count(self):
        if self._y is not None:
            return -(-len(self._y) // self._batch_size)
        try:
            return len(self._x)
        except TypeError:
            return None

    def _batches(self):
        if self._y is not None:
            for start in range(0, len(self._y), self._batch_size):
                rows = slice(start, start + self._batch_size)
                x = keras.tree.map_structure(
                    lambda part, rows=rows: part[rows], self._x
                )
                yield x, self._y[rows]
        else:
            for batch in batches(self._x):
                yield batch[:2]


def _numbers(y):
    """Converts targets to a NumPy array of real numbers."""
    y = to_numpy(y)
    if y.dtype.kind not in "biuf":
        raise TypeError(
            "Expected targets that are numbers; `keras.layers.StringLookup` converts "
            f"words to indices. Received: y of dtype {y.dtype}"
        )
    if not np.isfinite(y).all():
        raise ValueError(
            "Expected finite targets. Received: y with "
            f"{(~np.isfinite(y)).sum()} values NaN or infinite"
        )
    return np.atleast_1d(y)


def training_batches(
    x: Any,
    y: Any,
    validation_split: float | None = 0.0,
    validation_data: Any = None,
    steps_per_epoch: int | None = None,
) -> Iterator[tuple]:
    """Yields batches of inputs and targets of the rows that `fit` trains on.

    Raises:
        ValueError: if the data can be read only once, or is infinite.
    """
    if hasattr(y, "shape") and hasattr(x, "shape"):
        rows = num_training_rows(x.shape[0], validation_split, validation_data)
        yield x[:rows], y[:rows]
        return
    for batch in _one_pass(x, steps_per_epoch):
        yield keras.utils.unpack_x_y_sample_weight(batch)[:2]


def _one_pass(data, steps):
    """Returns the batches of one epoch of a data set that can be read again."""
    if hasattr(data, "cardinality") and (steps or int(data.cardinality()) != -1):
        return data.take(steps) if steps else data  # -1: infinite
    if isinstance(data, keras.utils.PyDataset) and (steps or data.num_batches):
        return (data[i] for i in range(steps or data.num_batches))
    if hasattr(data, "dataset") and hasattr(data, "__iter__"):
        return data  # a torch DataLoader
    raise ValueError(
        "`normalize=True` reads the training data once before training, and this data "
        "can be read only once or is infinite; give arrays, a finite "
        "`tf.data.Dataset` or a `PyDataset`, "
        f"or standardise the data yourself. Received: x={data!r}"
    )
