"""The exact posterior of a linear regression of one target."""

import math
import typing

import numpy as np

from keras_bdl.exact.evidence import (
    EvidenceMaximizer,
    GammaNoise,
    KnownNoise,
    covariance_factor,
    log_evidence,
)

_ROUNDING = 1e-14  # times the largest eigenvalue of X'X: less is a rounded 0


class RegressionPoint(typing.NamedTuple):
    """Point estimate of `y = X @ coef + intercept + noise`.

    Attributes:
        coef: `(d,)`; with several targets `(t, d)`.
        intercept: number; with several targets `(t,)`.
        noise_precision: one over the noise variance, a number; with several targets
            `(t,)`.
    """

    coef: np.ndarray
    intercept: float | np.ndarray
    noise_precision: float | np.ndarray


class RegressionPosterior:
    """Posterior of the weights and of the noise, given rows of one target.

    Args:
        statistics: `RegressionStatistics` of one target.
        prior_precision: alpha, or None for the alpha of highest evidence.
        noise: `KnownNoise`, `GammaNoise`, or None for the beta of highest evidence.
        eigen: eigenvalues and eigenvectors of X'X, needed to maximise the evidence.

    Attributes:
        coef, intercept: posterior means, float64 `(d,)` and a number.
        prior_precision, noise_precision: alpha and beta in use. With a Gamma
            posterior of beta, its mean.
        noise_shape, noise_rate: parameters of the Gamma posterior of beta, or None if
            it has no such posterior.
        num_effective_parameters: gamma, the number of weights that the data determine.
        factor: lower triangular C, `(d, d)`. The covariance of the coefficients is
            C C' in units of 1 / beta.

    Raises:
        ValueError: if columns are collinear and float64 cannot tell the prior from 0,
            or if weights that sum to less than a row leave the noise without a
            posterior.
    """

    def __init__(self, statistics, prior_precision, noise, eigen=None):
        s, n = statistics, statistics.degrees_of_freedom
        self.statistics = s
        self.known_beta = noise.beta if isinstance(noise, KnownNoise) else None
        ratio = None
        if prior_precision is None or noise is None:
            maximizer = EvidenceMaximizer(s, prior_precision, noise, eigen)
            ratio = maximizer.best_ratio()
        if ratio is None:  # as given, or 1; with a Gamma alpha is in units of beta
            ratio = (prior_precision or 1.0) / (self.known_beta or 1.0)

        self._ratio = ratio
        self.factor = covariance_factor(s.xx, ratio)
        self.coef = self._mean(eigen)
        self.intercept = self._offset(self.coef)
        self._energy = max(s.yy - self.coef @ s.xy, s.least_energy)
        if noise is None and prior_precision is not None:
            noise = KnownNoise(prior_precision / ratio)
        elif noise is None:
            noise = KnownNoise(n / self._energy if n > 0 else 1.0)
        self._noise = noise
        self.noise_shape, self.noise_rate = None, None
        if self.unknown_noise:
            self.noise_shape, self.noise_rate = noise.posterior(self._energy, n)
            if self.noise_shape <= 0.0:
                raise ValueError(
                    "Expected weights that sum to a row or more, or a larger shape of "
                    "the noise's prior: with less, an intercept has no posterior. "
                    f"Received: weights that sum to {s.count:g}, shape={noise.shape:g}"
                )
        self.noise_precision = float(noise.precision(self._energy, n))
        self.prior_precision = ratio
        if not self.unknown_noise:
            self.prior_precision = ratio * self.noise_precision
        kept = ratio * np.square(self.factor).sum()  # weights that the prior determines
        self.num_effective_parameters = float(len(self.coef) - kept)

    def _mean(self, eigen):
        """Returns the posterior mean of the coefficients."""
        xy = self.statistics.xy
        if eigen is not None:
            values, vectors = eigen
            seen = values > _ROUNDING * values[-1]
            if not seen.all():
                # X'y is 0 in directions that no row has. Rounding leaves a remainder,
                # which a weak prior would blow up.
                vectors = vectors[:, seen]
                return vectors @ (vectors.T @ xy / (values[seen] + self._ratio))
        return self.factor @ (self.factor.T @ xy)

    @property
    def unknown_noise(self):
        """Whether the noise precision has a Gamma posterior."""
        return isinstance(self._noise, GammaNoise)

    def log_evidence(self):
        """Returns log p(y | X) in nats. Weights and unknown beta are integrated out."""
        log_det = -2.0 * np.log(np.diag(self.factor)).sum()
        return float(
            log_evidence(
                self._noise, self._ratio, log_det, self._energy, self.statistics
            )
        )

    def mle(self):
        """Returns the point of maximum likelihood as a `RegressionPoint`."""
        s = self.statistics
        coef = np.linalg.lstsq(s.xx, s.xy, rcond=1e-14 * len(s.xy))[0]
        residual = s.yy - coef @ s.xy
        precision = math.nan
        if s.count:
            exact = residual <= s.least_energy
            precision = math.inf if exact else float(s.count / residual)
        if self.known_beta is not None:
            precision = self.known_beta
        intercept = math.nan if s.centred and not s.count else self._offset(coef)
        return RegressionPoint(coef, intercept, precision)

    def map(self):
        """Returns the mode of the posterior as a `RegressionPoint`."""
        precision = self.noise_precision
        if self.unknown_noise:
            # Each weight adds a factor beta^(1/2) to the density.
            has_intercept = self.statistics.centred and self.statistics.count > 0
            num_weights = len(self.coef) + has_intercept
            power = self.noise_shape + 0.5 * num_weights - 1.0
            precision = max(power, 0.0) / self.noise_rate
        return RegressionPoint(self.coef, self.intercept, precision)

    def weights_and_factor(self):
        """Returns the mean of all weights and the factor of their covariance.

        The intercept comes last. If there is one, there must be a row.
        """
        s = self.statistics
        if not s.centred:
            return self.coef, self.factor
        below = -s.x_mean @ self.factor
        factor = np.zeros((len(below) + 1, len(below) + 1))
        factor[:-1, :-1] = self.factor
        factor[-1] = [*below, 1.0 / math.sqrt(s.count)]
        return np.append(self.coef, self.intercept), factor

    def draws(self, num_samples, rng):
        """Draws all weights, `(num_samples, d + 1)` or `(num_samples, d)`."""
        mean, factor = self.weights_and_factor()
        draws = rng.normal(size=(num_samples, len(mean))) @ factor.T
        precision = self.noise_precision
        if self.unknown_noise:
            scale = 1.0 / self.noise_rate
            precision = rng.gamma(self.noise_shape, scale, size=(num_samples, 1))
        return mean + draws / np.sqrt(precision)

    def predictive_scale(self, x):
        """Returns the scale of the normal or Student-t of a new target for each row.

        Args:
            x: float64 `(n, d)`.
        """
        s = self.statistics
        noise = 1.0  # variances here are in units of 1 / beta
        if s.centred:
            noise += 1.0 / s.count if s.count else math.inf
        x = (x - s.x_mean) @ self.factor
        variance = noise + np.square(x).sum(axis=1)
        return np.sqrt(variance) / math.sqrt(self.noise_precision)

    def _offset(self, coef):
        return float(self.statistics.y_mean - coef @ self.statistics.x_mean)
