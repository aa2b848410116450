"""Runs a model with other layers in some places, without changing the model.

Other threads may be calling the user's model, so none of its layers or methods is
replaced. Instead, every layer or model that holds a replaced layer gets a double. The
double shares everything else with the original, including its variables.
"""

import keras

from keras_bdl.core import finding
from keras_bdl.graphs.converted import held_layers


def state_of(layer):
    """Returns the attributes of a layer for a double.

    Its lists are its own, such as the lists of calls and of losses.
    """
    own = (list, set)
    return {
        name: type(value)(value) if type(value) in own else value
        for name, value in layer.__dict__.items()
    }


class Doubles:
    """Makes doubles of the layers of a model in which some layers are replaced.

    A subclass implements `make`, which returns the replacement of a target, and
    `unreachable`, which is called for a target that cannot be replaced.

    Args:
        targets: built layers of the model.

    Attributes:
        targets: dict from the id of a target to the target.
    """

    def __init__(self, targets):
        self.targets = {id(layer): layer for layer in targets}
        self._doubles = {}

    def make(self, layer):
        """Returns the layer that takes the place of a target."""
        raise NotImplementedError

    def unreachable(self, layer, holder):
        """Handles a target that cannot be reached through the attributes of `holder`.

        `holder` is the layer or model that the target is inside of.
        """
        raise NotImplementedError

    def affects(self, layer):
        """Returns whether a layer is a target or holds one."""
        return isinstance(layer, keras.layers.Layer) and any(
            id(inner) in self.targets for inner in finding.flatten_layers(layer)
        )

    def replace(self, layer):
        """Returns the double of a layer, or the layer itself if it holds no target."""
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
        """Returns a layer of the same class that holds doubles of the inner layers."""
        if isinstance(layer, keras.Sequential) or finding.is_functional(layer):
            # It has a `call` of its own. Its layers are in its graph, not in its
            # attributes.
            self._tell_unreachable(layer, reached=())
            return layer
        double = object.__new__(type(layer))
        double.__dict__.update(state_of(layer))
        reached = {id(layer)}

        def replace(held):
            if not self.affects(held):
                return held
            reached.update(map(id, finding.flatten_layers(held)))
            return self.replace(held)

        for name, held in held_layers(layer).items():
            if any(map(self.affects, keras.tree.flatten(held))):
                # This avoids the tracking of Keras, in lists that both layers share.
                replaced = keras.tree.map_structure(replace, held)
                object.__setattr__(double, name, replaced)
        self._tell_unreachable(layer, reached)
        return double

    def _tell_unreachable(self, holder, reached):
        for inner in finding.flatten_layers(holder):
            if id(inner) in self.targets and id(inner) not in reached:
                self.unreachable(inner, holder)
