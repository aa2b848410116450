"""Which draw of the weights a converted model has, where draws have numbers."""

import random

import keras

from keras_bdl.core import validation
from keras_bdl.layers.bayesian import bayesian_layers
from keras_bdl.posteriors import Posterior


def number_of_draw(model, weights, seed, index):
    """Returns the number of the draw that all layers with members take."""
    posteriors = []
    if isinstance(model, keras.layers.Layer):
        posteriors = [layer.posterior for layer in bayesian_layers(model)]
    found = [x for x in posteriors if isinstance(x, Posterior) and x.splits_rows]
    sizes = [x.cycle or 1 for x in found]
    if index is None:
        return random.Random(seed).randrange(2**31)
    if not sizes or weights != "sample":
        raise ValueError(
            "Only an ensemble has members with numbers, as samples; use `seed` for "
            "another sample. "
            f"Received: model={model!r}, weights={weights!r}, index={index!r}"
        )
    return validation.integer("index", index, least=0, most=min(sizes) - 1)
