"""Running statistics, as of batch normalisation, of networks whose weights were set."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bdl.conversion.whole import BayesianModel
from keras_bdl.core import finding, validation
from keras_bdl.core.stochastic import whole_layers
from keras_bdl.graphs.copy import own_copy
from keras_bdl.inference.fitted import compiled_like
from keras_bdl.posteriors import Particles
from keras_bdl.training import data


def has_statistics(model: keras.Model) -> bool:
    """Whether a model normalises by running statistics."""
    return bool(finding.normalisations_of(model))


def refresh_statistics(
    model: BayesianModel,
    x: Any,
    num_samples: int = 20,
    batch_size: int = 32,
    seed: int | None = None,
) -> BayesianModel:
    """Returns draws of a posterior, each with running statistics of its own.

    `BatchNormalization` keeps the mean and the variance of what it sees in training. A
    network with other weights needs others: those of the batches of `x`, averaged. The
    draws become particles, of which the result predicts the mean.

    Args:
        model: model with a posterior over the weights of a whole network, such as
            `Bayesian` or `callbacks.SWAG` return it.
        x: inputs, arrays nested as the network takes them; some thousand rows of the
            training data.
        num_samples: number of draws, a positive integer. All members of a posterior of
            particles are taken.
        batch_size: rows of a batch, as in training.
        seed: integer for repeatable draws, or None.

    Returns:
        `BayesianModel` with `posteriors.Particles`, compiled with the loss of `model`.

    Raises:
        TypeError: if `model` is of another class.
        ValueError: on another wrong argument, or if the network has no running
            statistics.

    Reference: Maddox, Garipov, Izmailov, Vetrov and Wilson, "A simple baseline for
    Bayesian uncertainty in deep learning", 2019, section 3.3.
    """
    if not isinstance(model, BayesianModel):
        raise TypeError(
            "Expected `model` to be a `BayesianModel`, as `keras_bdl.Bayesian` returns "
            f"it. Received: model={model!r}"
        )
    batch_size = validation.integer("batch_size", batch_size, least=1)
    seed = validation.optional_integer("seed", seed)
    if not has_statistics(model):
        raise ValueError(
            "Expected a network with `BatchNormalization`; the draws of others need no "
            f"statistics. Received: model={model!r}"
        )
    inside = whole_layers(model.wrapped_model)
    if inside:
        raise ValueError(
            "The members of this ensemble have posteriors and running statistics of "
            "their own, which stay as trained. "
            f"Received: model={model!r}, which holds {inside[0].name!r}"
        )
    count = model.bayesian.posterior.num_draws
    size = count or validation.integer("num_samples", num_samples, least=1)
    seeds = np.random.default_rng(seed).integers(2**31, size=size)
    fresh = BayesianModel(
        own_copy(model.wrapped_model), weights="all", posterior=Particles(size)
    )
    particles = []
    progress = keras.utils.Progbar(size, unit_name="draw")
    for index in range(size):
        draw = {"index": index} if count else {"seed": int(seeds[index])}
        network = model.to_keras("sample", **draw)
        _refresh(network, x, batch_size)
        particles.append(fresh.bayesian.weights_of(network))
        progress.add(1)
    fresh.bayesian.posterior.assign_all(particles)  # type: ignore[attr-defined]
    return compiled_like(model, fresh)


def _refresh(network, x, batch_size):
    """Sets the running statistics of a network to their averages over batches."""
    normalisations = finding.normalisations_of(network)
    momenta = [layer.momentum for layer in normalisations]
    sums, rows = None, 0
    for layer in normalisations:
        layer.momentum = 0.0  # the statistics become those of the last batch
    num_rows = len(keras.tree.flatten(x)[0])
    for first in range(0, num_rows, batch_size):
        batch = data.rows_of(x, slice(first, first + batch_size))
        network(batch, training=True)
        size = min(batch_size, num_rows - first)
        found = [
            size * ops.convert_to_numpy(statistic).astype("float64")
            for layer in normalisations
            for statistic in (layer.moving_mean, layer.moving_variance)
        ]
        sums = found if sums is None else list(map(np.add, sums, found))
        rows += size
    for layer, momentum in zip(normalisations, momenta):
        layer.momentum = momentum
        layer.moving_mean.assign(sums.pop(0) / rows)
        layer.moving_variance.assign(sums.pop(0) / rows)
