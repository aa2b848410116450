"""Adds the seed of a call to every row of the data for Keras's `predict`.

All calls of a model share one compiled function, also the calls of other threads. So
everything that belongs to a single call must reach the function with the data.
"""

import keras
import numpy as np


def with_seed(x, word):
    """Returns the data `x` with batches of the form `{"x": batch, "seed": (rows, 2)}`.

    The first column of "seed", an int32 array, is `word`. The second column
    distinguishes the batches: it is the index of the row in arrays, and the index of
    the batch in other data.

    Args:
        x: whatever `keras.Model.predict` takes.
        word: integer of 31 bits.

    Returns:
        Pair of the data and the number of batches. The number is None if Keras can
        tell it, or if it is unknown.

    Raises:
        TypeError: if `predict` does not take data of this type.
        ValueError: if a tensor of `x` has no rows.
    """
    if hasattr(x, "cardinality") and hasattr(x, "enumerate"):  # a `tf.data.Dataset`
        from keras_bdl.interop import tensorflow

        return tensorflow.with_seed(x, word), None
    if isinstance(x, keras.utils.PyDataset):
        return _SeededBatches(x, word), None
    # An optional input may be None.
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    if leaves and all(hasattr(leaf, "shape") for leaf in leaves):
        rows = _num_rows(leaves)
        return {"x": x, "seed": _beside(np.arange(rows), word)}, None
    arrays = (list, tuple, dict, set, frozenset, str, bytes)
    if hasattr(x, "__iter__") and not isinstance(x, arrays):
        return _seeded(x, word), _num_batches(x)
    raise TypeError(
        "Expected `x` to be arrays, nested as the model's inputs are, or a "
        "`tf.data.Dataset`, `keras.utils.PyDataset`, torch `DataLoader` or generator "
        f"of batches. Received: x of type {_types(x)}"
    )


class _SeededBatches(keras.utils.PyDataset):
    """A `PyDataset` that adds the seed to the rows of another `PyDataset`."""

    def __init__(self, data, word):
        super().__init__(
            workers=data.workers,
            use_multiprocessing=data.use_multiprocessing,
            max_queue_size=data.max_queue_size,
        )
        self._data, self._word = data, word

    @property
    def num_batches(self):
        return self._data.num_batches

    def __getitem__(self, index):
        return _seeded_batch(self._data[index], index, self._word)

    def on_epoch_begin(self):
        self._data.on_epoch_begin()

    def on_epoch_end(self):
        self._data.on_epoch_end()


def _num_batches(batches):
    """Returns the length of a torch DataLoader, or None if it has none."""
    try:
        return len(batches)
    except TypeError:
        return None


def _seeded(batches, word):
    for index, batch in enumerate(batches):
        yield _seeded_batch(batch, index, word)


def _seeded_batch(batch, index, word):
    """Returns a tuple of one element: the inputs of a batch and their seed.

    The batch is inputs, or a tuple of inputs, targets and weights.
    """
    x = keras.utils.unpack_x_y_sample_weight(batch)[0]
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    numbers = np.full(_num_rows(leaves), index)
    return ({"x": x, "seed": _beside(numbers, word)},)


def _num_rows(leaves):
    if not all(len(leaf.shape) for leaf in leaves):
        raise ValueError(
            "Expected arrays with rows, `(n, ...)`. "
            f"Received: x with shapes {[tuple(leaf.shape) for leaf in leaves]}"
        )
    return int(leaves[0].shape[0])


def _beside(numbers, word):
    return np.stack([np.full(len(numbers), word), numbers], axis=-1).astype("int32")


def _types(x):
    if isinstance(x, (list, tuple)) and x:
        return f"{type(x).__name__} of {type(x[0]).__name__}"
    return type(x).__name__
