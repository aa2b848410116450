"""The exact models against SciPy, quadrature and dense Gaussians."""

import functools
import itertools
import pickle
import sys

import keras
import numpy as np
import pytest
from scipy import integrate, linalg, optimize, special, stats

import keras_bdl
from keras_bdl.exact import linear_regression, statistics
from keras_bdl.exact.conjugate import (
    BayesianLinearRegression,
    BetaBernoulli,
    DirichletCategorical,
)

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="NumPy and SciPy alone: on one backend is on all",
)
TOSSES = np.array([1, 0, 1, 1, 1, 0, 1])
NOISES = ("evidence", 1.7, (1.5, 0.8))
SIZES = [(1, 3), (4, 9), (40, 3)]


def make_data(n=40, d=3, seed=0):
    """Columns of different means and scales, the last two nearly collinear."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.linspace(0.5, 2.0, d) + np.arange(d)
    x[:, -1] = x[:, -2] + 0.1 * x[:, -1]
    y = x @ np.linspace(-1.0, 1.0, d) + 3.0 + 0.6 * rng.normal(size=n)
    return x, y


def fit(noise=1.7, intercept=True, n=40, d=3, prior=0.6):
    x, y = make_data(n, d)
    return BayesianLinearRegression(prior, noise, intercept).fit(x, y), x, y


# --- Coins and dice ------------------------------------------------------------


def test_beta_bernoulli_equals_quadrature():
    alpha, beta = 2.5, 1.5
    model = BetaBernoulli(alpha, beta).fit(TOSSES)

    def joint(theta):
        likelihood = theta ** TOSSES.sum() * (1 - theta) ** (1 - TOSSES).sum()
        return likelihood * stats.beta.pdf(theta, alpha, beta)

    evidence = integrate.quad(joint, 0, 1)[0]
    mean = integrate.quad(lambda t: t * joint(t), 0, 1)[0] / evidence
    assert model.log_evidence() == pytest.approx(np.log(evidence), abs=1e-9)
    posterior = model.posterior()
    for theta in (0.2, 0.7):
        density = float(posterior.prob(np.float64(theta)))
        assert density == pytest.approx(joint(theta) / evidence, rel=1e-9)
    predictive = model.posterior_predictive()
    assert float(predictive.prob(1)) == pytest.approx(mean, rel=1e-9)
    assert model.mle() == TOSSES.mean()
    mode = optimize.minimize_scalar(lambda t: -joint(t), bounds=(0, 1)).x
    assert model.map() == pytest.approx(mode, abs=1e-5)


def test_log_evidence_of_tosses_is_the_sum_of_their_predictives():
    coin, die = BetaBernoulli(0.7, 2.0).fit([]), DirichletCategorical([0.5, 2, 1])
    die.fit(np.array([], int))
    assert coin.log_evidence() == 0.0 and die.log_evidence() == 0.0
    total = 0.0
    for toss in TOSSES:
        total += float(coin.posterior_predictive().log_prob(toss))
        total += float(die.posterior_predictive().log_prob(2 * toss))
        coin.partial_fit([toss])
        die.partial_fit([2 * toss])
    got = coin.log_evidence() + die.log_evidence()
    assert got == pytest.approx(total, abs=1e-12)


MODES = [
    (3.0, 2.0, 2 / 3),
    (1.0, 1.0, np.nan),
    (0.5, 0.5, np.nan),
    (0.5, 1.0, 0.0),
    (0.5, 1.2, 0.0),
    (2.0, 0.5, 1.0),
    (1.0, 0.5, 1.0),
    (1.0, 4.0, 0.0),
]


def test_mode_of_a_beta():
    for alpha, beta, mode in MODES:
        model = BetaBernoulli(alpha, beta).fit([])
        np.testing.assert_equal(model.map(), mode)
        assert np.isnan(model.mle())


def test_dirichlet_categorical_equals_quadrature_and_scipy():
    alpha = [1.5, 2.0, 1.2]
    x = np.array([0, 2, 2, 1, 2])
    model = DirichletCategorical(alpha).fit(x)
    counts = np.array([1, 1, 3])
    np.testing.assert_array_equal(model.counts_, counts)

    def joint(b, a):
        theta = np.array([a, b, 1.0 - a - b])
        density = special.gamma(np.sum(alpha)) / special.gamma(alpha).prod()
        return density * (theta ** (counts + np.array(alpha) - 1.0)).prod()

    evidence = integrate.dblquad(joint, 0, 1, 0, lambda a: 1.0 - a)[0]
    assert model.log_evidence() == pytest.approx(np.log(evidence), abs=1e-6)
    theta = np.array([0.2, 0.3, 0.5])
    density = float(model.posterior().prob(theta))
    assert density == pytest.approx(stats.dirichlet.pdf(theta, counts + alpha))
    predictive = model.posterior_predictive().prob(np.arange(3))
    np.testing.assert_allclose(predictive, (counts + alpha) / 9.7)
    np.testing.assert_allclose(model.mle(), counts / 5)
    mode = model.map()
    assert mode.sum() == pytest.approx(1.0)
    for a, b in ((0.01, 0), (0, 0.01), (-0.01, 0), (0, -0.01)):
        assert joint(mode[1], mode[0]) > joint(mode[1] + b, mode[0] + a)


def test_two_classes_are_a_coin_and_flat_or_unbounded_dice_have_no_mode():
    coin = BetaBernoulli(2.0, 3.0).fit(TOSSES)
    die = DirichletCategorical([3.0, 2.0]).fit(TOSSES)
    assert die.log_evidence() == pytest.approx(coin.log_evidence())
    assert die.map()[1] == pytest.approx(coin.map())
    for alpha in ([1.0, 1.0, 1.0], [0.5, 2.0, 2.0]):
        flat = DirichletCategorical(alpha).fit([])
        assert np.isnan(flat.map()).all() and np.isnan(flat.mle()).all()


@pytest.mark.parametrize(
    "model, batches",
    [
        (BetaBernoulli(0.5, 2.0), np.split(TOSSES, [2, 2, 5])),
        (DirichletCategorical([0.5, 2.0]), np.split(TOSSES, [2, 2, 5])),
    ],
    ids=["coin", "die"],
)
def test_counts_by_batches_equal_all_at_once(model, batches):
    for batch in batches:
        model.partial_fit(batch)
    in_batches = vars(model).copy()
    assert str(vars(model.fit(TOSSES))) == str(in_batches)
    assert model.partial_fit(TOSSES).log_evidence() != model.fit(TOSSES).log_evidence()


# --- Linear regression against dense Gaussians -----------------------------------


def dense(model, x, intercept, width):
    """Design and prior covariance, the flat prior of an intercept as a wide one."""
    d = x.shape[1]
    covariance = np.eye(d) / model.prior_precision_
    design = x
    if intercept:
        design = np.column_stack([x, np.ones(len(x))])
        covariance = linalg.block_diag(covariance, width)
    return design, covariance


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("n, d", SIZES)
def test_posterior_and_predictive_equal_dense_gaussian_conditioning(n, d, intercept):
    model, x, y = fit(1.7, intercept, n, d)
    wide = 1e7
    design, prior = dense(model, x, intercept, wide)
    marginal = design @ prior @ design.T + np.eye(n) / 1.7
    gain = linalg.solve(marginal, design @ prior, assume_a="pos").T
    mean, covariance = gain @ y, prior - gain @ design @ prior
    tolerance = {"rtol": 1e-5, "atol": 1e-4 if intercept else 1e-10}

    posterior = model.posterior()
    np.testing.assert_allclose(posterior.mean(), mean, **tolerance)
    np.testing.assert_allclose(posterior.covariance(), covariance, **tolerance)
    np.testing.assert_allclose(model.coef_, mean[:d], **tolerance)
    new = make_data(5, d, seed=1)[0]
    at = np.column_stack([new, np.ones(5)]) if intercept else new
    stddev = np.sqrt(np.diag(at @ covariance @ at.T) + 1 / 1.7)
    got = model.predict(new, return_std=True)
    np.testing.assert_allclose(got[0], at @ mean, **tolerance)
    np.testing.assert_allclose(got[1], stddev, **tolerance)
    np.testing.assert_array_equal(model.predict(new), got[0])
    predictive = model.posterior_predictive(new)
    np.testing.assert_allclose(predictive.stddev(), got[1], rtol=1e-12)
    np.testing.assert_allclose(predictive.mean(), got[0], rtol=1e-12)


def contrasts(n):
    """Orthonormal rows, orthogonal to ones: what is left without a mean."""
    return linalg.null_space(np.ones((1, n))).T


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_log_evidence_equals_the_dense_marginal(noise):
    for (n, d), intercept in itertools.product(SIZES, [False, True]):
        check_log_evidence(n, d, intercept, noise)


def check_log_evidence(n, d, intercept, noise):
    """Of a flat intercept: of the contrasts, the mean's factor 1 / sqrt(n) beside."""
    model, x, y = fit(noise, intercept, n, d)
    expected = 0.0
    if intercept:
        x, y = contrasts(n) @ x, contrasts(n) @ y
        expected = -0.5 * np.log(n)
    unknown = isinstance(noise, tuple)
    beta = 1.0 if unknown else model.noise_precision_
    covariance = x @ x.T / model.prior_precision_ + np.eye(len(y)) / beta
    if len(y) and unknown:
        shape, rate = noise
        t = stats.multivariate_t(0 * y, covariance * rate / shape, df=2 * shape)
        expected += t.logpdf(y)
    elif len(y):
        expected += stats.multivariate_normal(cov=covariance).logpdf(y)
    assert model.log_evidence() == pytest.approx(expected, abs=1e-7)


