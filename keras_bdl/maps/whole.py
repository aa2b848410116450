"""Any Keras layer, called as a whole while its variables have other values."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_bdl.core import finding, scopes
from keras_bdl.core.typing import Tensor
from keras_bdl.maps.base import WeightMap


class Whole(WeightMap):
    """The arithmetic of a layer that only its own `call` knows.

    Outputs with other weights come from a call of the layer in which its variables have
    these values. So every option of the layer counts, its masks and its state too.
    Nothing is known about the outputs as functions of the weights: noise is one draw of
    the weights for all rows of a batch.
    """

    def num_positions(
        self, layer: keras.layers.Layer, input_shape: tuple[int | None, ...]
    ) -> int:
        return 0

    def run(self, layer: keras.layers.Layer, inputs: Any, **arguments: Any) -> Any:
        """Calls the layer with the values that its variables have."""
        raise NotImplementedError

    def target(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        """Returns the layer that `run` calls."""
        return layer

    def apply(
        self,
        layer: keras.layers.Layer,
        inputs: Any,
        weights: dict[str, Tensor],
        **arguments: Any,
    ) -> Any:
        outputs, state = self.apply_with_state(layer, inputs, weights, **arguments)
        for name in state:
            _refuse_change(self.target(layer), self.variables(layer)[name])
        return outputs

    def apply_with_state(
        self,
        layer: keras.layers.Layer,
        inputs: Any,
        weights: dict[str, Tensor],
        **arguments: Any,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Returns what `apply` does, and new values of weights that the call set."""
        variables = self.variables(layer)
        values = {id(variables[name]): value for name, value in weights.items()}
        with _values(self.target(layer), values, layer.add_loss) as changed:
            outputs = self.run(layer, inputs, **arguments)
        names = [name for name in weights if id(variables[name]) in changed]
        return outputs, {name: changed[id(variables[name])] for name in names}


@contextlib.contextmanager
def _values(layer, values, add_loss) -> Iterator[dict[int, Tensor]]:
    """Gives variables of a layer other values within a `with`.

    It yields a dictionary. At the end this holds the new values of those variables that
    have been assigned, by their ids.

    Other variables, such as statistics and states of seeds, change as they would in a
    plain call.

    Args:
        layer: Keras layer.
        values: dictionary of tensors by the ids of variables.
        add_loss: method that takes the losses that the layer adds.
    """
    variables = _all_variables(layer)
    # A stateless scope hides the one around it, so every variable has to be in it.
    mapping = [(v, values.get(id(v), v)) for v in variables]
    with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
        before = [scope.get_current_value(v) for v in variables]
        changed: dict[int, Tensor] = {}
        yield changed
        after = [scope.get_current_value(v) for v in variables]
    sampled = scopes.SamplingScope.current() is not None
    idle = finding.idle_seeds(layer) if sampled else ()
    for variable, old, new in zip(variables, before, after):
        if new is old or id(variable) in idle:
            continue
        if id(variable) in values:
            changed[id(variable)] = new
        else:
            variable.assign(new)
    if not (sampled or scopes.KLAddedElsewhere.current() is not None):
        for loss in scope.losses:
            add_loss(loss + 0.0)  # Keras tells losses apart by their ids


def _all_variables(layer):
    """Returns all variables of a layer, also the states that Keras does not track."""
    variables = list(layer.variables)
    known = set(map(id, variables))
    for state in keras.tree.flatten(getattr(layer, "states", None)):
        if isinstance(state, keras.Variable) and id(state) not in known:
            variables.append(state)
    return variables


def _refuse_change(layer, variable):
    raise ValueError(
        f"Layer '{layer.name}' assigns its weight '{variable.path}' in its `call`, "
        "which would write a draw into the mean. Leave this weight out, or give "
        f"posteriors to the layers inside. Received: layer={layer.name!r}"
    )
