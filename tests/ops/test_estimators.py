"""Noisy linear maps: moments, sharing of noise and gradient variance.

Repetitions lie along the units: a kernel of many equal columns gives as many
independent draws of one unit in a single call.
"""

import keras
import numpy as np
import pytest
from backend_tools import gradients
from contract import assert_moments, to_numpy
from keras import ops
from scipy import signal

from keras_bdl.ops import estimators

ALL = [
    estimators.local_reparameterization,
    estimators.flipout,
    estimators.reparameterization,
]
ONE_WEIGHT_PER_ROW = ALL[1:]
COUNT = 4000
every_estimator = pytest.mark.parametrize("estimator", ALL, ids=lambda e: e.__name__)
one_weight_estimator = pytest.mark.parametrize(
    "estimator", ONE_WEIGHT_PER_ROW, ids=lambda e: e.__name__
)


def tensor(x, dtype="float32"):
    return ops.convert_to_tensor(np.asarray(x, dtype))


def fresh_seed(value=0):
    return keras.random.SeedGenerator(value)


def conv(inputs, kernel):
    return ops.conv(inputs, kernel, padding="valid")


def repeated(x, count):
    """The last axis of one unit as `count` equal ones."""
    return tensor(np.repeat(x, count, axis=-1))


# Moments


def dense_problem(rng):
    x = rng.normal(size=(4, 6))
    mean, log_stddev = rng.normal(size=(6, 1)), rng.normal(-0.5, 0.5, size=(6, 1))
    return ops.matmul, x, mean, log_stddev, np.matmul


def conv_problem(rng):
    x = rng.normal(size=(2, 4, 5, 3))
    mean = rng.normal(size=(3, 2, 3, 1))
    log_stddev = rng.normal(-0.5, 0.5, size=(3, 2, 3, 1))

    def correlate(x, kernel):
        rows = [
            sum(
                signal.correlate(row[..., c], kernel[..., c, 0], "valid")
                for c in range(3)
            )
            for row in x
        ]
        return np.stack(rows)[..., None]

    return conv, x, mean, log_stddev, correlate


@every_estimator
@pytest.mark.parametrize("problem", [dense_problem, conv_problem])
@pytest.mark.parametrize("bias", ["none", "fixed", "random"])
def test_draws_have_the_exact_moments(estimator, problem, bias, rng):
    linear, x, mean, log_stddev, oracle = problem(rng)
    centre, variance = oracle(x, mean), oracle(x**2, np.exp(log_stddev) ** 2)
    count, biases = COUNT, {}
    if bias != "none":
        biases["bias_mean"] = tensor(np.full(count, 0.7))
        centre = centre + 0.7
    if bias == "random":
        biases["bias_log_stddev"] = tensor(np.full(count, -0.4))
        variance = variance + np.exp(-0.4) ** 2
    draws = estimator(
        linear,
        tensor(x),
        repeated(mean, count),
        repeated(log_stddev, count),
        **biases,
        seed=fresh_seed(),
    )
    draws = np.moveaxis(to_numpy(draws), -1, 0)
    assert_moments(draws, centre[..., 0], variance[..., 0])


@pytest.mark.parametrize("problem", [dense_problem, conv_problem])
def test_moments_are_exact(problem, rng):
    linear, x, mean, log_stddev, oracle = problem(rng)
    centre, stddev = estimators.moments(
        linear,
        tensor(x),
        tensor(mean),
        tensor(log_stddev),
        tensor([0.7]),
        tensor([-0.4]),
    )
    np.testing.assert_allclose(to_numpy(centre), oracle(x, mean) + 0.7, atol=1e-5)
    variance = oracle(x**2, np.exp(2.0 * log_stddev)) + np.exp(-0.8)
    np.testing.assert_allclose(to_numpy(stddev), np.sqrt(variance), rtol=1e-5)


@every_estimator
def test_no_input_gives_the_mean_and_finite_gradients(estimator):
    def total(x, mean, log_stddev):
        return ops.sum(estimator(ops.matmul, x, mean, log_stddev, seed=fresh_seed()))

    zeros, mean = np.zeros((4, 6)), np.ones((6, 1))
    log_stddev = np.full((6, 1), -30.0)
    draw = estimator(
        ops.matmul, tensor(zeros), tensor(mean), tensor(log_stddev), seed=fresh_seed()
    )
    np.testing.assert_allclose(to_numpy(draw), 0.0, atol=1e-7)
    for gradient in gradients(total, (zeros, mean, log_stddev)):
        assert np.isfinite(gradient).all()


