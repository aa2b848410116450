"""KL divergences against quadrature, SciPy, Monte Carlo and known values."""

import itertools
import math

import mpmath
import numpy as np
import pytest
from backend_tools import gradients
from contract import BACKEND, to_numpy
from keras import ops
from scipy import integrate, special, stats

from keras_bdl.ops import divergences

NORMALS = [(0.5, 0.1), (1.0, 2.0), (-3.0, 0.02), (0.0, 1.0)]
LOG_ALPHAS = (-8.0, -3.0, 0.0, 3.0, 8.0)


def tensor(x):
    return ops.convert_to_tensor(np.asarray(x, "float32"))


def kl_by_quadrature(mean, stddev, p):
    q = stats.norm(mean, stddev)
    return integrate.quad(
        lambda w: q.pdf(w) * (q.logpdf(w) - p.logpdf(w)),
        mean - 12 * stddev,
        mean + 12 * stddev,
        points=[mean, np.clip(p.mean(), mean - 11 * stddev, mean + 11 * stddev)],
        epsabs=1e-12,
        limit=500,
    )[0]


def log_uniform_by_quadrature(log_alpha):
    u = math.exp(-0.5 * log_alpha) / math.sqrt(2.0)
    points = [1.0, 5.0] if u > 5.0 else None
    return (
        2.0
        * integrate.quad(
            special.dawsn, 0.0, u, points=points, epsabs=0.0, epsrel=1e-12, limit=500
        )[0]
    )


def log_uniform_gradient(log_alpha):
    u = np.exp(-0.5 * np.asarray(log_alpha, "float64")) / math.sqrt(2.0)
    return -u * special.dawsn(u)


# Normal


@pytest.mark.parametrize(
    "arguments, value",
    [((0.5, 0.1, 0.0, 1.0), 1.932585), ((1.0, 2.0, 0.0, 0.5), 8.113706)],
)
def test_normal_has_the_known_values(arguments, value):
    kl = float(divergences.kl_normal_normal(*map(tensor, arguments)))
    assert kl == pytest.approx(value, abs=1e-6)
    assert kl_by_quadrature(*arguments[:2], stats.norm(*arguments[2:])) == (
        pytest.approx(value, abs=6e-7)
    )


@pytest.mark.parametrize("q, p", itertools.product(NORMALS, [(0.0, 1.0), (0.3, 0.5)]))
def test_normal_is_the_integral(q, p):
    expected = kl_by_quadrature(*q, stats.norm(*p))
    kl = divergences.kl_normal_normal(*map(tensor, (*q, *p)))
    log_kl = divergences.kl_normal_normal_log(
        tensor(q[0]), tensor(math.log(q[1])), tensor(p[0]), tensor(math.log(p[1]))
    )
    assert float(kl) == pytest.approx(expected, rel=2e-6, abs=1e-6)
    assert float(log_kl) == pytest.approx(expected, rel=2e-6, abs=1e-6)


