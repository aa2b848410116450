"""What each Keras layer does to the channels of its inputs, at inference.

A `Node` is one call of a layer in a model's graph; `rule_of` names what it does:
"linear" (Dense, Conv), "norm", "elementwise", "identity", "merge", "flatten",
"concatenate", or "whole" where channels or positions mix in a way not known here.
"""

import keras
import numpy as np
from keras import layers, ops

from keras_bdl.core import finding, stochastic

# Exact classes: a subclass may do anything.
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


class Node:
    """One call of a layer: the symbolic tensors that enter and leave it."""

    def __init__(self, layer, args, kwargs, outputs):
        self.layer = layer
        self.args = args
        self.kwargs = kwargs
        self.outputs = outputs
        self.inputs = [
            leaf
            for leaf in keras.tree.flatten((args, kwargs))
            if isinstance(leaf, keras.KerasTensor)
        ]

    def output_list(self):
        return keras.tree.flatten(self.outputs)

    def tensors(self):
        return [*self.inputs, *self.output_list()]


class Trace:
    """The calls of a functional or Sequential model.

    Attributes:
        nodes: list of `Node` in topological order.
        input, output: symbolic tensors, nested as the model's.
        shared: ids of the layers that are called more than once.
    """

    def __init__(self, model):
        if isinstance(model, keras.Sequential):
            graph = keras.Model(model.inputs[0], model.outputs[0])
        else:
            graph = keras.Model(model.input, model.output)
        nodes, counts = [], {}

        def call(layer, *args, **kwargs):
            outputs = layer(*args, **kwargs)
            nodes.append(Node(layer, args, kwargs, outputs))
            counts[id(layer)] = counts.get(id(layer), 0) + 1
            return outputs

        graph = keras.models.clone_model(
            graph, clone_function=lambda layer: layer, call_function=call
        )
        self.nodes = [node for node in nodes if node.inputs]
        self.input, self.output = graph.input, graph.output
        self.shared = {key for key, count in counts.items() if count > 1}


def trace_of(model):
    """The model's `Trace`, made once: every trace adds nodes to its layers."""
    layers = tuple(map(id, finding.flatten_layers(model)))
    known, trace = model.__dict__.get("_keras_bdl_trace", (None, None))
    if known != layers:
        trace = Trace(model)
        # Outside Keras's tracking: the model must not own the graph's layers twice.
        object.__setattr__(model, "_keras_bdl_trace", (layers, trace))
    return trace


def channels(tensor):
    """Size of the last axis; 1 where a tensor has none or it is not known."""
    return (tensor.shape[-1] if len(tensor.shape) > 1 else None) or 1


def is_linear(layer):
    """Whether a layer is a plain Dense or Conv, or one of ours in its place."""
    ours = type(layer) in stochastic.REGISTRY.values() and isinstance(layer, LINEAR)
    return ours or type(layer) in LINEAR


def is_elementwise(activation):
    """Whether an activation is known to act on each unit by itself."""
    # By identity: a function of the user's own may have one of these names.
    return activation is None or any(
        activation is keras.activations.get(name) for name in _ELEMENTWISE_ACTIVATIONS
    )


def rule_of(node, shared):
    """The name of what a node does to channels (see the module)."""
    layer, kind = node.layer, type(node.layer)
    known_channels = all(
        len(t.shape) > 1 and t.shape[-1] is not None for t in node.tensors()
    )
    if id(layer) in shared or not known_channels or node.kwargs.get("training"):
        return "whole"
    merges = kind in _MERGE or kind is layers.Concatenate
    if len(node.output_list()) > 1 or (len(node.inputs) > 1 and not merges):
        return "whole"  # a list of tensors, or a mask beside one
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
    """Kernel `(..., in, out)` and bias `(out,)` of a Dense or Conv at inference."""
    ours = isinstance(layer, stochastic.StochasticLayer)
    kernel = ops.convert_to_numpy(
        stochastic.own_weights(layer)[0] if ours else layer.kernel
    )
    if layer.bias is None:
        return kernel, np.zeros(kernel.shape[-1], kernel.dtype)
    return kernel, ops.convert_to_numpy(layer.bias)
