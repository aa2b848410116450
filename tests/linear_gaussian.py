"""Regressions with a known posterior, one for each unit of a Dense layer."""

import numpy as np
from keras import ops
from scipy import linalg


class LinearGaussian:
    """Rows of two inputs, and the exact posterior of their weights with a bias.

    Args:
        rows: number of rows.
        noise: standard deviation of the targets.
        prior: standard deviation of the prior of every weight.
        mixing: matrix that makes the inputs depend on each other, or None.

    Attributes:
        x, y: inputs and targets, `(rows, 2)` and `(rows,)`.
        precision, mean: of the posterior.
    """

    def __init__(self, rows, noise, prior, mixing=None):
        rng = np.random.default_rng(0)
        self.noise = noise
        x = rng.normal(size=(rows, 2))
        self.x = (x if mixing is None else x @ mixing).astype("float32")
        clean = self.x @ [0.7, -0.4] + 0.3
        self.y = (clean + noise * rng.normal(size=rows)).astype("float32")
        self.design = np.column_stack([self.x, np.ones(rows)]).astype("float64")
        gram = self.design.T @ self.design
        self.precision = gram / noise**2 + np.eye(3) / prior**2
        self.mean = linalg.solve(self.precision, self.design.T @ self.y / noise**2)

    def nll(self, y, outputs):
        """Keras loss: the negative log likelihood of all units, up to a constant."""
        return 0.5 * ops.sum(ops.square((y - outputs) / self.noise), axis=-1)