def test_log_evidence_with_an_intercept_is_the_limit_of_a_wide_prior():
    model, x, y = fit(1.7, True, 20)
    width = 1e8
    design, prior = dense(model, x, True, width)
    marginal = stats.multivariate_normal(
        cov=design @ prior @ design.T + np.eye(20) / 1.7
    )
    expected = marginal.logpdf(y) + 0.5 * np.log(2 * np.pi * width)
    assert model.log_evidence() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("intercept", [False, True])
def test_unknown_noise_equals_quadrature_over_its_precision(intercept):
    """Known noise with weights p(beta) p(y | beta), on a fine grid of beta."""
    shape, rate = 1.5, 0.8
    model, x, y = fit((shape, rate), intercept, 8)
    new = make_data(3, seed=1)[0]
    log_beta = np.linspace(-8.0, 5.0, 501)
    step, at = log_beta[1] - log_beta[0], model.predict(new)[0] + 0.4
    evidence, density, mean_beta = 0.0, 0.0, 0.0
    for beta in np.exp(log_beta):
        known = BayesianLinearRegression(0.6 * beta, beta, intercept).fit(x, y)
        weight = step * beta * stats.gamma.pdf(beta, shape, scale=1 / rate)
        weight *= np.exp(known.log_evidence())
        evidence += weight
        mean_beta += weight * beta
        density += weight * stats.norm.pdf(
            at, *[v[0] for v in known.predict(new, True)]
        )
    assert model.log_evidence() == pytest.approx(np.log(evidence), abs=1e-6)
    assert model.noise_precision_ == pytest.approx(mean_beta / evidence, rel=1e-6)
    got = model.posterior_predictive(new).prob(at)[0]
    assert float(got) == pytest.approx(density / evidence, rel=1e-6)
    scale = model.predict(new, return_std=True)[1]
    np.testing.assert_allclose(model.posterior_predictive(new).stddev(), scale)


def test_posterior_of_unknown_noise_is_a_multivariate_t():
    model, _, _ = fit((1.5, 0.8))
    posterior, df = model.posterior(), 2 * model.noise_shape_
    _, factor = model.weights_and_factor()
    factor = factor * np.sqrt(model.noise_rate_ / model.noise_shape_)
    t = stats.multivariate_t(posterior.loc.numpy(), factor @ factor.T, df=df)
    point = posterior.loc.numpy() + [0.1, -0.2, 0.1, 0.3]
    assert float(posterior.log_prob(point)) == pytest.approx(t.logpdf(point))


