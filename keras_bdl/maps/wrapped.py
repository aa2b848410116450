"""Layers inside a wrapper, of any class."""

import inspect
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_bdl.core.finding import flatten_layers, normalisations_of
from keras_bdl.maps.whole import Whole


class Wrapped(Whole):
    """Computes any layer that a wrapper holds as its attribute `layer`.

    A wrapper says which weights of that layer have a posterior, as a dictionary of
    variables by name: its attribute `chosen`.
    """

    bias = None

    def variables(self, layer: keras.layers.Layer) -> dict[str, keras.Variable]:
        return dict(layer.chosen)

    def target(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        return layer.layer

    def run(
        self,
        layer: keras.layers.Layer,
        inputs: Any,
        is_training: bool | None = None,
        **arguments: Any,
    ) -> Any:
        if takes_training(layer.layer):
            arguments["training"] = is_training
        return layer.layer(*inputs, **arguments)


def check_no_constraint(variables: Iterable[keras.Variable]) -> None:
    """Raises an error for a weight with a constraint."""
    for variable in variables:
        if variable.constraint is not None:
            raise ValueError(
                f"Weight '{variable.path}' has a constraint, which a posterior cannot "
                f"keep. Received: constraint={variable.constraint!r}"
            )


def takes_training(layer: keras.layers.Layer) -> bool:
    """Returns whether the `call` of a layer has the argument `training`."""
    return "training" in inspect.signature(layer.call).parameters


def weights_inside(
    layer: keras.layers.Layer,
    which: str | Sequence[str] = "matrices",
    with_state: bool = False,
) -> dict[str, keras.Variable]:
    """Returns the trainable weights of a built layer, by names for files.

    A name has the name of the variable and the number of the layer inside that owns it,
    among those with weights. Names of variables alone are not unique, and their paths
    have other numbers in a copy.

    Args:
        layer: built Keras layer.
        which: "matrices" leaves out layers without a weight of at least two axes, which
            have scales and offsets alone, such as normalisation; "all" does not. A list
            has the names of layers inside, whose trainable weights are meant, or names
            of weights as they are returned, trainable or not.
        with_state: whether running statistics count too: those of batch normalisation
            that is not frozen.
    """
    innermost: dict[int, int] = {}
    named: set[int] = set()
    for order, owner in enumerate(flatten_layers(layer)):
        if not isinstance(which, str) and owner.name in which:
            named.update(map(id, owner.weights))
        # A layer precedes those inside of it, so the last one is the owner.
        innermost |= {id(variable): order for variable in owner.weights}
    numbers = {order: i for i, order in enumerate(sorted(set(innermost.values())))}
    owners = {key: numbers[order] for key, order in innermost.items()}
    trained = layer.trainable_variables
    with_matrix = {owners[id(v)] for v in trained if len(v.shape) > 1}
    found: dict[str, keras.Variable] = {}
    normalisations = normalisations_of(layer) if with_state else ()
    state = [s for x in normalisations for s in (x.moving_mean, x.moving_variance)]
    ours = {id(variable) for variable in [*trained, *state]}
    others = [] if isinstance(which, str) else layer.weights
    others = [variable for variable in others if id(variable) not in ours]
    for variable in [*trained, *state, *others]:
        number = owners[id(variable)]
        if which == "matrices" and number not in with_matrix:
            continue
        names = (f"{variable.name}_{number}{'_' * k}" for k in itertools.count())
        found[next(name for name in names if name not in found)] = variable
    if isinstance(which, str):
        return found
    named &= ours
    return {n: v for n, v in found.items() if id(v) in named or n in which}
