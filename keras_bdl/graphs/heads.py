"""Finds the activation at the end of a network, and undoes softmax and sigmoid.

A likelihood applies its own link to a network's outputs. If the network has applied a
link already, it would be applied twice. The graph of the network tells what it ends in:
the activation of the last layer, or a layer or operation behind that layer. Nested
models are searched too, and layers that move values without changing them are skipped.
"""

import keras
import numpy as np
from keras import ops

from keras_bdl.core import dtypes, finding, stochastic
from keras_bdl.graphs.trace import trace_of

LINEAR, SOFTMAX, SIGMOID = "linear", "softmax", "sigmoid"

# Activations for the means of positive or bounded data, when no link follows.
OF_MEANS = ("sigmoid", "tanh", "softplus", "exponential", "exp", "softmax")

_ACTIVATION_LAYERS = ("ReLU", "LeakyReLU", "PReLU", "ELU")
_ACTIVATION_OPERATIONS = (
    *("Softmax", "LogSoftmax", "Sigmoid", "LogSigmoid", "HardSigmoid", "SparseSigmoid"),
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Glu", "Silu"),
    *("HardSilu", "Softplus", "SquarePlus", "Softsign", "SoftShrink", "HardShrink"),
    *("Tanh", "HardTanh", "TanhShrink", "Sparsemax", "SparsePlus", "Threshold"),
    *("Exp", "Abs", "Absolute", "Square", "Clip"),
)
# Operations that move values at inference without changing them.
_MOVERS = (
    *("Identity", "Reshape", "Flatten", "Permute", "RepeatVector", "Squeeze"),
    *("ExpandDims", "Transpose", "Copy", "Cast", "ActivityRegularization"),
    *("Cropping1D", "Cropping2D", "Cropping3D", "UpSampling1D", "UpSampling2D"),
    *("UpSampling3D", "Dropout", "SpatialDropout1D", "SpatialDropout2D"),
    *("SpatialDropout3D", "GaussianDropout", "GaussianNoise", "AlphaDropout"),
    *("MCDropout",),
)


class Head:
    """End of a network: its last layer and its activation.

    Attributes:
        activation: "softmax", "sigmoid" or the name of another activation; "linear"
            if there is none.
        layer: the layer that computes the values, such as a Dense. It may have the
            activation itself. None if the network returns its inputs.
        behind: operations behind `layer`, the last one first.
    """

    def __init__(self, activation, layer, behind):
        self.activation, self.layer, self.behind = activation, layer, behind


def find(network):
    """Returns the `Head` of a graph with one output.

    Returns None for other networks, because their end cannot be seen.
    """
    if not finding.is_graph(network) or len(keras.tree.flatten(network.outputs)) != 1:
        return None
    activations, behind, layer, moves = [], [], None, False
    width = network.outputs[0].shape[-1:]
    for operation, shape in _chain(network):
        name = _activation_name(operation, len(shape))
        if name in (SOFTMAX, "log_softmax") and (shape[-1:] != width or moves):
            name = f"{name} of another axis than the last"
        if name != LINEAR:
            activations.append(name)
        moves |= _moves_last_axis(operation, len(shape))
        if not _is_behind(operation):
            layer = operation
            break
        behind.append(operation)
    return Head(", then ".join(activations[::-1]) or LINEAR, layer, behind)


def last_branch(network, head):
    """Returns the `Head` of the last tensor if a network ends in a Concatenate.

    For a network of means and deviations this is the head of the deviations. For
    other networks `head` is returned.
    """
    if type(head.layer).__name__ != "Concatenate" or head.behind:
        return head
    try:
        last = keras.tree.flatten(head.layer.input)[-1]
        branch = find(keras.Model(finding.graph_input(network), last))
    except (AttributeError, ValueError):  # it is called twice, or in a nested model
        return head
    return head if branch is None else branch


