"""IVON: the mean-field optimum of linear-Gaussian models, and what `fit` sees.

Each unit of a Dense layer is a regression of its own, with noise of its own.
"""

import json
import pathlib

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

PEERS = pathlib.Path(__file__).parents[1] / "peers"  # and the scripts that write these
ROWS, UNITS, NOISE, PRIOR = 60, 300, 0.5, 0.8
PROBLEM = LinearGaussian(ROWS, NOISE, PRIOR, np.array([[1.0, 0.5], [0.0, 0.8]]))
X, Y, DESIGN = PROBLEM.x, PROBLEM.y, PROBLEM.design
PRECISION, MEAN = PROBLEM.precision, PROBLEM.mean


def nll(y, outputs):  # a function, which a file can name
    return PROBLEM.nll(y, outputs)


def network(units=UNITS):
    return keras.Sequential([keras.Input((2,)), layers.Dense(units, name="dense")])


def fitted(optimizer, steps, batch_size=ROWS):
    model = network()
    model.compile(optimizer, nll)
    posterior = callbacks.GaussianPosterior()
    x, y = np.tile(X, (steps, 1)), np.tile(Y[:, None], (steps, UNITS))
    options = {"shuffle": batch_size != ROWS, "verbose": 0, "callbacks": [posterior]}
    model.fit(x, y, batch_size=batch_size, **options)
    bayesian = posterior.bayesian_model()
    kernel, bias = map(to_numpy, model.layers[0].weights)
    log_stddevs = [
        to_numpy(variable)
        for name, variable in bayesian.bayesian.posterior.variables().items()
        if name.endswith("log_stddev")
    ]
    variances = [np.exp(2 * v).reshape(-1, UNITS) for v in log_stddevs]
    return np.vstack([kernel, bias]), np.vstack(variances)


@pytest.mark.every_backend
def test_it_finds_the_best_gaussian_of_independent_weights():
    schedule = keras.optimizers.schedules.CosineDecay(0.3, 400)
    optimizer = optimizers.IVON(
        schedule, ROWS, PRIOR, initial_hessian=2.0, beta_2=0.985, seed=0
    )
    mean, variance = fitted(optimizer, steps=400)
    exact = np.sqrt(np.diag(linalg.inv(PRECISION)))
    error = (mean.mean(axis=1) - MEAN) / exact
    assert np.abs(error).max() < 0.05
    ratio = variance.mean(axis=1) * np.diag(PRECISION)
    assert np.abs(ratio - 1.0).max() < 0.08


def test_a_wrong_number_of_examples_is_seen():
    optimizer = optimizers.IVON(
        0.1, ROWS // 2, PRIOR, initial_hessian=2.0, beta_2=0.96, seed=0
    )
    _, variance = fitted(optimizer, steps=150)
    ratio = variance.mean(axis=1) * np.diag(PRECISION)
    assert ratio.min() > 1.5


class Weights(keras.callbacks.Callback):
    """Records the weights in training, in validation and at the end of epochs."""

    def __init__(self):
        super().__init__()
        self.seen = {"train": [], "test": [], "epoch": []}

    def record(self, when):
        self.seen[when].append(to_numpy(self.model.layers[0].kernel))

    def on_train_batch_begin(self, batch, logs=None):
        self.record("train")

    def on_test_batch_begin(self, batch, logs=None):
        self.record("test")

    def on_epoch_end(self, epoch, logs=None):
        self.record("epoch")


def replay(start, optimizer, draws, x, y):
    """Algorithm 1 in NumPy, of given weights in training. Returns m and h."""
    rate = optimizer["rate"] * (optimizer["h"] + optimizer["delta"])
    delta, b1, b2 = optimizer["delta"], optimizer["b1"], optimizer["b2"]
    mean, h, g = start, np.full_like(start, optimizer["h"]), np.zeros_like(start)
    for t, theta in enumerate(draws, 1):
        gradient = x.T @ (x @ theta - y) / NOISE**2 / len(x)
        variance = 1.0 / (optimizer["ess"] * (h + delta))
        estimate = gradient * (theta - mean) / variance
        if t > 1 or np.any(theta != mean):
            square = 0.5 * (1 - b2) ** 2 * (h - estimate) ** 2 / (h + delta)
            h = b2 * h + (1 - b2) * estimate + square
        g = b1 * g + (1 - b1) * gradient
        step = (g / (1 - b1**t) + delta * mean) / (h + delta)
        mean = mean - rate * np.clip(step, -optimizer["clip"], optimizer["clip"])
    return mean, h


@pytest.mark.parametrize("name", ["free", "clipped"])
def test_the_replay_takes_the_steps_of_ivon_opt(name):
    figures = json.loads((PEERS / "ivon_opt.json").read_text())
    case, x, y = (figures["cases"][name], *map(np.array, (figures["x"], figures["y"])))
    assert figures["noise"] == NOISE
    options = {**figures["options"], "clip": case["clip"]}
    for steps in range(1, len(case["draws"]) + 1):
        draws = map(np.array, case["draws"][:steps])
        mean, h = replay(np.array(figures["start"]), options, draws, x, y)
        np.testing.assert_allclose(mean, case["means"][steps - 1], rtol=1e-8)
        np.testing.assert_allclose(h.ravel(), case["hessians"][steps - 1], rtol=1e-8)