# Who shares noise with whom


def noise_of_rows(estimator, x, count, bias_stddev=None):
    """Noise of unit draws `(rows, count)` with weights N(0, 1)."""
    biases = {}
    if bias_stddev is not None:
        biases["bias_log_stddev"] = tensor(np.full(count, np.log(bias_stddev)))
    zeros = tensor(np.zeros((x.shape[-1], count)))
    return to_numpy(
        estimator(ops.matmul, tensor(x), zeros, zeros, **biases, seed=fresh_seed())
    )


@every_estimator
def test_correlation_of_rows(estimator, rng):
    x = rng.normal(size=(4, 6))
    shared = x @ x.T + 0.5**2  # of one weight and bias
    correlation = shared / np.sqrt(np.outer(np.diag(shared), np.diag(shared)))
    off_diagonal = ~np.eye(4, dtype=bool)
    assert np.abs(correlation[off_diagonal]).max() > 0.2
    if estimator is not estimators.reparameterization:
        correlation = np.eye(4)
    found = np.corrcoef(noise_of_rows(estimator, x, COUNT, bias_stddev=0.5))
    assert np.abs(found - correlation)[off_diagonal].max() < 5.0 / np.sqrt(COUNT)


def test_equal_rows_share_the_draw_in_reparameterization_only():
    x = np.ones((8, 32))
    sizes = {e: np.abs(noise_of_rows(e, x, 500)) for e in ALL}
    same = sizes[estimators.reparameterization]
    np.testing.assert_allclose(same, np.broadcast_to(same[0], same.shape), rtol=1e-4)
    for estimator in (estimators.local_reparameterization, estimators.flipout):
        correlation = np.corrcoef(sizes[estimator])[~np.eye(8, dtype=bool)]
        assert correlation.mean() < 0.2  # signs of outputs alone would leave it 1


@pytest.mark.parametrize(
    "estimator, axis",
    [(estimator, -1) for estimator in ALL] + [(estimators.flipout, 1)],
)
def test_positions_of_a_row_share_one_weight(estimator, axis, rng):
    positions, channels, units = 7, 5, 6
    x = np.repeat(rng.normal(size=(3, 1, channels)), positions, axis=1)
    linear, options = ops.matmul, {}
    if axis == 1:
        x, options = np.swapaxes(x, 1, 2), {"channel_axis": 1}

        def linear(inputs, kernel):
            return ops.einsum("ncp,cu->nup", inputs, kernel)

    zeros = tensor(np.zeros((channels, units)))
    noise = to_numpy(
        estimator(linear, tensor(x), zeros, zeros, seed=fresh_seed(), **options)
    )
    noise = noise if axis == -1 else np.swapaxes(noise, 1, 2)
    gap = np.abs(noise - noise[:, :1]).max(axis=(1, 2))
    if estimator is estimators.local_reparameterization:
        assert (gap > 0.1).all()
    else:
        assert (gap < 1e-5).all()
        assert np.abs(noise[0] - noise[1]).max() > 0.1


@one_weight_estimator
@pytest.mark.parametrize("problem", [dense_problem, conv_problem])
def test_a_row_sees_one_linear_function(estimator, problem, rng):
    linear, x, mean, log_stddev, _ = problem(rng)
    other = rng.normal(size=x.shape)

    def draw(x):
        return to_numpy(
            estimator(
                linear, tensor(x), tensor(mean), tensor(log_stddev), seed=fresh_seed(3)
            )
        )

    np.testing.assert_allclose(
        draw(x) + 2 * draw(other), draw(x + 2 * other), atol=1e-4
    )


def test_reparameterization_applies_one_kernel_to_all_rows(rng):
    linear, x, mean, log_stddev, oracle = conv_problem(rng)
    arguments = tensor(mean), tensor(log_stddev)
    noisy = to_numpy(
        estimators.reparameterization(linear, tensor(x), *arguments, seed=fresh_seed())
    )
    # The kernel that was drawn, read off inputs with a single one.
    units = np.eye(mean.size).reshape(-1, *mean.shape[:-1])
    kernel = to_numpy(
        estimators.reparameterization(
            linear, tensor(units), *arguments, seed=fresh_seed()
        )
    ).reshape(mean.shape)
    assert np.abs(kernel - mean).max() > 0.1
    np.testing.assert_allclose(noisy, oracle(x, kernel), atol=1e-4)


