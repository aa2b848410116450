"""`fit_hmc`: exact posteriors, what it is asked to keep, and what it refuses."""

import keras
import numpy as np
import pytest
from contract import BACKEND, to_numpy
from keras import layers
from linear_gaussian import LinearGaussian
from scipy import linalg, stats

import keras_bdl

tensorflow_alone = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's")
ROWS, NOISE, PRIOR = 60, 0.5, 0.8
PROBLEM = LinearGaussian(ROWS, NOISE, PRIOR, np.array([[1.0, 0.5], [0.0, 0.8]]))
NLL = {"loss": keras_bdl.losses.GaussianNLL(stddev=NOISE)}


def line(regularizer=None):
    dense = layers.Dense(
        1, kernel_regularizer=regularizer, bias_regularizer=regularizer
    )
    network = keras.Sequential([keras.Input((2,)), dense])
    network.compile(**NLL)
    return network


def sample(network, x, y, **options):
    defaults = {"num_samples": 8, "num_warmup_steps": 20, "thinning": 1, "seed": 0}
    return keras_bdl.fit_hmc(network, x, y, verbose=0, **defaults | options)


def weights_of(model):
    stacks = map(to_numpy, model.bayesian.posterior.stacks().values())
    return np.concatenate([s.reshape(len(s), -1) for s in stacks], axis=1)


@tensorflow_alone
@pytest.mark.parametrize("prior", [PRIOR, None])
def test_the_posterior_of_a_line_is_exact(prior):
    # Without a prior, a regularizer of the mean loss is one.
    regularizer = None if prior else keras.regularizers.L2(0.5 / PRIOR**2 / ROWS)
    model = sample(
        line(regularizer),
        PROBLEM.x,
        PROBLEM.y,
        num_samples=1200,
        num_chains=3,
        num_warmup_steps=150,
        thinning=2,
        prior_stddev=prior,
    )
    weights, covariance = weights_of(model), linalg.inv(PROBLEM.precision)
    stddevs = np.sqrt(np.diag(covariance))
    # Steps depend on each other: some 600 are independent.
    assert np.abs((weights.mean(axis=0) - PROBLEM.mean) / stddevs).max() < 4 / 600**0.5
    scale = np.outer(stddevs, stddevs)
    np.testing.assert_allclose(
        np.cov(weights.T) / scale, covariance / scale, atol=4 * (2 / 600) ** 0.5
    )
    assert model.diagnostics["r_hat"] < 1.05
    assert 0.5 < model.diagnostics["acceptance"] < 1.0
    assert model.diagnostics["divergences"] == 0.0


@tensorflow_alone
def test_the_posterior_of_a_curve_is_that_of_quadrature():
    x = np.linspace(-2, 2, 12)[:, None].astype("float32")
    y = (x[:, 0] > 0.3).astype("int64")
    network = keras.Sequential(
        [keras.Input((1,)), layers.Dense(1, "sigmoid", use_bias=False)]
    )
    network.compile(loss="binary_crossentropy")
    model = sample(
        network,
        x,
        y[:, None],
        num_samples=1000,
        num_warmup_steps=150,
        thinning=2,
        prior_stddev=2.0,
    )
    grid = np.linspace(-4, 16, 4001)
    log_odds = np.outer(grid, x[:, 0])
    log_p = (y * log_odds - np.logaddexp(0, log_odds)).sum(axis=1)
    density = np.exp(log_p + stats.norm(0, 2.0).logpdf(grid))
    density /= density.sum()
    cumulated = np.interp(weights_of(model).ravel(), grid, np.cumsum(density))
    assert stats.kstest(cumulated[::2], "uniform").pvalue > 1e-3


