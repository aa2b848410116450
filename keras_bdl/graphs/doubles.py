"""Doubles: a model run with other layers in some places, and not touched itself.

Other threads may be calling the user's model, so none of its layers or methods is
replaced. Whatever holds a layer in question gets a double, which shares all else with
it, its variables too.
"""

import keras

from keras_bdl.core import finding
from keras_bdl.graphs.converted import held_layers


class Doubles:
    """Doubles of the layers of a model in which some layers are replaced.

    A subclass says by `make` what stands in place of a target, and by `unreachable`
    what happens where a target cannot be replaced.

    Args:
        targets: layers of the model, which are built.

    Attributes:
        targets: the same, by id.
    """

    def __init__(self, targets):
        self.targets = {id(layer): layer for layer in targets}
        self._doubles = {}

    def make(self, layer):
        """Returns the layer in place of a target."""
        raise NotImplementedError

    def unreachable(self, layer, holder):
        """Reacts to a target inside of a layer or model that has no way to it."""
        raise NotImplementedError

    def affects(self, layer):
        """Returns whether a layer is, or holds, a target."""
        return isinstance(layer, keras.layers.Layer) and any(
            id(inner) in self.targets for inner in finding.flatten_layers(layer)
        )

    def replace(self, layer):
        """Returns what stands in place of a layer: itself where no target is inside."""
        if not self.affects(layer):
            return layer
        if id(layer) not in self._doubles:
            make = self.double_of_holder
            if id(layer) in self.targets:
                make = self.make
            elif isinstance(layer, keras.Model) and finding.is_graph(layer):
                make = self._double_of_graph
            self._doubles[id(layer)] = make(layer)
        return self._doubles[id(layer)]

    def _double_of_graph(self, model):
        outputs = finding.graph_output(model)
        graph = keras.Model(finding.graph_input(model), outputs, name=model.name)
        return keras.models.clone_model(graph, clone_function=self.replace)

    def double_of_holder(self, layer):
        """Returns a layer of the same class that holds doubles of what it holds."""
        if isinstance(layer, keras.Sequential) or finding.is_functional(layer):
            # With a `call` of its own: its graph has the layers, not its attributes.
            self._tell_unreachable(layer, reached=())
            return layer
        double = object.__new__(type(layer))
        # With lists of its own, such as that of its calls and of its losses.
        own = (list, set)
        double.__dict__.update(
            (name, type(value)(value) if type(value) in own else value)
            for name, value in layer.__dict__.items()
        )
        reached = {id(layer)}

        def replace(held):
            if not self.affects(held):
                return held
            reached.update(map(id, finding.flatten_layers(held)))
            return self.replace(held)

        for name, held in held_layers(layer).items():
            if any(map(self.affects, keras.tree.flatten(held))):
                # Past Keras, which would track it in lists that both share.
                replaced = keras.tree.map_structure(replace, held)
                object.__setattr__(double, name, replaced)
        self._tell_unreachable(layer, reached)
        return double

    def _tell_unreachable(self, holder, reached):
        for inner in finding.flatten_layers(holder):
            if id(inner) in self.targets and id(inner) not in reached:
                self.unreachable(inner, holder)