def test_row_signs_are_fair_independent_and_shared_by_positions():
    shape = (400, 3, 2, 50)
    signs = to_numpy(estimators.row_signs(tensor(np.ones(shape)), -1, fresh_seed()))
    assert signs.shape == (400, 1, 1, 50)
    np.testing.assert_array_equal(np.unique(signs), [-1.0, 1.0])
    signs = signs[:, 0, 0]
    assert abs(signs.mean()) < 5.0 / np.sqrt(signs.size)
    for table in (signs, signs.T):
        products = table @ table.T / table.shape[1]
        np.fill_diagonal(products, 0.0)
        assert np.abs(products).max() < 6.0 / np.sqrt(table.shape[1])
    first = to_numpy(estimators.row_signs(tensor(np.ones((4, 5, 6))), 1, fresh_seed()))
    assert first.shape == (4, 5, 1)


def test_gaussian_noise_stacks_independent_samples():
    log_stddev = np.array([[-2.0, 0.0, 1.0]])
    noise = estimators.gaussian_noise(
        tensor(log_stddev), "float32", fresh_seed(), COUNT
    )
    draws = to_numpy(noise)
    assert_moments(draws, np.zeros((1, 3)), np.exp(2.0 * log_stddev))
    correlation = np.corrcoef(draws[:-1, 0, 1], draws[1:, 0, 1])[0, 1]
    assert abs(correlation) < 5.0 / np.sqrt(COUNT)


# Seeds


@every_estimator
def test_equal_generators_repeat_and_one_goes_on(estimator, rng):
    linear, x, mean, log_stddev, _ = dense_problem(rng)

    def draw(seed):
        return to_numpy(
            estimator(linear, tensor(x), tensor(mean), tensor(log_stddev), seed=seed)
        )

    np.testing.assert_array_equal(draw(fresh_seed(5)), draw(fresh_seed(5)))
    generator = fresh_seed(5)
    assert np.abs(draw(generator) - draw(generator)).min() > 0.0


@every_estimator
def test_an_integer_seed_is_refused(estimator, rng):
    linear, x, mean, log_stddev, _ = dense_problem(rng)
    with pytest.raises(TypeError, match="SeedGenerator.*Received: seed=3"):
        estimator(linear, tensor(x), tensor(mean), tensor(log_stddev), seed=3)


# Numbers


@every_estimator
def test_float16_keeps_the_noise_of_small_stddevs_and_large_inputs(estimator):
    rows, inputs, count, log_stddev = 2, 4, 40_000, -9.0
    x = tensor(np.full((rows, inputs), 300.0) * [[1.0], [-1.0]], "float16")
    mean = tensor(np.zeros((inputs, count)), "float16")
    noise = estimator(
        ops.matmul,
        x,
        mean,
        tensor(np.full((inputs, count), log_stddev)),
        seed=fresh_seed(),
    )
    assert keras.backend.standardize_dtype(noise.dtype) == "float16"
    noise = to_numpy(noise).astype("float64")
    assert np.isfinite(noise).all()
    stddev = np.sqrt(inputs * 300.0**2) * np.exp(log_stddev)
    np.testing.assert_allclose(noise.std(axis=-1), stddev, rtol=0.02)
    assert np.abs(noise.mean(axis=-1)).max() < 5.0 * stddev / np.sqrt(count)


def test_float16_moments_have_a_wide_stddev():
    mean, stddev = estimators.moments(
        ops.matmul,
        tensor(np.full((1, 4), 300.0), "float16"),
        tensor(np.ones((4, 1)), "float16"),
        tensor(np.full((4, 1), -9.0)),
    )
    assert keras.backend.standardize_dtype(mean.dtype) == "float16"
    assert keras.backend.standardize_dtype(stddev.dtype) == "float32"
    assert float(mean[0, 0]) == 1200.0
    assert float(stddev[0, 0]) == pytest.approx(600.0 * np.exp(-9.0), rel=1e-5)


# Gradients


