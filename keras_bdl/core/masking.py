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


def take_masks(tensors):
    """Returns a nest of tensors without their masks, and a list of these or None."""
    taken = [take_mask(tensor) for tensor in keras.tree.flatten(tensors)]
    leaves = [leaf for leaf, _ in taken]
    return keras.tree.pack_sequence_as(tensors, leaves), [mask for _, mask in taken]


def put_masks(tensors, masks):
    """Returns a nest of tensors with the masks of a list; None puts nothing."""
    leaves = [
        leaf if mask is None else _PUT_MASK([leaf, mask])
        for leaf, mask in zip(keras.tree.flatten(tensors), masks)
    ]
    return keras.tree.pack_sequence_as(tensors, leaves)


class _TakeMask(keras.layers.Layer):
    def __init__(self):
        super().__init__(name="take_mask", autocast=False)
        self.supports_masking = True  # avoids a warning that the mask is lost
        self.built = True

    def call(self, inputs, mask=None):
        return [inputs] if mask is None else [ops.copy(inputs), mask]

    def compute_mask(self, inputs, previous_mask):
        return None


class _PutMask(keras.layers.Layer):
    def __init__(self):
        super().__init__(name="put_mask", autocast=False)
        self.supports_masking = True
        self.built = True

    def call(self, inputs):
        return ops.copy(inputs[0])

    def compute_mask(self, inputs, previous_mask):
        return inputs[1]


_TAKE_MASK = _TakeMask()
_PUT_MASK = _PutMask()
