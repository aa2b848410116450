"""Models whose posterior is exact: counts, and linear regression.

Each has the posterior, the predictive and the evidence in closed form, beside the two
point estimates (maximum likelihood, `mle`, and posterior mode, `map`) that a training
without Bayes would give.
"""

import math

import numpy as np
from scipy import special

from keras_bdl import validation
from keras_bdl.models.bayesian_linear_regression import (
    BayesianLinearRegression as BayesianLinearRegression,
)
from keras_bdl.models.bayesian_linear_regression import (
    RegressionPoint as RegressionPoint,
)
from keras_bdl.models.estimator import Estimator, numeric_array

__all__ = [
    "BayesianLinearRegression",
    "BetaBernoulli",
    "DirichletCategorical",
    "RegressionPoint",
]


class BetaBernoulli(Estimator):
    """A coin of unknown probability: theta ~ Beta(alpha, beta), x ~ Bernoulli(theta).

        p(theta | x) = Beta(alpha + ones, beta + zeros)
        p(x* = 1 | x) = (alpha + ones) / (alpha + beta + n)
        p(x) = B(alpha + ones, beta + zeros) / B(alpha, beta)

    Args:
        alpha: above 0: ones seen before, so to say.
        beta: above 0: zeros seen before.

    Attributes:
        alpha_, beta_: of the posterior.
        num_ones_, num_zeros_: counts of the data.

    Raises:
        TypeError: by `fit`, on an argument of wrong type.
        ValueError: by `fit`, on values out of range.

    Example:

    >>> model = keras_bdl.BetaBernoulli(1.0, 1.0).fit([1, 1, 0])
    >>> model.posterior().mean()  # 0.6
    >>> model.mle(), model.map()  # 2/3 both: the prior is flat
    >>> model.partial_fit([0]).posterior().mean()  # 0.5

    Reference: Bishop, "Pattern recognition and machine learning", 2006, eq. 2.18 and
    2.20.
    """

    def __init__(self, alpha=1.0, beta=1.0):
        self.alpha = alpha
        self.beta = beta

    def fit(self, x):
        """Posterior given these tosses alone.

        Args:
            x: `(n,)` of 0 and 1, or booleans; n = 0 included.

        Returns:
            The model.

        Raises:
            TypeError: if x does not hold numbers.
            ValueError: if it holds others than 0 and 1.
        """
        self._forget()
        return self.partial_fit(x)

    def partial_fit(self, x):
        """Posterior given these tosses and all before. As `fit`."""
        alpha = validation.positive("alpha", self.alpha)
        beta = validation.positive("beta", self.beta)
        counts = _counts(x, 2)
        if self._is_fitted():
            counts = counts + [self.num_zeros_, self.num_ones_]
        self.num_zeros_, self.num_ones_ = (int(count) for count in counts)
        self.alpha_, self.beta_ = alpha + self.num_ones_, beta + self.num_zeros_
        return self

    def posterior(self):
        """Beta distribution of theta, of TensorFlow Probability in float64.

        Raises:
            ImportError: if TensorFlow Probability is not installed.
        """
        from keras_bdl.interop import tfp

        self._check_fitted()
        alpha, beta = np.float64(self.alpha_), np.float64(self.beta_)
        return tfp.make("Beta", concentration1=alpha, concentration0=beta)

    def posterior_predictive(self):
        """Bernoulli distribution of the next toss, of TensorFlow Probability.

        Raises:
            ImportError: if TensorFlow Probability is not installed.
        """
        from keras_bdl.interop import tfp

        # A float64 tensor: of a NumPy number TFP would make float32.
        return tfp.make("Bernoulli", probs=self.posterior().mean())

    def mle(self):
        """Share of ones, which has the highest likelihood; NaN without data."""
        self._check_fitted()
        count = self.num_ones_ + self.num_zeros_
        return self.num_ones_ / count if count else math.nan

    def map(self):
        """theta of highest posterior density; NaN where no single one has it."""
        self._check_fitted()
        above = self.alpha_ - 1.0, self.beta_ - 1.0
        if max(above) < 0.0 or above == (0.0, 0.0):  # peaks at both ends, or flat
            return math.nan
        if min(above) < 0.0:  # rises without bound at one end
            return float(above[0] > above[1])
        return above[0] / sum(above)

    def log_evidence(self):
        """log p(x) of the tosses in their order, in nats."""
        self._check_fitted()
        posterior = special.betaln(self.alpha_, self.beta_)
        return float(posterior - special.betaln(self.alpha, self.beta))


