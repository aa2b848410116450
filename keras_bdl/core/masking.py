"""Keras masks as tensors of their own.

Where Keras keeps the mask of a tensor differs by backend; layers are given it.
"""

import keras
from keras import ops


def take_mask(tensor):
    """A tensor without its Keras mask, and the mask, or None."""
    tensor, *mask = _TAKE_MASK(tensor)
    return tensor, mask[0] if mask else None


class _TakeMask(keras.layers.Layer):
    def __init__(self):
        super().__init__(name="take_mask", autocast=False)
        self.supports_masking = True  # it is read here: no warning that it is lost
        self.built = True

    def call(self, inputs, mask=None):
        return [inputs] if mask is None else [ops.copy(inputs), mask]

    def compute_mask(self, inputs, previous_mask):
        return None


_TAKE_MASK = _TakeMask()
