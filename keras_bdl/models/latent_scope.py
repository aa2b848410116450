"""The scope in which a training or test step runs layers with latent variables."""

import contextlib

from keras_bdl.core import latents
from keras_bdl.layers import latent


def latent_scope(network, num_samples, training):
    """Returns the scope in which latent layers store what `compute_loss` needs.

    Args:
        network: Keras model.
        num_samples: number of copies of the batch with `estimator="score_function"`.
        training: whether it is a training step, in which discrete states are drawn or
            enumerated.

    Raises:
        ValueError: if layers have estimators that cannot be combined.
    """
    layers = latent.latent_layers(network)
    if not layers:
        return contextlib.nullcontext()
    estimator = latent.discrete_estimator(layers) if training else None
    copies = 1
    if estimator == "score_function":
        copies = num_samples
    elif estimator == "enumerate":
        copies = latent.num_combinations(
            [x for x in layers if x.estimator == estimator]
        )
    return latents.LatentScope(copies, estimator)
