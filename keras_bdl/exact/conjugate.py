"""Models whose posterior is exact: counts, and linear regression.

Each has the posterior, the predictive and the evidence in closed form, beside the two
point estimates (maximum likelihood, `mle`, and posterior mode, `map`) that a training
without Bayes would give.

They follow scikit-learn's conventions. Coins and dice take `(n,)` and predict no rows,
so they are density estimators: parameters, clones, pickles, weights, `partial_fit` and
`score` apply to them, and what needs `(n, d)` or `predict` does not.
"""

import math

import numpy as np
from scipy import special

from keras_bdl.core import validation
from keras_bdl.exact import arrays
from keras_bdl.exact.estimator import Estimator
from keras_bdl.exact.linear_regression import (
    BayesianLinearRegression as BayesianLinearRegression,
)
from keras_bdl.exact.linear_regression import RegressionPoint as RegressionPoint

__all__ = [
    "BayesianLinearRegression",
    "BetaBernoulli",
    "DirichletCategorical",
    "RegressionPoint",
]


class _Counts(Estimator):
    """What coins and dice share: fits by counts, a score by the predictive."""

    def fit(self, x, y=None, sample_weight=None):
        """Posterior given these observations alone.

        Args:
            x: `(n,)` of integers from 0, or booleans; n = 0 included.
            y: not used, by scikit-learn's convention.
            sample_weight: `(n,)`, 0 or more, or None for 1 each. One of weight w counts
                as w of them.

        Returns:
            The model.

        Raises:
            TypeError: if x does not hold numbers.
            ValueError: if it holds others than the model's values, or on weights below
                0 or all 0.
        """
        self._forget()
        return self.partial_fit(x, y, sample_weight)

    def score(self, x, y=None, sample_weight=None):
        """Mean log probability of new observations, in nats, each as the next one.

        NaN without any. Cross-validation takes it for the score.

        Raises:
            TypeError, ValueError: on data that `fit` refuses, or before it.
        """
        self._check_fitted()
        probabilities = self._probabilities()
        counts = _counts(x, len(probabilities), sample_weight)
        total = counts.sum()
        log_likelihood = special.xlogy(counts, probabilities).sum()
        return float(log_likelihood / total) if total else math.nan

    def __sklearn_tags__(self):
        """What scikit-learn asks of an estimator."""
        from sklearn.utils import InputTags, Tags, TargetTags

        inputs = InputTags(one_d_array=True, two_d_array=False)
        target = TargetTags(required=False)
        return Tags("density_estimator", target, input_tags=inputs)


class BetaBernoulli(_Counts):
    """A coin of unknown probability: theta ~ Beta(alpha, beta), x ~ Bernoulli(theta).

        p(theta | x) = Beta(alpha + ones, beta + zeros)
        p(x* = 1 | x) = (alpha + ones) / (alpha + beta + n)
        p(x) = B(alpha + ones, beta + zeros) / B(alpha, beta)

    Args:
        alpha: above 0: ones seen before, so to say.
        beta: above 0: zeros seen before.

    Attributes:
        alpha_, beta_: of the posterior.
        num_ones_, num_zeros_: counts of the data, sums of weights where they have some.

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

    def partial_fit(self, x, y=None, sample_weight=None):
        """Posterior given these tosses and all before. As `fit`."""
        alpha = validation.positive("alpha", self.alpha)
        beta = validation.positive("beta", self.beta)
        counts = _counts(x, 2, sample_weight)
        if self._is_fitted():
            counts = counts + [self.num_zeros_, self.num_ones_]
        self.num_zeros_, self.num_ones_ = counts.tolist()
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

    def _probabilities(self):
        return np.array([self.beta_, self.alpha_]) / (self.alpha_ + self.beta_)


class DirichletCategorical(_Counts):
    """A die of k unknown probabilities: theta ~ Dirichlet(alpha).

        p(theta | x) = Dirichlet(alpha + counts)
        p(x* = j | x) = (alpha_j + counts_j) / (sum alpha + n)
        p(x) = B(alpha + counts) / B(alpha),  B(a) = prod Gamma(a_j) / Gamma(sum a)

    Args:
        alpha: `(k,)` above 0, at least two.

    Attributes:
        alpha_: of the posterior, float64 `(k,)`.
        counts_: of the data, int64 `(k,)`; sums of weights where they have some.

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

    def partial_fit(self, x, y=None, sample_weight=None):
        """Posterior given these rolls and all before. As `fit`."""
        alpha = self._prior()
        counts = _counts(x, len(alpha), sample_weight)
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
        return tfp.make("Categorical", probs=self._probabilities())

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

    def _probabilities(self):
        return self.alpha_ / self.alpha_.sum()

    def _prior(self):
        alpha = arrays.numeric_array("alpha", self.alpha, "(k,)").astype("float64")
        if len(alpha) < 2:
            raise ValueError(
                "Expected `alpha` of at least two classes. "
                f"Received: alpha={self.alpha!r}"
            )
        return np.array([validation.positive("alpha", float(a)) for a in alpha])


def _log_beta(alpha):
    return special.gammaln(alpha).sum() - special.gammaln(alpha.sum())


def _counts(x, num_classes, sample_weight):
    """How often each of 0 ... num_classes - 1 is there, int64, or its weights' sum.

    Raises:
        TypeError: if x does not hold numbers.
        ValueError: if it holds others than these, or on wrong weights.
    """
    x = arrays.numeric_array("x", x, "(n,)")
    wrong = ~((x >= 0) & (x < num_classes) & (x == np.floor(x)))  # NaN too
    if wrong.any():
        raise ValueError(
            f"Expected `x` to hold integers from 0 to {num_classes - 1}, without NaN. "
            f"Received: {np.count_nonzero(wrong)} others, like x={x[wrong][0]}"
        )
    weights = arrays.sample_weights(sample_weight, len(x))
    return np.bincount(x.astype("int64"), weights, num_classes)