@tensorflow_alone
def test_it_is_a_posterior_like_others(tmp_path):
    first, second = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    frozen = layers.Dense(3, "tanh", trainable=False)
    hidden = layers.Concatenate()([frozen(first), layers.BatchNormalization()(second)])
    network = keras.Model([first, second], layers.Dense(3)(layers.Dropout(0.5)(hidden)))
    network.compile(loss=keras.losses.SparseCategoricalCrossentropy(True))
    before = network.get_weights()
    x, y = [PROBLEM.x, PROBLEM.x[::-1]], np.arange(ROWS) % 3
    model = sample(network, x, y, num_samples=5, num_chains=1)
    for old, new in zip(before, network.get_weights()):
        np.testing.assert_array_equal(old, new)
    draws = keras_bdl.predict(model, x, outputs="mean", return_samples=True, verbose=0)
    assert draws.shape == (5, ROWS, 3)
    one = keras_bdl.to_keras(model, "sample", index=3)
    np.testing.assert_allclose(draws[3], to_numpy(one(x)), rtol=1e-4, atol=1e-5)
    kept = [layer for layer in one.layers if not layer.trainable and layer.weights]
    assert [to_numpy(w).shape for w in kept[0].weights] == [(2, 3), (3,)]
    np.testing.assert_array_equal(kept[0].kernel, frozen.kernel)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(
        keras_bdl.predict(loaded, x, verbose=0), keras_bdl.predict(model, x, verbose=0)
    )
    assert np.isfinite(model.evaluate(x, y, verbose=0))


@pytest.mark.slow
@tensorflow_alone
def test_a_seed_repeats_the_chains():
    network = line()
    first, again, other = (
        weights_of(sample(network, PROBLEM.x, PROBLEM.y, seed=seed))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


@tensorflow_alone
def test_chains_that_disagree_are_said():
    network = keras.Sequential(
        [keras.Input((2,)), layers.Dense(20, "tanh"), layers.Dense(1)]
    )
    network.compile(**NLL)
    with pytest.warns(UserWarning, match="the chains disagree"):
        options = {"num_samples": 20, "num_warmup_steps": 10, "max_tree_depth": 1}
        sample(network, PROBLEM.x, PROBLEM.y, prior_stddev=50.0, **options)


def half():
    network = keras.Sequential([keras.Input((2,)), layers.Dense(1, dtype="bfloat16")])
    network.compile(**NLL)
    return network


def not_compiled():
    return keras.Sequential([keras.Input((2,)), layers.Dense(1)])


def compiled(network, loss):
    network.compile(loss=loss)
    return network


@tensorflow_alone
@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda: keras.Sequential([layers.Dense(1)]), {}, "built=False"),
        (lambda: compiled(line(), "mse"), {}, "GaussianNLL"),
        (lambda: compiled(line(), keras_bdl.losses.BetaNLL()), {}, "GaussianNLL"),
        (lambda: compiled(line(), keras.losses.Huber()), {}, "GaussianNLL"),
        (lambda: compiled(line(), keras.losses.LogCosh()), {}, "GaussianNLL"),
        (lambda: compiled(line(), keras.losses.BinaryFocalCrossentropy()), {}, "Gauss"),
        (lambda: compiled(line(), keras.losses.mean_squared_error), {}, "GaussianNLL"),
        (not_compiled, {}, "compiled=False"),
        (half, {}, "bfloat16"),
        (line, {"num_chains": 9}, "num_chains=9"),
        (line, {"num_warmup_steps": 2}, "num_warmup_steps=2"),
        (line, {"prior_stddev": 0.0}, "prior_stddev=0.0"),
        (line, {"max_tree_depth": 13}, "max_tree_depth=13"),
        (line, {"thinning": 1.5}, "thinning=1.5"),
    ],
)
def test_wrong_arguments_are_refused(make, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sample(make(), PROBLEM.x, PROBLEM.y, **options)


@tensorflow_alone
@pytest.mark.parametrize(
    "x, y",
    [
        (np.where(PROBLEM.x > 1, np.nan, PROBLEM.x), PROBLEM.y),
        (PROBLEM.x[:, :1], PROBLEM.y),
        (PROBLEM.x, PROBLEM.y[:-1]),
        (PROBLEM.x[:0], PROBLEM.y[:0]),
        (PROBLEM.x, None),
        (iter([(PROBLEM.x, PROBLEM.y)]), None),
    ],
)
def test_wrong_data_are_refused(x, y):
    with pytest.raises((TypeError, ValueError), match="Received"):
        sample(line(), x, y)


def test_other_backends_are_told():
    if BACKEND == "tensorflow":
        with pytest.raises(TypeError, match="network=3"):
            sample(3, PROBLEM.x, PROBLEM.y)
        return
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
        sample(line(), PROBLEM.x, PROBLEM.y)
