"""Numbers of units that early-exit blocks run, and posterior of label and depth."""

import collections
import contextlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bdl.core import dtypes, latents, scopes, stochastic
from keras_bdl.core.cache import kept_with
from keras_bdl.layers.latent import early_exit_blocks, num_combinations
from keras_bdl.prediction.program import SeededModel

DepthPosterior = collections.namedtuple(
    "DepthPosterior",
    ["joint", "depths", "label", "depth", "exact_stop", "amortized_depth"],
)
DepthPosterior.__doc__ = """Joint posterior of label and depth.

All attributes are NumPy arrays.

Attributes:
    joint: `(n, combinations, classes)`, p(y, z | x) = p(y | x, z) p(z).
    depths: `(combinations, blocks)`, the number of units of each combination.
    label: `(n,)`, the label of the joint mode.
    depth: `(n, blocks)`, the depth of the joint mode.
    exact_stop: `(n,)` for a model with one block, the unit after which the mode is
        known, whatever the later units compute. None for several blocks.
    amortized_depth: `(n, blocks)`, the number of units that inference runs. The
        halting heads decide it.
"""


def depth(
    model: keras.Model,
    x: Any,
    batch_size: int | None = None,
    verbose: int | str = "auto",
) -> np.ndarray:
    """Returns the number of units that inference runs for each row in each block.

    Args:
        model: Keras model with `EarlyExitResBlock` layers.
        x: whatever `model.predict` takes.
        batch_size, verbose: as in `keras.Model.predict`.

    Returns:
        NumPy array of integers `(n, blocks)`, with the early-exit blocks in the order
        of their calls.

    Raises:
        TypeError: if `model` is not a Keras model, or `x` is None.
        ValueError: if the model has no early-exit block, or `batch_size` is below 1.

    Example:

    >>> keras_bdl.depth(model, x_test).mean(axis=0)
    """
    _check_blocks(model)
    if x is None:
        raise TypeError("Expected `x` to be inputs of the model. Received: x=None")
    runner = kept_with(model, "depths", None, lambda: _DepthModel(model))
    return runner.run(x, 0, batch_size, None, verbose, None)


class _DepthModel(SeededModel):
    """Computes the number of units that inference runs, without random draws."""

    def __init__(self, model):
        super().__init__(name="depth")
        self.network = model

    def input_network(self):
        return self.network

    def answer(self, inputs, seed, number):
        with latents.LatentScope() as scope:
            self.network(inputs, training=False)
        depths = [depth for _, depth in scope.depths]
        return ops.cast(ops.stack(depths, axis=-1), "int32")


def depth_posterior(
    model, network, x, num_samples, batch_size=None, verbose="auto", seed=None
):
    """Returns the `DepthPosterior` of a classifier. See `BayesianClassifier`."""
    blocks = _check_blocks(network)
    runner = kept_with(
        network,
        "depth_posteriors",
        num_samples,
        lambda: _DepthPosteriorModel(network, num_samples),
    )
    result = runner.run(x, seed, batch_size, None, verbose, None)
    joint, depths = result["joint"], result["depths"][0]
    flat = joint.reshape(len(joint), -1).argmax(axis=1)
    combination, label = np.unravel_index(flat, joint.shape[1:])
    return DepthPosterior(
        joint,
        depths,
        label,
        depths[combination],
        _exact_stop(joint, blocks[0].prior_rate) if len(blocks) == 1 else None,
        depth(model, x, batch_size=batch_size, verbose=verbose),
    )


def _exact_stop(joint, rate):
    """Returns the first unit after which no later unit can change the joint mode.

    The joint probabilities of later units are at most p(z), and so at most
    p(z = l + 1) = e^-rate p(z = l). Therefore max_y p(y | x, l) >= e^-rate is
    sufficient.
    """
    best = np.maximum.accumulate(joint.max(axis=2), axis=1)
    prior = joint.sum(axis=2)
    known = best >= prior * np.exp(-rate)
    known[:, -1] = True
    return known.argmax(axis=1) + 1


class _DepthPosteriorModel(SeededModel):
    """Computes p(y | x, z) p(z) by running all combinations of depths."""

    def __init__(self, network, num_samples):
        super().__init__(name="depth_posterior")
        self.network = network
        blocks = early_exit_blocks(network)
        self.num_combinations = num_combinations(blocks)
        others = [x for x in stochastic.stochastic_layers(network) if x not in blocks]
        self.num_samples = num_samples if others else 1
        self.is_sampled = bool(others)
        self.places = stochastic.places(network)

    def input_network(self):
        return self.network

    def answer(self, inputs, seed, number):
        probabilities, depths = self._run(inputs, seed, 0)
        if self.num_samples > 1:
            probabilities = ops.fori_loop(
                1,
                self.num_samples,
                lambda index, total: total + self._run(inputs, seed, index)[0],
                probabilities,
            )
        return {"joint": probabilities / self.num_samples, "depths": depths}

    def _run(self, inputs, seed, index):
        scope = latents.LatentScope(
            self.num_combinations, estimator="enumerate", forced=True
        )
        weights = contextlib.nullcontext()
        if self.is_sampled:
            weights = scopes.SamplingScope(seed, index, 1, self.places)
        with scope, weights:
            logits = self.network(scope.copy(inputs), training=False)
        if len(logits.shape) != 2:
            raise ValueError(
                "Expected a network with logits `(n, classes)`: the depth is one for "
                "all positions of a row, the label is not. "
                f"Received: outputs of shape {tuple(logits.shape)}"
            )
        shape = (self.num_combinations, -1, logits.shape[-1])
        probabilities = ops.softmax(ops.reshape(dtypes.wide(logits), shape), axis=-1)
        prior = ops.exp(ops.reshape(sum(scope.log_priors), shape[:2]))
        depths = ops.stack([depth for _, depth in scope.depths], axis=-1)
        depths = ops.reshape(depths, (*shape[:2], len(scope.depths)))
        joint = probabilities * ops.cast(
            ops.expand_dims(prior, -1), probabilities.dtype
        )
        return ops.swapaxes(joint, 0, 1), ops.swapaxes(depths, 0, 1)


def _check_blocks(model):
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"Expected a Keras model. Received: model={model!r}")
    blocks = early_exit_blocks(model)
    if not blocks:
        raise ValueError(
            "Expected a model with `EarlyExitResBlock` layers. "
            f"Received: model={model.name!r}"
        )
    return blocks
