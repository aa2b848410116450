"""Dtypes and sizes of tensors."""

import keras
import numpy as np
from keras import backend, ops


def as_floats(inputs, dtype):
    """Integers and booleans in a dtype of floats; Keras casts only between those."""
    if backend.is_float_dtype(backend.standardize_dtype(inputs.dtype)):
        return inputs
    return ops.cast(inputs, dtype)


def with_channels(inputs, count, axis=-1):
    """The inputs, refused if they have another number of channels.

    For arithmetic that would widen inputs of a single channel.
    """
    channels = inputs.shape[axis]
    if channels is None and backend.backend() == "tensorflow":
        from keras_bdl.interop import tensorflow

        return tensorflow.with_size(inputs, axis, count)
    if channels not in (None, count):
        raise ValueError(
            f"Expected inputs with {count} channels on axis {axis}, as the layer was "
            f"built. Received: inputs of shape {tuple(inputs.shape)}"
        )
    return inputs


def wide(variable):
    """A variable's value in float32, or in float64 if that is what it is."""
    value = ops.convert_to_tensor(variable)
    if backend.standardize_dtype(value.dtype) == "float64":
        return value
    return ops.cast(value, "float32")


def wide_dtype():
    """float32 also under mixed precision, which would cost digits; or float64."""
    policy = keras.config.dtype_policy()
    return "float64" if policy.variable_dtype == "float64" else "float32"


def to_numpy(array):
    """An array or tensor, of any backend, as a NumPy array."""
    return ops.convert_to_numpy(array) if ops.is_tensor(array) else np.asarray(array)
