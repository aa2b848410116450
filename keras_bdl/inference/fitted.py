"""Models with a posterior, around a copy of a network that was trained plainly."""

from typing import Any, TypeVar

import keras

from keras_bdl.conversion.whole import BayesianModel
from keras_bdl.core.stochastic import whole_layers
from keras_bdl.graphs.copy import trainable_copy
from keras_bdl.posteriors import Posterior

Model = TypeVar("Model", bound=keras.Model)


def check_plain(network: keras.Model) -> None:
    """Raises an error for a network whose weights have a posterior already."""
    inside = whole_layers(network)
    if inside:
        raise ValueError(
            "Expected a plain network; this one has keras_bdl layers, whose weights "
            f"would have two posteriors. Received: model={network.name!r}, which holds "
            f"{inside[0].name!r}"
        )


def around(network: keras.Model, posterior: Posterior, **options: Any) -> BayesianModel:
    """Returns a model with a posterior over all weights that the network trains.

    It is compiled with the losses of the network, if that is compiled.

    Args:
        network: built Keras model, which is copied.
        posterior: `keras_bdl.posteriors.Posterior`.
        **options: further arguments of `BayesianModel`.

    Raises:
        ValueError: if the network has keras_bdl layers.
    """
    check_plain(network)
    model = BayesianModel(
        trainable_copy(network), weights="all", posterior=posterior, **options
    )
    return compiled_like(network, model)


def compiled_like(original: keras.Model, model: Model) -> Model:
    """Compiles a model with the losses of another one, if that is compiled."""
    if original.compiled:
        config = original.get_compile_config() or {}
        model.compile(loss=original.loss, loss_weights=config.get("loss_weights"))
    return model
