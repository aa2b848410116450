"""Summaries of a regressor's predictive mixture, computed by Keras's `predict`."""

import collections

import keras
import numpy as np
from keras import ops

from keras_bdl.core import validation
from keras_bdl.ops import mixtures
from keras_bdl.prediction.program import SeededModel

PredictiveUncertainty = collections.namedtuple(
    "PredictiveUncertainty",
    ["mean", "aleatoric_stddev", "epistemic_stddev", "quantiles"],
)
PredictiveUncertainty.__doc__ = """Posterior predictive of a `BayesianRegressor`, NumPy.

Attributes:
    mean: `(n, d)`.
    aleatoric_stddev: `(n, d)`, root of the mean noise variance of the samples.
    epistemic_stddev: `(n, d)`, standard deviation of the samples' means. The
        squares of both add up to the variance of the predictive.
    quantiles: `(levels, n, d)`, quantiles of the mixture of all samples with noise.
"""


class Predictive(SeededModel):
    """Base of summaries of the mixture of a regressor's posterior samples.

    Memory is bounded, because only one batch is drawn at a time.

    Args:
        regressor: a `BayesianRegressor`. It is tracked, so that JAX passes its
            variables to the compiled function.
        num_samples: number S of posterior samples.
    """

    def __init__(self, regressor, num_samples):
        super().__init__(name="predictive")
        self.regressor = regressor
        self.num_samples = num_samples

    def input_network(self):
        return self.regressor.network

    def answer(self, inputs, seed, number):
        return self.summarize(inputs, seed)

    def summarize(self, inputs, seed):
        """Returns the summary of a batch for a seed, an integer tensor."""
        raise NotImplementedError

    def _draw(self, inputs, seed):
        return self.regressor.draw_outputs(inputs, self.num_samples, seed)


class PredictiveSpread(Predictive):
    """Mean, standard deviations by source, and quantiles of the mixture."""

    def __init__(self, regressor, num_samples, levels):
        super().__init__(regressor, num_samples)
        self.levels = levels

    def summarize(self, inputs, seed):
        draws = self._draw(inputs, seed)  # (samples, n, parameters)
        noise = self.regressor.observation_noise
        location = noise.location(draws)
        mean = ops.mean(location, axis=0)
        aleatoric = ops.mean(noise.variance(draws), axis=0)
        epistemic = ops.mean(ops.square(location - mean), axis=0)
        stddev = ops.sqrt(aleatoric + epistemic)
        cdf = noise.mixture_cdf(draws)
        levels = mixtures.quantiles(cdf, self.levels, mean, stddev)
        return {
            "mean": mean,
            "aleatoric_stddev": ops.sqrt(aleatoric),
            "epistemic_stddev": ops.sqrt(epistemic),
            "quantiles": ops.swapaxes(
                levels, 0, 1
            ),  # rows come first in Keras's predict
        }


class PredictiveLogLikelihood(Predictive):
    """Log density of the mixture at the targets, `(n,)`."""

    def input_network(self):
        return None  # the regressor has checked the pairs of x and y

    def summarize(self, inputs, seed):
        draws = self._draw(inputs["x"], seed)
        return self.regressor.observation_noise.mixture_log_prob(inputs["y"], draws)


def check_pairs(x, y):
    """Refuses x and y unless they are arrays with equally many rows.

    Raises:
        TypeError: if one of them is not an array with rows.
        ValueError: if the numbers of rows differ.
    """
    for name, value in (("x", keras.tree.flatten(x)), ("y", [y])):
        if not all(getattr(leaf, "shape", ()) for leaf in value):
            raise TypeError(
                f"Expected `{name}` to be an array with rows. "
                f"Received: {name} of type {type(value[0]).__name__}"
            )
    rows = keras.tree.flatten(x)[0].shape[0]
    if rows != y.shape[0]:
        raise ValueError(
            "Expected a target for each row of x. Received: "
            f"{rows} rows of x, {y.shape[0]} of y"
        )


def quantile_levels(quantiles):
    """Returns the levels of quantiles as a tuple of floats.

    Raises:
        TypeError: if they are not a sequence of numbers.
        ValueError: if a level is not between 0 and 1.
    """
    if not isinstance(quantiles, (list, tuple, np.ndarray)) or not len(quantiles):
        raise TypeError(
            "Expected `quantiles` to be a sequence of numbers. "
            f"Received: quantiles={quantiles!r}"
        )
    levels = tuple(validation.number("quantiles", level) for level in quantiles)
    if not all(0.0 < level < 1.0 for level in levels):
        raise ValueError(
            "Expected `quantiles` above 0 and below 1. "
            f"Received: quantiles={quantiles!r}"
        )
    return levels