class Toy:
    """Linear regression with loss mean_i (f(x_i) - t_i)^2 / 2, and its gradients.

    Of a weight m + s eps, for every estimator: mean of the gradients with respect
    to m and log s, and their variances over the noise. e_i = x_i m - t_i is the
    error of the mean, A = X^T X / n, and v_i = x_i^2 s^2.
    """

    def __init__(self, copies=1):
        rng = np.random.default_rng(1)
        rows, inputs = 8, 3
        self.x = np.tile(rng.normal(size=(rows, inputs)), (copies, 1))
        self.targets = np.tile(rng.normal(size=rows), copies)
        self.mean = rng.normal(size=inputs)
        self.log_stddev = rng.normal(-0.3, 0.3, size=inputs)

    def exact_means(self):
        error = self.x @ self.mean - self.targets
        scale = np.mean(self.x**2, axis=0)
        return self.x.T @ error / len(self.x), scale * np.exp(2 * self.log_stddev)

    def exact_variances(self, estimator):
        x, s, n = self.x, np.exp(self.log_stddev), len(self.x)
        error = x @ self.mean - self.targets
        v = x**2 @ s**2
        gram = x.T @ x / n
        others = 1.0 - np.eye(len(s))
        own = 2.0 * np.diag(gram) ** 2 * s**4  # of eps_j^2, shared by the rows
        if estimator is estimators.reparameterization:
            of_error = (x.T @ error / n) ** 2
            return gram**2 @ s**2, s**2 * (of_error + (gram**2 * others) @ s**2) + own
        of_mean = x.T**2 @ v / n**2
        if estimator is estimators.flipout:
            pairs = (x**2).T @ x**2 / n**2
            of_error = x.T**2 @ error**2 / n**2
            return of_mean, s**2 * (of_error + (pairs * others) @ s**2) + own
        return of_mean, s**4 * (x.T**4 @ (error**2 / v + 2.0)) / n**2

    def draw(self, estimator, count):
        """`count` independent gradients of m and of log s, `(count, inputs)` each."""
        n, inputs = self.x.shape

        def linear(x, kernel):  # block diagonal: every repetition has its own kernel
            x = ops.reshape(x, (n, count, inputs))
            return ops.squeeze(ops.einsum("nrd,rdu->nru", x, kernel), axis=-1)

        x = tensor(np.tile(self.x, count))
        targets = tensor(self.targets[:, None])

        def loss(mean, log_stddev):
            outputs = estimator(linear, x, mean, log_stddev, seed=fresh_seed())
            return ops.sum(ops.square(outputs - targets)) / (2.0 * n)

        weights = [
            np.broadcast_to(w[:, None], (count, inputs, 1))
            for w in (self.mean, self.log_stddev)
        ]
        return [g[..., 0].astype("float64") for g in gradients(loss, weights)]


@every_estimator
@pytest.mark.parametrize("copies", [1, 4])
def test_gradients_have_the_exact_mean_and_variance(estimator, copies):
    toy, count = Toy(copies), 20_000
    draws = toy.draw(estimator, count)
    exact = zip(toy.exact_means(), toy.exact_variances(estimator))
    for gradient, (mean, variance) in zip(draws, exact):
        centred = gradient - mean
        z = centred.mean(axis=0) / np.sqrt(variance / count)
        assert np.abs(z).max() < 5.0
        excess = np.mean(centred**4, axis=0) - variance**2
        z = (np.mean(centred**2, axis=0) - variance) / np.sqrt(excess / count)
        assert np.abs(z).max() < 5.0


def test_gradient_variance_has_the_known_order():
    toy = Toy()
    of_mean, of_stddev = zip(
        *[
            [g.var(axis=0).sum() for g in toy.draw(estimator, 20_000)]
            for estimator in ALL
        ]
    )
    local, flipout, shared = of_mean
    assert local == pytest.approx(flipout, rel=0.1)
    assert local < 0.8 * shared
    local, flipout, shared = of_stddev
    assert local < 0.8 * min(flipout, shared)


def test_gradient_variance_of_local_reparameterization_falls_as_one_over_the_batch():
    def falls(estimator):
        small, large = (Toy(copies).draw(estimator, 20_000) for copies in (1, 4))
        return [a.var(axis=0).sum() / b.var(axis=0).sum() for a, b in zip(small, large)]

    np.testing.assert_allclose(
        falls(estimators.local_reparameterization), [4.0, 4.0], rtol=0.1
    )
    np.testing.assert_allclose(
        falls(estimators.reparameterization), [1.0, 1.0], rtol=0.1
    )
    of_mean, of_stddev = falls(estimators.flipout)
    assert of_mean == pytest.approx(4.0, rel=0.1)
    assert of_stddev < 3.6  # a part of it is shared by the rows


# The score function


