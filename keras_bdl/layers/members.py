"""What is measured of the layers of an ensemble: the mean over its members."""

from collections.abc import Callable

import keras

from keras_bdl.core.finding import flatten_layers
from keras_bdl.layers.wrapper import BayesianWrapper


def mean_over_members(model: keras.Model, measure: Callable[[], float]) -> float:
    """Returns what is measured of the layers of a model; of an ensemble, its mean.

    The layers inside of an ensemble do not hold the weights of its members.

    Args:
        model: Keras model.
        measure: function that reads the variables of its layers.
    """
    for layer in flatten_layers(model):
        if isinstance(layer, BayesianWrapper) and layer.num_draws is not None:
            found = []
            for index in range(layer.num_draws):
                weights = layer.posterior.particle(index)
                values = [
                    (variable, keras.ops.cast(weights[name], variable.dtype))
                    for name, variable in layer.chosen.items()
                ]
                with keras.StatelessScope(state_mapping=values):
                    found.append(measure())
            return sum(found) / len(found)
    return measure()
