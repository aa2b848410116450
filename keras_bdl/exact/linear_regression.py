"""Exact Bayesian linear regression."""

import math
from typing import Any, Self

import numpy as np
from scipy import linalg

from keras_bdl.core import validation
from keras_bdl.exact import arrays
from keras_bdl.exact.estimator import RegressorEstimator
from keras_bdl.exact.evidence import GammaNoise, KnownNoise
from keras_bdl.exact.posterior import RegressionPoint, RegressionPosterior
from keras_bdl.exact.statistics import RegressionStatistics

EVIDENCE = "evidence"
_BLOCK_VALUES = 2**19  # in the rows that `predict` takes at a time, 4 MiB


class BayesianLinearRegression(RegressorEstimator):
    """Linear regression with the exact posterior over its weights.

    With beta the precision (one over the variance) of the noise,

        y = X w + c + noise,    noise ~ N(0, 1 / beta),
        p(w | X, y) = N(m, S),  S = (alpha I + beta X'X)^-1,  m = beta S X'y,
        p(y* | x*)  = N(x*' m, 1 / beta + x*' S x*).

    The noise is given in one of three ways:

    - a number: beta is known. The prior is w ~ N(0, I / alpha), where alpha is
      `prior_precision`.
    - a pair: beta ~ Gamma(shape, rate) is unknown, and the prior is
      w ~ N(0, I / (alpha beta)), with `prior_precision` alpha in units of beta. Weights
      and predictions are then Student-t distributed, with 2 shape_N degrees of freedom.
    - "evidence": beta has the value of highest evidence p(y | X), as if it were known.

    The intercept c has a flat prior, p(c) = 1, and is integrated out exactly. So the
    columns of X and y are centred by the means of the rows seen, and N - 1 rows count
    for the noise. Given w, c is N(mean(y) - w' mean(X), 1 / (beta N)). The predictive
    takes x* - mean(X) and has 1 / (beta N) more variance. The evidence contains the
    prior's density of 1, so compare only models that all have an intercept, or none.

    A row of weight w counts as w rows: its likelihood is raised to the power w. If
    beta is known, the row has noise of precision w beta, as in weighted least squares.

    Several targets, y `(n, t)`, are separate regressions on the same X. `coef_` is then
    `(t, d)`, predictions are `(n, t)`, and each number below becomes `(t,)`.

    Tables of pandas or polars are read by the names of their columns. Columns of later
    tables are put in the order of the first, and other names are refused.

    Everything is computed in float64 by Cholesky factors. The model keeps sums over
    rows, O(d^2) memory, and reads data a block at a time. `partial_fit` on batches
    gives the same as `fit` on all rows. More columns than rows, collinear and constant
    columns, and no rows at all are well-defined: the prior decides what the data leave
    open. The prior also decides if columns differ by less than about 1e-6 of their
    size, because their squares do not show it. Rescale columns of such scales.

    Args:
        prior_precision: alpha, above 0, or "evidence".
        noise_precision: beta, above 0; a pair (shape, rate), both above 0; or
            "evidence".
        fit_intercept: whether there is an intercept.

    Attributes:
        coef_: m, float64 `(d,)`; with several targets `(t, d)`.
        intercept_: mean of c, or 0 without an intercept.
        prior_precision_, noise_precision_: alpha and beta in use. They are 1 if no
            data determine them. With unknown beta, its mean.
        noise_shape_, noise_rate_: parameters of the Gamma posterior of beta, if
            `noise_precision` is a pair.
        num_effective_parameters_: gamma, the number of weights that the data
            determine, in [0, d].
        num_examples_: N, the number of rows seen, or the sum of their weights.
        n_features_in_: d.
        feature_names_in_: names of the columns, if X is a table whose column names are
            strings.

    Raises:
        TypeError: by `fit`, on an argument of wrong type.
        ValueError: by `fit`, on values out of range.

    Example:

    >>> x = np.random.normal(size=(50, 3))
    >>> y = x @ [1.0, -2.0, 0.0] + 5.0 + 0.1 * np.random.normal(size=50)
    >>> model = keras_bdl.BayesianLinearRegression().fit(x, y)
    >>> mean, stddev = model.predict(x, return_std=True)  # (50,) each
    >>> model.posterior().sample(10)  # (10, 4): coefficients, then the intercept
    >>> model.log_evidence()  # nats
    >>> model.partial_fit(x, y)  # as if these were 50 rows more

    References: Bishop, "Pattern recognition and machine learning", 2006, eq. 3.49 to
    3.54 (posterior), 3.58 (predictive), 3.86 to 3.95 (evidence); MacKay, "Bayesian
    interpolation", 1992 (evidence); Murphy, "Machine learning: a probabilistic
    perspective", 2012, section 7.6.3 (unknown noise).
    """

    noise_precision_: float | np.ndarray
    _statistics: RegressionStatistics

    def __init__(
        self,
        prior_precision: float | str = EVIDENCE,
        noise_precision: float | str | tuple[float, float] = EVIDENCE,
        fit_intercept: bool = True,
    ) -> None:
        self.prior_precision = prior_precision
        self.noise_precision = noise_precision
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Computes the posterior given these rows alone.

        Args:
            X: array or table `(n, d)` of real numbers. n may be 0.
            y: `(n,)`, or `(n, t)` for several targets, of real numbers.
            sample_weight: `(n,)`, 0 or more, or None for 1 each. Weights of mean 1
                keep the number of rows, on which "evidence" depends.

        Returns:
            The model.

        Raises:
            TypeError: if the data are not real numbers.
            ValueError: on shapes that do not fit, NaN or infinity, weights below 0 or
                all 0, or columns that are not those of the first rows.
        """
        self._forget()
        return self.partial_fit(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Computes the posterior given these rows and all before.

        The arguments are those of `fit`.
        """
        prior_precision, noise = self._settings()
        centred = validation.boolean("fit_intercept", self.fit_intercept)
        rows = self._check_inputs(X)
        targets = self._check_targets(y, len(rows))
        weights = arrays.sample_weights(sample_weight, len(rows))
        columns = targets[:, None] if targets.ndim == 1 else targets
        statistics = RegressionStatistics.of(rows, columns, centred, weights)
        if self._is_fitted():
            if self._statistics.centred != centred:
                raise ValueError(
                    "Expected the `fit_intercept` of the first rows; call `fit` to "
                    f"start afresh. Received: fit_intercept={centred}"
                )
            statistics = self._statistics.merge(statistics)
            statistics.check_finite()
        posteriors = self._solve(statistics, prior_precision, noise)
        self._remember(X, y, rows, targets)
        self._statistics, self._posteriors = statistics, posteriors
        self._publish()
        return self

    def predict(
        self, X: Any, return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Returns the mean of the predictive, and its standard deviation if wanted.

        Args:
            X: `(n, d)`.
            return_std: whether to return the standard deviation too. It is that of a
                new target, from the noise and the uncertainty of the weights. It is
                infinite with 2 degrees of freedom or fewer, and with an intercept and
                no rows.

        Returns:
            float64 `(n,)`, with several targets `(n, t)`, or a pair of such arrays.

        Raises:
            TypeError, ValueError: on inputs that `fit` refuses, or before `fit`.
        """
        mean, scale = self._predictive(X, return_std)
        if not return_std:
            return mean
        if self._unknown_noise():
            df = 2.0 * self._posteriors[0].noise_shape  # all targets share it
            scale *= math.sqrt(df / (df - 2.0)) if df > 2.0 else math.inf
        return mean, scale

    def posterior(self) -> Any:
        """Returns the distribution of the coefficients and, last, the intercept.

        It is a float64 multivariate normal of TensorFlow Probability over `(d + 1,)`,
        or `(d,)` without an intercept. With unknown noise it is a multivariate
        Student-t, and beta is Gamma(`noise_shape_`, `noise_rate_`). Several targets are
        its batch.

        Raises:
            ImportError: if TensorFlow Probability is not installed.
            ValueError: with an intercept and no rows, because it is then improper.
        """
        from keras_bdl.interop import tfp

        mean, factor = self.weights_and_factor()
        factor = factor / np.sqrt(self.noise_precision_)[..., None, None]
        if self._unknown_noise():
            df = 2.0 * self._posteriors[0].noise_shape
            return tfp.multivariate_student_t(df, mean, factor)
        return tfp.make("MultivariateNormalTriL", loc=mean, scale_tril=factor)

    def posterior_predictive(self, X: Any) -> Any:
        """Returns the distribution of a new target for each row.

        It is a float64 normal of TensorFlow Probability, or a Student-t with unknown
        noise. Its batch has the shape of `predict`. Rows are independent of each other;
        use `sample` for draws of whole functions.

        Raises:
            ImportError: if TensorFlow Probability is not installed.
            ValueError: with an intercept and no rows.
        """
        from keras_bdl.interop import tfp

        mean, scale = self._predictive(X, with_scale=True)
        self._check_proper()
        if self._unknown_noise():
            df = 2.0 * self._posteriors[0].noise_shape
            return tfp.make("StudentT", df=np.float64(df), loc=mean, scale=scale)
        return tfp.make("Normal", loc=mean, scale=scale)

    def sample(self, num_samples: int, seed: int | None = None) -> np.ndarray:
        """Draws weights from their posterior by NumPy.

        Args:
            num_samples: number of draws.
            seed: integer from 0 for repeatable draws, or None.

        Returns:
            float64 `(num_samples, d + 1)`, the intercept last, or `(num_samples, d)`
            without one; with several targets `(num_samples, t, d + 1)`.

        Raises:
            ValueError: with an intercept and no rows.
        """
        num_samples = validation.integer("num_samples", num_samples, least=1)
        seed = validation.optional_integer("seed", seed, least=0)
        self._check_proper()
        rng = np.random.default_rng(seed)
        draws = [one.draws(num_samples, rng) for one in self._posteriors]
        return np.stack(draws, axis=1) if self._target_shape else draws[0]

    def mle(self) -> RegressionPoint:
        """Returns the point of maximum likelihood, by least squares.

        If least squares leave a choice, the coefficients have the least norm.

        Returns:
            `RegressionPoint(coef, intercept, noise_precision)`. The precision is beta
            if it is known, or else N over the squared residuals, infinite if they are
            0. Intercept and unknown precision are NaN without rows.
        """
        return self._point([one.mle() for one in self._checked_posteriors()])

    def map(self) -> RegressionPoint:
        """Returns the mode of the posterior.

        Returns:
            `RegressionPoint`. If beta is unknown, it is the mode of the joint density
            of weights and beta (a density of beta itself, on which the mode depends).
            Otherwise the precision is `noise_precision_`. The coefficients are `coef_`,
            those of ridge regression.
        """
        return self._point([one.map() for one in self._checked_posteriors()])

    def log_evidence(self) -> float | np.ndarray:
        """Returns log p(y | X) of all rows in nats.

        Weights and unknown beta are integrated out. An intercept has p(c) = 1, and
        without rows the evidence is then infinite. Several targets have one value each,
        `(t,)`, whose sum is the log evidence of all.
        """
        return self._by_target([p.log_evidence() for p in self._checked_posteriors()])

    def weights_and_factor(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean of all weights and a factor of their covariance.

        Returns:
            The mean m, float64 `(d + 1,)` with the intercept last, or `(d,)` without
            one, and C, square and lower triangular. The covariance is
            C C' / `noise_precision_`. With several targets `(t, d + 1)` and
            `(t, d + 1, d + 1)`.

        Raises:
            ValueError: with an intercept and no rows.
        """
        self._check_proper()
        pairs = [posterior.weights_and_factor() for posterior in self._posteriors]
        means, factors = zip(*pairs)
        return self._by_target(means), self._by_target(factors)

    def _settings(self):
        """Returns alpha and the noise, each None if evidence is to choose it."""
        alpha, beta = self.prior_precision, self.noise_precision
        for name, value in (("prior_precision", alpha), ("noise_precision", beta)):
            if isinstance(value, str):
                validation.choice(name, value, (EVIDENCE,))
        by_evidence = isinstance(alpha, str)
        alpha = None if by_evidence else validation.positive("prior_precision", alpha)
        if isinstance(beta, str):
            return alpha, None
        if not isinstance(beta, (tuple, list)):
            return alpha, KnownNoise(validation.positive("noise_precision", beta))
        if len(beta) != 2:
            raise ValueError(
                "Expected `noise_precision` to be a number, 'evidence' or a pair "
                f"(shape, rate). Received: noise_precision={beta!r}"
            )
        shape, rate = (validation.positive("noise_precision", part) for part in beta)
        return alpha, GammaNoise(shape, rate)

    def _solve(self, statistics, prior_precision, noise):
        """Returns the posterior of each target."""
        eigen = None
        if prior_precision is None or noise is None:
            eigen = linalg.eigh(statistics.xx)
        return [
            RegressionPosterior(
                statistics.of_target(index), prior_precision, noise, eigen
            )
            for index in range(len(statistics.yy))
        ]

    def _publish(self):
        """Sets the attributes that users read."""
        self.num_examples_ = self._statistics.count
        learned = ["coef", "intercept", "prior_precision", "noise_precision"]
        learned += ["num_effective_parameters"]
        if self._unknown_noise():
            learned += ["noise_shape", "noise_rate"]
        for name in learned:
            values = [getattr(posterior, name) for posterior in self._posteriors]
            setattr(self, f"{name}_", self._by_target(values))

    def _by_target(self, values):
        """Stacks one value per target, or returns the only value of `y` `(n,)`."""
        return np.stack(values) if self._target_shape else values[0]

    def _point(self, points):
        return RegressionPoint(*map(self._by_target, zip(*points)))

    def _checked_posteriors(self):
        self._check_fitted()
        return self._posteriors

    def _unknown_noise(self):
        return self._posteriors[0].unknown_noise

    def _predictive(self, X, with_scale):
        """Returns the mean and, if wanted, the scale of the normal or the Student-t."""
        self._check_fitted()
        X = self._check_inputs(X)
        mean = np.empty((len(X), *self._target_shape))
        scale = np.empty(mean.shape) if with_scale else None
        rows = max(1, _BLOCK_VALUES // X.shape[1])
        for start in range(0, len(X), rows):
            block = slice(start, start + rows)
            x = X[block].astype("float64")
            mean[block] = x @ self.coef_.T + self.intercept_
            if with_scale:
                scales = [one.predictive_scale(x) for one in self._posteriors]
                scale[block] = self._by_target(scales).T
        of_rows = mean.sum(axis=1) if self._target_shape else mean
        wrong = np.count_nonzero(~np.isfinite(of_rows))
        if wrong:
            raise ValueError(
                "Expected `X` without NaN or infinity; drop those rows or fill them "
                f"in. Received: such values in {wrong} rows"
            )
        return mean, scale

    def _check_proper(self):
        self._check_fitted()
        if self._statistics.centred and self.num_examples_ == 0:
            raise ValueError(
                "Expected at least one row: until then the posterior of the intercept "
                "is its flat prior. Fit a row, or set `fit_intercept=False`. "
                "Received: num_examples_=0"
            )
