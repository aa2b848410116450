"""Stochastic gradient MCMC: stationary laws of linear-Gaussian chains, and cycles.

Each unit of a Dense layer is a chain of its own on the same data. With all rows in a
batch the chain is linear, so that its stationary law solves a Lyapunov equation.
"""

import keras
import numpy as np
import pytest
from contract import to_numpy
from keras import layers
from linear_gaussian import LinearGaussian
from scipy import linalg

import keras_bdl
from keras_bdl import callbacks, optimizers

pytestmark = pytest.mark.portable

ROWS, CHAINS, NOISE, PRIOR = 30, 1500, 0.5, 0.8
PROBLEM = LinearGaussian(ROWS, NOISE, PRIOR)
X, Y = PROBLEM.x, PROBLEM.y
PRECISION, MEAN = PROBLEM.precision, PROBLEM.mean


def nll(y, outputs):  # a function, which a file can name
    return PROBLEM.nll(y, outputs)


def chains(optimizer, steps=200):
    """Weights of all chains after some steps, `(CHAINS, 3)`."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(CHAINS)])
    model.compile(optimizer, nll)
    x = np.tile(X, (steps, 1))
    y = np.tile(Y[:, None], (steps, CHAINS))
    model.fit(x, y, batch_size=ROWS, shuffle=False, verbose=0)
    kernel, bias = map(to_numpy, model.layers[0].weights)
    return np.vstack([kernel, bias]).T


def law(optimizer, rate):
    """Covariance of the weights of the chain, from its own recursion."""
    force = rate * PRECISION / ROWS
    spread = 2 * rate / ROWS * np.eye(3)
    if isinstance(optimizer, optimizers.SGLD):
        return linalg.solve_discrete_lyapunov(np.eye(3) - force, spread)
    kept = (1 - optimizer.friction) * np.eye(3)
    step = np.block([[np.eye(3) - force, kept], [-force, kept]])
    spread = optimizer.friction * np.kron(np.ones((2, 2)), spread)
    return linalg.solve_discrete_lyapunov(step, spread)[:3, :3]


def distance(draws, covariance):
    """Largest error of mean and covariance, in standard errors."""
    scale = np.sqrt(np.diag(covariance))
    mean = np.abs(draws.mean(axis=0) - MEAN) / (scale / np.sqrt(CHAINS))
    error = np.sqrt((np.outer(scale, scale) ** 2 + covariance**2) / CHAINS)
    return max(mean.max(), (np.abs(np.cov(draws.T) - covariance) / error).max())


@pytest.mark.parametrize(
    "cls, rate",
    [
        pytest.param(optimizers.SGLD, 0.1, marks=pytest.mark.every_backend),
        (optimizers.SGLD, 0.02),
        pytest.param(optimizers.SGHMC, 0.02, marks=pytest.mark.every_backend),
    ],
)
def test_chains_have_their_stationary_law(cls, rate):
    optimizer = cls(rate, ROWS, prior_stddev=PRIOR, seed=0)
    draws = chains(optimizer)
    assert distance(draws, law(optimizer, rate)) < 4.0


def test_smaller_steps_come_nearer_to_the_posterior():
    exact = linalg.inv(PRECISION)
    errors = [
        np.abs(law(optimizers.SGLD(rate, ROWS), rate) / exact - 1.0).max()
        for rate in (0.1, 0.02, 0.004)
    ]
    assert errors[0] > 4.0 * errors[1] > 16.0 * errors[2]
    # A wrong number of examples is seen: the variance goes with 1 / N.
    wrong = chains(optimizers.SGLD(0.02, ROWS // 2, prior_stddev=PRIOR, seed=0))
    assert distance(wrong, law(optimizers.SGLD(0.02, ROWS), 0.02)) > 10.0


def test_the_preconditioner_scales_force_and_noise_alike():
    """With a constant G it is SGLD of that rate, which the long average nearly is."""
    optimizer = optimizers.PreconditionedSGLD(
        0.005, ROWS, prior_stddev=PRIOR, rho=0.999, seed=0
    )
    draws = chains(optimizer, steps=600)
    exact = linalg.inv(PRECISION)
    scale = np.sqrt(np.diag(exact))
    assert (np.abs(draws.mean(axis=0) - MEAN) / scale).max() < 0.2
    np.testing.assert_allclose(
        np.cov(draws.T) / np.outer(scale, scale),
        exact / np.outer(scale, scale),
        atol=0.25,
    )


@pytest.mark.parametrize("cls", [optimizers.SGLD, optimizers.SGHMC])
def test_without_temperature_the_chain_descends_to_the_mode(cls):
    draws = chains(cls(0.05, ROWS, prior_stddev=PRIOR, temperature=0.0))
    np.testing.assert_allclose(draws, np.tile(MEAN, (CHAINS, 1)), atol=1e-4)


@pytest.mark.every_backend
def test_a_seed_repeats_a_chain_and_a_file_continues_it(tmp_path):
    def made(seed=0):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((2,)), layers.Dense(3)])
        model.compile(optimizers.SGHMC(0.02, ROWS, seed=seed), nll)
        return model

    options = {"batch_size": 10, "shuffle": False, "verbose": 0}
    models = [made(), made(), made(1)]
    y = np.tile(Y[:, None], (1, 3))
    for model in models:
        model.fit(X, y, epochs=2, **options)
    first, second, other = (to_numpy(m.layers[0].kernel) for m in models)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3
    models[0].save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", custom_objects={"nll": nll})
    for model in (models[1], loaded):
        model.fit(X, y, epochs=2, **options)
    np.testing.assert_allclose(
        to_numpy(loaded.layers[0].kernel),
        to_numpy(models[1].layers[0].kernel),
        atol=1e-6,
    )


class Rates(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        noise = float(to_numpy(getattr(self, "inner", optimizer).noise_share))
        self.seen.append((float(to_numpy(optimizer.learning_rate)), noise))


def test_cycles_set_rate_noise_and_records():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(optimizers.SGLD(0.1, ROWS, seed=0), nll)
    samples = callbacks.PosteriorSamples(keep=10, cycles=2, share=0.5)
    rates = Rates()
    options = {"batch_size": 15, "verbose": 0, "callbacks": [samples, rates]}
    model.fit(X, Y[:, None], epochs=8, **options)
    phases = np.arange(16) / 16 * 2 % 1.0
    expected = 0.05 * (np.cos(np.pi * phases) + 1.0)
    np.testing.assert_allclose([r for r, _ in rates.seen], expected, rtol=1e-5)
    assert [n for _, n in rates.seen] == list((phases >= 0.5).astype(float))
    assert samples.num_records == 4  # epochs 2, 3, 6 and 7
    np.testing.assert_allclose(to_numpy(model.optimizer.learning_rate), 0.1)
    fitted = samples.bayesian_model()
    last = keras_bdl.to_keras(fitted, "sample", index=3)
    np.testing.assert_allclose(
        last.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6
    )
    draws = keras_bdl.predict(fitted, X, return_samples=True, verbose=0)
    assert draws.shape == (4, ROWS, 1) and draws.std(axis=0).min() > 0.0


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch == 1


def test_a_fit_that_stops_leaves_noise_and_rate_as_they_were():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    inner = optimizers.SGLD(0.1, ROWS, seed=0)
    model.compile(keras.optimizers.LossScaleOptimizer(inner), nll)
    samples, rates = callbacks.PosteriorSamples(3, cycles=1), Rates()
    rates.inner = inner
    options = {"verbose": 0, "callbacks": [samples, rates, Stop()]}
    model.fit(X, Y[:, None], epochs=8, **options)
    assert [noise for _, noise in rates.seen] == [0.0, 0.0]
    assert float(to_numpy(inner.noise_share)) == 1.0
    np.testing.assert_allclose(to_numpy(model.optimizer.learning_rate), 0.1)


def test_data_of_unknown_length_fall_from_epoch_to_epoch():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(optimizers.SGLD(0.1, ROWS, seed=0), nll)
    samples = callbacks.PosteriorSamples(3, cycles=1)
    samples.set_model(model)
    samples.set_params({"epochs": 4, "steps": None})
    samples.on_train_begin()
    seen = []
    for epoch in range(4):
        samples.on_epoch_begin(epoch)
        for batch in range(2):
            samples.on_train_batch_begin(batch)
            seen.append(float(to_numpy(model.optimizer.learning_rate)))
    assert seen == sorted(seen, reverse=True) and seen[0] > seen[-1]


@pytest.mark.parametrize("epochs, cycles", [(8, 3), (11, 3), (12, 5), (9, 3), (7, 7)])
def test_every_cycle_ends_with_a_record(epochs, cycles):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    samples = callbacks.PosteriorSamples(99, cycles=cycles)
    samples.set_model(model)
    samples.set_params({"epochs": epochs, "steps": 1})
    recorded = []
    for epoch in range(epochs):
        before = samples.num_records
        samples.on_epoch_end(epoch)
        recorded += [epoch] * (samples.num_records - before)
    ends = [int(np.floor((k + 1) * epochs / cycles)) - 1 for k in range(cycles)]
    assert set(ends) <= set(recorded)


def test_samples_keep_the_weights_of_losses_and_refuse_constraints_at_once():
    inputs = keras.Input((2,))
    outputs = {name: layers.Dense(1, name=name)(inputs) for name in "ab"}
    model = keras.Model(inputs, outputs)
    weights = {"a": 1.0, "b": 100.0}
    model.compile("sgd", {"a": "mse", "b": "mse"}, loss_weights=weights)
    samples = callbacks.PosteriorSamples(1)
    y = {"a": Y[:, None], "b": Y[:, None]}
    model.fit(X, y, verbose=0, callbacks=[samples])
    expected = model.evaluate(X, y, verbose=0, return_dict=True)["loss"]
    fitted = samples.bayesian_model().evaluate(X, y, verbose=0, return_dict=True)
    assert fitted["loss"] == pytest.approx(expected, rel=1e-5)
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1, kernel_constraint="non_neg")]
    )
    model.compile("sgd", "mse")
    for callback in (callbacks.PosteriorSamples(1), callbacks.SWAG(0)):
        with pytest.raises(ValueError, match="constraint.*Received"):
            model.fit(X, Y, verbose=0, callbacks=[callback])


@pytest.mark.parametrize(
    "cls", [optimizers.SGLD, optimizers.SGHMC, optimizers.PreconditionedSGLD]
)
def test_tables_of_words_move_as_dense_layers_of_indicators(cls):
    words = np.array([[0, 1], [1, 1], [2, 0]])
    table = keras.Sequential([keras.Input((2,)), layers.Embedding(4, 2)])
    dense = keras.Sequential([keras.Input((2, 4)), layers.Dense(2, use_bias=False)])
    table.layers[0].embeddings.assign(np.ones((4, 2)))
    dense.layers[0].kernel.assign(np.ones((4, 2)))
    for model, x in ((table, words), (dense, np.eye(4)[words])):
        model.compile(cls(0.1, ROWS, prior_stddev=None, temperature=0.0), "mse")
        model.fit(x, np.zeros((3, 2, 2)), epochs=3, shuffle=False, verbose=0)
    found = to_numpy(table.layers[0].embeddings)
    np.testing.assert_allclose(found, to_numpy(dense.layers[0].kernel), atol=1e-6)


def test_a_plain_optimizer_leaves_snapshots():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(3), layers.BatchNormalization()]
    )
    model.compile("sgd", "mse")
    samples = callbacks.PosteriorSamples(keep=2, start=1, every=2)
    y = np.tile(Y[:, None], (1, 3))
    model.fit(X, y, epochs=6, verbose=0, callbacks=[samples])
    fitted = samples.bayesian_model()
    np.testing.assert_allclose(  # epochs 3 and 5, with statistics of their own
        fitted.to_keras("sample", index=1).predict(X, verbose=0),
        model.predict(X, verbose=0),
        atol=1e-6,
    )
    first = fitted.to_keras("sample", index=0).layers[1].moving_mean
    assert np.abs(to_numpy(first) - to_numpy(model.layers[1].moving_mean)).max() > 0


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: optimizers.SGLD(0.1, 0), "num_examples"),
        (lambda: optimizers.SGLD(0.1, 9, prior_stddev=-1.0), "prior_stddev"),
        (lambda: optimizers.SGLD(0.1, 9, temperature=-1.0), "temperature"),
        (lambda: optimizers.SGLD(0.1, 9, weight_decay=0.1), "weight_decay"),
        (lambda: optimizers.SGHMC(0.1, 9, friction=2.0), "friction"),
        (lambda: optimizers.PreconditionedSGLD(0.1, 9, rho=1.0), "rho"),
        (lambda: callbacks.PosteriorSamples(0), "keep"),
        (lambda: callbacks.PosteriorSamples(3, share=2.0), "share"),
        (lambda: callbacks.PosteriorSamples(3).bayesian_model(), "recorded"),
    ],
)
def test_bad_arguments_are_refused(make, match):
    with pytest.raises(ValueError, match=f"(?s){match}.*Received"):
        make()
