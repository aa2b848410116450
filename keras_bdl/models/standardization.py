"""Standardization of columns to mean 0 and standard deviation 1, within a model."""

import keras
import numpy as np
from keras import ops

from keras_bdl.core.dtypes import to_numpy, wide_dtype, with_channels


class Standardization(keras.layers.Layer):
    """Computes (x - mean) / stddev for each entry of the last axis.

    It is the identity before `adapt`. Mean and stddev are weights, so that they are
    saved with the model, and a compiled function reads them in every call.
    """

    def __init__(self):
        super().__init__(dtype=wide_dtype(), autocast=False)

    def build(self, input_shape):
        options = {"shape": input_shape[-1:], "trainable": False, "autocast": False}
        self.mean = self.add_weight(name="mean", initializer="zeros", **options)
        self.stddev = self.add_weight(name="stddev", initializer="ones", **options)
        options["shape"] = ()
        self.num_rows = self.add_weight(name="num_rows", initializer="zeros", **options)

    def call(self, inputs):
        if len(inputs.shape) > 1:  # Keras drops the axis of a single column
            inputs = with_channels(inputs, self.mean.shape[0])
        elif self.mean.shape[0] != 1:
            raise ValueError(
                f"Expected inputs with {self.mean.shape[0]} columns. "
                f"Received: inputs of shape {tuple(inputs.shape)}"
            )
        return (ops.cast(inputs, self.dtype) - self.mean) / self.stddev

    def check(self, x):
        """Refuses data that have no columns: None, and inputs by name.

        Raises:
            TypeError: on such data.
        """
        if x is None or isinstance(x, dict):
            raise TypeError(
                "Expected x to be one array `(n, columns)`, whose columns "
                "`normalize=True` standardises. "
                f"Received: x of type {type(x).__name__}"
            )

    def to_keras(self):
        """Returns the same map as a `keras.layers.Normalization`."""
        mean, stddev = map(ops.convert_to_numpy, (self.mean, self.stddev))
        return keras.layers.Normalization(
            mean=mean, variance=np.square(stddev), dtype=self.dtype
        )

    @property
    def is_adapted(self):
        """Whether `adapt` has been called."""
        return bool(ops.convert_to_numpy(self.num_rows) > 0)

    def adapt(self, statistics):
        """Sets mean and stddev from a `ColumnStatistics`."""
        self.mean.assign(statistics.mean)
        self.stddev.assign(statistics.stddev())
        self.num_rows.assign(statistics.count)


def check_one_input(network, input_shape):
    """Refuses a network unless it takes one input of floats.

    Raises:
        ValueError: if it has several inputs, or one of integers.
    """
    one = all(size is None or isinstance(size, int) for size in input_shape)
    dtypes = [t.dtype for t in getattr(network, "inputs", None) or []]
    if not one or any("int" in dtype for dtype in dtypes):
        raise ValueError(
            "`normalize=True` standardises one input of floats; standardise "
            "others yourself, or by a `keras.layers.Normalization`. "
            f"Received: inputs of shape {input_shape} and dtype {dtypes}"
        )


class ColumnStatistics:
    """Computes mean and standard deviation of each column in one pass over batches.

    Batches are merged as in Chan, Golub and LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances", 1979, eq. 2.1.
    """

    def __init__(self, name):
        self.name = name
        self.count = 0
        self.mean = self.squares = 0.0
        self.low, self.high = np.inf, -np.inf

    def update(self, batch):
        """Adds the rows of a batch.

        Raises:
            ValueError: on NaN or infinity.
        """
        # In the model's dtype a column that differs in later digits is constant.
        rows = to_numpy(batch).astype(keras.config.floatx())
        rows = rows[:, None] if rows.ndim == 1 else rows
        rows = rows.reshape(-1, rows.shape[-1]).astype("float64")
        if not np.isfinite(rows).all():
            raise ValueError(
                f"Expected finite numbers in `{self.name}`. Received: "
                f"{self.name} with {(~np.isfinite(rows)).sum()} values NaN or infinite"
            )
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        offset, total = mean - self.mean, self.count + len(rows)
        self.squares = self.squares + np.square(rows - mean).sum(axis=0)
        self.squares += np.square(offset) * (self.count * len(rows) / total)
        self.mean = self.mean + offset * (len(rows) / total)
        self.count = total
        self.low = np.minimum(self.low, rows.min(axis=0))
        self.high = np.maximum(self.high, rows.max(axis=0))

    def stddev(self):
        """Returns the standard deviations, with 1 for a constant column."""
        stddev = np.sqrt(self.squares / self.count)
        constant = (self.low == self.high) | (stddev < np.finfo("float32").tiny)
        return np.where(constant, 1.0, stddev)
