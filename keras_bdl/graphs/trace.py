"""Records the calls that make up a functional or Sequential model.

This is the only module that walks a graph. A `Trace` records each call once.
`Trace.replay` makes the calls again, on other inputs or with other layers.
"""

import collections

import keras

from keras_bdl.core import finding
from keras_bdl.core.cache import kept_with


class Node:
    """One call of a layer or operation.

    Attributes:
        layer: the layer, or an operation of `keras.ops`.
        args, kwargs: nested arguments of the call, with symbolic tensors inside.
        outputs: nested symbolic outputs of the call.
        inputs: flat list of the symbolic tensors among the arguments.
    """

    def __init__(self, layer, args, kwargs, outputs):
        self.layer = layer
        self.args = args
        self.kwargs = kwargs
        self.outputs = outputs
        self.inputs = symbolic_tensors((args, kwargs))

    def output_list(self):
        """Returns the outputs as a flat list."""
        return keras.tree.flatten(self.outputs)

    def tensors(self):
        """Returns the inputs and the outputs as one flat list."""
        return [*self.inputs, *self.output_list()]


class Trace:
    """The calls of a functional or Sequential model, in topological order.

    Args:
        model: built model for which `core.finding.is_graph` is true.

    Attributes:
        nodes: list of `Node`.
        input, output: symbolic tensors, nested like those of the model.
        counts: number of calls of each layer in this graph, by the layer's id.
    """

    def __init__(self, model):
        # A model may return one tensor more than once. The graph returns each once.
        outputs = finding.graph_output(model)
        unique = {id(tensor): tensor for tensor in keras.tree.flatten(outputs)}
        graph = keras.Model(finding.graph_input(model), list(unique.values()))
        self.nodes = []
        recorded = keras.models.clone_model(
            graph, clone_function=lambda layer: layer, call_function=self._record
        )
        by_original = dict(zip(unique, recorded.outputs))
        self.input = recorded.input
        self.output = keras.tree.map_structure(lambda t: by_original[id(t)], outputs)
        self.counts = collections.Counter(id(node.layer) for node in self.nodes)

    def _record(self, layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        self.nodes.append(Node(layer, args, kwargs, outputs))
        return outputs

    def num_calls(self):
        """Returns the number of calls by layer id, with calls inside of layers."""
        counts = collections.Counter()
        for node in self.nodes:
            is_layer = isinstance(node.layer, keras.layers.Layer)
            inside = finding.flatten_layers(node.layer) if is_layer else [node.layer]
            counts.update(map(id, inside))
        return counts

    def replay(self, call, inputs):
        """Makes all calls again.

        Args:
            call: function of a `Node`, its new positional and its new keyword
                arguments, which returns the new outputs.
            inputs: tensors, nested like `input`.

        Returns:
            New outputs, nested like `output`.
        """
        tensors = {}

        def keep(old, new):
            pairs = zip(keras.tree.flatten(old), keras.tree.flatten(new), strict=True)
            tensors.update((id(before), after) for before, after in pairs)

        def take(leaf):
            return tensors[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf

        keep(self.input, inputs)
        for node in self.nodes:
            args, kwargs = keras.tree.map_structure(take, (node.args, node.kwargs))
            keep(node.outputs, call(node, *args, **kwargs))
        return keras.tree.map_structure(take, self.output)


def trace_of(model):
    """Returns the `Trace` of a model, which is made once and kept with the model."""
    return kept_with(model, "traces", None, lambda: Trace(model))


def symbolic_tensors(nest):
    """Returns the symbolic tensors of a nest as a flat list."""
    leaves = keras.tree.flatten(nest)
    return [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
