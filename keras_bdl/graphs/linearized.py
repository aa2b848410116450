"""Outputs of a network as functions of the linear outputs of its layers."""

import dataclasses
import importlib
import math
from typing import Any

import keras
from keras import ops

from keras_bdl import maps
from keras_bdl.core import finding, masking
from keras_bdl.core.dtypes import wide
from keras_bdl.core.typing import Tensor
from keras_bdl.graphs.trace import trace_of
from keras_bdl.maps.base import LinearMap
from keras_bdl.maps.wrapped import takes_training


@dataclasses.dataclass
class Call:
    """One call of a layer that is linear in its kernel, in float32 (or float64).

    Attributes:
        layer: the Keras layer.
        weight_map: its `LinearMap`.
        inputs: its inputs, `(rows, ...)`.
        gradients: gradients of each output of the network by the layer's outputs
            before the activation, `(outputs, rows, ...)`.
    """

    layer: keras.layers.Layer
    weight_map: LinearMap
    inputs: Tensor
    gradients: Tensor


def linear_layers(network: keras.Model) -> list[keras.layers.Layer]:
    """Returns the Dense layers and convolutions that the graph of a network calls.

    A layer inside of another one that is no graph, such as attention, is not among
    them.
    """
    found: dict[int, keras.layers.Layer] = {}
    for node in trace_of(network).nodes:
        if _has_linear_map(node.layer):
            found[id(node.layer)] = node.layer
        elif _is_nested(node.layer):
            found |= {id(layer): layer for layer in linear_layers(node.layer)}
    return list(found.values())


def linearized(
    network: keras.Model, inputs: Any, layers: list[keras.layers.Layer]
) -> tuple[Tensor, list[Call]]:
    """Returns the outputs of a network and the calls of some of its layers.

    With changes dW of the weights of these layers, the outputs change to first order by
    the sum over calls of the gradients times the layer's linear outputs for dW.

    Args:
        network: built Sequential or functional model, whose outputs are
            `(rows, outputs)` and whose rows do not affect each other.
        inputs: inputs of the network.
        layers: layers of `linear_layers(network)`.
    """
    chosen = {id(layer) for layer in layers}

    def function(mark):
        taken = []

        def call(node, *args, **kwargs):
            layer = node.layer
            if _is_nested(layer):
                return trace_of(layer).replay(call, _first(args, kwargs))
            if id(layer) not in chosen:
                if isinstance(layer, keras.layers.Layer) and takes_training(layer):
                    kwargs = {**kwargs, "training": False}
                return layer(*args, **kwargs)
            x, mask = masking.take_mask(_first(args, kwargs))
            weight_map = maps.of(layer)
            variables = weight_map.variables(layer)
            weights = {name: wide(variable) for name, variable in variables.items()}
            x = ops.cast(x, weights[weight_map.kernel].dtype)
            taken.append((layer, weight_map, x))
            outputs = mark(weight_map.affine(layer, x, weights))
            outputs = weight_map.activate(layer, outputs)
            outputs = ops.cast(outputs, layer.compute_dtype)
            return masking.put_masks(outputs, [mask])

        outputs = trace_of(network).replay(call, inputs)
        calls[:] = [(layer, weight_map) for layer, weight_map, _ in taken]
        return wide(outputs), [x for _, _, x in taken]

    calls: list[tuple[keras.layers.Layer, LinearMap]] = []
    backend = importlib.import_module(f"keras_bdl.interop.{keras.backend.backend()}")
    outputs, found, gradients = backend.output_gradients(function)
    return outputs, [
        Call(*each, x, gradient) for each, x, gradient in zip(calls, found, gradients)
    ]


def jacobians(
    calls: list[Call], names: dict[int, dict[str, str]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns the Jacobian of the outputs by each kernel, as two factors.

    With a bias, its gradient is one more row of the matrix of the kernel. The Jacobian
    of a row of the inputs is the sum over positions of the products of both factors.

    Args:
        calls: those of `linearized`.
        names: names of the weights, by layer id and the layer's own names.

    Returns:
        By the names of the kernels: what the kernel, as a matrix, is multiplied with,
        `(rows, positions, inputs)`, and the gradients of the outputs,
        `(rows, positions, outputs, units)`.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for call in calls:
        own, size = names[id(call.layer)], call.layer.kernel.shape[-1]
        rows = _unfolded(call, "bias" in own)
        gradients = ops.moveaxis(_channels_last(call, call.gradients, 2), 0, 1)
        shape = (ops.shape(rows)[0], call.gradients.shape[0], -1, size)
        gradients = ops.swapaxes(ops.reshape(gradients, shape), 1, 2)
        name = own["kernel"]
        if name in found:  # a layer that is called again
            rows = ops.concatenate([found[name][0], rows], axis=1)
            gradients = ops.concatenate([found[name][1], gradients], axis=1)
        found[name] = rows, gradients
    return found


def _has_linear_map(layer):
    kinds = (keras.layers.Dense, keras.layers.Conv1D)
    kinds += (keras.layers.Conv2D, keras.layers.Conv3D)
    # A subclass may do more in its `call`, and adapters and integers do more too.
    if type(layer) not in kinds or getattr(layer, "groups", 1) != 1:
        return False
    return not (layer.lora_enabled or getattr(layer, "quantization_mode", None))


def _first(args, kwargs):
    return args[0] if args else kwargs["inputs"]


def _is_nested(layer):
    return isinstance(layer, keras.Model) and finding.is_graph(layer)


def _channels_last(call: Call, tensor, axis):
    """Moves the axis of the channels to the end; the first `axis` ones are not its."""
    if getattr(call.layer, "data_format", "channels_last") == "channels_last":
        return tensor
    return ops.moveaxis(tensor, axis, -1)


def _unfolded(call: Call, has_bias):
    """Returns what the kernel, as a matrix, is multiplied with, and a 1 for a bias.

    It is `(rows, positions, inputs)`.
    """
    kernel = call.layer.kernel
    size = math.prod(kernel.shape[:-1])
    if isinstance(call.layer, keras.layers.Dense):
        found = call.inputs
    else:
        # The convolution whose filters are the entries of the window.
        identity = ops.reshape(
            ops.eye(size, dtype=call.inputs.dtype), (*kernel.shape[:-1], size)
        )
        found = call.weight_map.linear(call.layer, call.inputs, identity)
        found = _channels_last(call, found, 1)
    positions = math.prod(found.shape[1:-1]) if None not in found.shape[1:-1] else -1
    rows = -1 if positions != -1 else ops.shape(found)[0]
    found = ops.reshape(found, (rows, positions, size))
    if has_bias:
        found = ops.concatenate([found, ops.ones_like(found[..., :1])], axis=-1)
    return found