def logits_network(network, received="network"):
    """Returns a network of the same layers whose outputs are logits of classes.

    If the network ends in softmax or in the sigmoid of one unit, a graph is returned
    that computes the logits behind it. Other networks with valid outputs are returned
    as they are. A network that is not a graph is not checked.

    Args:
        network: Keras model.
        received: name of the argument in error messages.

    Raises:
        ValueError: if the network ends in another activation, or in a sigmoid of
            several units.
    """
    head = find(network)
    if head is None or head.activation in (LINEAR, "log_softmax"):
        return network
    if head.activation not in (SOFTMAX, SIGMOID):
        refuse(network, head, received, "logits, or their softmax")
    units = network.outputs[0].shape[-1]
    if head.activation == SIGMOID and units != 1:
        raise ValueError(
            f"Expected `{received}` to give logits of one categorical variable, or "
            "their softmax. The sigmoid fits labels that hold independently of each "
            "other. Leave the activation out, or use softmax. "
            f"Received: {received}={network.name!r}, which ends in sigmoid of "
            f"{units} units"
        )
    outputs = Logits(head.activation, name="logits")(network.outputs[0])
    return keras.Model(finding.graph_input(network), outputs, name=network.name)


def refuse(network, head, received, expected):
    """Raises the error for a network that ends in an activation that does not fit."""
    raise ValueError(
        f"Expected `{received}` to give {expected}, but it ends in an activation that "
        "does not fit. End it in a layer without activation. "
        f"Received: {received}={network.name!r}, which ends in {head.activation}"
    )


def logits(outputs, activation):
    """Returns the float32 logits of outputs behind an activation.

    The logits are log p for softmax and log p - log(1 - p) for sigmoid. They are
    clipped to the range of the outputs' dtype: for float32 at -87, and for sigmoid
    also at +17. The outputs of other activations are returned unchanged.
    """
    if activation not in (SOFTMAX, SIGMOID):
        return outputs
    least, gap = _ENDS[keras.backend.standardize_dtype(outputs.dtype)]
    p = dtypes.wide(outputs)
    least, gap = (ops.cast(end, p.dtype) for end in (least, gap))
    log_p = ops.log(ops.maximum(p, least))
    if activation == SOFTMAX:
        return log_p
    return log_p - ops.log(ops.maximum(1.0 - p, gap))


# The smallest normal number of each dtype, and half of its gap below 1.
_ENDS = {
    "float16": (2.0**-14, 2.0**-12),
    "bfloat16": (2.0**-126, 2.0**-9),
    "float32": (2.0**-126, 2.0**-25),
    "float64": (2.0**-1022, 2.0**-54),
}