class DirichletCategorical(Estimator):
    """A die of k unknown probabilities: theta ~ Dirichlet(alpha).

        p(theta | x) = Dirichlet(alpha + counts)
        p(x* = j | x) = (alpha_j + counts_j) / (sum alpha + n)
        p(x) = B(alpha + counts) / B(alpha),  B(a) = prod Gamma(a_j) / Gamma(sum a)

    Args:
        alpha: `(k,)` above 0, at least two.

    Attributes:
        alpha_: of the posterior, float64 `(k,)`.
        counts_: of the data, int64 `(k,)`.

    Raises:
        TypeError: by `fit`, on an argument of wrong type.
        ValueError: by `fit`, on values out of range.

    Example:

    >>> model = keras_bdl.DirichletCategorical([1.0, 1.0, 1.0]).fit([0, 2, 2])
    >>> model.posterior_predictive().probs_parameter()  # 1/3, 1/6, 1/2
    >>> model.mle(), model.map()  # 1/3, 0, 2/3 both: the prior is flat

    Reference: Bishop, "Pattern recognition and machine learning", 2006, eq. 2.38 and
    2.41.
    """

    def __init__(self, alpha):
        self.alpha = alpha

    def fit(self, x):
        """Posterior given these rolls alone.

        Args:
            x: `(n,)` of integers 0 ... k - 1; n = 0 included.

        Returns:
            The model.

        Raises:
            TypeError: if x does not hold numbers.
            ValueError: if it holds others than these.
        """
        self._forget()
        return self.partial_fit(x)

    def partial_fit(self, x):
        """Posterior given these rolls and all before. As `fit`."""
        alpha = self._prior()
        counts = _counts(x, len(alpha))
        if self._is_fitted():
            if len(alpha) != len(self.counts_):
                raise ValueError(
                    f"Expected `alpha` of {len(self.counts_)} classes, as in the first "
                    f"fit; call `fit` to start afresh. Received: alpha={self.alpha!r}"
                )
            counts = counts + self.counts_
        self.counts_ = counts
        self.alpha_ = alpha + counts
        return self

    def posterior(self):
        """Dirichlet distribution of theta, of TensorFlow Probability in float64.

        Raises:
            ImportError: if TensorFlow Probability is not installed.
        """
        from keras_bdl.interop import tfp

        self._check_fitted()
        return tfp.make("Dirichlet", concentration=self.alpha_)

    def posterior_predictive(self):
        """Categorical distribution of the next roll, of TensorFlow Probability.

        Raises:
            ImportError: if TensorFlow Probability is not installed.
        """
        from keras_bdl.interop import tfp

        self._check_fitted()
        return tfp.make("Categorical", probs=self.alpha_ / self.alpha_.sum())

    def mle(self):
        """Shares of the data, of highest likelihood, `(k,)`; NaN without data."""
        self._check_fitted()
        total = self.counts_.sum()
        return self.counts_ / total if total else np.full(len(self.counts_), np.nan)

    def map(self):
        """theta of highest posterior density, `(k,)`.

        NaN where the density has no highest point: all `alpha_` are 1, or one is below,
        where it rises without bound.
        """
        self._check_fitted()
        above = self.alpha_ - 1.0
        if above.min() < 0.0 or above.max() == 0.0:
            return np.full(len(above), np.nan)
        return above / above.sum()

    def log_evidence(self):
        """log p(x) of the rolls in their order, in nats."""
        self._check_fitted()
        return float(_log_beta(self.alpha_) - _log_beta(self._prior()))

    def _prior(self):
        alpha = numeric_array("alpha", self.alpha, "(k,)").astype("float64")
        if len(alpha) < 2:
            raise ValueError(
                "Expected `alpha` of at least two classes. "
                f"Received: alpha={self.alpha!r}"
            )
        return np.array([validation.positive("alpha", float(a)) for a in alpha])


def _log_beta(alpha):
    return special.gammaln(alpha).sum() - special.gammaln(alpha.sum())


def _counts(x, num_classes):
    """How often each of 0 ... num_classes - 1 is there, int64.

    Raises:
        TypeError: if x does not hold numbers.
        ValueError: if it holds others than these.
    """
    x = numeric_array("x", x, "(n,)")
    wrong = ~((x >= 0) & (x < num_classes) & (x == np.floor(x)))  # NaN too
    if wrong.any():
        raise ValueError(
            f"Expected `x` to hold integers from 0 to {num_classes - 1}, without NaN. "
            f"Received: {np.count_nonzero(wrong)} others, like x={x[wrong][0]}"
        )
    return np.bincount(x.astype("int64"), minlength=num_classes)
