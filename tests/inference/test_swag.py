"""SWAG against a replay of the iterates in NumPy, and statistics of drawn networks."""

import warnings

import keras
import numpy as np
import pytest
from contract import to_numpy
from keras import layers

import keras_bdl
from keras_bdl.inference import refresh_statistics
from keras_bdl.maps import weights_inside

pytestmark = pytest.mark.portable

rng = np.random.default_rng(0)
X = rng.normal(size=(64, 3)).astype("float32")
Y = (X @ [1.0, -2.0, 0.5] + rng.normal(size=64)).astype("float32")[:, None]


class Iterates(keras.callbacks.Callback):
    """Keeps the trained weights at the end of each epoch."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        found = weights_inside(self.model, "all")
        self.seen.append({n: to_numpy(v).astype("float64") for n, v in found.items()})


def network(normalised=False):
    norm = [layers.BatchNormalization()] if normalised else []
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(2), *norm, layers.Dense(1)]
    )


def trained(model, epochs=9, **options):
    swag, iterates = keras_bdl.callbacks.SWAG(**options), Iterates()
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=[swag, iterates])
    return swag, iterates.seen


@pytest.mark.every_backend
def test_moments_are_those_of_the_iterates():
    plain = network()
    swag, seen = trained(plain, start=1, every=2, rank=3)
    seen = seen[1::2]
    assert swag.num_records == len(seen) == 4
    model = swag.bayesian_model()
    average = dict(zip(seen[0], keras_bdl.to_keras(model).get_weights()))
    deviations, mean = [], {n: np.zeros_like(w) for n, w in seen[0].items()}
    for count, weights in enumerate(seen, 1):
        mean = {n: ((count - 1) * m + weights[n]) / count for n, m in mean.items()}
        deviations.append({n: weights[n] - mean[n] for n in mean})
    for name, m in mean.items():
        np.testing.assert_allclose(m, np.mean([w[name] for w in seen], axis=0))
        np.testing.assert_allclose(average[name], m, atol=1e-6)
    # The covariance of many draws is D / 2 + L L' / (2 (K - 1)).
    flat = [np.concatenate([w[n].ravel() for n in mean]) for w in seen]
    columns = [np.concatenate([d[n].ravel() for n in mean]) for d in deviations[-3:]]
    columns = np.stack(columns, axis=1)
    expected = np.diag(np.var(flat, axis=0)) / 2 + columns @ columns.T / 4
    seed, count = keras.random.SeedGenerator(0), 20_000
    draws = model.bayesian.drawn_weights(seed, count)
    draws = np.concatenate(
        [to_numpy(draws[n]).reshape(count, -1) for n in mean], axis=1
    )
    scale = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(
        np.cov(draws.T) / np.outer(scale, scale),
        expected / np.outer(scale, scale),
        atol=6 / np.sqrt(count),
    )
    center = np.concatenate([mean[n].ravel() for n in mean])
    error = np.abs(draws.mean(axis=0) - center) / scale
    assert error.max() < 5 / np.sqrt(count)


def test_without_columns_it_is_the_diagonal_of_the_iterates():
    swag, seen = trained(network(), start=3, rank=0)
    model = swag.bayesian_model()
    posterior = model.bayesian.posterior
    for name, (mean, log_stddev) in posterior.moments().items():
        iterates = [w[name] for w in seen[3:]]
        np.testing.assert_allclose(to_numpy(mean), np.mean(iterates, 0), atol=1e-6)
        np.testing.assert_allclose(
            np.exp(to_numpy(log_stddev)), np.std(iterates, axis=0), rtol=1e-3
        )


def test_the_model_predicts_saves_and_leaves_the_trained_one_alone(tmp_path):
    plain = network()
    swag, _ = trained(plain, start=4)
    before = plain.get_weights()
    model = swag.bayesian_model()
    assert np.isfinite(model.evaluate(X, Y, verbose=0))
    result = keras_bdl.predict_uncertainty(model, X, 50, seed=0, verbose=0)
    assert result.epistemic_stddev.min() > 0.0
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    again = keras_bdl.predict_uncertainty(copy, X, 50, seed=0, verbose=0)
    np.testing.assert_allclose(again.mean, result.mean, atol=1e-6)
    for old, new in zip(before, plain.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_draws_have_statistics_of_their_own():
    plain = network(normalised=True)
    swag, _ = trained(plain, start=2, rank=3)
    with pytest.warns(UserWarning, match="refresh_statistics"):
        model = swag.bayesian_model()
    fresh = refresh_statistics(model, X, num_samples=4, batch_size=16, seed=0)
    draws = keras_bdl.predict(fresh, X, return_samples=True, verbose=0)
    assert draws.shape == (4, 64, 1) and draws.std(axis=0).max() > 1e-5
    for index in range(4):
        member = fresh.to_keras("sample", index=index)
        np.testing.assert_allclose(
            member.predict(X, verbose=0), draws[index], atol=1e-5
        )
        dense, norm, _ = member.layers
        hidden = to_numpy(dense(X)).reshape(4, 16, 2)
        np.testing.assert_allclose(
            to_numpy(norm.moving_mean), hidden.mean(axis=(0, 1)), atol=1e-5
        )
        np.testing.assert_allclose(
            to_numpy(norm.moving_variance), hidden.var(axis=1).mean(axis=0), rtol=1e-4
        )
        assert norm.momentum == 0.99
    # Of particles, each one's own.
    again = refresh_statistics(fresh, X, batch_size=16)
    np.testing.assert_allclose(
        keras_bdl.predict(again, X, return_samples=True, verbose=0), draws, atol=1e-5
    )


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: keras_bdl.callbacks.SWAG(-1), "start"),
        (lambda: keras_bdl.callbacks.SWAG(1, every=0), "every"),
        (lambda: keras_bdl.callbacks.SWAG(1, rank=1), "rank"),
        (lambda: trained(network(), 2, start=1)[0].bayesian_model(), "two records"),
        (
            lambda: refresh_statistics(keras_bdl.Bayesian(network()), X),
            "BatchNormalization",
        ),
    ],
)
def test_bad_arguments_are_refused(make, match):
    with pytest.raises(ValueError, match=f"(?s){match}.*Received"):
        make()


def test_a_network_without_statistics_gives_no_warning():
    swag, _ = trained(network(), start=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        swag.bayesian_model()
    with pytest.raises(TypeError, match="Received"):
        refresh_statistics(network(), X)
    frozen = network()
    frozen.trainable = False
    swag = keras_bdl.callbacks.SWAG(0)
    swag.set_model(frozen)
    with pytest.raises(ValueError, match="weights to train.*Received"):
        swag.on_train_begin()