@pytest.mark.every_backend
@pytest.mark.parametrize("clip", [None, 0.3])
def test_steps_are_those_of_the_algorithm(clip):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, use_bias=False)])
    start = to_numpy(model.layers[0].kernel).astype("float64")
    optimizer = optimizers.IVON(
        0.1, 50, 0.5, 2.0, 0.8, 0.9, temperature=2.0, clip_radius=clip, seed=0
    )
    model.compile(optimizer, nll)
    weights, y = Weights(), np.tile(Y[:, None], (1, 3))
    model.fit(X, y, batch_size=ROWS, epochs=1, verbose=0, callbacks=[weights])
    posterior = callbacks.GaussianPosterior()
    options = {"batch_size": ROWS, "verbose": 0, "callbacks": [posterior, weights]}
    model.fit(X, y, epochs=6, **options)
    delta = 1 / (50 * 0.5**2)
    values = {"rate": 0.1, "h": 2.0, "delta": delta, "b1": 0.8, "b2": 0.9}
    values |= {"ess": 50 / 2.0, "clip": clip or np.inf}
    draws = [w.astype("float64") for w in weights.seen["train"]]
    mean, h = replay(start, values, draws, X.astype("float64"), Y[:, None])
    np.testing.assert_allclose(to_numpy(model.layers[0].kernel), mean, rtol=1e-4)
    stddev = to_numpy(optimizer.stddev(model.trainable_variables[0]))
    np.testing.assert_allclose(stddev, (25 * (h + delta)) ** -0.5, rtol=1e-4)
    assert np.abs(draws[2] - weights.seen["epoch"][1]).min() > 1e-5  # noise
    assert np.ptp(h) > 1e-3


