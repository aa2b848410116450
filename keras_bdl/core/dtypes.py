"""Dtypes and sizes of tensors."""

import keras
import numpy as np
from keras import backend, ops


def as_floats(inputs, dtype):
    """Casts integers and booleans to `dtype`, and returns floats as they are.

    Keras itself casts only between dtypes of floats.
    """
    if backend.is_float_dtype(backend.standardize_dtype(inputs.dtype)):
        return inputs
    return ops.cast(inputs, dtype)


def with_channels(inputs, count, axis=-1):
    """Returns the inputs after a check that they have `count` channels.

    The check is for arithmetic that would broadcast inputs of a single channel.

    Raises:
        ValueError: if the inputs have another number of channels.
    """
    channels = inputs.shape[axis]
    if channels is None and backend.backend() == "tensorflow":
        from keras_bdl.interop import tensorflow

        return tensorflow.with_size(inputs, axis, count)
    if channels not in (None, count):
        raise ValueError(
            f"Expected inputs with {count} channels on axis {axis}, with which the "
            f"layer was built. Received: inputs of shape {tuple(inputs.shape)}"
        )
    return inputs


def wide(variable):
    """Returns the value of a variable in float32; float64 stays float64."""
    value = ops.convert_to_tensor(variable)
    if backend.standardize_dtype(value.dtype) == "float64":
        return value
    return ops.cast(value, "float32")


def wide_dtype():
    """Returns "float64" if variables have that dtype, otherwise "float32".

    Mixed precision gives "float32" too, because half precision would lose digits.
    """
    policy = keras.config.dtype_policy()
    return "float64" if policy.variable_dtype == "float64" else "float32"


def to_numpy(array):
    """Converts an array or a tensor of any backend to a NumPy array."""
    return ops.convert_to_numpy(array) if ops.is_tensor(array) else np.asarray(array)