@pytest.mark.parametrize("noise", [1.7, (1.5, 0.8)], ids=str)
def test_samples_have_the_moments_of_the_posterior(noise):
    model, _, _ = fit(noise)
    draws = model.sample(100_000, seed=3)
    np.testing.assert_array_equal(draws, model.sample(100_000, seed=3))
    posterior = model.posterior()
    covariance = np.array(posterior.covariance())
    error = 5 * np.sqrt(np.diag(covariance) / len(draws))
    assert (np.abs(draws.mean(axis=0) - posterior.mean()) < error).all()
    stddev = np.sqrt(np.diag(covariance))
    gap = (np.cov(draws.T) - covariance) / np.outer(stddev, stddev)
    assert np.abs(gap).max() < 5 * np.sqrt(2.5 / len(draws))


# --- Point estimates ---------------------------------------------------------------


def test_mle_is_least_squares():
    model, x, y = fit((1.5, 0.8))
    design = np.column_stack([x, np.ones(40)])
    expected, squares = linalg.lstsq(design, y)[:2]
    point = model.mle()
    np.testing.assert_allclose(point.coef, expected[:3], rtol=1e-9)
    assert point.intercept == pytest.approx(expected[3])
    assert point.noise_precision == pytest.approx(40 / squares)
    assert fit(1.7)[0].mle().noise_precision == 1.7
    assert fit("evidence")[0].mle().noise_precision == point.noise_precision


def test_mle_of_collinear_columns_has_least_norm_and_of_no_rows_is_nan():
    x = np.ones((5, 2)) * np.arange(5.0)[:, None]
    point = BayesianLinearRegression(1.0).fit(x, 2.0 * x[:, 0] + 1.0).mle()
    np.testing.assert_allclose(point.coef, [1.0, 1.0])
    assert point.intercept == pytest.approx(1.0) and point.noise_precision == np.inf
    nothing = BayesianLinearRegression(1.0).fit(x[:0], x[:0, 0]).mle()
    assert np.isnan([nothing.intercept, nothing.noise_precision]).all()


@pytest.mark.parametrize("intercept", [False, True])
def test_map_is_the_highest_point_of_the_joint_density(intercept):
    model, x, y = fit((1.5, 0.8), intercept)
    point = model.map()

    def log_joint(coef, offset, beta):
        prior = stats.gamma.logpdf(beta, 1.5, scale=1 / 0.8)
        prior += stats.norm.logpdf(coef, 0, (0.6 * beta) ** -0.5).sum()
        return prior + stats.norm.logpdf(y, x @ coef + offset, beta**-0.5).sum()

    best = log_joint(*point)
    for step in np.eye(5):
        for size in (-1e-3, 1e-3):
            move = size * step
            other = log_joint(
                point.coef + move[:3],
                point.intercept + intercept * move[3],
                point.noise_precision * (1 + move[4]),
            )
            assert other < best or not (move[:3].any() or move[4] or intercept)
    assert fit(1.7)[0].map().noise_precision == 1.7


# --- Evidence ----------------------------------------------------------------------


def evidence_at(x, y, alpha, beta, intercept):
    model = BayesianLinearRegression(alpha, beta, intercept)
    return model.fit(x, y).log_evidence()


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(
    "prior, noise",
    [("evidence", "evidence"), ("evidence", 1.7), (0.6, "evidence")],
)
def test_chosen_precisions_are_a_stationary_point(prior, noise, intercept):
    x, y = make_data()
    model = BayesianLinearRegression(prior, noise, intercept).fit(x, y)
    alpha, beta = model.prior_precision_, model.noise_precision_
    best = model.log_evidence()
    assert best == pytest.approx(evidence_at(x, y, alpha, beta, intercept), abs=1e-9)
    h = 1e-3
    for a, b, free in ((h, 0, prior), (0, h, noise)):
        if free == "evidence":
            up = evidence_at(x, y, alpha * np.exp(a), beta * np.exp(b), intercept)
            down = evidence_at(x, y, alpha * np.exp(-a), beta * np.exp(-b), intercept)
            assert abs(up - down) / (2 * h) < 1e-5
            assert max(up, down) < best
    # The equations that MacKay's updates converge to.
    gamma = model.num_effective_parameters_
    residual = y - x @ model.coef_ - model.intercept_
    if prior == "evidence":
        assert alpha * (model.coef_ @ model.coef_) == pytest.approx(gamma)
    if noise == "evidence":
        rows = len(y) - intercept
        assert beta * (residual @ residual) == pytest.approx(rows - gamma)


def test_chosen_prior_of_unknown_noise_is_a_maximum():
    x, y = make_data()
    model = BayesianLinearRegression("evidence", (1.5, 0.8)).fit(x, y)
    h, alpha = 1e-3, model.prior_precision_
    up, down = (evidence_at(x, y, alpha * np.exp(s), (1.5, 0.8), True) for s in (h, -h))
    assert abs(up - down) / (2 * h) < 1e-5
    assert max(up, down) < model.log_evidence()


@pytest.mark.parametrize("n, d", [(6, 12), (40, 3), (3, 3)])
def test_no_other_precisions_have_more_evidence(n, d):
    x, y = make_data(n, d)
    best = BayesianLinearRegression(fit_intercept=False).fit(x, y).log_evidence()
    for alpha in np.logspace(-3, 6, 10):
        for beta in np.logspace(-3, 6, 10):
            assert evidence_at(x, y, alpha, beta, False) <= best + 1e-9


def test_columns_that_say_nothing_get_weights_of_zero():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=50)
    y -= x @ linalg.lstsq(x, y)[0]
    model = BayesianLinearRegression(fit_intercept=False).fit(x, y)
    assert np.abs(model.coef_).max() < 1e-6
    assert model.num_effective_parameters_ < 1e-6
    assert model.noise_precision_ == pytest.approx(1 / np.mean(y**2), rel=1e-6)


def test_scales_of_the_data_do_not_matter():
    x, y = make_data()
    model = BayesianLinearRegression().fit(x, y)
    scaled = BayesianLinearRegression().fit(1e8 * x, 1e-20 * y)
    np.testing.assert_allclose(scaled.coef_, 1e-28 * model.coef_, rtol=1e-7)
    stddev = model.predict(x, return_std=True)[1]
    got = scaled.predict(1e8 * x, return_std=True)[1]
    np.testing.assert_allclose(got, 1e-20 * stddev, rtol=1e-7)
    moved = BayesianLinearRegression().fit(x + 1e5, y - 1e6)
    np.testing.assert_allclose(moved.coef_, model.coef_, rtol=1e-6)


