"""Exact Bayesian linear regression."""

import math
import typing

import numpy as np

from keras_bdl import validation
from keras_bdl.models.estimator import Estimator, numeric_array
from keras_bdl.models.evidence import (
    EvidenceMaximizer,
    GammaNoise,
    KnownNoise,
    covariance_factor,
    log_evidence,
)
from keras_bdl.models.regression_statistics import RegressionStatistics

EVIDENCE = "evidence"
_BLOCK_VALUES = 2**19  # of the rows that `predict` takes at a time: 4 MiB


class RegressionPoint(typing.NamedTuple):
    """One value for each unknown: `y = X @ coef + intercept` and noise around it."""

    coef: np.ndarray
    intercept: float
    noise_precision: float


class BayesianLinearRegression(Estimator):
    """Linear regression with the exact posterior over its weights.

    With beta the precision (one over the variance) of the noise,

        y = X w + c + noise,    noise ~ N(0, 1 / beta),
        p(w | X, y) = N(m, S),  S = (alpha I + beta X'X)^-1,  m = beta S X'y,
        p(y* | x*)  = N(x*' m, 1 / beta + x*' S x*).

    The noise is one of three:

    - a number: beta is known; the prior is w ~ N(0, I / alpha), alpha the
      `prior_precision`.
    - a pair: beta ~ Gamma(shape, rate) is unknown, and the prior is
      w ~ N(0, I / (alpha beta)), with `prior_precision` alpha in units of beta. Weights
      and predictions are then Student-t distributed, with 2 shape_N degrees of freedom.
    - "evidence": beta is the one of highest evidence p(y | X), as if known.

    The intercept c has a flat prior, p(c) = 1, and is integrated out exactly. So the
    columns of X and y are centred by the means of the rows seen, and N - 1 rows count
    for the noise; c given w is N(mean(y) - w' mean(X), 1 / (beta N)), and the
    predictive takes x* - mean(X) and has 1 / (beta N) more variance. The evidence holds
    the prior's density of 1: compare models that all have an intercept, or all none.

    Everything is float64 by Cholesky factors. The model keeps sums over rows, O(d^2)
    memory, and reads data a block at a time; `partial_fit` of batches gives what `fit`
    of all rows gives. More columns than rows, collinear and constant columns, and no
    rows at all are well-defined: the prior decides what the data leave open. So it does
    where columns differ by less than about 1e-6 of their size, which their squares show
    no more. Rescale columns whose scales differ as much.

    Args:
        prior_precision: alpha, above 0; or "evidence".
        noise_precision: beta, above 0; a pair (shape, rate), both above 0; or
            "evidence".
        fit_intercept: whether there is an intercept.

    Attributes:
        coef_: m, float64 `(d,)`.
        intercept_: mean of c; 0 without one.
        prior_precision_, noise_precision_: alpha and beta in use, 1 where there are no
            data to choose them by; of a Gamma the mean of beta.
        noise_shape_, noise_rate_: of the Gamma posterior of beta, for a pair only.
        num_effective_parameters_: gamma, weights that the data determine, in [0, d].
        num_examples_: N, rows seen.
        n_features_in_: d.

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

    def __init__(
        self,
        prior_precision=EVIDENCE,
        noise_precision=EVIDENCE,
        fit_intercept=True,
    ):
        self.prior_precision = prior_precision
        self.noise_precision = noise_precision
        self.fit_intercept = fit_intercept

    def fit(self, X, y):
        """Posterior given these rows alone.

        Args:
            X: `(n, d)` of real numbers, n = 0 included.
            y: `(n,)` of real numbers.

        Returns:
            The model.

        Raises:
            TypeError: if they are not of real numbers.
            ValueError: on shapes that do not fit, NaN or infinity.
        """
        self._forget()
        return self.partial_fit(X, y)

    def partial_fit(self, X, y):
        """Posterior given these rows and all before. As `fit`."""
        prior_precision, noise = self._settings()
        centred = validation.boolean("fit_intercept", self.fit_intercept)
        X, y = self._check_inputs(X), numeric_array("y", y, "(n,)")
        if len(X) != len(y):
            raise ValueError(
                "Expected as many targets as rows. "
                f"Received: X.shape={X.shape}, y.shape={y.shape}"
            )
        statistics = RegressionStatistics.of(X, y, centred)
        if self._is_fitted():
            if self._statistics.centred != centred:
                raise ValueError(
                    "Expected the `fit_intercept` of the first rows; call `fit` to "
                    f"start afresh. Received: fit_intercept={centred}"
                )
            statistics = self._statistics.merge(statistics)
            statistics.check_finite()
        self._solve(statistics, prior_precision, noise)
        return self

    def predict(self, X, return_std=False):
        """Mean of the predictive distribution, and its standard deviation.

        Args:
            X: `(n, d)`.
            return_std: whether to return both. The deviation is that of a new target:
                noise, and what is not known of the weights. It is infinite with 2
                degrees of freedom or fewer, and with an intercept and no rows.

        Returns:
            float64 `(n,)`, or a pair of them.

        Raises:
            TypeError, ValueError: on inputs that `fit` refuses, or before it.
        """
        mean, scale = self._predictive(X, return_std)
        if not return_std:
            return mean
        if self._unknown_noise():
            df = 2.0 * self.noise_shape_
            scale *= math.sqrt(df / (df - 2.0)) if df > 2.0 else math.inf
        return mean, scale

    def posterior(self):
        """Distribution of the weights, in float64: coefficients, then the intercept.

        `(d + 1,)`, or `(d,)` without an intercept: a multivariate normal of TensorFlow
        Probability; with unknown noise a multivariate Student-t, beside which beta is
        Gamma(`noise_shape_`, `noise_rate_`).

        Raises:
            ImportError: if TensorFlow Probability is not installed.
            ValueError: with an intercept and no rows, where it is improper.
        """
        from keras_bdl.interop import tfp

        mean, factor = self.weights_and_factor()
        factor = factor / math.sqrt(self.noise_precision_)
        if self._unknown_noise():
            return tfp.multivariate_student_t(2.0 * self.noise_shape_, mean, factor)
        return tfp.make("MultivariateNormalTriL", loc=mean, scale_tril=factor)

    def posterior_predictive(self, X):
        """Distribution of a new target for each row, float64, batch shape `(n,)`.

        A normal of TensorFlow Probability, or a Student-t with unknown noise. Rows are
        by themselves: draws of whole functions are made of `sample`.

        Raises:
            ImportError: if TensorFlow Probability is not installed.
            ValueError: with an intercept and no rows.
        """
        from keras_bdl.interop import tfp

        mean, scale = self._predictive(X, with_scale=True)
        self._check_proper()
        if self._unknown_noise():
            df = 2.0 * self.noise_shape_
            return tfp.make("StudentT", df=np.float64(df), loc=mean, scale=scale)
        return tfp.make("Normal", loc=mean, scale=scale)

    def sample(self, num_samples, seed=None):
        """Draws of the weights from their posterior, by NumPy.

        Args:
            num_samples: number of draws.
            seed: integer from 0, or None for fresh ones.

        Returns:
            float64 `(num_samples, d + 1)`, the intercept last, or `(num_samples, d)`.

        Raises:
            ValueError: with an intercept and no rows.
        """
        num_samples = validation.integer("num_samples", num_samples, least=1)
        if seed is not None:
            seed = validation.integer("seed", seed, least=0)
        mean, factor = self.weights_and_factor()
        rng = np.random.default_rng(seed)
        draws = rng.normal(size=(num_samples, len(mean))) @ factor.T
        precision = self.noise_precision_
        if self._unknown_noise():
            shape, rate = self.noise_shape_, self.noise_rate_
            precision = rng.gamma(shape, 1.0 / rate, size=(num_samples, 1))
        return mean + draws / np.sqrt(precision)

    def mle(self):
        """Maximum likelihood: least squares, of least norm where that leaves a choice.

        Returns:
            `RegressionPoint(coef, intercept, noise_precision)`; the precision is N over
            the squared residuals, infinite if they are 0, or beta where it is known.
            NaN is what no rows say anything about.
        """
        self._check_fitted()
        s = self._statistics
        coef = np.linalg.lstsq(s.xx, s.xy, rcond=1e-14 * len(s.xy))[0]
        residual = s.yy - coef @ s.xy
        precision = math.nan
        if s.count:
            exact = residual <= s.least_energy
            precision = math.inf if exact else float(s.count / residual)
        if self._known_beta is not None:
            precision = self._known_beta
        intercept = math.nan if s.centred and not s.count else self._offset(coef)
        return RegressionPoint(coef, intercept, precision)

    def map(self):
        """Mode of the posterior.

        Returns:
            `RegressionPoint`: of the joint density of weights and beta where beta is
            unknown (of beta itself, which its mode depends on), else at
            `noise_precision_`. The coefficients are `coef_`, ridge regression's.
        """
        self._check_fitted()
        precision = self.noise_precision_
        if self._unknown_noise():
            # The weights add beta^(1/2) to the density for each of them.
            has_intercept = self._statistics.centred and self.num_examples_ > 0
            num_weights = self.n_features_in_ + has_intercept
            power = self.noise_shape_ + 0.5 * num_weights - 1.0
            precision = max(power, 0.0) / self.noise_rate_
        return RegressionPoint(self.coef_, self.intercept_, precision)

    def log_evidence(self):
        """log p(y | X) of all rows in nats, weights (and unknown beta) integrated out.

        With an intercept it is that under p(c) = 1, infinite without rows.
        """
        self._check_fitted()
        log_det = -2.0 * np.log(np.diag(self._factor)).sum()
        value = log_evidence(
            self._noise, self._ratio, log_det, self._energy, self._statistics
        )
        return float(value)

    def __sklearn_tags__(self):
        """What scikit-learn's cross-validation asks of a regressor."""
        from sklearn.utils import RegressorTags, Tags, TargetTags

        target = TargetTags(required=True)
        return Tags("regressor", target, regressor_tags=RegressorTags())

    def _settings(self):
        """alpha, or None to choose it, and the noise likewise."""
        alpha, beta = self.prior_precision, self.noise_precision
        for name, value in (("prior_precision", alpha), ("noise_precision", beta)):
            if isinstance(value, str):
                validation.choice(name, value, (EVIDENCE,))
        alpha = (
            None if alpha == EVIDENCE else validation.positive("prior_precision", alpha)
        )
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

    def _check_inputs(self, X):
        X = numeric_array("X", X, "(n, d)")
        if X.shape[1] == 0:
            raise ValueError(
                f"Expected `X` to have at least one column. Received: X.shape={X.shape}"
            )
        if self._is_fitted() and X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"Expected `X` of {self.n_features_in_} columns, as in the first fit. "
                f"Received: X.shape={X.shape}"
            )
        return X

    def _solve(self, statistics, alpha, noise):
        """Sets the learned state by the statistics of all rows."""
        s, n = statistics, statistics.degrees_of_freedom
        known_beta = noise.beta if isinstance(noise, KnownNoise) else None
        ratio = None
        if alpha is not None and noise is not None:
            ratio = alpha / (known_beta or 1.0)  # of a Gamma it is in units of beta
        if ratio is None:
            ratio = EvidenceMaximizer(s, alpha, noise).best_ratio()
        if ratio is None:  # the data do not say
            ratio = (alpha or 1.0) / (known_beta or 1.0)

        factor = covariance_factor(s.xx, ratio)
        coef = factor @ (factor.T @ s.xy)
        energy = max(s.yy - coef @ s.xy, s.least_energy)
        if noise is None and alpha is not None:
            noise = KnownNoise(alpha / ratio)
        elif noise is None:
            noise = KnownNoise(n / energy if n else 1.0)

        self._statistics, self._noise, self._known_beta = statistics, noise, known_beta
        self._ratio, self._factor, self._energy = ratio, factor, energy
        self.num_examples_ = s.count
        self.n_features_in_ = len(coef)
        self.coef_ = coef
        self.intercept_ = self._offset(coef)
        self.noise_precision_ = float(noise.precision(energy, n))
        self.prior_precision_ = ratio
        if isinstance(noise, GammaNoise):
            self.noise_shape_, self.noise_rate_ = noise.posterior(energy, n)
        else:
            self.prior_precision_ = ratio * self.noise_precision_
        kept = ratio * np.square(factor).sum()  # by the prior alone
        self.num_effective_parameters_ = float(len(coef) - kept)

    def _unknown_noise(self):
        return isinstance(self._noise, GammaNoise)

    def _offset(self, coef):
        return float(self._statistics.y_mean - coef @ self._statistics.x_mean)

    def _predictive(self, X, with_scale):
        """Mean, and scale of the normal or the Student-t, None if not wanted."""
        self._check_fitted()
        X = self._check_inputs(X)
        mean, scale = np.empty(len(X)), np.empty(len(X)) if with_scale else None
        rows = max(1, _BLOCK_VALUES // X.shape[1])
        noise = 1.0  # of this and all below, in units of 1 / beta
        if self._statistics.centred:
            noise += 1.0 / self.num_examples_ if self.num_examples_ else math.inf
        for start in range(0, len(X), rows):
            block = slice(start, start + rows)
            x = X[block].astype("float64")
            mean[block] = x @ self.coef_ + self.intercept_
            if with_scale:
                x = (x - self._statistics.x_mean) @ self._factor
                scale[block] = np.sqrt(noise + np.square(x).sum(axis=1))
        wrong = np.count_nonzero(~np.isfinite(mean))
        if wrong:
            raise ValueError(
                "Expected `X` without NaN or infinity; drop those rows or fill them "
                f"in. Received: such values in {wrong} rows"
            )
        if with_scale:
            scale /= math.sqrt(self.noise_precision_)
        return mean, scale

    def _check_proper(self):
        if self._statistics.centred and self.num_examples_ == 0:
            raise ValueError(
                "Expected at least one row: until then the posterior of the intercept "
                "is its flat prior. Fit a row, or set `fit_intercept=False`. "
                "Received: num_examples_=0"
            )

    def weights_and_factor(self):
        """Mean of all weights, and a factor of their covariance in units of 1 / beta.

        Returns:
            m float64 `(d + 1,)`, the intercept last, or `(d,)` without one; C, square
            and lower triangular: the covariance is C C' / `noise_precision_`.

        Raises:
            ValueError: with an intercept and no rows.
        """
        self._check_fitted()
        if not self._statistics.centred:
            return self.coef_, self._factor
        self._check_proper()
        below = -self._statistics.x_mean @ self._factor
        factor = np.zeros((len(below) + 1, len(below) + 1))
        factor[:-1, :-1] = self._factor
        factor[-1] = [*below, 1.0 / math.sqrt(self.num_examples_)]
        return np.append(self.coef_, self.intercept_), factor
