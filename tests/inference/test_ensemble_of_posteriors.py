"""Ensembles of networks that have posteriors: theirs is the mixture."""

import keras
import numpy as np
import pytest
from contract import to_numpy
from keras import layers

import keras_bdl

pytestmark = pytest.mark.portable

rng = np.random.default_rng(0)
X = rng.normal(size=(64, 4)).astype("float32")
Y = np.sin(X[:, :1]) + 0.1 * rng.normal(size=(64, 1)).astype("float32")
LOSS = keras_bdl.losses.GaussianNLL()


def variational(initial_log_stddev=-2.0, num_examples=64):
    options = {"initial_log_stddev": initial_log_stddev, "num_examples": num_examples}
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras_bdl.VariationalDense(8, activation="relu", **options),
            layers.BatchNormalization(),
            keras_bdl.VariationalDense(2, **options),
        ]
    )


def dropout():
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, activation="relu"),
            keras_bdl.MCDropout(0.3),
            layers.Dense(2),
        ]
    )


def fitted(network, size=3, epochs=2, **options):
    model = keras_bdl.Ensemble(network, size, seed=1, **options)
    model.compile(keras.optimizers.Adam(0.01), LOSS)
    model.fit(X, Y, epochs=epochs, batch_size=16, shuffle=False, verbose=0)
    return model


def samples(model, count, seed=0):
    options = {"seed": seed, "verbose": 0, "return_samples": True}
    return to_numpy(keras_bdl.predict(model, X[:3], count, **options))