@pytest.mark.parametrize("n, d", [(40, 3), (12, 30)])
def test_equals_bayesian_ridge(n, d):
    linear_model = pytest.importorskip("sklearn.linear_model")
    zero = {"alpha_1": 0.0, "alpha_2": 0.0, "lambda_1": 0.0, "lambda_2": 0.0}
    x, y = make_data(n, d)
    if n < d:
        y += np.random.default_rng(1).normal(size=n)
    ridge = linear_model.BayesianRidge(
        fit_intercept=False, tol=1e-13, max_iter=100_000, compute_score=True, **zero
    ).fit(x, y)
    model = BayesianLinearRegression(fit_intercept=False).fit(x, y)
    if n < d:  # it goes on for ever towards no noise
        assert model.log_evidence() >= ridge.scores_[-1] - 1e-6
        return
    np.testing.assert_allclose(model.coef_, ridge.coef_, rtol=1e-8)
    assert model.log_evidence() == pytest.approx(ridge.scores_[-1], abs=1e-8)
    assert model.prior_precision_ == pytest.approx(ridge.lambda_)
    assert model.noise_precision_ == pytest.approx(ridge.alpha_)
    stddev = ridge.predict(x, return_std=True)[1]
    np.testing.assert_allclose(model.predict(x, return_std=True)[1], stddev, rtol=1e-8)


# --- Streaming ---------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("intercept", [False, True])
def test_batches_equal_all_rows_at_once(noise, intercept, monkeypatch):
    x, y = make_data(100)
    x += 50.0  # far from 0
    whole = BayesianLinearRegression("evidence", noise, intercept).fit(x, y)
    monkeypatch.setattr(statistics, "_BLOCK_VALUES", 1)
    monkeypatch.setattr(statistics, "_LEAST_BLOCK_ROWS", 7)
    monkeypatch.setattr(linear_regression, "_BLOCK_VALUES", 9)
    streamed = BayesianLinearRegression("evidence", noise, intercept)
    for rows in np.split(np.arange(100), [0, 1, 30, 30, 31]):
        streamed.partial_fit(x[rows], y[rows])
    for name in ("coef_", "intercept_", "prior_precision_", "noise_precision_"):
        got, expected = getattr(streamed, name), getattr(whole, name)
        np.testing.assert_allclose(got, expected, rtol=1e-8, err_msg=name)
    assert streamed.num_examples_ == whole.num_examples_ == 100
    assert streamed.log_evidence() == pytest.approx(whole.log_evidence(), abs=1e-8)
    for a, b in zip(streamed.predict(x, True), whole.predict(x, True)):
        np.testing.assert_allclose(a, b, rtol=1e-8)


def test_log_evidence_is_the_sum_of_predictives():
    x, y = make_data(12)
    for noise in (1.7, (1.5, 0.8)):
        model = BayesianLinearRegression(0.6, noise, fit_intercept=False)
        model.fit(x[:0], y[:0])
        total = 0.0
        for row in range(12):
            rows = slice(row, row + 1)
            total += float(model.posterior_predictive(x[rows]).log_prob(y[rows])[0])
            model.partial_fit(x[rows], y[rows])
        assert model.log_evidence() == pytest.approx(total, abs=1e-9)


def test_inputs_are_left_as_they_are_and_may_be_lists_or_float32():
    x, y = make_data()
    x, y = x.astype("float32"), y.astype("float32")
    before = x.copy(), y.copy()
    model = BayesianLinearRegression().fit(x, y)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])
    assert model.coef_.dtype == "float64" and model.predict(x).dtype == "float64"
    again = BayesianLinearRegression().fit(x.tolist(), y.tolist())
    np.testing.assert_allclose(again.coef_, model.coef_)


# --- Weights of rows -----------------------------------------------------------------


def attributes(model):
    """All that a regression says of its data, as one vector."""
    values = [model.coef_, model.intercept_, model.noise_precision_]
    values += [model.prior_precision_, model.num_effective_parameters_]
    values += [model.num_examples_, model.log_evidence(), *model.mle(), *model.map()]
    values += model.predict(make_data(5, seed=1)[0], return_std=True)
    values += [part.ravel() for part in model.weights_and_factor()]
    return np.concatenate([np.ravel(value) for value in values])


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("prior", ["evidence", 0.6])
def test_a_row_of_weight_w_counts_as_w_rows(prior, noise):
    x, y = make_data()
    x[:, 2] += np.random.default_rng(2).normal(size=40)
    weights = np.random.default_rng(1).integers(0, 4, 40)
    for intercept in (False, True):
        repeated = BayesianLinearRegression(prior, noise, intercept)
        repeated.fit(x.repeat(weights, axis=0), y.repeat(weights))
        model = BayesianLinearRegression(prior, noise, intercept)
        for rows in np.split(np.arange(40), [1, 25]):
            model.partial_fit(x[rows], y[rows], sample_weight=weights[rows].tolist())
        np.testing.assert_allclose(attributes(model), attributes(repeated), rtol=1e-6)


def power_likelihood(x, y, weights, alpha, beta):
    """log of the integral of p(w) prod_n p(y_n | w)^weight_n, by SciPy's Gaussian.

    N(y; f, 1 / beta)^u is N(y; f, 1 / (u beta)) times a number.
    """
    covariance = x @ x.T / alpha + np.diag(1.0 / (weights * beta))
    value = stats.multivariate_normal(cov=covariance).logpdf(y)
    value += 0.5 * (weights - 1.0).sum() * np.log(beta / (2.0 * np.pi))
    return value - 0.5 * np.log(weights).sum()


WEIGHTS = np.random.default_rng(4).uniform(0.1, 2.0, 12)