@keras.saving.register_keras_serializable("keras_bdl")
class Logits(keras.layers.Layer):
    """Computes logits of the classes from the outputs of softmax or of one sigmoid.

    The outputs of a sigmoid, p(y = 1), give two logits: 0 and the logit of y = 1.
    """

    def __init__(self, activation, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.activation = activation
        self.supports_masking = True
        self.built = True

    def call(self, inputs, mask=None):  # as the layer whose place it takes is called
        outputs = logits(inputs, self.activation)
        if self.activation == SIGMOID:
            outputs = ops.concatenate([ops.zeros_like(outputs), outputs], axis=-1)
        return outputs

    def get_config(self):
        config = super().get_config()
        del config["autocast"]
        return {**config, "activation": self.activation}


# The chain of operations before the outputs


def _chain(network):
    """Yields operations and the shapes of their outputs, from the output backwards.

    The chain ends at an operation that takes several tensors.
    """
    trace = trace_of(network)
    producers = {id(t): node for node in trace.nodes for t in node.output_list()}
    (tensor,) = keras.tree.flatten(trace.output)
    while id(tensor) in producers:
        node = producers[id(tensor)]
        operation = node.layer
        inner = getattr(operation, "layer", None) if _is_wrapper(operation) else None
        operation = operation if inner is None else inner
        if _is_nested(operation):
            yield from _chain(operation)
        else:
            yield operation, tensor.shape
        if len(node.inputs) != 1:
            return
        (tensor,) = node.inputs


def _is_nested(operation):
    return (
        isinstance(operation, keras.Model)
        and finding.is_graph(operation)
        and len(keras.tree.flatten(operation.outputs)) == 1
    )


def _is_wrapper(operation):
    ours = type(operation) in stochastic.REGISTRY.values()
    return ours or (
        isinstance(operation, keras.layers.Wrapper) and _is_known(operation)
    )


def _is_behind(operation):
    """Returns whether an operation only applies an activation or only moves values."""
    name = type(operation).__name__
    if not _is_known(operation):
        return isinstance(operation, keras.layers.Lambda) and (
            _name_of_function(operation.function) != LINEAR
        )
    if isinstance(operation, (keras.layers.Activation, keras.layers.Softmax)):
        return True
    of_operations = not isinstance(operation, keras.layers.Layer)
    activations = _ACTIVATION_OPERATIONS if of_operations else _ACTIVATION_LAYERS
    return name in activations or name in _MOVERS or _drops_inputs(operation)


def _drops_inputs(operation):
    ours = type(operation) in stochastic.REGISTRY.values()
    return ours and operation.is_identity


def _is_known(operation):
    """Returns whether an operation's `call` is defined by Keras or keras_bdl."""
    if isinstance(operation, keras.layers.Lambda):
        return False
    package = getattr(type(operation).call, "__module__", "").split(".")[0]
    return package in ("keras", "keras_bdl")


def _moves_last_axis(operation, rank):
    moves = type(operation).__name__ in ("Transpose", "Permute")
    return moves and tuple(getattr(operation, "dims", ()))[-1:] != (rank - 1,)


# Names of activations


def _activation_name(operation, rank=None):
    """Returns the name of the activation that an operation is or ends in.

    The name is "linear" if there is no activation.
    """
    if isinstance(operation, keras.layers.Lambda):
        return _name_of_function(operation.function)
    if not _is_known(operation):
        return LINEAR
    name = type(operation).__name__
    if not isinstance(operation, keras.layers.Layer):
        if name not in _ACTIVATION_OPERATIONS:
            return LINEAR
        name = {"LogSoftmax": "log_softmax"}.get(name, name.lower())
        return _with_axis(name, operation, rank)
    if isinstance(operation, keras.layers.Softmax):
        return _with_axis(SOFTMAX, operation, rank)
    if name in _ACTIVATION_LAYERS:
        return name
    return _name_of_function(getattr(operation, "activation", None))


def _with_axis(name, operation, rank):
    axis = getattr(operation, "axis", -1)
    on_last = axis == -1 or (rank is not None and axis == rank - 1)
    return name if on_last else f"{name} over axis {axis}"


def _name_of_function(function):
    if function is None:
        return LINEAR
    if isinstance(function, keras.layers.Layer):
        return _activation_name(function)
    name = getattr(function, "__name__", type(function).__name__)
    if getattr(keras.activations, name, None) is function:
        return name
    return _name_by_values(function, name)


_POINTS = np.array(
    [[-40.0, -3.0, 0.5, 2.0, 30.0], [-1.5, 1.0, 0.0, 0.7, -0.2]], "float32"
)


def _name_by_values(function, name):
    """Names a user's function by the values that it gives for a few numbers.

    A function that gives the values of softmax, sigmoid or log-softmax gets that name.
    A function whose values cannot be logits, because they are never negative or lie
    within -1 and 1, keeps its own name. Any other function is named "linear", because
    nothing is known about it.
    """
    x = ops.convert_to_tensor(_POINTS)
    try:
        values = ops.convert_to_numpy(function(x))
    except Exception:  # it expects something else than two rows of numbers
        return LINEAR
    if values.shape != _POINTS.shape:
        return LINEAR
    for known in (SOFTMAX, SIGMOID, "log_softmax"):
        expected = ops.convert_to_numpy(getattr(keras.activations, known)(x))
        if np.allclose(values, expected, rtol=1e-4, atol=1e-6):
            return known
    return name if values.min() >= 0 or np.abs(values).max() <= 1.0 else LINEAR
