"""The marginal likelihood of Gaussian linear regression, and its maximum.

The weights are w ~ N(0, I / alpha) and the noise has precision beta. With the
ratio r = alpha / beta, the evidence depends on the data only through the energy

    E(r) = min_w |y - X w|^2 + r |w|^2,    attained at m = (X'X + r I)^-1 X'y,

in a way that the noise model alone determines. With an intercept, which has a flat
prior, sums are centred, and n below is N - 1 for N rows. Otherwise n is N. A row of
weight w counts as w rows: its density is raised to the power w.
"""

import dataclasses
import math

import numpy as np
from scipy import linalg, optimize, special

_LOG_2PI = math.log(2.0 * math.pi)
_GRID_STEP = 0.25  # of log r: the evidence is smooth on the scale of 1


@dataclasses.dataclass
class KnownNoise:
    """Noise of known precision beta: a number, or an array like that of energies."""

    beta: float

    def precision(self, energy, n):
        return self.beta

    def log_marginal(self, energy, n):
        """Returns log N(y | X m, I / beta), with E in place of |y - X m|^2."""
        return 0.5 * (n * (np.log(self.beta) - _LOG_2PI) - self.beta * energy)


@dataclasses.dataclass
class GammaNoise:
    """Noise of precision ~ Gamma(shape, rate): the Normal-inverse-Gamma model."""

    shape: float
    rate: float

    def posterior(self, energy, n):
        """Returns shape and rate given the data."""
        return self.shape + 0.5 * n, self.rate + 0.5 * energy

    def precision(self, energy, n):
        """Returns the posterior mean of the precision."""
        shape, rate = self.posterior(energy, n)
        return shape / rate

    def log_marginal(self, energy, n):
        shape, rate = self.posterior(energy, n)
        prior = self.shape * math.log(self.rate) - special.gammaln(self.shape)
        posterior = shape * np.log(rate) - special.gammaln(shape)
        return prior - posterior - 0.5 * n * _LOG_2PI


def log_evidence(noise, ratio, log_det, energy, statistics):
    """Returns log p(y | X) in nats, with p(intercept) = 1 if there is an intercept.

    Args:
        noise: `KnownNoise` or `GammaNoise`.
        ratio: r, the prior's precision over the noise precision.
        log_det: log |X'X + r I|.
        energy: E(r).
        statistics: `RegressionStatistics` of one target.

    Reference: Bishop, "Pattern recognition and machine learning", 2006, eq. 3.86, and
    for the Gamma prior Murphy, "Machine learning: a probabilistic perspective", 2012,
    section 7.6.3.
    """
    if statistics.centred and statistics.count == 0:
        return math.inf  # the integral of the flat prior
    num_features = len(statistics.xy)
    weights = 0.5 * (num_features * np.log(ratio) - log_det)
    value = weights + noise.log_marginal(energy, statistics.degrees_of_freedom)
    if statistics.centred:
        # Given w the intercept has precision N beta. Its factor beta is counted above.
        value -= 0.5 * math.log(statistics.count)
    return value


def covariance_factor(products, ratio):
    """Returns the lower triangular C with C C' = inverse of `products + ratio I`.

    If that matrix is U U' with upper triangular U, C is the inverse of U'. The lower
    triangular Cholesky factor of the matrix with its rows and columns flipped gives U
    when it is flipped back.
    """
    precision = products + ratio * np.eye(len(products))
    try:
        upper = np.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError as error:
        raise ValueError(
            "Expected a prior that float64 can tell from 0 beside these columns: they "
            "are collinear, so that only the prior decides between them. Rescale "
            "the columns, or raise `prior_precision`. Received: prior_precision over "
            f"noise precision={ratio:g}, largest sum of squares={products.max():g}"
        ) from error
    return linalg.solve_triangular(upper, np.eye(len(products)), trans="T")


