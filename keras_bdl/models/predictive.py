"""What a regressor's predictive mixture says, batch by batch in Keras's `predict`."""

import collections

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
    quantiles: `(levels, n, d)`, of the mixture of all samples, noise included.
"""


class Predictive(SeededModel):
    """Summaries of the mixture of a regressor's posterior samples.

    Memory is bounded: draws of one batch at a time.

    Args:
        regressor: a `BayesianRegressor`. Tracked, so that JAX passes its variables
            to the compiled function.
        num_samples: S.
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
        """What the samples of a seed, an integer tensor, say of a batch."""
        raise NotImplementedError

    def _draw(self, inputs, seed):
        return self.regressor.draw_outputs(inputs, self.num_samples, seed)


class PredictiveSpread(Predictive):
    """Mean, standard deviations by source, and quantiles."""

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
            "quantiles": ops.swapaxes(levels, 0, 1),  # rows lead in Keras's predict
        }


class PredictiveLogLikelihood(Predictive):
    """log of the mixture's density at the targets, `(n,)`."""

    def input_network(self):
        return None  # of pairs of x and y, which the regressor has looked at

    def summarize(self, inputs, seed):
        draws = self._draw(inputs["x"], seed)
        return self.regressor.observation_noise.mixture_log_prob(inputs["y"], draws)


def quantile_levels(quantiles):
    """Levels of quantiles as a tuple of floats."""
    if not isinstance(quantiles, (list, tuple, np.ndarray)) or not len(quantiles):
        raise TypeError(
            "Expected `quantiles` to be a sequence of numbers. "
            f"Received: quantiles={quantiles!r}"
        )
    levels = tuple(validation.number("quantiles", level) for level in quantiles)
    if not all(0.0 < level < 1.0 for level in levels):
        raise ValueError(
            "Expected `quantiles` between 0 and 1, neither of them. "
            f"Received: quantiles={quantiles!r}"
        )
    return levels