@pytest.mark.parametrize("total", [12.0, 0.5])
def test_posterior_and_evidence_of_weights_equal_weighted_least_squares(total):
    x, y = make_data(12)
    weights = WEIGHTS * total / WEIGHTS.sum()
    alpha, beta = 0.6, 1.7
    for intercept in (False, True):
        model = BayesianLinearRegression(alpha, beta, intercept).fit(x, y, weights)
        design = np.column_stack([x, np.ones(12)]) if intercept else x
        prior = np.diag([alpha, alpha, alpha, 0.0][: design.shape[1]])
        precision = prior + beta * design.T @ np.diag(weights) @ design
        mean = linalg.solve(precision, beta * design.T @ (weights * y))
        got, factor = model.weights_and_factor()
        np.testing.assert_allclose(got, mean, rtol=1e-8)
        np.testing.assert_allclose(
            factor @ factor.T / beta, linalg.inv(precision), rtol=1e-7
        )
        stddev = np.sqrt(np.diag(design @ linalg.inv(precision) @ design.T) + 1 / beta)
        np.testing.assert_allclose(model.predict(x, True)[1], stddev, rtol=1e-9)
    evidence = BayesianLinearRegression(alpha, beta, False).fit(x, y, weights)
    expected = power_likelihood(x, y, weights, alpha, beta)
    assert evidence.log_evidence() == pytest.approx(expected, abs=1e-8)
    # The intercept's flat prior, by quadrature.
    best = power_likelihood(x, y - model.intercept_, weights, alpha, beta)

    def density(c):
        return np.exp(power_likelihood(x, y - c, weights, alpha, beta) - best)

    middle, width = model.intercept_, 12.0 * np.sqrt(linalg.inv(precision)[-1, -1])
    area = integrate.quad(density, middle - width, middle + width, epsabs=1e-10)[0]
    assert model.log_evidence() == pytest.approx(best + np.log(area), abs=1e-6)


def test_unknown_noise_of_weights_equals_quadrature():
    x, y = make_data(12)
    shape, rate, alpha = 1.5, 0.8, 0.6
    model = BayesianLinearRegression(alpha, (shape, rate), False).fit(x, y, WEIGHTS)

    def density(log_beta):
        beta = np.exp(log_beta)
        prior = beta * stats.gamma.pdf(beta, shape, scale=1 / rate)
        return prior * np.exp(power_likelihood(x, y, WEIGHTS, alpha * beta, beta))

    def integral(function):  # of about e^-33: by relative error alone
        return integrate.quad(function, -8.0, 5.0, epsabs=0.0)[0]

    evidence = integral(density)
    assert model.log_evidence() == pytest.approx(np.log(evidence), abs=1e-6)
    mean = integral(lambda b: np.exp(b) * density(b)) / evidence
    assert model.noise_precision_ == pytest.approx(mean, rel=1e-6)


def test_precisions_by_evidence_of_weights_are_its_maximum():
    x, y = make_data(12)

    def loss(log_precisions):
        return -power_likelihood(x, y, WEIGHTS, *np.exp(log_precisions))

    best = optimize.minimize(loss, [0.0, 0.0], method="Nelder-Mead", tol=1e-10)
    model = BayesianLinearRegression(fit_intercept=False).fit(x, y, WEIGHTS)
    got = np.log([model.prior_precision_, model.noise_precision_])
    np.testing.assert_allclose(got, best.x, atol=1e-4)
    assert model.log_evidence() == pytest.approx(-best.fun, abs=1e-8)


REFUSED_WEIGHTS = [
    ([1.0, -1.0, 1.0], ValueError, "0 or more.*Received: sample_weight=-1"),
    ([1.0, np.nan, 1.0], ValueError, "finite.*Received: sample_weight=nan"),
    ([1.0, np.inf, 1.0], ValueError, "finite.*Received: sample_weight=inf"),
    ([1.0, 1.0], ValueError, "as many weights as rows.*Received: 2 weights, 3 rows"),
    ([[1.0]] * 3, ValueError, r"`sample_weight` of shape \(n,\).*Received"),
    (1.0, ValueError, r"`sample_weight` of shape \(n,\).*Received"),
    ([0.0, 0.0, 0.0], ValueError, "weight above zero.*Received: 3 weights of 0"),
    (["1"] * 3, TypeError, "`sample_weight` to be an array.*Received"),
]


def test_weights_that_are_refused():
    line, tosses = (np.eye(3), [1.0, 2.0, 3.0]), ([0, 1, 1],)
    models = (BayesianLinearRegression(), line), (BetaBernoulli(), tosses)
    for (weights, error, match), (model, data) in itertools.product(
        REFUSED_WEIGHTS, models
    ):
        with pytest.raises(error, match=match):
            model.fit(*data, sample_weight=weights)
    with pytest.raises(ValueError, match="sum to a row.*Received: weights that sum"):
        BayesianLinearRegression(1.0, (0.1, 1.0)).fit(*line, [0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match=r"without NaN.*Received.*X\[:, 0\]"):
        BayesianLinearRegression().fit([[np.nan], [1.0]], [1.0, 2.0], [0.0, 1.0])


def test_weighted_tosses_count_as_so_many():
    weights = np.array([2, 0, 1, 3, 1, 1, 2])
    for make in (lambda: BetaBernoulli(0.5, 2.0), lambda: DirichletCategorical([1, 3])):
        repeated = make().fit(TOSSES.repeat(weights))
        model = make().fit(TOSSES[:3], sample_weight=weights[:3])
        model.partial_fit(TOSSES[3:], sample_weight=weights[3:])
        np.testing.assert_array_equal(model.alpha_, repeated.alpha_)
        np.testing.assert_array_equal(model.map(), repeated.map())
        assert model.log_evidence() == pytest.approx(repeated.log_evidence())
    coin = BetaBernoulli(2.5, 1.5).fit(TOSSES, sample_weight=0.3 * weights)

    def joint(theta):
        log_likelihood = 0.3 * weights @ stats.bernoulli.logpmf(TOSSES, theta)
        return np.exp(log_likelihood) * stats.beta.pdf(theta, 2.5, 1.5)

    expected = np.log(integrate.quad(joint, 0, 1)[0])
    assert coin.log_evidence() == pytest.approx(expected, abs=1e-8)


# --- Several targets -----------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("prior", ["evidence", 0.6])
def test_each_target_is_a_regression_of_its_own(prior, noise):
    x, y = make_data()
    targets = np.column_stack([y, 3.0 * x[:, 0] - y, np.sin(y)])
    new = make_data(5, seed=1)[0]
    for intercept, weights in ((False, None), (True, np.linspace(0.5, 1.5, 40))):
        settings = prior, noise, intercept
        model = BayesianLinearRegression(*settings)
        for rows in np.split(np.arange(40), [0, 25]):
            part = None if weights is None else weights[rows]
            model.partial_fit(x[rows], targets[rows], part)
        alone = [
            BayesianLinearRegression(*settings).fit(x, column, weights)
            for column in targets.T
        ]
        unknown = isinstance(noise, tuple)
        names = ["coef_", "intercept_", "prior_precision_", "noise_precision_"]
        names += ["num_effective_parameters_"]
        names += ["noise_shape_", "noise_rate_"] if unknown else []

        def agree(got, call, axis=0, alone=alone):
            expected = np.stack([np.asarray(call(one)) for one in alone], axis)
            assert np.shape(got) == expected.shape
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)

        for name in names:
            agree(getattr(model, name), lambda one, name=name: getattr(one, name))
        agree(model.log_evidence(), lambda one: one.log_evidence())
        agree(model.predict(new), lambda one: one.predict(new), 1)
        agree(model.predict(new, True)[1], lambda one: one.predict(new, True)[1], 1)
        for index in range(3):
            agree(model.mle()[index], lambda one, i=index: one.mle()[i])
            agree(model.map()[index], lambda one, i=index: one.map()[i])
        for index in range(2):
            agree(
                model.weights_and_factor()[index],
                lambda one, i=index: one.weights_and_factor()[i],
            )
        assert model.num_examples_ == pytest.approx(40)


