"""The covariance of Laplace's approximation, for precisions that fit the data."""

import warnings
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy import linalg, optimize

from keras_bdl.core import validation
from keras_bdl.exact.linear_regression import EVIDENCE
from keras_bdl.inference import trained
from keras_bdl.inference.curvature import Curvature
from keras_bdl.inference.laplace import best_prior_precision
from keras_bdl.inference.trained import CLASSES
from keras_bdl.posteriors.gaussian import bias_of

_CHECKED = 500  # training rows
_GRID = np.logspace(-3.0, 5.0, 17)


class Fit:
    """The matrix H of a layer's weights, and its posterior for a prior precision.

    Attributes:
        eigenvalues: of H for a noise of the residuals, by block: a kernel, or all.
        squares: sums of squared weights of the blocks.
    """

    def __init__(self, layer, structure, kind, noise_precision):
        self.layer = layer
        self.structure = structure
        self.kind = kind
        if not isinstance(noise_precision, str):
            noise_precision = validation.positive("noise_precision", noise_precision)
        elif noise_precision != EVIDENCE:
            validation.choice("noise_precision", noise_precision, (EVIDENCE,))
        self.noise_precision = noise_precision
        self.learns_noise = kind != CLASSES and noise_precision == EVIDENCE
        self.sums: dict[str, Any] = {}
        self.rows = 0
        self.noise_scale = 1.0  # of the residual variances
        self._inputs, self._labels = [], []  # some of the training data

    # The matrix

    def collect(self, batches):
        """Goes through the training data."""
        precisions = None
        if self.kind != CLASSES:
            self.variances = self._residuals(batches)
            precisions = 1.0 / self.variances
        curvature = Curvature(self.layer, self.kind, self.structure, precisions)
        units = self.layer.layer.output_shape[-1]
        for x, y in batches:
            if sum(map(len, self._labels)) < _CHECKED:
                self._inputs.append(x)
                self._labels.append(y)
            if self.kind == CLASSES:
                trained.check_labels(y, len(keras.tree.flatten(x)[0]), units)
                self.rows += len(y)
            found = keras.tree.map_structure(
                lambda t: np.asarray(t, "float64"), curvature.predict_on_batch(x)
            )
            if not all(np.isfinite(leaf).all() for leaf in keras.tree.flatten(found)):
                raise ValueError(
                    "Expected finite inputs, and outputs and derivatives that are so "
                    "too. Received: a batch of x with NaN, infinity or huge values"
                )
            if not self.sums:
                self.sums = found
            else:
                self.sums = keras.tree.map_structure(np.add, self.sums, found)
        self._decompose()

    def _residuals(self, batches):
        """Returns the mean squared residual of each target."""
        total, self.rows, network = 0.0, 0, self.layer.layer
        for x, y in batches:
            means = ops.convert_to_numpy(network.predict_on_batch(x))
            y = y.reshape(len(y), -1)
            if y.shape != means.shape:
                raise ValueError(
                    f"Expected targets `(n, {means.shape[-1]})`. "
                    f"Received: y of shape {y.shape}"
                )
            total = total + np.square(y - means.astype("float64")).sum(axis=0)
            self.rows += len(y)
        if self.noise_precision != EVIDENCE:
            return np.full(len(total), 1.0 / self.noise_precision)
        return np.maximum(total / self.rows, 1e-30)

    def _decompose(self):
        """Finds the eigenvalues of H, and what turns noise into draws."""
        means = {
            name: ops.convert_to_numpy(mean).astype("float64")
            for name, mean in self.layer.posterior.mean().items()
        }
        self.eigenvalues, self.squares, self._vectors = {}, {}, {}
        if self.structure == "full":
            values, self._vectors["full"] = linalg.eigh(self.sums["full"])
            self.eigenvalues["full"] = np.maximum(values, 0.0)
            self.squares["full"] = sum(np.square(w).sum() for w in means.values())
            return
        for name, found in self.sums.items():
            own = [means[name], means.get(bias_of(name), np.zeros(0))]
            self.squares[name] = sum(np.square(w).sum() for w in own)
            if self.structure == "diagonal":
                self.eigenvalues[name] = found
                continue
            pairs = [linalg.eigh(matrix) for matrix in found]
            rows, units = (np.maximum(values, 0.0) for values, _ in pairs)
            self.eigenvalues[name] = np.outer(rows, units) / self.rows
            self._vectors[name] = [vectors for _, vectors in pairs]

    # The precisions

    def noise_stddevs(self):
        return np.sqrt(self.noise_scale * self.variances)

    def by_evidence(self):
        """Maximises the marginal likelihood over all precisions."""
        for _ in range(20 if self.learns_noise else 1):
            alphas = {
                name: best_prior_precision(
                    values.ravel() / self.noise_scale, self.squares[name]
                )
                for name, values in self.eigenvalues.items()
            }
            if self.learns_noise:
                before, self.noise_scale = self.noise_scale, self._best_noise(alphas)
                if abs(np.log(self.noise_scale / before)) < 1e-6:
                    break
        self.assign(alphas)

    def _best_noise(self, alphas):
        """Returns the scale of the residual variances of highest evidence."""
        count = self.rows * len(self.variances)

        def negative(log_scale):
            scale = np.exp(log_scale)
            total = 0.5 * count * (log_scale + 1.0 / scale)
            for name, values in self.eigenvalues.items():
                total += 0.5 * np.log(values / scale + alphas[name]).sum()
            return total

        found = optimize.minimize_scalar(negative, bounds=(-3.0, 6.0), method="bounded")
        return float(np.exp(found.x))

    def by_prior(self, alpha):
        """Sets the posterior for a given precision, with the noise that fits it."""
        alphas = dict.fromkeys(self.eigenvalues, float(alpha))
        if self.learns_noise:
            self.noise_scale = self._best_noise(alphas)
        self.assign(alphas)

    def check(self, bayesian):
        """Warns of a posterior that does not fit the training data."""
        alphas = self.alphas
        pairs = list(zip(self._inputs, self._labels))
        counts = [len(y) for _, y in pairs]
        scores = []
        for each in (alphas, dict.fromkeys(alphas, 1e12)):  # and the network itself
            self.assign(each)
            losses = [self._score(bayesian, x, y) for x, y in pairs]
            scores.append(np.average(losses, weights=counts))
        self.assign(alphas)
        if scores[0] > scores[1] + 0.1:
            warnings.warn(
                f"The posterior does not fit the training data: its predictions lose "
                f"{scores[0] - scores[1]:.2f} nats for each of {sum(counts)} training "
                "rows, because the prior precision of highest evidence is too small "
                "for this network. Give `validation_data`, rows that it was not "
                "trained on.",
                stacklevel=4,
            )

    def _score(self, bayesian, x, y):
        """Returns the negative log likelihood of each row, in nats."""
        options = {"seed": 0, "verbose": 0}
        if self.kind != CLASSES:
            bayesian.observation_noise.log_scale.assign(np.log(self.noise_stddevs()))
            y = np.reshape(y, (len(y), -1))
            return -np.mean(bayesian.log_likelihood(x, y, **options))
        log_p = np.log(bayesian.predict(x, **options).astype("float64") + 1e-300)
        if np.size(y) == len(log_p):
            labels = np.reshape(y, -1).astype(int)
            return -np.mean(log_p[np.arange(len(log_p)), labels])
        return -np.mean(np.sum(y * log_p, axis=-1))

    def by_validation(self, bayesian, x, y, verbose):
        """Takes the precision of the highest likelihood of other rows."""
        bar = keras.utils.Progbar(len(_GRID), verbose=1 if verbose else 0)
        scores = []
        for index, alpha in enumerate(_GRID):
            self.by_prior(alpha)
            scores.append(self._score(bayesian, x, y))
            bar.update(index + 1)
        self.by_prior(_GRID[int(np.nanargmin(scores))])

    def assign(self, alphas):
        """Sets the posterior for the prior precision of each block."""
        posterior = self.layer.posterior
        variables = posterior.variables()
        for name, values in self.eigenvalues.items():
            scale = (values / self.noise_scale + alphas[name]) ** -0.5
            if self.structure == "full":
                posterior.assign_factor(self._vectors[name] * scale)
            elif self.structure == "kronecker":
                posterior.assign_factors(name, *self._vectors[name], scale)
            else:
                self._assign_stddevs(variables, name, scale)
        self.alphas = alphas

    def _assign_stddevs(self, variables, name, scale):
        kernel, bias = f"{name}_log_stddev", f"{bias_of(name)}_log_stddev"
        rows = scale
        if bias in variables:
            rows = scale[:-1]
            variables[bias].assign(np.log(scale[-1]))
        variables[kernel].assign(np.log(rows.reshape(variables[kernel].shape)))