@pytest.mark.every_backend
def test_validation_and_ends_of_epochs_see_the_mean():
    model = network(2)
    model.compile(optimizers.IVON(0.05, ROWS, seed=0), nll)
    posterior, weights = callbacks.GaussianPosterior(), Weights()
    y = np.tile(Y[:, None], (1, 2))
    history = model.fit(
        X,
        y,
        batch_size=20,
        epochs=3,
        validation_data=(X, y),
        callbacks=[posterior, weights],
        verbose=0,
    ).history
    seen = weights.seen
    for test, epoch in zip(seen["test"][:: len(seen["test"]) // 3], seen["epoch"]):
        np.testing.assert_array_equal(test, epoch)
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel), seen["epoch"][-1])
    loss = model.evaluate(X, y, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(loss, rel=1e-5)
    # The noise comes back for the next epoch, and moves the weights about the mean.
    for index, epoch in enumerate(seen["epoch"][:-1]):
        offset = np.abs(seen["train"][3 * (index + 1)] - epoch)
        assert offset.min() > 0.0 and offset.max() < 5.0 / np.sqrt(ROWS)


@pytest.mark.every_backend
def test_the_posterior_is_in_the_file_of_the_network(tmp_path):
    model = network(2)
    model.compile(optimizers.IVON(0.05, ROWS, seed=0), nll)
    posterior = callbacks.GaussianPosterior()
    y = np.tile(Y[:, None], (1, 2))
    options = {"batch_size": 20, "verbose": 0, "shuffle": False}
    model.fit(X, y, epochs=3, callbacks=[posterior], **options)
    first = posterior.bayesian_model()
    np.testing.assert_allclose(
        first.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6
    )
    stddev = keras_bdl.predict_uncertainty(
        first, X, 100, outputs="mean", seed=0, verbose=0
    ).epistemic_variance
    variables = dict(zip(("kernel", "bias"), model.layers[0].weights))
    stddevs = {n: to_numpy(model.optimizer.stddev(v)) for n, v in variables.items()}
    exact = X**2 @ stddevs["kernel"] ** 2 + stddevs["bias"] ** 2
    np.testing.assert_allclose(stddev, exact, rtol=0.7)
    model.save(tmp_path / "network.keras")
    objects = {"nll": nll}
    loaded = keras.models.load_model(tmp_path / "network.keras", objects)
    posterior.set_model(loaded)
    second = posterior.bayesian_model()
    for one, other in zip(first.weights, second.weights):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    for each in (model, loaded):
        callback = callbacks.GaussianPosterior()
        each.fit(X, y, epochs=2, callbacks=[callback], **options)
    np.testing.assert_allclose(
        to_numpy(model.layers[0].kernel), to_numpy(loaded.layers[0].kernel), rtol=1e-5
    )


def test_any_network_trains_and_is_predicted():
    inputs = keras.Input((5,), dtype="int32")
    hidden = layers.Embedding(9, 4)(inputs)
    hidden = layers.GRU(4)(layers.Dense(4, activation="relu")(hidden))
    frozen = layers.Dense(4, trainable=False)
    model = keras.Model(inputs, layers.Dense(3)(frozen(hidden)))
    before = to_numpy(frozen.kernel)
    x = np.random.default_rng(0).integers(0, 9, (40, 5))
    y = x[:, 0] % 3
    model.compile(
        optimizers.IVON(0.3, 4000, seed=0, gradient_accumulation_steps=2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    posterior = callbacks.GaussianPosterior()
    history = model.fit(
        x, y, batch_size=10, epochs=20, callbacks=[posterior], verbose=0
    ).history["loss"]
    assert history[-1] < history[0]
    np.testing.assert_array_equal(to_numpy(frozen.kernel), before)
    fitted_model = posterior.bayesian_model()
    result = keras_bdl.predict_uncertainty(fitted_model, x, 20, seed=0, verbose=0)
    assert (result.mutual_information > 0).all()
    assert result.probabilities.shape == (40, 3)


def test_half_precision_and_a_scaled_loss():
    keras.config.set_dtype_policy("mixed_float16")
    model = network(2)
    inner = optimizers.IVON(0.05, ROWS, seed=0)
    model.compile(keras.optimizers.LossScaleOptimizer(inner, 64.0), nll)
    posterior = callbacks.GaussianPosterior()
    y = np.tile(Y[:, None], (1, 2))
    model.fit(X, y, batch_size=20, epochs=20, callbacks=[posterior], verbose=0)
    found = posterior.bayesian_model().predict(X, verbose=0)
    assert np.abs(found - DESIGN @ MEAN[:, None]).max() < 0.3


def test_weights_may_be_set_between_two_fits():
    model = network(2)
    model.compile(optimizers.IVON(1e-6, ROWS, seed=0), nll)
    y = np.tile(Y[:, None], (1, 2))
    model.fit(X, y, verbose=0)
    model.layers[0].set_weights([np.ones((2, 2)), np.zeros(2)])
    model.fit(X, y, verbose=0)
    np.testing.assert_allclose(to_numpy(model.layers[0].kernel), 1.0, atol=1e-3)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: optimizers.IVON(0.1, 0), "num_examples"),
        (lambda: optimizers.IVON(0.1, 9, initial_hessian=0.0), "initial_hessian"),
        (lambda: optimizers.IVON(0.1, 9, beta_1=1.0), "beta_1"),
        (lambda: optimizers.IVON(0.1, 9, beta_2=-0.1), "beta_2"),
        (lambda: optimizers.IVON(0.1, 9, temperature=0.0), "temperature"),
        (lambda: optimizers.IVON(0.1, 9, clip_radius=0.0), "clip_radius"),
        (lambda: optimizers.IVON(0.1, 9, use_ema=True), "use_ema"),
        (lambda: callbacks.GaussianPosterior().bayesian_model(), "training"),
    ],
)
def test_bad_arguments_are_refused(make, match):
    with pytest.raises(ValueError, match=f"(?s){match}.*Received"):
        make()


def test_other_optimizers_and_constraints_are_refused():
    model = network(2)
    model.compile("adam", nll)
    callback = callbacks.GaussianPosterior()
    with pytest.raises(ValueError, match="IVON.*Received"):
        model.fit(X, np.ones((ROWS, 2)), callbacks=[callback], verbose=0)
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1, kernel_constraint="non_neg")]
    )
    model.compile(optimizers.IVON(0.1, ROWS), nll)
    with pytest.raises(ValueError, match="constraint.*Received"):
        model.fit(X, Y, verbose=0)


def test_other_weights_and_half_precision_are_refused():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(3, trainable=False), layers.Dense(1)]
    )
    optimizer = optimizers.IVON(0.1, ROWS)
    model.compile(optimizer, nll)
    model.fit(X, Y, verbose=0)
    model.layers[0].trainable = True
    model.compile(optimizer, nll)
    with pytest.raises(ValueError, match="new optimizer.*Received"):
        model.fit(X, Y, callbacks=[callbacks.GaussianPosterior()], verbose=0)
    keras.config.set_dtype_policy("bfloat16")
    model = network(1)
    for optimizer in (optimizers.IVON(0.1, ROWS), optimizers.SGLD(0.1, ROWS)):
        with pytest.raises(ValueError, match="half precision.*Received"):
            optimizer.build(model.trainable_variables)


def test_noise_of_a_loop_of_ones_own_is_taken_off():
    model = network(2)
    optimizer = optimizers.IVON(1e-6, ROWS, seed=0)
    model.compile(optimizer, nll)
    before = to_numpy(model.layers[0].kernel)
    model.train_on_batch(X, np.tile(Y[:, None], (1, 2)))
    assert np.abs(to_numpy(model.layers[0].kernel) - before).min() > 1e-4
    optimizer.finalize_variable_values(model.trainable_variables)
    np.testing.assert_allclose(to_numpy(model.layers[0].kernel), before, atol=1e-4)