class EvidenceMaximizer:
    """Finds the ratio r of highest evidence.

    In the basis of the eigenvectors of X'X an evaluation costs O(d). So the maximizer
    looks at a grid of ratios and refines the zeros of the slope that are maxima. At
    these, the equations hold to which MacKay's updates converge:
    alpha |m|^2 = gamma and beta |y - X m|^2 = n - gamma.

    Args:
        statistics: `RegressionStatistics` of one target.
        prior_precision: alpha, or None to choose it.
        noise: `KnownNoise`, `GammaNoise`, or None to choose beta.
        eigen: eigenvalues, ascending, and eigenvectors of X'X.

    References: MacKay, "Bayesian interpolation", 1992, section 4.3; Bishop, "Pattern
    recognition and machine learning", 2006, eq. 3.91, 3.92 and 3.95.
    """

    def __init__(self, statistics, prior_precision, noise, eigen):
        self.statistics = statistics
        self.prior_precision = prior_precision
        self.noise = noise
        eigenvalues, vectors = eigen
        self.eigenvalues = np.maximum(eigenvalues, 0.0)
        self.projections = vectors.T @ statistics.xy

    def best_ratio(self):
        """Returns r, or None if the data do not determine it."""
        n, yy = self.statistics.degrees_of_freedom, self.statistics.yy
        largest = self.eigenvalues[-1]
        if n <= 0 and self.noise is None:
            return None
        if largest == 0.0 and self.prior_precision is None:
            return None
        # Below the floor, float64 cannot tell the prior from 0 in collinear columns.
        # So with them, it cannot tell noise below about 1e-6 of the targets from less.
        floor = largest * max(1e-12, 1e-15 * len(self.projections))
        collinear = self.eigenvalues[0] < floor
        if self.prior_precision is None:
            # The range is from targets without noise in float64 to weights of 0.
            low, high = floor if collinear else 1e-24 * largest, 1e8 * largest
        else:
            # The noise variance is at most yy, and it is 0 only by rounding.
            least = self.statistics.least_energy / n
            low = self.prior_precision * least
            high = self.prior_precision * max(yy, 2.0 * least)
            low = max(low, min(floor, high)) if collinear else low
        steps = 2 + math.ceil((math.log(high) - math.log(low)) / _GRID_STEP)
        grid = np.linspace(math.log(low), math.log(high), steps)
        slopes = self.slope(grid)
        maxima = [
            optimize.brentq(self.slope, grid[i], grid[i + 1])
            for i in np.flatnonzero((slopes[:-1] > 0.0) & (slopes[1:] <= 0.0))
        ]
        candidates = np.array([grid[-1], *maxima[::-1], grid[0]])
        return float(np.exp(candidates[np.argmax(self.value(candidates))]))

    def value(self, log_ratio):
        """Returns the log evidence at log ratios `(k,)`."""
        ratio = np.exp(log_ratio)
        shrunk = self.eigenvalues + ratio[:, None]
        energy = self._energy(shrunk)
        log_det = np.log(shrunk).sum(axis=-1)
        noise = self._noise(ratio, energy)
        return log_evidence(noise, ratio, log_det, energy, self.statistics)

    def slope(self, log_ratio):
        """Returns twice the derivative of `value`, `(k,)` or a number."""
        n = self.statistics.degrees_of_freedom
        ratio = np.exp(log_ratio)
        shrunk = self.eigenvalues + ratio[..., None]
        energy = self._energy(shrunk)
        squared_norm = ((self.projections / shrunk) ** 2).sum(axis=-1)
        gamma = (self.eigenvalues / shrunk).sum(axis=-1)
        beta = self._noise(ratio, energy).precision(energy, n)
        slope = gamma - beta * ratio * squared_norm
        # At a fixed alpha the noise precision falls as the ratio grows, which adds a
        # term. If beta is the best for each ratio, that term is 0.
        return slope if self.prior_precision is None else slope - (n - beta * energy)

    def _energy(self, shrunk):
        explained = (self.projections**2 / shrunk).sum(axis=-1)
        return np.maximum(self.statistics.yy - explained, self.statistics.least_energy)

    def _noise(self, ratio, energy):
        if self.noise is not None:
            return self.noise
        if self.prior_precision is not None:
            return KnownNoise(self.prior_precision / ratio)
        return KnownNoise(self.statistics.degrees_of_freedom / energy)
