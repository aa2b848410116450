"""Which draw of the weights a converted model has, where draws have numbers."""

import random

import keras

from keras_bdl.core import validation
from keras_bdl.layers.bayesian import bayesian_layers
from keras_bdl.posteriors import Posterior


def number_of_draw(model, weights, seed, index):
    """Returns the number of the draw that all layers with members take."""
    members = isinstance(model, keras.layers.Layer) and any(
        layer.posterior.splits_rows
        for layer in bayesian_layers(model)
        if isinstance(layer.posterior, Posterior)
    )
    if index is None:
        return random.Random(seed).randrange(2**31)
    if not members or weights != "sample":
        raise ValueError(
            "Only a sample of an ensemble has a number; use `seed` for another one. "
            f"Received: model={model!r}, weights={weights!r}, index={index!r}"
        )
    return validation.integer("index", index, least=0)
