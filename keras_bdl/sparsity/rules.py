"""Rules for what each Keras layer does to the channels of its inputs at inference.

`rule_of` returns the name of the rule for the call of a layer (a `graphs.trace.Node`):
"linear" (Dense, Conv), "norm", "elementwise", "identity", "merge", "flatten",
"concatenate", or "whole" if channels or positions mix in an unknown way.
"""

import keras
import numpy as np
from keras import layers, ops

from keras_bdl.core import stochastic

# Only these exact classes are known. A subclass may do anything.
_IDENTITY = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.AlphaDropout,
    layers.Identity,
    layers.ActivityRegularization,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
)
_ELEMENTWISE = (layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU)
_MERGE = (
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)
LINEAR = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
_ELEMENTWISE_ACTIVATIONS = (
    "celu",
    "elu",
    "exponential",
    "gelu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_shrink",
    "softplus",
    "softsign",
    "sparse_plus",
    "squareplus",
    "tanh",
    "tanh_shrink",
)


def channels(tensor):
    """Returns the size of the last axis, or 1 if there is none or it is unknown."""
    return (tensor.shape[-1] if len(tensor.shape) > 1 else None) or 1


def is_linear(layer):
    """Returns whether a layer is a plain Dense or Conv, or a keras_bdl form of one."""
    ours = type(layer) in stochastic.REGISTRY.values() and isinstance(layer, LINEAR)
    return ours or type(layer) in LINEAR


def is_elementwise(activation):
    """Returns whether an activation is known to act on each unit by itself."""
    # Functions are compared by identity, because a user's function may have the name
    # of one of these.
    return activation is None or any(
        activation is keras.activations.get(name) for name in _ELEMENTWISE_ACTIVATIONS
    )


def rule_of(node, counts):
    """Returns the name of the rule for what a node does to channels (see the module).

    Args:
        node: `graphs.trace.Node`.
        counts: number of calls of each layer in the graph, by the layer's id.
    """
    layer, kind = node.layer, type(node.layer)
    known_channels = all(
        len(t.shape) > 1 and t.shape[-1] is not None for t in node.tensors()
    )
    if counts[id(layer)] > 1 or not known_channels or node.kwargs.get("training"):
        return "whole"
    merges = kind in _MERGE or kind is layers.Concatenate
    if len(node.output_list()) > 1 or (len(node.inputs) > 1 and not merges):
        return "whole"  # several tensors, or a tensor and its mask
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "whole"
    if is_linear(layer):
        changed = getattr(layer, "lora_enabled", False) or getattr(
            layer, "quantization_mode", None
        )
        learned = isinstance(layer.activation, layers.Layer)
        mixes = getattr(layer, "groups", 1) > 1 or getattr(layer, "probit", False)
        return "whole" if changed or learned or mixes else "linear"
    if kind is layers.BatchNormalization:
        last = layer.axis in (-1, len(node.inputs[0].shape) - 1)
        return "norm" if last else "whole"
    if kind is layers.Flatten:
        return "flatten" if None not in node.inputs[0].shape[1:] else "whole"
    if kind is layers.Concatenate:
        last = layer.axis in (-1, len(node.outputs.shape) - 1)
        return "concatenate" if last else "whole"
    if kind in _MERGE:
        widths = {tensor.shape[-1] for tensor in node.inputs}
        return "merge" if len(widths) == 1 else "whole"
    if kind in _ELEMENTWISE:
        activation = getattr(layer, "activation", None)
        return "elementwise" if is_elementwise(activation) else "whole"
    if kind in stochastic.REGISTRY.values() and layer.is_identity:
        return "identity"
    if kind in _IDENTITY and getattr(layer, "noise_shape", None) is None:
        return "identity"
    return "whole"


def effective_weights(layer):
    """Returns kernel `(..., in, out)` and bias `(out,)` of a layer at inference.

    The layer is a Dense or Conv.
    """
    ours = isinstance(layer, stochastic.StochasticLayer)
    kernel = ops.convert_to_numpy(
        stochastic.own_weights(layer)[0] if ours else layer.kernel
    )
    if layer.bias is None:
        return kernel, np.zeros(kernel.shape[-1], kernel.dtype)
    return kernel, ops.convert_to_numpy(layer.bias)
