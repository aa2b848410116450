"""Which channels of a plain graph of layers can go, and what they leave behind.

A channel is an entry of the last axis of a tensor. It can go where nothing uses
it, or where it is constant (all weights into its unit are 0), in which case the
layers that read it fold the constant into their biases. Tensors that share their
channels (the input and output of an activation, the terms of a sum) form a
group, and a channel goes from all of the group or from none.

`ChannelGraph` computes both by iterating to a fixed point: constants forward,
kept channels backward.
"""

import keras
import numpy as np
from keras import layers, ops

from keras_bdl.layers.base import BayesianLayer

# Classes by what they do to channels at inference. Others mix channels or
# positions in ways not known here, and stay whole.
_IDENTITY = (
    layers.Dropout,
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
_CONV = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_ELEMENTWISE_ACTIVATIONS = (
    "celu",
    "elu",
    "exponential",
    "gelu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_swish",
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
    "swish",
    "tanh",
    "tanh_shrink",
    "threshold",
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


class ChannelGraph:
    """The calls of a functional or Sequential model, and its kept channels.

    Args:
        model: built functional or Sequential model.

    Attributes:
        nodes: list of `Node` in topological order.
        input, output: symbolic tensors, nested as the model's.
        constants: tensor id -> `(channels,)`, NaN where a channel varies.
        blocked: names of the layers that could not be rewired although there is
            something to remove around them.
    """

    def __init__(self, model):
        self._trace(model)
        self._rules = {id(node): self._rule(node) for node in self.nodes}
        self._join_groups()
        self.constants = {}
        for tensor in keras.tree.flatten(self.input):
            self.constants[id(tensor)] = np.full(tensor.shape[-1], np.nan)
        for node in self.nodes:
            self._forward(node)
        self._alive = self._fixed_point(force_whole=True)
        self._kept = self._with_placeholders(self._alive)
        free = self._fixed_point(force_whole=False)
        self.blocked = [
            node.layer.name
            for node in self.nodes
            if self.is_whole(node) and self._blocks(node, free)
        ]

    def alive(self, tensor):
        """`(channels,)` bool: the channels of a tensor that vary and are read."""
        return self._alive[self._group(tensor)]

    def kept(self, tensor):
        """`(channels,)` bool: those that remain, at least one of a dead tensor."""
        return self._kept[self._group(tensor)]

    def _blocks(self, node, free):
        """Whether a constant enters a node, or leaves it and nobody reads it."""
        constant = [~np.isnan(self.constants[id(t)]) for t in node.inputs]
        groups = map(self._group, keras.tree.flatten(node.outputs))
        unread = [self._alive[g] & ~free[g] for g in groups]
        return any(mask.any() for mask in (*constant, *unread))

    def is_whole(self, node):
        """Whether a node is left as it is."""
        return self._rules[id(node)] == "whole"

    def folded_bias(self, node, kernel):
        """What the constant channels of a node's input add to its bias."""
        (tensor,) = node.inputs
        constant = np.where(self.alive(tensor), 0.0, self.constants[id(tensor)])
        constant = np.nan_to_num(constant)  # NaN: varies, but nothing uses it
        return kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0).T @ constant

    # Reading the graph

    def _trace(self, model):
        if isinstance(model, keras.Sequential):
            graph = keras.Model(model.inputs[0], model.outputs[0])
        else:
            graph = keras.Model(model.input, model.output)
        self.nodes, counts = [], {}

        def call(layer, *args, **kwargs):
            outputs = layer(*args, **kwargs)
            self.nodes.append(Node(layer, args, kwargs, outputs))
            counts[id(layer)] = counts.get(id(layer), 0) + 1
            return outputs

        graph = keras.models.clone_model(
            graph, clone_function=lambda layer: layer, call_function=call
        )
        self.nodes = [n for n in self.nodes if n.inputs]
        self.input, self.output = graph.input, graph.output
        self._shared = {key for key, count in counts.items() if count > 1}

    def _rule(self, node):
        """The name of what a node does to channels; "whole" if it is not known."""
        layer = node.layer
        if id(layer) in self._shared:
            return "whole"
        if not all(t.shape and t.shape[-1] is not None for t in self._tensors(node)):
            return "whole"
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            return "whole"
        if isinstance(layer, _CONV):
            return "linear" if layer.groups == 1 else "whole"
        if isinstance(layer, layers.Dense):
            return "linear"
        if isinstance(layer, layers.BatchNormalization):
            last = layer.axis in (-1, len(node.inputs[0].shape) - 1)
            return "norm" if last else "whole"
        if isinstance(layer, layers.Flatten):
            return "flatten" if None not in node.inputs[0].shape[1:] else "whole"
        if isinstance(layer, layers.Concatenate):
            last = layer.axis in (-1, len(node.outputs.shape) - 1)
            return "concatenate" if last else "whole"
        if isinstance(layer, _MERGE):
            widths = {tensor.shape[-1] for tensor in node.inputs}
            return "merge" if len(widths) == 1 else "whole"
        if isinstance(layer, _ELEMENTWISE):
            activation = getattr(layer, "activation", keras.activations.relu)
            return "elementwise" if _is_elementwise(activation) else "whole"
        if isinstance(layer, _IDENTITY):
            return "identity"
        return "whole"

    def _tensors(self, node):
        return [*node.inputs, *keras.tree.flatten(node.outputs)]

    def _join_groups(self):
        """Tensors of one group have the same channels, in the same order."""
        self._parent, self._width = {}, {}
        for node in self.nodes:
            tensors = self._tensors(node)
            for tensor in tensors:
                self._width[self._group(tensor)] = tensor.shape[-1] or 1
            if self._rules[id(node)] in ("norm", "merge", "elementwise", "identity"):
                for tensor in tensors[1:]:
                    self._parent[self._group(tensor)] = self._group(tensors[0])
        for tensor in keras.tree.flatten((self.input, self.output)):
            self._width.setdefault(self._group(tensor), tensor.shape[-1] or 1)

    def _group(self, tensor):
        return self._root(id(tensor))

    def _root(self, key):
        while self._parent.get(key, key) != key:
            key = self._parent[key]
        return key

    # Constants, from inputs to outputs

    def _forward(self, node):
        rule = self._rules[id(node)]
        inputs = [self.constants[id(tensor)] for tensor in node.inputs]
        outputs = keras.tree.flatten(node.outputs)
        if rule == "whole":
            for tensor in outputs:
                self.constants[id(tensor)] = np.full(tensor.shape[-1] or 1, np.nan)
            return
        (output,) = outputs
        self.constants[id(output)] = self._constant_outputs(rule, node, inputs)

    def _constant_outputs(self, rule, node, inputs):
        layer, constants = node.layer, inputs[0]
        if rule == "identity":
            return constants
        if rule == "flatten":
            return np.tile(constants, node.outputs.shape[-1] // len(constants))
        if rule == "concatenate":
            return np.concatenate(inputs)
        if rule == "linear":
            return self._constant_units(layer, constants)
        axes = (1,) * (len(node.outputs.shape) - 1)
        rows = [c.reshape(*axes, -1).astype("float32") for c in inputs]
        values = layer(rows if rule == "merge" else rows[0], training=False)
        varies = np.isnan(sum(inputs))
        return np.where(varies, np.nan, ops.convert_to_numpy(values).ravel())

    def _constant_units(self, layer, constants):
        """Units whose non-zero weights all come from constant channels."""
        if not _is_elementwise(layer.activation):
            return np.full(layer.kernel.shape[-1], np.nan)
        kernel, bias = effective_weights(layer)
        kernel = kernel.reshape(-1, *kernel.shape[-2:])  # (positions, in, out)
        usable = self._foldable(layer, constants)
        varies = (kernel[:, ~usable] != 0).any(axis=(0, 1))
        values = kernel[:, usable].sum(axis=0).T @ constants[usable] + bias
        values = layer.activation(ops.convert_to_tensor(values[None].astype("float32")))
        return np.where(varies, np.nan, ops.convert_to_numpy(values)[0])

    @staticmethod
    def _foldable(layer, constants):
        """Constant channels that look the same at every position of the kernel.

        Zero padding shows at the borders unless the constant is 0.
        """
        constant = ~np.isnan(constants)
        padded = getattr(layer, "padding", "valid") != "valid"
        if padded and np.prod(layer.kernel_size) > 1:
            return constant & (constants == 0)
        return constant

    # Kept channels, from outputs to inputs

    def _fixed_point(self, force_whole):
        keep = {
            self._root(key): np.zeros(width, bool) for key, width in self._width.items()
        }
        whole = [
            tensor
            for node in self.nodes
            if force_whole and self.is_whole(node)
            for tensor in self._tensors(node)
        ]
        mixed = [  # a softmax needs all its units
            node.outputs
            for node in self.nodes
            if self._rules[id(node)] == "linear"
            and not _is_elementwise(node.layer.activation)
        ]
        for tensor in [*whole, *mixed, *keras.tree.flatten((self.input, self.output))]:
            keep[self._group(tensor)][:] = True
        while any([self._backward(node, keep) for node in reversed(self.nodes)]):
            pass
        return keep

    def _with_placeholders(self, alive):
        """One channel more in groups that have none: Keras has no layer of 0 units.

        Nobody reads a placeholder, so only the shapes of tensors follow from it.
        """
        keep = {key: mask.copy() for key, mask in alive.items()}
        for mask in keep.values():
            mask[0] |= not mask.any()
        while any([self._backward(node, keep, ("linear",)) for node in self.nodes]):
            pass
        return keep

    def _backward(self, node, keep, skip=()):
        """Adds the channels that a node's kept outputs need; whether any was new."""
        rule = self._rules[id(node)]
        if rule in skip:
            return False
        output = keras.tree.flatten(node.outputs)[0]
        kept = keep[self._group(output)]
        masks = [keep[self._group(tensor)] for tensor in node.inputs]
        before = [mask.copy() for mask in (*masks, kept)]
        if rule == "linear":
            kernel, _ = effective_weights(node.layer)
            used = ((kernel != 0) & kept).any(axis=(*range(kernel.ndim - 2), -1))
            constants = self.constants[id(node.inputs[0])]
            masks[0] |= used & ~self._foldable(node.layer, constants)
        elif rule == "flatten":
            masks[0] |= kept.reshape(-1, len(masks[0])).any(axis=0)
            kept |= np.tile(masks[0], len(kept) // len(masks[0]))
        elif rule == "concatenate":
            ends = np.cumsum([len(mask) for mask in masks])[:-1]
            for mask, part in zip(masks, np.split(kept, ends)):
                mask |= part
            kept |= np.concatenate(masks)
        elif rule == "whole" and kept.any():
            for mask in masks:
                mask[:] = True
        return any((old != new).any() for old, new in zip(before, (*masks, kept)))


def effective_weights(layer):
    """Kernel `(..., in, out)` and bias `(out,)` of a Dense or Conv at inference."""
    bayesian = isinstance(layer, BayesianLayer)
    kernel = ops.convert_to_numpy(layer.mean_kernel() if bayesian else layer.kernel)
    if layer.bias is None:
        return kernel, np.zeros(kernel.shape[-1], kernel.dtype)
    return kernel, ops.convert_to_numpy(layer.bias)


def _is_elementwise(activation):
    if activation is None:
        return True
    name = keras.activations.serialize(activation)
    return name in _ELEMENTWISE_ACTIVATIONS