def test_normal_is_that_of_tensorflow_probability(only_tensorflow, rng):
    import tensorflow_probability as tfp

    means, stddevs = rng.normal(size=(2, 50)), rng.uniform(0.01, 3.0, size=(2, 50))
    q, p = (
        tfp.distributions.Normal(m, s)
        for m, s in zip(means.astype("float32"), stddevs.astype("float32"))
    )
    kl = divergences.kl_normal_normal(
        *map(tensor, (means[0], stddevs[0], means[1], stddevs[1]))
    )
    np.testing.assert_allclose(
        to_numpy(kl),
        to_numpy(tfp.distributions.kl_divergence(q, p)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_normal_is_zero_and_flat_at_the_prior_and_positive_elsewhere(rng):
    def kl(mean, log_stddev):
        return ops.sum(
            divergences.kl_normal_normal_log(mean, log_stddev, 0.3, math.log(0.5))
        )

    at_prior = (0.3, math.log(0.5))
    assert abs(float(kl(*map(tensor, at_prior)))) < 1e-6
    np.testing.assert_allclose(gradients(kl, at_prior), 0.0, atol=1e-6)
    for mean, log_stddev in rng.normal(size=(100, 2)):
        assert float(kl(tensor(mean), tensor(log_stddev))) > 0.0


def test_normal_gradient_is_that_of_the_integral():
    p = stats.norm(0.3, 0.5)

    def integral(mean, log_stddev):
        return kl_by_quadrature(mean, math.exp(log_stddev), p)

    found = gradients(
        lambda m, r: divergences.kl_normal_normal_log(m, r, 0.3, math.log(0.5)),
        (1.2, -1.5),
    )
    h = 1e-4
    expected = [
        (integral(1.2 + h, -1.5) - integral(1.2 - h, -1.5)) / (2 * h),
        (integral(1.2, -1.5 + h) - integral(1.2, -1.5 - h)) / (2 * h),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_normal_broadcasts():
    q_mean, q_stddev = np.array([[0.0], [1.0], [2.0]]), np.array([[0.1], [1.0], [3.0]])
    p_mean, p_stddev = np.array([0.5, -0.5]), np.array([1.0, 2.0])
    kl = divergences.kl_normal_normal(
        *map(tensor, (q_mean, q_stddev, p_mean, p_stddev))
    )
    for i, j in itertools.product(range(3), range(2)):
        p = stats.norm(p_mean[j], p_stddev[j])
        expected = kl_by_quadrature(q_mean[i, 0], q_stddev[i, 0], p)
        assert float(kl[i, j]) == pytest.approx(expected, rel=2e-6)


def test_normal_of_a_vanishing_stddev_is_finite():
    kl = divergences.kl_normal_normal_log(tensor(0.5), tensor(-40.0), 0.0, tensor(0.0))
    assert float(kl) == pytest.approx(40.0 + 0.5 * 0.5**2 - 0.5, rel=1e-6)


def test_float64_is_not_narrowed():
    if BACKEND == "jax":
        pytest.skip("JAX has no float64 unless it is enabled for the process")
    arguments = [
        ops.convert_to_tensor(np.array(x)) for x in (0.7, math.log(0.3), -0.2, 0.1)
    ]
    expected = kl_by_quadrature(0.7, 0.3, stats.norm(-0.2, math.exp(0.1)))
    kl = divergences.kl_normal_normal_log(*arguments)
    assert float(kl) == pytest.approx(expected, rel=1e-10)
    log_alpha = ops.convert_to_tensor(np.array(-5.0))
    kl = divergences.kl_normal_log_uniform(log_alpha)
    assert float(kl) == pytest.approx(log_uniform_by_quadrature(-5.0), rel=7e-7)
    assert "float64" in str(kl.dtype)


@pytest.mark.parametrize("mean, log_stddev", [(0.0, 0.0), (1.5, -3.0), (-20.0, 2.0)])
def test_entropy_and_log_density_are_those_of_scipy(mean, log_stddev):
    normal = stats.norm(mean, math.exp(log_stddev))
    entropy = divergences.normal_entropy(tensor(log_stddev))
    assert float(entropy) == pytest.approx(float(normal.entropy()), rel=1e-6, abs=1e-6)
    x = normal.mean() + normal.std() * np.linspace(-6.0, 6.0, 25)
    log_prob = divergences.normal_log_prob(tensor(x), tensor(mean), tensor(log_stddev))
    np.testing.assert_allclose(
        to_numpy(log_prob), normal.logpdf(x.astype("float32")), rtol=1e-4, atol=1e-4
    )


# Laplace


@pytest.mark.parametrize(
    "q, p", itertools.product(NORMALS, [(0.0, 1.0), (0.5, 0.1), (-2.9, 0.2)])
)
def test_laplace_is_the_integral(q, p):
    kl = divergences.kl_normal_laplace(tensor(q[0]), tensor(math.log(q[1])), *p)
    expected = kl_by_quadrature(*q, stats.laplace(*p))
    assert float(kl) == pytest.approx(expected, rel=3e-6, abs=2e-6)


def test_laplace_gradient_is_that_of_the_integral():
    p = stats.laplace(0.4, 0.2)
    found = gradients(
        lambda m, r: divergences.kl_normal_laplace(m, r, 0.4, 0.2), (0.5, -1.5)
    )
    h = 1e-4
    expected = [
        kl_by_quadrature(0.5 + h, math.exp(-1.5), p)
        - kl_by_quadrature(0.5 - h, math.exp(-1.5), p),
        kl_by_quadrature(0.5, math.exp(-1.5 + h), p)
        - kl_by_quadrature(0.5, math.exp(-1.5 - h), p),
    ]
    np.testing.assert_allclose(found, np.array(expected) / (2 * h), rtol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_laplace_of_a_vanishing_stddev_has_its_limit(mean):
    def kl(mean, log_stddev):
        return divergences.kl_normal_laplace(mean, log_stddev, 0.0, 0.5)

    entropy = 0.5 * math.log(2.0 * math.pi * math.e) - 30.0
    value = float(kl(tensor(mean), tensor(-30.0)))
    assert value == pytest.approx(math.log(1.0) + mean / 0.5 - entropy, rel=1e-6)
    d_mean, d_log_stddev = gradients(kl, (mean, -30.0))
    assert d_mean == pytest.approx(np.sign(mean) / 0.5, abs=1e-6)
    assert d_log_stddev == pytest.approx(-1.0, abs=1e-6)


# Discrete


def test_categorical_is_that_of_scipy(rng):
    q = rng.dirichlet(np.full(5, 0.5), size=(3, 4))
    p = rng.dirichlet(np.full(5, 2.0), size=4)
    kl = divergences.kl_categorical(tensor(q), tensor(p))
    expected = stats.entropy(q, np.broadcast_to(p, q.shape), axis=-1)
    np.testing.assert_allclose(to_numpy(kl), expected, rtol=1e-5, atol=1e-6)
    first = divergences.kl_categorical(tensor(q.T), tensor(q[::-1].T), axis=0)
    expected = stats.entropy(q.T, q[::-1].T, axis=0)
    np.testing.assert_allclose(to_numpy(first), expected, rtol=1e-5, atol=1e-6)


def test_categorical_ignores_classes_without_mass():
    q, p = np.array([0.0, 0.25, 0.75, 0.0]), np.array([0.1, 0.2, 0.7, 0.0])
    kl = float(divergences.kl_categorical(tensor(q), tensor(p)))
    assert kl == pytest.approx(special.rel_entr(q, p).sum(), rel=1e-6)
    for gradient in gradients(divergences.kl_categorical, (q, p)):
        assert np.isfinite(gradient).all()


def test_bernoulli_is_that_of_scipy():
    q, p = np.meshgrid([0.0, 1e-4, 0.2, 0.5, 0.9, 1.0], [1e-3, 0.2, 0.5, 0.99])
    expected = special.rel_entr(q, p) + special.rel_entr(1.0 - q, 1.0 - p)
    kl = divergences.kl_bernoulli(tensor(q), tensor(p))
    np.testing.assert_allclose(to_numpy(kl), expected, rtol=1e-5, atol=1e-6)


# Monte Carlo


@pytest.mark.parametrize("mean, stddev", [(0.0, 0.3), (2.0, 1.0)])
def test_monte_carlo_is_unbiased(mean, stddev, rng):
    p = stats.t(3.0, 0.2, 0.8)
    w = rng.normal(mean, stddev, size=200_000)
    terms = to_numpy(
        divergences.kl_monte_carlo(tensor(math.log(stddev)), tensor(p.logpdf(w)))
    )
    error = terms.mean(dtype="float64") - kl_by_quadrature(mean, stddev, p)
    assert abs(error) < 5.0 * terms.std() / math.sqrt(w.size) + 1e-6


# Log-uniform


def test_dawson_is_that_of_scipy():
    u = np.concatenate([[0.0], np.logspace(-6, 4, 2001)]).astype("float32")
    expected = special.dawsn(u.astype("float64"))
    np.testing.assert_allclose(to_numpy(divergences.dawson(tensor(u))), expected, 1e-6)
    np.testing.assert_allclose(
        to_numpy(divergences.dawson(tensor(-u))), -expected, 1e-6
    )


@pytest.mark.parametrize(
    "log_alpha, exact, approximate",
    zip(
        LOG_ALPHAS,
        (4.635014, 2.107978, 0.426686, 0.024688, 0.000168),
        (4.635899, 2.115590, 0.431239, 0.025420, 0.000168),
    ),
)
def test_log_uniform_has_the_known_values(log_alpha, exact, approximate):
    integral = log_uniform_by_quadrature(log_alpha)
    assert integral == pytest.approx(exact, abs=6e-7)
    # The fit itself is good to 6.4e-7; rounding log alpha costs the rest.
    kl = float(divergences.kl_normal_log_uniform(tensor(log_alpha)))
    assert kl == pytest.approx(integral, rel=1.2e-6)
    kl = float(divergences.kl_normal_log_uniform_approximate(tensor(log_alpha)))
    assert kl == pytest.approx(approximate, abs=1.5e-6)


def test_log_uniform_is_the_integral_of_dawson():
    grid = np.linspace(-14.0, 14.0, 113)
    expected = [log_uniform_by_quadrature(x) for x in grid]
    kl = to_numpy(divergences.kl_normal_log_uniform(tensor(grid)))
    np.testing.assert_allclose(kl, expected, rtol=2e-6)


@pytest.mark.parametrize("mean, stddev", [(1.0, 0.05), (0.3, 0.4), (-2.0, 6.0)])
def test_log_uniform_is_the_divergence_up_to_its_constant(mean, stddev):
    q = stats.norm(mean, stddev)
    log_abs = integrate.quad(
        lambda w: q.pdf(w) * math.log(abs(w)),
        mean - 12 * stddev,
        mean + 12 * stddev,
        points=[0.0, mean] if abs(mean) < 11 * stddev else [mean],
        limit=500,
    )[0]
    # The limit of -H(q) + E log|w| as alpha grows, where the KL is 0.
    constant = -0.5 * (math.log(4.0 * math.pi * math.e) + np.euler_gamma)
    log_alpha = 2.0 * math.log(stddev / abs(mean))
    kl = float(divergences.kl_normal_log_uniform(tensor(log_alpha)))
    assert kl == pytest.approx(log_abs - q.entropy() - constant, rel=1e-5, abs=1e-6)


def test_log_uniform_gradient_is_minus_u_dawson():
    grid = np.concatenate([LOG_ALPHAS, np.linspace(-14.0, 14.0, 57)])
    upstream = np.linspace(-2.0, 3.0, grid.size)

    def weighted(log_alpha):
        return ops.sum(tensor(upstream) * divergences.kl_normal_log_uniform(log_alpha))

    (found,) = gradients(weighted, [grid])
    np.testing.assert_allclose(found, upstream * log_uniform_gradient(grid), rtol=3e-6)


def test_log_uniform_gradient_is_the_slope_of_the_integral():
    grid, h = np.linspace(-8.0, 8.0, 9), 1e-3
    slope = [
        (log_uniform_by_quadrature(x + h) - log_uniform_by_quadrature(x - h)) / (2 * h)
        for x in grid
    ]
    (found,) = gradients(
        lambda x: ops.sum(divergences.kl_normal_log_uniform(x)), [grid]
    )
    np.testing.assert_allclose(found, slope, rtol=2e-6)


@pytest.mark.parametrize(
    "kl",
    [divergences.kl_normal_log_uniform, divergences.kl_normal_log_uniform_approximate],
)
def test_log_uniform_is_finite_and_falls_everywhere(kl):
    grid = np.linspace(-200.0, 200.0, 801)
    value = to_numpy(kl(tensor(grid)))
    (gradient,) = gradients(lambda x: ops.sum(kl(x)), [grid])
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    assert (value >= 0.0).all() and value[-1] < 1e-6
    assert (np.diff(value) <= 0.0).all() and (gradient <= 0.0).all()
    assert (gradient[grid < 85.0] < 0.0).all()  # then float32 ends


def test_log_uniform_has_its_tails():
    # 2 int_0^u Dawson tends to (gamma + log 4 u^2) / 2, and to u^2 at 0.
    for x in (-200.0, -149.0, -75.0, -40.0, -20.0):
        expected = 0.5 * (np.euler_gamma + math.log(2.0) - x)
        kl = divergences.kl_normal_log_uniform(tensor(x))
        assert float(kl) == pytest.approx(expected, rel=2e-6)
        (gradient,) = gradients(divergences.kl_normal_log_uniform, [x])
        assert float(gradient) == pytest.approx(-0.5, rel=2e-6)
    for x in (20.0, 40.0, 75.0, 84.0):
        kl = divergences.kl_normal_log_uniform(tensor(x))
        assert float(kl) == pytest.approx(0.5 * math.exp(-x), rel=1e-5)
        (gradient,) = gradients(divergences.kl_normal_log_uniform, [x])
        assert float(gradient) == pytest.approx(-0.5 * math.exp(-x), rel=1e-5)


def test_approximation_is_near_the_exact_divergence():
    grid = tensor(np.linspace(-15.0, 15.0, 301))
    gap = divergences.kl_normal_log_uniform_approximate(
        grid
    ) - divergences.kl_normal_log_uniform(grid)
    assert 0.001 < np.abs(to_numpy(gap)).max() < 0.01


def log_uniform_in_50_digits(log_alpha):
    """2 int_0^u Dawson = u^2 2F2(1, 1; 3/2, 2; -u^2), and its slope -u Dawson(u)."""
    with mpmath.workdps(50):
        u = mpmath.sqrt(mpmath.exp(-mpmath.mpf(log_alpha)) / 2)
        if u > 30:  # the asymptotic series, good to 1e-6 of 1e-6
            value = (mpmath.euler + mpmath.log(4 * u**2)) / 2 - 1 / (4 * u**2)
            dawson = (1 + 1 / (2 * u**2) + 3 / (4 * u**4)) / (2 * u)
        else:
            value = u**2 * mpmath.hyp2f2(1, 1, 1.5, 2, -(u**2))
            dawson = mpmath.exp(-(u**2)) * mpmath.erfi(u) * mpmath.sqrt(mpmath.pi) / 2
        return float(value), float(-u * dawson)


def test_log_uniform_of_a_mean_and_a_stddev_of_any_size():
    sizes = np.array([1e-12, 1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e3, 1e15])
    log_stddevs = np.array([-40.0, -25.0, -10.0, -3.0, 0.0, 10.0])
    mean, log_stddev = (x.ravel() for x in np.meshgrid(sizes, log_stddevs))
    mean = mean.astype("float32")
    exact = [
        log_uniform_in_50_digits(2 * s - 2 * math.log(m))
        for m, s in zip(mean.astype("float64"), log_stddev)
    ]
    value, d_log_alpha = np.transpose(exact)

    def kl(mean, log_stddev):
        return divergences.kl_normal_log_uniform(
            divergences.log_alpha(mean, log_stddev)
        )

    found = to_numpy(kl(tensor(mean), tensor(log_stddev)))
    np.testing.assert_allclose(found, value, rtol=3e-5)
    d_mean, d_log_stddev = gradients(lambda m, s: ops.sum(kl(m, s)), (mean, log_stddev))
    np.testing.assert_allclose(d_log_stddev, 2 * d_log_alpha, rtol=3e-5)
    np.testing.assert_allclose(d_mean, -2 * d_log_alpha / mean, rtol=3e-5)
    assert (d_mean > 0).all() and (d_log_stddev < 0).all()


def test_log_uniform_of_a_mean_of_0_is_0_and_flat():
    def kl(mean, log_stddev):
        log_alpha = divergences.log_alpha(mean, log_stddev)
        return ops.sum(divergences.kl_normal_log_uniform(log_alpha))

    zeros, log_stddevs = np.zeros(4), np.array([-40.0, -5.0, 0.0, 10.0])
    assert float(kl(tensor(zeros), tensor(log_stddevs))) == 0.0
    np.testing.assert_array_equal(gradients(kl, (zeros, log_stddevs)), 0.0)


@pytest.mark.parametrize("log_stddev", [-40.0, -20.0, 0.0, 10.0])
@pytest.mark.parametrize("mean", [0.0, 1e-12, 1.0, -1e4, 1e15])
def test_normal_and_laplace_at_extreme_values(mean, log_stddev):
    s, offset = math.exp(log_stddev), float(np.float32(mean)) - 0.3
    kl = divergences.kl_normal_laplace
    found = gradients(lambda m, r: kl(m, r, 0.3, 0.5), (mean, log_stddev))
    z = offset / s
    expected = [
        special.erf(z / math.sqrt(2.0)) / 0.5,
        -1.0 + s * math.sqrt(2.0 / math.pi) * math.exp(-0.5 * min(z * z, 1e4)) / 0.5,
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    found = gradients(
        lambda m, r: divergences.kl_normal_normal_log(m, r, 0.3, math.log(0.5)),
        (mean, log_stddev),
    )
    expected = [offset / 0.25, s * s / 0.25 - 1.0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_log1p_square_is_that_of_mpmath():
    x = np.array([0.0, 1e-15, -0.3, 1.0, 1e6, -1e10, 1e30, -1e35], "float32")
    with mpmath.workdps(80):
        exact = [float(mpmath.log1p(mpmath.mpf(float(v)) ** 2)) for v in x]
    found = to_numpy(divergences.log1p_square(tensor(x)))
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    (slope,) = gradients(lambda v: ops.sum(divergences.log1p_square(v)), [x])
    wide = x.astype("float64")
    # At the end 1 / x is below the normal numbers, and has fewer digits.
    np.testing.assert_allclose(slope, 2 * wide / (1 + wide**2), rtol=1e-4)
