"""Models that have an exact posterior: counts and linear regression.

Each has its posterior, predictive and evidence in closed form. Each also has the two
point estimates that training without Bayes would give: maximum likelihood (`mle`) and
the posterior mode (`map`).

The models follow scikit-learn's conventions. Coins and dice take `(n,)` and do not
predict rows, so they are density estimators. They support parameters, clones, pickles,
weights, `partial_fit` and `score`, but nothing that needs `(n, d)` or `predict`.
"""

import math
from typing import Any, Self

import numpy as np
from scipy import special

from keras_bdl.core import validation
from keras_bdl.core.typing import ArrayLike
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
    """Base of coins and dice, which fit by counts and score by the predictive."""

    def fit(self, x: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Computes the posterior given these observations alone.

        Args:
            x: `(n,)` integers from 0, or booleans. n may be 0.
            y: not used, by scikit-learn's convention.
            sample_weight: `(n,)`, 0 or more, or None for 1 each. An observation of
                weight w counts w times.

        Returns:
            The model.

        Raises:
            TypeError: if x does not hold numbers.
            ValueError: if x holds a number that is not a value of the model, or if
                weights are below 0 or all 0.
        """
        self._forget()
        return self.partial_fit(x, y, sample_weight)

    def partial_fit(self, x: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Updates the posterior by these observations."""
        raise NotImplementedError

    def score(self, x: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Returns the mean log probability of new observations, in nats.

        Each observation is scored as the next one after the data of the fit. The score
        is NaN without observations. Cross-validation uses it.

        Raises:
            TypeError, ValueError: on data that `fit` refuses, or before `fit`.
        """
        self._check_fitted()
        probabilities = self._probabilities()
        counts = _counts(x, len(probabilities), sample_weight)
        total = counts.sum()
        log_likelihood = special.xlogy(counts, probabilities).sum()
        return float(log_likelihood / total) if total else math.nan

    def _probabilities(self) -> np.ndarray:
        raise NotImplementedError

    def __sklearn_tags__(self):
        """Returns the tags that scikit-learn asks an estimator for."""
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
        alpha: number above 0. It acts like a count of ones seen before.
        beta: number above 0. It acts like a count of zeros seen before.

    Attributes:
        alpha_, beta_: parameters of the posterior.
        num_ones_, num_zeros_: counts of the data, or sums of their weights.

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

    num_zeros_: float
    num_ones_: float

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        self.alpha = alpha
        self.beta = beta

    def partial_fit(self, x: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Computes the posterior given these tosses and all before.

        The arguments are those of `fit`.
        """
        alpha = validation.positive("alpha", self.alpha)
        beta = validation.positive("beta", self.beta)
        counts = _counts(x, 2, sample_weight)
        if self._is_fitted():
            counts = counts + [self.num_zeros_, self.num_ones_]
        self.num_zeros_, self.num_ones_ = counts.tolist()
        self.alpha_, self.beta_ = alpha + self.num_ones_, beta + self.num_zeros_
        return self

    def posterior(self) -> Any:
        """Returns theta's Beta distribution of TensorFlow Probability, float64.

        Raises:
            ImportError: if TensorFlow Probability is not installed.
        """
        from keras_bdl.interop import tfp

        self._check_fitted()
        alpha, beta = np.float64(self.alpha_), np.float64(self.beta_)
        return tfp.make("Beta", concentration1=alpha, concentration0=beta)

    def posterior_predictive(self) -> Any:
        """Returns the next toss's Bernoulli distribution of TensorFlow Probability.

        Raises:
            ImportError: if TensorFlow Probability is not installed.
        """
        from keras_bdl.interop import tfp

        # The mean is a float64 tensor. TFP would convert a NumPy number to float32.
        return tfp.make("Bernoulli", probs=self.posterior().mean())

    def mle(self) -> float:
        """Returns the theta of highest likelihood, the share of ones.

        It is NaN without data.
        """
        self._check_fitted()
        count = self.num_ones_ + self.num_zeros_
        return self.num_ones_ / count if count else math.nan

    def map(self) -> float:
        """Returns the theta of highest posterior density; NaN if it is not unique."""
        self._check_fitted()
        above = self.alpha_ - 1.0, self.beta_ - 1.0
        if max(above) < 0.0 or above == (0.0, 0.0):  # it peaks at both ends or is flat
            return math.nan
        if min(above) < 0.0:  # it rises without bound at one end
            return float(above[0] > above[1])
        return above[0] / sum(above)

    def log_evidence(self) -> float:
        """Returns log p(x) of the tosses in their order, in nats."""
        self._check_fitted()
        posterior = special.betaln(self.alpha_, self.beta_)
        return float(posterior - special.betaln(self.alpha, self.beta))

    def _probabilities(self) -> np.ndarray:
        return np.array([self.beta_, self.alpha_]) / (self.alpha_ + self.beta_)


class DirichletCategorical(_Counts):
    """A die of k unknown probabilities: theta ~ Dirichlet(alpha).

        p(theta | x) = Dirichlet(alpha + counts)
        p(x* = j | x) = (alpha_j + counts_j) / (sum alpha + n)
        p(x) = B(alpha + counts) / B(alpha),  B(a) = prod Gamma(a_j) / Gamma(sum a)

    Args:
        alpha: `(k,)` numbers above 0, at least two.

    Attributes:
        alpha_: parameter of the posterior, float64 `(k,)`.
        counts_: counts of the data, int64 `(k,)`, or sums of their weights, float64.

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

    counts_: np.ndarray

    def __init__(self, alpha: ArrayLike) -> None:
        self.alpha = alpha

    def partial_fit(self, x: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Computes the posterior given these rolls and all before.

        The arguments are those of `fit`.
        """
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

    def posterior(self) -> Any:
        """Returns theta's Dirichlet distribution of TensorFlow Probability, float64.

        Raises:
            ImportError: if TensorFlow Probability is not installed.
        """
        from keras_bdl.interop import tfp

        self._check_fitted()
        return tfp.make("Dirichlet", concentration=self.alpha_)

    def posterior_predictive(self) -> Any:
        """Returns the next roll's Categorical distribution of TensorFlow Probability.

        Raises:
            ImportError: if TensorFlow Probability is not installed.
        """
        from keras_bdl.interop import tfp

        self._check_fitted()
        return tfp.make("Categorical", probs=self._probabilities())

    def mle(self) -> np.ndarray:
        """Returns the theta of highest likelihood, `(k,)`: the shares of the data.

        It is NaN without data.
        """
        self._check_fitted()
        total = self.counts_.sum()
        return self.counts_ / total if total else np.full(len(self.counts_), np.nan)

    def map(self) -> np.ndarray:
        """Returns the theta of highest posterior density, `(k,)`.

        It is NaN if the density has no highest point. That is so if all `alpha_` are 1,
        and if one is below 1, because the density then rises without bound.
        """
        self._check_fitted()
        above = self.alpha_ - 1.0
        if above.min() < 0.0 or above.max() == 0.0:
            return np.full(len(above), np.nan)
        return above / above.sum()

    def log_evidence(self) -> float:
        """Returns log p(x) of the rolls in their order, in nats."""
        self._check_fitted()
        return float(_log_beta(self.alpha_) - _log_beta(self._prior()))

    def _probabilities(self) -> np.ndarray:
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
    """Counts each of 0 ... num_classes - 1, as int64, or sums its weights.

    Raises:
        TypeError: if x does not hold numbers.
        ValueError: if x holds other numbers, or if the weights are wrong.
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
