"""The marginal likelihood of Gaussian linear regression, and its maximum.

The weights are w ~ N(0, I / alpha) and the noise has precision beta. With
ratio r = alpha / beta, all the data say comes through

    E(r) = min_w |y - X w|^2 + r |w|^2,    attained at m = (X'X + r I)^-1 X'y,

and the noise model alone decides what E says. Sums are centred where there is an
intercept of flat prior; n below are the rows that are left, N - 1 of N. A row of weight
w counts as w rows, its density to the power w.
"""

import dataclasses
import math

import numpy as np
from scipy import linalg, optimize, special

_LOG_2PI = math.log(2.0 * math.pi)
_GRID_STEP = 0.25  # of log r: the evidence is smooth on the scale of 1


@dataclasses.dataclass
class KnownNoise:
    """Precision beta, a number, or an array beside an array of energies."""

    beta: float

    def precision(self, energy, n):
        return self.beta

    def log_marginal(self, energy, n):
        """log N(y | X m, I / beta), its exponent E in place of |y - X m|^2."""
        return 0.5 * (n * (np.log(self.beta) - _LOG_2PI) - self.beta * energy)


@dataclasses.dataclass
class GammaNoise:
    """Precision ~ Gamma(shape, rate): the Normal-inverse-Gamma model."""

    shape: float
    rate: float

    def posterior(self, energy, n):
        """Shape and rate given the data."""
        return self.shape + 0.5 * n, self.rate + 0.5 * energy

    def precision(self, energy, n):
        """Posterior mean."""
        shape, rate = self.posterior(energy, n)
        return shape / rate

    def log_marginal(self, energy, n):
        shape, rate = self.posterior(energy, n)
        prior = self.shape * math.log(self.rate) - special.gammaln(self.shape)
        posterior = shape * np.log(rate) - special.gammaln(shape)
        return prior - posterior - 0.5 * n * _LOG_2PI


def log_evidence(noise, ratio, log_det, energy, statistics):
    """log p(y | X) in nats, with p(intercept) = 1 where there is one.

    Args:
        noise: `KnownNoise` or `GammaNoise`.
        ratio: r, the prior's precision over that of the noise.
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
        # Given w the intercept has precision N beta, of which beta is counted above.
        value -= 0.5 * math.log(statistics.count)
    return value


def covariance_factor(products, ratio):
    """Lower triangular C, C C' the inverse of `products + ratio I`.

    Of a matrix U U', U upper triangular, it is the inverse of U'. Flipping rows and
    columns makes the lower triangular Cholesky factor an upper triangular one.
    """
    precision = products + ratio * np.eye(len(products))
    try:
        upper = np.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError as error:
        raise ValueError(
            "Expected a prior that float64 can tell from 0 beside these columns: they "
            "are collinear, and the prior is all that decides between them. Rescale "
            "the columns, or raise `prior_precision`. Received: prior_precision over "
            f"noise precision={ratio:g}, largest sum of squares={products.max():g}"
        ) from error
    return linalg.solve_triangular(upper, np.eye(len(products)), trans="T")


class EvidenceMaximizer:
    """Finds the ratio r of highest evidence.

    In the basis of the eigenvectors of X'X an evaluation costs O(d), so the whole line
    of ratios is looked at, and zeros of the slope that are maxima are refined. There
    the equations for alpha and beta hold to which MacKay's updates converge:
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
        """r, and None where no data say anything about it."""
        n, yy = self.statistics.degrees_of_freedom, self.statistics.yy
        largest = self.eigenvalues[-1]
        if n <= 0 and self.noise is None:
            return None
        if largest == 0.0 and self.prior_precision is None:
            return None
        # Below, float64 cannot tell the prior from 0 beside collinear columns. So with
        # them, noise of less than about 1e-6 of the targets is not told from less.
        floor = largest * max(1e-12, 1e-15 * len(self.projections))
        collinear = self.eigenvalues[0] < floor
        if self.prior_precision is None:
            # From targets that have no noise in float64 to weights of 0.
            low, high = floor if collinear else 1e-24 * largest, 1e8 * largest
        else:
            # The variance of the noise is at most yy, and 0 only by rounding.
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
        """Log evidence at each of `(k,)` log ratios."""
        ratio = np.exp(log_ratio)
        shrunk = self.eigenvalues + ratio[:, None]
        energy = self._energy(shrunk)
        log_det = np.log(shrunk).sum(axis=-1)
        noise = self._noise(ratio, energy)
        return log_evidence(noise, ratio, log_det, energy, self.statistics)

    def slope(self, log_ratio):
        """Its derivative, doubled. `(k,)`, or a number of a number."""
        n = self.statistics.degrees_of_freedom
        ratio = np.exp(log_ratio)
        shrunk = self.eigenvalues + ratio[..., None]
        energy = self._energy(shrunk)
        squared_norm = ((self.projections / shrunk) ** 2).sum(axis=-1)
        gamma = (self.eigenvalues / shrunk).sum(axis=-1)
        beta = self._noise(ratio, energy).precision(energy, n)
        slope = gamma - beta * ratio * squared_norm
        # At a fixed alpha the precision of the noise falls as the ratio grows. Where
        # beta is the best for each ratio, what that adds is 0.
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