def score_gradients(mu, count, samples, baseline, seed=0):
    """Estimates of d/dmu E z^2 under N(mu, 1), one per column."""
    z = np.random.default_rng(seed).normal(mu, 1.0, size=(samples, count))

    def loss(parameter):
        log_q = -0.5 * ops.square(tensor(z) - parameter)
        values = tensor(z**2)
        return ops.sum(estimators.score_function(values, log_q, baseline))

    # A parameter for each column, so that one gradient has all estimates.
    (gradient,) = gradients(loss, [np.full(count, mu)])
    return gradient


@pytest.mark.parametrize(
    "samples, baseline, variance",
    [
        (1, 0.0, 30.0),
        (1, 4.0, 14.0),  # the best constant: E[f (grad log q)^2] = mu^2 + 3
        (2, "leave_one_out", 14.0),
        (4, "leave_one_out", 16 / 3),
        (2, 0.0, 15.0),
        (4, 4.0, 3.5),
    ],
)
def test_score_function_is_unbiased_with_the_known_variance(
    samples, baseline, variance
):
    count = 200_000
    estimates = score_gradients(1.0, count, samples, baseline).astype("float64")
    assert abs(estimates.mean() - 2.0) < 5 * np.sqrt(variance / count)
    fourth = ((estimates - estimates.mean()) ** 4).mean()
    error = np.sqrt((fourth - variance**2) / count)
    assert abs(estimates.var() - variance) < 5 * error


def test_score_function_has_the_value_and_the_gradient_of_the_values():
    values = np.random.default_rng(0).normal(size=(3, 5))

    def loss(x):
        return ops.sum(estimators.score_function(x, ops.zeros_like(x)))

    assert float(to_numpy(loss(tensor(values)))) == pytest.approx(
        values.mean(axis=0).sum(), rel=1e-4
    )
    (gradient,) = gradients(loss, [values])
    np.testing.assert_allclose(gradient, np.full((3, 5), 1 / 3), rtol=1e-5)


def test_score_function_refuses_what_has_no_baseline():
    values = tensor(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least 2.*Received"):
        estimators.score_function(values, values)
    with pytest.raises(ValueError, match="baseline.*Received"):
        estimators.score_function(values, values, "mean")


# Discrete latents


@pytest.mark.parametrize("num_summed", [1, 2, 4])
def test_a_partial_enumeration_is_unbiased(rng, num_summed):
    rows, logits = 20_000, np.array([0.3, 2.0, -1.0, 1.2, 0.1], "float32")
    f = tensor([0.5, -1.0, 2.0, 1.5, -0.3])

    def estimate(logits):
        log_q = ops.log_softmax(logits, axis=-1)
        categories, weights = estimators.partial_enumeration(
            log_q, num_summed, fresh_seed()
        )
        values = ops.take(f, categories)
        return ops.sum(weights * (values - values[:, :1]))

    q = np.exp(logits) / np.exp(logits).sum()
    exact = (q * to_numpy(f)).sum()
    (slopes,) = gradients(estimate, [np.tile(logits, (rows, 1))])
    slopes = slopes.astype("float64")
    expected = q * (to_numpy(f) - exact)
    error = slopes.std(axis=0) / np.sqrt(rows)
    assert (np.abs(slopes.mean(axis=0) - expected) <= 5.0 * error + 1e-6).all()

    log_q = tensor(np.tile(np.log(q), (rows, 1)))
    categories, weights = estimators.partial_enumeration(
        log_q, num_summed, fresh_seed()
    )
    categories, weights = to_numpy(categories), to_numpy(weights)
    order = np.argsort(-q)
    assert (categories[:, :num_summed] == order[:num_summed]).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)
    values = (weights * to_numpy(f)[categories]).sum(axis=1)
    error = values.std() / np.sqrt(rows)
    assert abs(values.mean() - exact) <= 5.0 * error + 1e-5


@pytest.mark.parametrize("num_summed", [0, 3])
def test_a_partial_enumeration_of_none_or_all_is_refused(num_summed):
    with pytest.raises(ValueError, match="num_summed.*Received"):
        estimators.partial_enumeration(tensor([[0.0] * 3]), num_summed, fresh_seed())


def test_a_partial_enumeration_of_a_certain_category_is_finite():
    log_q = ops.log_softmax(tensor([[200.0, 0.0, -50.0], [0.0, 0.0, 0.0]]), axis=-1)
    categories, weights = estimators.partial_enumeration(log_q, 1, fresh_seed())
    assert len(set(to_numpy(categories)[0])) == 2
    np.testing.assert_allclose(to_numpy(weights)[0], [1.0, 0.0])
    np.testing.assert_allclose(to_numpy(weights)[1], [1 / 3, 2 / 3], rtol=1e-5)