def test_each_member_is_the_variational_network_that_is_trained_alone():
    # Deviations of exp(-30) leave no noise, and few examples leave the KL its part.
    model = keras_bdl.Ensemble(variational(-30.0, num_examples=8), 2, seed=1)
    alone = [model.member(i) for i in range(2)]
    losses = []
    for m in (*alone, model):
        m.compile(keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError())
        history = m.fit(X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    for i, one in enumerate(alone):
        weights = model.member(i).get_weights()
        assert len(weights) == len(one.get_weights()) == 12
        for own, expected in zip(weights, one.get_weights()):
            np.testing.assert_allclose(own, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses[-1], np.mean(losses[:-1], axis=0), rtol=1e-4)


@pytest.mark.parametrize("make", [variational, dropout])
def test_the_draws_of_a_member_are_those_of_its_own_posterior(make):
    model = fitted(make())
    drawn = samples(model, 900).reshape(300, 3, 3, 2)  # of each member in turn
    for i in range(3):
        own = drawn[:, i]
        alone = samples(model.member(i), 300, seed=5)
        errors = np.sqrt((own.var(axis=0) + alone.var(axis=0)) / 300)
        assert np.all(np.abs(own.mean(axis=0) - alone.mean(axis=0)) < 5 * errors)
        ratio = own.var(axis=0) / alone.var(axis=0)
        assert ratio.min() > 0.5 and ratio.max() < 2.0
    means = drawn.mean(axis=0)
    assert np.ptp(means, axis=0).max() > 0.05  # and the members differ


def test_predict_takes_some_samples_of_each_member():
    model = keras_bdl.Ensemble(dropout(), 5, seed=0)
    assert samples(model, None).shape[0] == 35  # the least multiple of 5 from 32
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    assert samples(keras_bdl.Ensemble(plain, 5, seed=0), None).shape[0] == 5
    with pytest.raises(ValueError, match="a multiple of 5"):
        samples(model, 32)


def test_the_mean_prediction_is_that_of_mean_networks():
    model = fitted(variational())
    members = [model.member(i).predict(X, verbose=0) for i in range(3)]
    expected = np.mean([m[:, 0] for m in members], axis=0)
    np.testing.assert_allclose(
        model.predict(X, verbose=0)[:, 0], expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("make", [variational, dropout])
def test_a_saved_ensemble_repeats_its_draws(tmp_path, make):
    model = fitted(make())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(samples(loaded, 6), samples(model, 6))


def test_an_exported_ensemble_samples_its_members(tmp_path, only_tensorflow):
    import tensorflow as tf

    model = fitted(dropout())
    keras_bdl.export(model, tmp_path / "model", num_samples=300)
    served = tf.saved_model.load(str(tmp_path / "model"))
    answers = [served.predictive_seeded(X[:4], tf.constant(i)) for i in (0, 0, 1)]
    first, again, other = (answer["mean"].numpy() for answer in answers)
    np.testing.assert_array_equal(again, first)
    assert np.abs(other - first).max() > 0.0
    expected = keras_bdl.predict_uncertainty(model, X[:4], 300, seed=0, verbose=0)
    errors = expected.epistemic_stddev * np.sqrt(2.0 / 300)
    assert np.all(np.abs(first - expected.mean) < 5 * errors)


def test_members_are_plain_networks_if_asked():
    model = fitted(variational())
    plain = keras_bdl.to_keras(model, "sample", seed=3, index=1)
    assert {type(x).__module__.split(".")[0] for x in plain.layers} == {"keras"}
    again = keras_bdl.to_keras(model, "sample", seed=3, index=1)
    np.testing.assert_array_equal(again.get_weights()[0], plain.get_weights()[0])
    mean = keras_bdl.to_keras(model.member(1))
    assert 0.0 < np.abs(mean.get_weights()[0] - plain.get_weights()[0]).max() < 1.0
    with pytest.raises(ValueError, match="have no mean network"):
        keras_bdl.to_keras(model)
    with pytest.raises(ValueError, match=r"convert `ensemble\.member"):
        keras_bdl.to_keras(fitted(dropout()), "sample", index=0)


def test_the_number_of_examples_is_asked_for():
    with pytest.raises(ValueError, match=r"set_num_examples\(network, n\)"):
        keras_bdl.Ensemble(variational(num_examples=None), 2)


def test_members_differ_whatever_seed_the_first_one_has():
    for seed in (0, 7):
        keras.utils.set_random_seed(seed)
        model = keras_bdl.Ensemble(dropout(), 3, seed=seed)
        kernels = [model.member(i).get_weights()[0] for i in range(3)]
        assert np.ptp(kernels, axis=0).min() > 0.0


def test_plain_dropout_samples_in_members():
    network = keras.Sequential(
        [keras.Input((4,)), layers.Dropout(0.3), layers.Dense(2)]
    )
    model = keras_bdl.Ensemble(network, 2, seed=0)
    options = {"seed": 0, "verbose": 0, "return_samples": True, "mc_dropout": True}
    drawn = to_numpy(keras_bdl.predict(model, X[:3], 8, **options))
    assert np.ptp(drawn[::2], axis=0).max() > 0.0


def test_nothing_is_fitted_around_a_network_that_samples():
    network = variational()
    network.compile(keras_bdl.optimizers.SGHMC(0.01, num_examples=64), LOSS)
    for keeper in (
        keras_bdl.callbacks.PosteriorSamples(2),
        keras_bdl.callbacks.SWAG(0),
    ):
        with pytest.raises(ValueError, match="Expected a plain network"):
            network.fit(X, Y, verbose=0, callbacks=[keeper])
    with pytest.raises(ValueError, match="statistics of their own"):
        keras_bdl.inference.refresh_statistics(fitted(variational()), X)


def test_the_loss_has_every_term_of_every_member():
    # Many small losses that come and go have made Keras take one for another.
    options = {"activation": "tanh", "num_examples": 1}
    network = keras.Sequential(
        [keras.Input((4,))]
        + [keras_bdl.VariationalDense(8, **options) for _ in range(3)]
    )
    model = keras_bdl.Ensemble(network, 5, seed=0)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    kls = [model.member(i) for i in range(5)]
    kls = [sum(float(to_numpy(x.kl())) for x in m.layers) for m in kls]
    warmup = keras_bdl.callbacks.KLWarmup(1)
    with pytest.warns(UserWarning, match="no `nll`"):
        history = model.fit(
            X, np.zeros((64, 8)), epochs=4, batch_size=16, verbose=0, callbacks=[warmup]
        ).history
    np.testing.assert_allclose(history["kl"], np.mean(kls), rtol=1e-5)
    expected = history["loss"][0] + np.mean(kls)  # the first epoch has no KL
    np.testing.assert_allclose(history["loss"][1:], expected, rtol=1e-4)


def test_callbacks_log_the_mean_of_the_members():
    noisy = keras_bdl.ConcreteDropout(layers.Dense(8), num_examples=64)
    network = keras.Sequential([keras.Input((4,)), noisy, layers.Dense(2)])
    model = keras_bdl.Ensemble(network, 2, seed=0)
    model.compile(keras.optimizers.Adam(0.1), LOSS)
    logger = keras_bdl.callbacks.DropoutRateLogger()
    log = model.fit(X, Y, epochs=2, verbose=0, callbacks=[logger]).history
    (rates,) = [values for name, values in log.items() if name.startswith("rate")]
    own = [model.member(i).layers[0].rate for i in range(2)]
    np.testing.assert_allclose(rates[-1], np.mean(own), rtol=1e-5)
    assert rates[-1] != rates[0]


def test_layers_that_always_draw_leave_a_usable_model():
    network = keras.Sequential(
        [keras.Input((4,)), keras_bdl.MCDropout(0.5, sample_at_inference=True)]
        + [layers.Dense(2)]
    )
    model = fitted(network)
    first, second = (model.predict(X, verbose=0) for _ in range(2))
    assert np.abs(first - second).max() > 0.0
    assert np.isfinite(model.evaluate(X, Y, verbose=0))


@pytest.mark.parametrize(
    "network, match",
    [
        (lambda: keras_bdl.BayesianRegressor(variational()), "give its `network`"),
        (lambda: keras_bdl.Ensemble(dropout(), 2), "has members itself"),
    ],
)
def test_models_around_networks_are_refused(network, match):
    with pytest.raises(ValueError, match=match):
        keras_bdl.Ensemble(network(), 2)


def test_a_particle_of_a_wrapped_network_becomes_plain_too():
    particles = keras_bdl.posteriors.Particles(2)
    model = keras_bdl.Bayesian(variational(), "all", posterior=particles)
    plain = keras_bdl.to_keras(model, "sample", seed=1, index=0)
    assert {type(x).__module__.split(".")[0] for x in plain.layers} == {"keras"}
