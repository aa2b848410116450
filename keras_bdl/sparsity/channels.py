"""Finds the channels of a plain graph of layers that can be removed.

A channel is an entry of the last axis of a tensor. It can be removed if nothing uses
it. It can also be removed if it is constant (all weights into its unit are 0); then the
layers that read it fold the constant into their biases. Tensors that share their
channels (the input and output of an activation, the terms of a sum) form a group. A
channel is removed from all tensors of the group or from none.

`ChannelGraph` computes the constants in a forward pass. It computes the kept channels
by backward passes, repeated up to a fixed point.
"""

import keras
import numpy as np
from keras import ops

from keras_bdl.graphs.trace import trace_of
from keras_bdl.sparsity.rules import (
    channels,
    effective_weights,
    is_elementwise,
    rule_of,
)


class ChannelGraph:
    """The calls of a functional or Sequential model, and its kept channels.

    Args:
        model: built functional or Sequential model.

    Attributes:
        trace: the `Trace` of the model.
        nodes, input, output: as in the trace.
        constants: tensor id -> `(channels,)`, NaN where a channel varies.
        blocked: names of the layers that could not be rewired although channels
            around them could be removed.
    """

    def __init__(self, model):
        self.trace = trace = trace_of(model)
        self.nodes, self.input, self.output = trace.nodes, trace.input, trace.output
        self._rules = {id(node): rule_of(node, trace.counts) for node in self.nodes}
        self._weights = {}
        self._join_groups()
        self.constants = {
            id(tensor): np.full(channels(tensor), np.nan)
            for tensor in keras.tree.flatten(self.input)
        }
        for node in self.nodes:
            self._forward(node)
        self._alive = self._fixed_point(force_whole=True)
        self._kept = self._with_placeholders(self._alive)
        free = self._fixed_point(force_whole=False)
        self.blocked = [
            node.layer.name for node in self.nodes if self._blocks(node, free)
        ]

    def weights(self, node):
        """Returns kernel and bias of a Dense or Conv at inference. Reads them once."""
        if id(node) not in self._weights:
            self._weights[id(node)] = effective_weights(node.layer)
        return self._weights[id(node)]

    def alive(self, tensor):
        """Returns which channels of a tensor vary and are read: `(channels,)` bool."""
        return self._alive[self._group(tensor)]

    def kept(self, tensor):
        """Returns which channels of a tensor remain: `(channels,)` bool.

        At least one channel remains, also of a dead tensor.
        """
        return self._kept[self._group(tensor)]

    def _blocks(self, node, free):
        """Returns whether a node of unknown rule keeps channels from being removed."""
        ends = {id(tensor) for tensor in keras.tree.flatten(self.output)}
        outputs = node.output_list()
        read = {id(tensor) for other in self.nodes for tensor in other.inputs}
        inner = [t for t in outputs if id(t) not in ends and id(t) in read]
        if not self.is_whole(node) or not inner:
            return False
        constant = [~np.isnan(self.constants[id(t)]) for t in node.inputs]
        groups = map(self._group, outputs)
        unread = [self._alive[g] & ~free[g] for g in groups]
        return any(mask.any() for mask in (*constant, *unread))

    def is_whole(self, node):
        """Returns whether a node is left unchanged."""
        return self._rules[id(node)] == "whole"

    def folded_bias(self, node, kernel):
        """Returns what the constant channels of a node's input add to its bias."""
        (tensor,) = node.inputs
        constant = np.where(self.alive(tensor), 0.0, self.constants[id(tensor)])
        constant = np.nan_to_num(constant)  # NaN: it varies, but nothing uses it
        return kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0).T @ constant

    # Groups

    def _join_groups(self):
        """Groups the tensors that have the same channels in the same order."""
        self._parent, self._width = {}, {}
        for node in self.nodes:
            tensors = node.tensors()
            for tensor in tensors:
                self._width[self._group(tensor)] = channels(tensor)
            if self._rules[id(node)] in ("norm", "merge", "elementwise", "identity"):
                for tensor in tensors[1:]:
                    self._parent[self._group(tensor)] = self._group(tensors[0])
        for tensor in keras.tree.flatten((self.input, self.output)):
            self._width.setdefault(self._group(tensor), channels(tensor))

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
        outputs = node.output_list()
        if rule == "whole":
            for tensor in outputs:
                self.constants[id(tensor)] = np.full(channels(tensor), np.nan)
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
            return self._constant_units(node, constants)
        axes = (1,) * (len(node.outputs.shape) - 1)
        rows = [c.reshape(*axes, -1).astype("float32") for c in inputs]
        values = layer(rows if rule == "merge" else rows[0], training=False)
        varies = np.isnan(sum(inputs))
        return np.where(varies, np.nan, ops.convert_to_numpy(values).ravel())

    def _constant_units(self, node, constants):
        """Returns the constants of units with non-zero weights only from constants.

        The other units are NaN.
        """
        layer = node.layer
        if not is_elementwise(layer.activation):
            return np.full(layer.kernel.shape[-1], np.nan)
        kernel, bias = self.weights(node)
        kernel = kernel.reshape(-1, *kernel.shape[-2:])  # (positions, in, out)
        usable = self._foldable(layer, constants)
        varies = (kernel[:, ~usable] != 0).any(axis=(0, 1))
        values = kernel[:, usable].sum(axis=0).T @ constants[usable] + bias
        values = layer.activation(ops.convert_to_tensor(values[None].astype("float32")))
        return np.where(varies, np.nan, ops.convert_to_numpy(values)[0])

    @staticmethod
    def _foldable(layer, constants):
        """Returns which constant channels have the same effect at every position.

        Zero padding changes the effect at the borders, unless the constant is 0.
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
            for tensor in node.tensors()
        ]
        mixed = [  # a softmax needs all its units
            node.outputs
            for node in self.nodes
            if self._rules[id(node)] == "linear"
            and not is_elementwise(node.layer.activation)
        ]
        for tensor in [*whole, *mixed, *keras.tree.flatten((self.input, self.output))]:
            keep[self._group(tensor)][:] = True
        while any([self._backward(node, keep) for node in reversed(self.nodes)]):
            pass
        return keep

    def _with_placeholders(self, alive):
        """Adds one channel to groups without channels, as Keras has no 0-unit layers.

        No layer reads a placeholder, so it affects only the shapes of tensors.
        """
        keep = {key: mask.copy() for key, mask in alive.items()}
        for mask in keep.values():
            mask[0] |= not mask.any()
        while any([self._backward(node, keep, ("linear",)) for node in self.nodes]):
            pass
        return keep

    def _backward(self, node, keep, skip=()):
        """Adds the channels that a node's kept outputs need.

        Returns whether any channel was new.
        """
        rule = self._rules[id(node)]
        if rule in skip:
            return False
        output = node.output_list()[0]
        kept = keep[self._group(output)]
        masks = [keep[self._group(tensor)] for tensor in node.inputs]
        before = [mask.copy() for mask in (*masks, kept)]
        if rule == "linear":
            kernel, _ = self.weights(node)
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
        elif rule == "whole" and any(
            keep[self._group(tensor)].any() for tensor in node.output_list()
        ):
            for mask in masks:
                mask[:] = True
        return any((old != new).any() for old, new in zip(before, (*masks, kept)))
