"""SWAG: a Gaussian posterior from the weights that training passes through."""

import collections
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bdl.conversion.whole import BayesianModel
from keras_bdl.core import validation
from keras_bdl.inference.fitted import around, check_plain
from keras_bdl.inference.statistics import has_statistics
from keras_bdl.maps.wrapped import check_no_constraint, weights_inside
from keras_bdl.posteriors import Gaussian, LowRank

_LEAST_VARIANCE = 1e-30


class SWAG(keras.callbacks.Callback):
    """Fits a Gaussian posterior to the weights at the ends of epochs.

    A plain `fit` trains the model. At the end of epoch `start` and of every `every`-th
    after it (epochs count from 0) the callback records the trained weights.
    `bayesian_model()` returns a model whose weights have the posterior
    N(mean, D / 2 + L L' / (2 (K - 1))): with the mean and the variances D of all
    records, and as columns of L the deviations of the last K of them from the mean at
    that time. The records must come from a learning rate that keeps the weights moving,
    constant and rather high.

    Args:
        start: integer >= 0, the first epoch that is recorded.
        every: positive integer, epochs from one record to the next.
        rank: K, number of deviations, 0 for the diagonal alone, or an integer from 2.

    Raises:
        ValueError: on a wrong argument; in `fit` if the model has nothing to train; in
            `bayesian_model` before two records.

    Example:

    >>> swag = keras_bdl.callbacks.SWAG(start=75)
    >>> network.fit(x, y, epochs=100, callbacks=[swag])
    >>> model = swag.bayesian_model()
    >>> keras_bdl.predict_uncertainty(model, x_test)
    >>> average = keras_bdl.to_keras(model)  # stochastic weight averaging

    Reference: Maddox, Garipov, Izmailov, Vetrov and Wilson, "A simple baseline for
    Bayesian uncertainty in deep learning", 2019, algorithm 1. The mean is of Izmailov,
    Podoprikhin, Garipov, Vetrov and Wilson, "Averaging weights leads to wider optima
    and better generalization", 2018.
    """

    def __init__(self, start: int, every: int = 1, rank: int = 20) -> None:
        super().__init__()
        self.start = validation.integer("start", start, least=0)
        self.every = validation.integer("every", every, least=1)
        self.rank = validation.integer("rank", rank, least=0)
        if self.rank == 1:
            raise ValueError(
                "Expected `rank` to be 0 or from 2: one deviation has no spread. "
                f"Received: rank={rank!r}"
            )
        self.num_records = 0
        self._mean: dict[str, np.ndarray] = {}
        self._square: dict[str, np.ndarray] = {}
        self._deviations: collections.deque = collections.deque(maxlen=self.rank)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        check_plain(self.model)
        check_no_constraint(self.model.trainable_variables)
        if not weights_inside(self.model, "all"):
            raise ValueError(
                f"`SWAG` expected a model with weights to train. "
                f"Received: model={self.model!r}"
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch >= self.start and (epoch - self.start) % self.every == 0:
            self.record()

    def record(self) -> None:
        """Records the present weights of the model, also in a loop of one's own."""
        found = weights_inside(self.model, "all")
        weights = {
            name: ops.convert_to_numpy(variable).astype("float64")
            for name, variable in found.items()
        }
        n = self.num_records
        for name, w in weights.items():
            mean, square = self._mean.get(name, 0.0), self._square.get(name, 0.0)
            self._mean[name] = mean + (w - mean) / (n + 1)
            self._square[name] = square + (w**2 - square) / (n + 1)
        self.num_records = n + 1
        self._deviations.append(
            {n: (w - self._mean[n]).astype("float32") for n, w in weights.items()}
        )

    def bayesian_model(self) -> BayesianModel:
        """Returns a model with the posterior, around a copy of the trained model.

        It is compiled with the loss of the trained model, and has the mean of the
        records as its mean network. Its KL is left out of `evaluate`.
        """
        if self.num_records < 2:
            raise ValueError(
                "SWAG needs at least two records: expected a training of more epochs. "
                f"Received: num_records={self.num_records}, start={self.start}"
            )
        columns = list(self._deviations)
        form = LowRank(len(columns)) if columns else Gaussian()
        bayesian = around(self.model, form, num_examples=1, kl_weight=0.0)
        variables = bayesian.bayesian.posterior.variables()
        share = 0.5 if columns else 1.0
        for name, variable in bayesian.bayesian.chosen.items():
            mean = self._mean[name]
            variance = np.maximum(self._square[name] - mean**2, _LEAST_VARIANCE)
            variable.assign(mean)
            variables[f"{name}_log_stddev"].assign(0.5 * np.log(share * variance))
            if columns:
                scale = np.sqrt(2.0 * (len(columns) - 1.0))
                factor = np.stack([column[name] for column in columns]) / scale
                variables[f"{name}_factor"].assign(factor)
        if has_statistics(self.model):
            warnings.warn(
                "The running statistics of the model are those of its last weights. "
                "Use `keras_bdl.inference.refresh_statistics(model, x)` for statistics "
                "of the mean network and of each draw.",
                stacklevel=2,
            )
        return bayesian
