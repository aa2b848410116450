"""A linear layer trained by `fit` reaches the exact mean-field posterior.

Bayesian linear regression has the posterior N(m, S), S^-1 = a I + b Phi^T Phi,
m = b S Phi^T t (Bishop, "Pattern recognition and machine learning", 2006, 3.53),
and its best factorised Gaussian has mean m and variances 1 / (S^-1)_ii (10.68).
Everything here is NumPy in float64 but the model itself.
"""

import dataclasses
import math

import keras
import numpy as np
import pytest
from contract import to_numpy
from keras import ops
from scipy import linalg, stats

import keras_bdl

ROWS = 100
NOISE_STDDEV = 0.6
PRIOR_STDDEV = 0.15


@dataclasses.dataclass
class Regression:
    """Data of correlated features, and their exact posterior."""

    x: np.ndarray
    targets: np.ndarray
    design: np.ndarray  # features, then the column of the bias
    precision: np.ndarray  # inverse covariance of the posterior
    mean: np.ndarray

    @property
    def mean_field_variance(self):
        return 1.0 / np.diag(self.precision)

    def log_evidence(self):
        covariance = NOISE_STDDEV**2 * np.eye(ROWS)
        covariance += PRIOR_STDDEV**2 * self.design @ self.design.T
        return stats.multivariate_normal(cov=covariance).logpdf(self.targets)

    def best_bound(self):
        """Evidence less KL(q || posterior) at the best factorised q."""
        gap = np.log(np.diag(self.precision)).sum()
        gap -= np.linalg.slogdet(self.precision)[1]
        return self.log_evidence() - 0.5 * gap


@pytest.fixture(autouse=True)
def one_thread_for_torch():
    """Its threads cost more than they bring at this size, most of all on a busy CPU."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_regression(seed=0):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(ROWS, 1))
    x = 0.95 * common + 0.35 * rng.normal(size=(ROWS, 3)) + 0.3
    x = x.astype("float32").astype("float64")
    design = np.concatenate([x, np.ones((ROWS, 1))], axis=1)
    weights = np.array([0.6, -0.4, 0.5, 0.4])
    targets = design @ weights + NOISE_STDDEV * rng.normal(size=ROWS)
    precision = design.T @ design / NOISE_STDDEV**2 + np.eye(4) / PRIOR_STDDEV**2
    mean = linalg.solve(precision, design.T @ targets / NOISE_STDDEV**2)
    return Regression(x, targets, design, precision, mean)


def gaussian_nll(targets, outputs):
    """-log N(targets | outputs, NOISE_STDDEV^2), summed over units: one per row."""
    squares = ops.square((targets - outputs) / NOISE_STDDEV)
    constant = math.log(2 * math.pi * NOISE_STDDEV**2)
    return 0.5 * ops.sum(squares + constant, axis=-1)


def fit(model, regression, steps, copies):
    """One epoch whose every batch is the data set, `copies` times; its mean loss."""
    x = np.tile(regression.x, (steps * copies, 1)).astype("float32")
    y = np.tile(regression.targets[:, None], (steps * copies, 1)).astype("float32")
    history = model.fit(x, y, batch_size=copies * ROWS, shuffle=False, verbose=0)
    return history.history["loss"][0]


def make_model(units, estimator, steps):
    layer = keras_bdl.VariationalDense(
        units,
        prior=keras_bdl.priors.Normal(stddev=PRIOR_STDDEV),
        num_examples=ROWS,
        estimator=estimator,
        initial_log_stddev=-3.0,
    )
    model = keras.Sequential([keras.Input((3,)), layer])
    learning_rate = keras.optimizers.schedules.CosineDecay(0.02, steps)
    model.compile(keras.optimizers.Adam(learning_rate), gaussian_nll)
    return model, layer


def train(regression, units, estimator, copies, steps):
    model, layer = make_model(units, estimator, steps)
    fit(model, regression, steps, copies)
    return model, layer


def posterior_of(layer):
    """Means and variances of kernel and bias, averaged over units of equal data."""
    mean = np.vstack([to_numpy(layer.kernel), to_numpy(layer.bias)])
    log_stddev = np.vstack(
        [to_numpy(layer.kernel_log_stddev), to_numpy(layer.bias_log_stddev)]
    )
    return mean.mean(axis=1), np.exp(2 * log_stddev).mean(axis=1)


def test_the_oracle_tells_the_candidates_apart():
    """Wrong answers lie far outside the tolerances of the test below."""
    regression = make_regression()
    exact = regression.mean_field_variance
    assert (np.diag(linalg.inv(regression.precision)) / exact).max() > 2.0
    likelihood = regression.design.T @ regression.design / NOISE_STDDEV**2
    assert (1 / np.diag(likelihood) / exact).min() > 1.1  # no prior
    least_squares = linalg.lstsq(regression.design, regression.targets)[0]
    scale = np.abs(regression.mean).max()
    assert np.abs(least_squares - regression.mean).max() > 0.1 * scale


# A step averages the noise of its draws: of every row for the layer's default,
# so rows are repeated; of one weight for the other two, so there are many units,
# each a regression of its own. Otherwise the tolerance would take minutes.
@pytest.mark.parametrize(
    "estimator, units, copies, steps",
    [
        ("local_reparameterization", 1, 16, 1000),
        ("flipout", 64, 1, 1000),
        # `test_updating` has one draw for all rows too.
        pytest.param("reparameterization", 64, 1, 1000, marks=pytest.mark.slow),
    ],
)
def test_fit_reaches_the_best_mean_field_posterior(estimator, units, copies, steps):
    regression = make_regression()
    model, layer = train(regression, units, estimator, copies, steps)

    mean, variance = posterior_of(layer)
    scale = np.abs(regression.mean).max()
    np.testing.assert_allclose(mean, regression.mean, rtol=0, atol=0.02 * scale)
    np.testing.assert_allclose(variance, regression.mean_field_variance, rtol=0.05)

    # The loss there is the negative bound per row, with all its constants.
    model.compile(keras.optimizers.SGD(0.0), gaussian_nll)
    bound = -ROWS * fit(model, regression, 200, copies) / units
    assert bound == pytest.approx(regression.best_bound(), abs=0.2)