def test_distributions_and_draws_of_several_targets():
    x, y = make_data()
    targets = np.column_stack([y, 3.0 * x[:, 0] - y])
    new = make_data(5, seed=1)[0]
    for noise in (1.7, (1.5, 0.8)):
        model = BayesianLinearRegression(0.6, noise).fit(x, targets)
        alone = [BayesianLinearRegression(0.6, noise).fit(x, t) for t in targets.T]
        at = np.stack([one.weights_and_factor()[0] + 0.1 for one in alone])
        expected = [float(m.posterior().log_prob(w)) for m, w in zip(alone, at)]
        np.testing.assert_allclose(model.posterior().log_prob(at), expected)
        near = targets[:5]
        expected = [
            m.posterior_predictive(new).log_prob(t) for m, t in zip(alone, near.T)
        ]
        got = model.posterior_predictive(new).log_prob(near)
        np.testing.assert_allclose(got, np.stack(expected, axis=1))
        draws = model.sample(50_000, seed=3)
        assert draws.shape == (50_000, 2, 4)
        for column, one in zip(np.moveaxis(draws, 1, 0), alone):
            posterior = one.posterior()
            stddev = np.sqrt(np.diag(np.array(posterior.covariance())))
            error = np.abs(column.mean(axis=0) - posterior.mean()) / stddev
            assert (error < 5 / np.sqrt(50_000)).all()
            np.testing.assert_allclose(column.std(axis=0), stddev, rtol=0.05)
        between = np.corrcoef(draws[:, 0, 0], draws[:, 1, 0])[0, 1]
        assert abs(between) < 5 / np.sqrt(50_000)


def test_one_column_of_targets_keeps_its_axis_and_shapes_are_of_the_first_fit():
    x, y = make_data()
    model = BayesianLinearRegression().fit(x, y[:, None])
    assert model.coef_.shape == (1, 3) and model.intercept_.shape == (1,)
    mean, stddev = model.predict(x, return_std=True)
    assert mean.shape == stddev.shape == (40, 1)
    flat = BayesianLinearRegression().fit(x, y).predict(x)
    np.testing.assert_allclose(mean[:, 0], flat)
    for other in (y, np.column_stack([y, y])):
        with pytest.raises(ValueError, match="`y` of shape.*first fit.*Received"):
            model.partial_fit(x, other)
        with pytest.raises(ValueError, match="`y` of shape.*first fit.*Received"):
            model.score(x, other)
    nothing = BayesianLinearRegression(1.0, 2.0, False).fit(x[:0], np.ones((0, 2)))
    assert nothing.predict(x).shape == (40, 2) and nothing.predict(x[:0]).shape == (
        0,
        2,
    )
    with pytest.raises(ValueError, match="target 1 of y"):
        BayesianLinearRegression().fit(x, np.column_stack([y, y * np.nan]))


# --- Little data, awkward data -------------------------------------------------------


@pytest.mark.parametrize("n, d", [(0, 3), (1, 3), (2, 3), (5, 20)])
def test_few_rows_collinear_and_constant_columns_work(n, d):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)), rng.normal(size=n)
    x[:, 0] = 4.0
    x[:, 1] = x[:, 2]
    options = itertools.product(["evidence", 0.6], NOISES, [False, True])
    for prior, noise, intercept in options:
        model = BayesianLinearRegression(prior, noise, intercept).fit(x, y)
        assert np.isfinite(model.coef_).all()
        mean, stddev = model.predict(x + 1.0, return_std=True)
        assert np.isfinite(mean).all() and np.isfinite(stddev).all()
        if n or not intercept:
            assert np.isfinite(model.log_evidence())
            assert np.isfinite(model.sample(3, seed=0)).all()


def test_no_rows_leave_the_prior():
    x = np.array([[1.0, 2.0]])
    known = BayesianLinearRegression(4.0, 2.0, fit_intercept=False).fit(x[:0], [])
    assert known.predict(x, True) == (0.0, pytest.approx(np.sqrt(0.5 + 5.0 / 4.0)))
    np.testing.assert_allclose(known.posterior().covariance(), np.eye(2) / 4.0)
    assert known.log_evidence() == pytest.approx(0.0)
    unknown = BayesianLinearRegression(4.0, (3.0, 2.0), False).fit(x[:0], [])
    shape = 2.0 / 3.0 * (1.0 + 5.0 / 4.0)
    expected = stats.t(6.0, scale=np.sqrt(shape)).std()
    assert unknown.predict(x, True)[1] == pytest.approx(expected)
    flat = BayesianLinearRegression(4.0, 2.0).fit(x[:0], [])
    assert flat.predict(x, True) == (0.0, np.inf) and flat.log_evidence() == np.inf
    predictive = functools.partial(flat.posterior_predictive, x)
    for call in (flat.posterior, predictive, lambda: flat.sample(1)):
        with pytest.raises(ValueError, match="at least one row.*Received"):
            call()


