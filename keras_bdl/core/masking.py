"""Keras masks as separate tensors.

The place where Keras keeps the mask of a tensor differs by backend. Keras passes the
mask to a layer on every backend, so a layer reads it here.
"""

import keras
from keras import ops


def take_mask(tensor):
    """Returns a tensor without its Keras mask, and the mask or None."""
    tensor, *mask = _TAKE_MASK(tensor)
    return tensor, mask[0] if mask else None


class _TakeMask(keras.layers.Layer):
    def __init__(self):
        super().__init__(name="take_mask", autocast=False)
        self.supports_masking = True  # avoids a warning that the mask is lost
        self.built = True

    def call(self, inputs, mask=None):
        return [inputs] if mask is None else [ops.copy(inputs), mask]

    def compute_mask(self, inputs, previous_mask):
        return None


_TAKE_MASK = _TakeMask()
