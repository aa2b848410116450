"""Likelihoods against SciPy's densities, in float64 where they are computed."""

import math

import numpy as np
import pytest
from backend_tools import gradients
from contract import to_numpy
from keras import ops
from scipy import special, stats

from keras_bdl.ops import likelihoods


def test_log_gamma_ratio_is_that_of_scipy():
    x = np.logspace(-5, 7, 300).astype("float32")
    wide = x.astype("float64")
    expected = special.gammaln(wide + 0.5) - special.gammaln(wide)
    np.testing.assert_allclose(
        to_numpy(likelihoods.log_gamma_ratio(ops.convert_to_tensor(x))),
        expected,
        rtol=1e-6,
        atol=3e-7,
    )


def test_gradient_of_log_gamma_ratio_is_that_of_scipy():
    x = np.logspace(-2, 3, 50).astype("float32")
    (gradient,) = gradients(lambda x: ops.sum(likelihoods.log_gamma_ratio(x)), [x])
    wide = x.astype("float64")
    expected = special.digamma(wide + 0.5) - special.digamma(wide)
    np.testing.assert_allclose(gradient, expected, rtol=2e-5)


def test_student_t_is_that_of_scipy(rng):
    y, location, log_scale = rng.normal(size=(3, 400)).astype("float32")
    log_df = rng.uniform(-1, 8, size=400).astype("float32")
    values = likelihoods.student_t_log_prob(
        *map(ops.convert_to_tensor, (3 * y, location, log_scale, log_df))
    )
    wide = [v.astype("float64") for v in (3 * y, log_df, location, log_scale)]
    expected = stats.t.logpdf(wide[0], np.exp(wide[1]), wide[2], np.exp(wide[3]))
    np.testing.assert_allclose(to_numpy(values), expected, rtol=2e-6, atol=2e-6)


def test_bernoulli_is_that_of_scipy():
    logits = np.linspace(-12, 12, 25).astype("float32")
    for y in (0, 1):
        values = likelihoods.bernoulli_log_prob(float(y), ops.convert_to_tensor(logits))
        expected = stats.bernoulli(special.expit(logits.astype("float64"))).logpmf(y)
        np.testing.assert_allclose(to_numpy(values), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "mean, log_scale", [(0.3, -2.0), (0.0, -8.0), (1.2, -1.0), (0.5, -6.0), (0.5, 2.0)]
)
def test_bins_of_a_logistic_sum_to_one_and_are_differences_of_its_cdf(mean, log_scale):
    levels = np.arange(256, dtype="float64") / 255
    log_p = to_numpy(
        likelihoods.discretized_logistic_log_prob(
            ops.convert_to_tensor(levels.astype("float32")),
            mean,
            ops.convert_to_tensor(np.float32(log_scale)),
            1 / 255,
            0.0,
            1.0,
        )
    )
    edges = [-np.inf, *(np.arange(255) + 0.5) / 255, np.inf]
    expected = np.diff(stats.logistic(mean, np.exp(log_scale)).cdf(edges))
    assert np.exp(log_p.astype("float64")).sum() == pytest.approx(1, abs=1e-5)
    large = expected > 1e-9  # SciPy's difference has digits there
    np.testing.assert_allclose(log_p[large], np.log(expected[large]), atol=1e-4)


@pytest.mark.parametrize("log_scale", [-30.0, -8.0, 0.0, 8.0, 30.0])
def test_a_discretized_logistic_is_finite_with_finite_gradients(log_scale):
    def total(mean, log_scale):
        y = ops.convert_to_tensor(np.array([0.0, 0.5, 1.0], "float32"))
        return ops.sum(
            likelihoods.discretized_logistic_log_prob(
                y, mean, log_scale, 1 / 255, 0.0, 1.0
            )
        )

    arguments = [np.full(3, 0.4, "float32"), np.full(3, log_scale, "float32")]
    assert np.isfinite(float(to_numpy(total(*map(ops.convert_to_tensor, arguments)))))
    for gradient in gradients(total, arguments):
        assert np.isfinite(gradient).all()


def test_student_t_has_a_slope_where_squares_overflow():
    y, log_scale = np.array([-1e4, 1.0, 1e15]), np.array([-50.0, -45.0, -10.0])

    def total(y, log_scale):
        return ops.sum(likelihoods.student_t_log_prob(y, 0.0, log_scale, math.log(4.0)))

    d_y, d_log_scale = gradients(total, (y, log_scale))
    np.testing.assert_allclose(d_y, -5.0 / y, rtol=1e-4)  # -(v + 1) / y far out
    np.testing.assert_allclose(d_log_scale, 4.0, rtol=1e-4)  # v