def test_one_row_moves_the_weights_as_bayes_rule_says():
    x, y = np.array([[1.0, 2.0]]), np.array([3.0])
    model = BayesianLinearRegression(4.0, 2.0, fit_intercept=False).fit(x, y)
    gain = x[0] / 4.0 / (0.5 + 5.0 / 4.0)
    np.testing.assert_allclose(model.coef_, 3.0 * gain)
    intercept_takes_all = BayesianLinearRegression(4.0, 2.0).fit(x, y)
    np.testing.assert_array_equal(intercept_takes_all.coef_, 0.0)
    assert intercept_takes_all.intercept_ == 3.0
    assert intercept_takes_all.log_evidence() == pytest.approx(0.0)


def test_twin_columns_share_a_weight_and_constant_ones_have_none():
    x, y = make_data()
    x = x[:, :1]
    one = BayesianLinearRegression(1.0, 2.0).fit(x, y)
    columns = np.column_stack([x, x, np.full(40, 7.0)])
    three = BayesianLinearRegression(2.0, 2.0).fit(columns, y)
    half = one.coef_[0] / 2.0
    np.testing.assert_allclose(three.coef_, [half, half, 0.0], atol=1e-12)
    np.testing.assert_allclose(three.predict(columns), one.predict(x))
    weak = BayesianLinearRegression(1e-14, 1.0).fit
    with pytest.raises(
        ValueError, match="collinear.*raise `prior_precision`.*Received"
    ):
        weak(1e4 * columns, y)


@pytest.mark.parametrize("n, d", [(12, 30), (30, 4)])
def test_mean_has_no_part_in_directions_that_no_row_shows(n, d):
    """Against the dual form, which needs none of them."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(n, d)), rng.normal(size=n)
    x[:, 1] = x[:, 0]
    model = BayesianLinearRegression(fit_intercept=False).fit(x, y)
    ratio = model.prior_precision_ / model.noise_precision_
    dual = x.T @ linalg.solve(x @ x.T + ratio * np.eye(n), y, assume_a="pos")
    np.testing.assert_allclose(model.coef_, dual, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("prior", ["evidence", 1.0])
def test_targets_that_twin_columns_fit_exactly(prior):
    x = np.random.default_rng(0).normal(size=(30, 1)) * [1.0, 1.0]
    for intercept in (False, True):
        model = BayesianLinearRegression(prior, "evidence", intercept).fit(x, x[:, 0])
        np.testing.assert_allclose(model.coef_, 0.5, rtol=1e-3)
        assert model.predict(x, return_std=True)[1].max() < 1e-3


@pytest.mark.parametrize("values", [np.zeros(6), np.full(6, 1e6)], ids=["0", "1e6"])
@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_targets_without_noise(values, noise):
    x = np.random.default_rng(0).normal(size=(6, 2))
    for intercept in (False, True):
        model = BayesianLinearRegression("evidence", noise, intercept).fit(x, values)
        mean, stddev = model.predict(x, return_std=True)
        assert np.isfinite(mean).all() and np.isfinite(stddev).all()
        if intercept:
            np.testing.assert_allclose(mean, values, rtol=1e-9)


# --- Coverage ----------------------------------------------------------------------


def test_intervals_hold_what_they_promise_over_1000_data_sets():
    """Parameters drawn from the prior, so the posterior's intervals are exact."""
    rng = np.random.default_rng(5)
    inside = {"known": 0, "unknown": 0, "intercept": 0}
    for _ in range(1000):
        beta = rng.gamma(2.5, 1.0 / 1.5)
        x = rng.normal(size=(7, 3)) + 0.5
        noise = rng.normal(size=7) / np.sqrt(beta)
        w = rng.normal(size=3) / np.sqrt(0.8 * beta)
        y = x @ w + noise
        known = BayesianLinearRegression(0.8 * beta, beta, False)
        unknown = BayesianLinearRegression(0.8, (2.5, 1.5), False)
        intercept = BayesianLinearRegression(0.8, (2.5, 1.5))
        for name, model in (
            ("known", known),
            ("unknown", unknown),
            ("intercept", intercept),
        ):
            offset = 30.0 if name == "intercept" else 0.0
            model.fit(x[:6], y[:6] + offset)
            mean, stddev = (v[0] for v in model.predict(x[6:], return_std=True))
            if name == "known":
                interval = stats.norm.interval(0.9, mean, stddev)
            else:
                df = 2 * model.noise_shape_
                scale = stddev / np.sqrt(df / (df - 2))
                interval = stats.t.interval(0.9, df, mean, scale)
            inside[name] += int(interval[0] <= y[6] + offset <= interval[1])
    error = np.sqrt(0.9 * 0.1 / 1000)
    for name, count in inside.items():
        assert abs(count / 1000 - 0.9) < 4 * error, name


# --- Conventions and errors ----------------------------------------------------------


MODELS = [
    BetaBernoulli(2.0, 1.0),
    DirichletCategorical([1.0, 2.0]),
    BayesianLinearRegression(1.0, (2.0, 3.0), False),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_scikit_learn_conventions(model):
    cls, params = type(model), model.get_params()
    copy = cls(**params)
    assert all(copy.get_params()[name] is value for name, value in params.items())
    name = next(iter(params))
    assert copy.set_params(**{name: params[name]}) is copy
    with pytest.raises(ValueError, match="Received: bogus=1"):
        copy.set_params(bogus=1)
    assert repr(model) == f"{cls.__name__}({_arguments(params)})"
    with pytest.raises(ValueError, match="call `fit`.*Received"):
        copy.log_evidence()
    data = make_data(5) if "noise_precision" in params else ([0, 1, 1],)
    assert copy.fit(*data) is copy
    evidence = copy.log_evidence()
    assert pickle.loads(pickle.dumps(copy)).log_evidence() == evidence
    assert copy.fit(*data).log_evidence() == evidence  # starts afresh
    base = pytest.importorskip("sklearn.base")
    clone = base.clone(copy)
    assert clone.get_params() == params and not clone._is_fitted()


def _arguments(params):
    return ", ".join(f"{name}={value!r}" for name, value in params.items())


def test_models_are_public():
    assert keras_bdl.BayesianLinearRegression is BayesianLinearRegression
    assert keras_bdl.models.BetaBernoulli is BetaBernoulli
    assert keras_bdl.models.DirichletCategorical is DirichletCategorical


NAN, INF = np.nan, np.inf


REFUSED_DATA = [
    ([[1.0, NAN]], [1.0], ValueError, r"`X` without NaN.*Received.*X\[:, 1\]"),
    ([[1.0, INF]], [1.0], ValueError, r"`X` without NaN.*Received.*X\[:, 1\]"),
    ([[1.0, 1e200]], [1.0], ValueError, r"too large to square.*Received"),
    ([[1.0], [2.0]], [1.0, NAN], ValueError, "`y` without NaN.*Received"),
    ([[1.0], [2.0]], [1.0, -INF], ValueError, "`y` without NaN.*Received"),
    ([1.0, 2.0], [1.0, 2.0], ValueError, r"`X` of shape \(n, d\).*Received"),
    ([[1.0]], [[[1.0]]], ValueError, r"`y` of shape \(n,\) or \(n, t\).*Received"),
    ([[1.0]], np.ones((1, 0)), ValueError, "`y` to have at least one.*Received"),
    ([[1.0]], None, ValueError, "Expected targets.*Received: y=None"),
    ([[1.0], [2.0]], [1.0], ValueError, "as many targets as rows.*Received"),
    (np.ones((2, 0)), [1.0, 2.0], ValueError, "one column.*Received"),
    ([["a"]], [1.0], TypeError, "`X` to be an array.*Received"),
    ([[1.0, 2.0], [3.0]], [1.0, 2.0], TypeError, "`X` to be an array.*Received"),
    ([[1.0]], [None], TypeError, "`y` to be an array.*Received"),
    ([[1.0]], [1j], ValueError, "`y` to be an array.*Received"),
]


def test_data_that_are_refused():
    options = itertools.product(REFUSED_DATA, [False, True])
    for (x, y, error, match), intercept in options:
        model = BayesianLinearRegression(fit_intercept=intercept)
        with pytest.raises(error, match=match):
            model.fit(x, y)


def test_refused_rows_leave_the_model_as_it_was():
    model, x, y = fit()
    before = model.log_evidence()
    bad = x.copy()
    bad[3] = NAN
    for rows, targets in ((bad, y), (x[:, :2], y), (x, y[:3])):
        with pytest.raises(ValueError, match="Received"):
            model.partial_fit(rows, targets)
    with pytest.raises(ValueError, match="3 columns.*Received"):
        model.predict(x[:, :2])
    with pytest.raises(ValueError, match="without NaN.*Received.*1 rows"):
        model.predict(bad)
    for seed in (-1, 0.5):
        with pytest.raises((TypeError, ValueError), match="Received: seed="):
            model.sample(2, seed=seed)
    with pytest.raises(ValueError, match="fit_intercept.*afresh.*Received"):
        model.set_params(fit_intercept=False).partial_fit(x, y)
    assert model.log_evidence() == before and model.num_examples_ == 40


REFUSED_ARGUMENTS = [
    ("prior_precision", 0.0, ValueError),
    ("prior_precision", "auto", ValueError),
    ("prior_precision", None, TypeError),
    ("noise_precision", -1.0, ValueError),
    ("noise_precision", (1.0, 0.0), ValueError),
    ("noise_precision", (1.0, 2.0, 3.0), ValueError),
    ("noise_precision", NAN, ValueError),
    ("noise_precision", "known", ValueError),
    ("fit_intercept", 1, TypeError),
]


def test_wrong_arguments_of_the_regression():
    for name, value, error in REFUSED_ARGUMENTS:
        with pytest.raises(error, match=f"{name}.*Received: {name}="):
            BayesianLinearRegression(**{name: value}).fit(*make_data())


REFUSED_COUNTS = [
    (BetaBernoulli(), [0, 2], ValueError, "from 0 to 1.*Received.*x=2"),
    (BetaBernoulli(), [0.5], ValueError, "from 0 to 1.*Received.*x=0.5"),
    (BetaBernoulli(), [NAN], ValueError, "without NaN.*Received.*x=nan"),
    (BetaBernoulli(), ["h"], TypeError, "`x` to be an array.*Received"),
    (BetaBernoulli(), 1, ValueError, r"shape \(n,\).*Received"),
    (BetaBernoulli(alpha=0.0), [1], ValueError, "Received: alpha=0"),
    (BetaBernoulli(beta="1"), [1], TypeError, "Received: beta='1'"),
    (DirichletCategorical([1, 1]), [-1], ValueError, "from 0 to 1.*x=-1"),
    (DirichletCategorical([1.0]), [0], ValueError, "two classes.*Received"),
    (DirichletCategorical([1.0, -1.0]), [0], ValueError, "Received: alpha=-1"),
    (DirichletCategorical(2.0), [0], ValueError, r"`alpha` of shape.*Received"),
]


def test_wrong_counts():
    for model, x, error, match in REFUSED_COUNTS:
        with pytest.raises(error, match=match):
            model.fit(x)


def test_number_of_classes_is_fixed_by_the_first_rolls():
    die = DirichletCategorical([1.0, 1.0]).fit([0, 1])
    with pytest.raises(ValueError, match="2 classes.*afresh.*Received"):
        die.set_params(alpha=[1.0, 1.0, 1.0]).partial_fit([2])


def test_without_tensorflow_probability_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_probability", None)
    monkeypatch.delitem(sys.modules, "keras_bdl.interop.tfp", raising=False)
    monkeypatch.delattr("keras_bdl.interop.tfp", raising=False)
    model, x, _ = fit()
    coin, die = BetaBernoulli().fit([1]), DirichletCategorical([1, 1]).fit([1])
    for call in (
        model.posterior,
        lambda: model.posterior_predictive(x),
        coin.posterior,
        coin.posterior_predictive,
        die.posterior,
        die.posterior_predictive,
    ):
        with pytest.raises(ImportError, match="pip install"):
            call()
    assert model.predict(x).shape == (40,)  # needs none of it
