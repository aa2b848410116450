"""Ensembles: each member is the network that would be trained alone."""

import itertools

import keras
import numpy as np
import pytest
from contract import BACKEND, to_numpy
from keras import layers
from scipy import special

import keras_bdl
from keras_bdl.ops import uncertainty
from keras_bdl.posteriors import Particles

pytestmark = pytest.mark.portable

rng = np.random.default_rng(0)
X = rng.normal(size=(48, 5)).astype("float32")
Y = rng.integers(0, 3, 48)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(**options):
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(6, activation="relu", kernel_regularizer="l2", **options),
            layers.BatchNormalization(),
            layers.Dense(3, activity_regularizer="l1", **options),
        ]
    )


class Bare(keras.Model):
    """A model without a config, with layers made in `build`."""

    def __init__(self, units):
        super().__init__()
        self.units = units

    def build(self, input_shape):
        self.hidden = layers.Dense(self.units, activation="tanh")
        self.hidden.build(input_shape)
        self.head = layers.Dense(3)
        self.head.build((None, self.units))

    def call(self, x):
        return self.head(self.hidden(x))


class Closed(Bare):
    """A model that does not keep the argument of its constructor."""

    def __init__(self, width):
        super().__init__(width)


def made_bare(cls=Closed):
    model = cls(4)
    model.build((None, 5))
    return model


def fitted(size=3, epochs=2, **options):
    model = keras_bdl.Ensemble(network(), size, seed=1, **options)
    model.compile(keras.optimizers.Adam(0.01), LOSS, metrics=["accuracy"])
    model.fit(X, Y, epochs=epochs, batch_size=16, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize(
    "dtype, tolerance",
    [
        pytest.param("float32", 1e-5, marks=pytest.mark.every_backend),
        ("float64", 1e-12),
    ],
)
def test_each_member_is_the_network_that_is_trained_alone(dtype, tolerance):
    if (BACKEND, dtype) == ("jax", "float64"):
        pytest.skip("JAX has float64 only if it is told so")
    keras.config.set_dtype_policy(dtype)
    keras.config.set_floatx(dtype)
    try:
        model = keras_bdl.Ensemble(network(), 3, seed=1)
        alone = [model.member(i) for i in range(3)]
        assert np.ptp([m.get_weights()[0] for m in alone], axis=0).min() > 0.0
        losses = []
        for m in (*alone, model):
            m.compile(keras.optimizers.Adam(0.01), LOSS)
            history = m.fit(X, Y, batch_size=16, epochs=7, shuffle=False, verbose=0)
            losses.append(history.history["loss"])
        for i, one in enumerate(alone):
            member = model.member(i)
            for own, expected in zip(member.get_weights(), one.get_weights()):
                np.testing.assert_allclose(own, expected, atol=tolerance)
        np.testing.assert_allclose(
            losses[-1], np.mean(losses[:-1], axis=0), rtol=max(tolerance, 1e-6)
        )
    finally:
        keras.config.set_floatx("float32")


def test_one_member_is_the_network():
    plain = network()
    plain.compile("adam", LOSS)  # and stays a model of its own
    model = keras_bdl.Ensemble(plain, 1)
    assert len(plain.trainable_weights) == 6
    expected = plain.predict(X, verbose=0)
    np.testing.assert_allclose(
        special.softmax(model.predict(X, verbose=0), axis=-1),
        special.softmax(expected, axis=-1),
        atol=1e-6,
    )


def test_predictions_are_those_of_all_members():
    model = fitted()
    members = np.stack(
        [special.softmax(model.member(i).predict(X, verbose=0), -1) for i in range(3)]
    )
    mean = members.mean(axis=0)
    draws = keras_bdl.predict(model, X, return_samples=True, verbose=0)
    np.testing.assert_allclose(draws, members, atol=1e-6)
    twice = keras_bdl.predict(model, X, 6, return_samples=True, batch_size=7, verbose=0)
    np.testing.assert_allclose(twice, np.concatenate([members, members]), atol=1e-6)
    np.testing.assert_allclose(keras_bdl.predict(model, X, verbose=0), mean, atol=1e-6)
    logits = model.predict(X, verbose=0)  # of the mean probabilities
    np.testing.assert_allclose(logits, np.log(mean), atol=1e-5)
    result = keras_bdl.predict_uncertainty(model, X, verbose=0)
    entropy = -(members * np.log(members)).sum(-1)
    np.testing.assert_allclose(result.expected_entropy, entropy.mean(0), atol=1e-5)
    scores = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert scores["accuracy"] == pytest.approx((mean.argmax(-1) == Y).mean())
    regularizers = [sum(map(float, map(to_numpy, model.losses)))]
    assert scores["loss"] > -np.log(mean[np.arange(48), Y]).mean()
    assert regularizers[0] > 0.0
    with pytest.raises(ValueError, match="multiple of 3.*Received"):
        keras_bdl.predict(model, X, 32, verbose=0)


def test_mean_outputs_predict_the_mixture():
    draws = np.random.default_rng(0).normal(size=(5, 7, 4))
    logits = to_numpy(uncertainty.mean_outputs(draws, "logits"))
    np.testing.assert_allclose(
        np.exp(logits), special.softmax(draws, axis=-1).mean(axis=0), rtol=1e-5
    )
    logits = to_numpy(uncertainty.mean_outputs(draws, "binary_logits"))
    np.testing.assert_allclose(
        special.expit(logits), special.expit(draws).mean(axis=0), rtol=1e-5
    )
    far = to_numpy(uncertainty.mean_outputs(np.full((2, 1, 1), 300.0), "binary_logits"))
    np.testing.assert_allclose(far, 300.0, rtol=1e-6)
    moments = to_numpy(uncertainty.mean_outputs(draws, "mean_and_log_stddev"))
    means, stddevs = draws[..., :2], np.exp(draws[..., 2:])
    samples = np.random.default_rng(1).normal(means, stddevs, (40_000, 5, 7, 2))
    np.testing.assert_allclose(moments[:, :2], means.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(
        np.exp(moments[:, 2:]), samples.std(axis=(0, 1)), rtol=0.05
    )


def test_a_saved_ensemble_trains_on_as_if_it_had_not_stopped(tmp_path):
    model = fitted()
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        model.predict(X, verbose=0), copy.predict(X, verbose=0)
    )
    for m in (model, copy):
        m.fit(X, Y, batch_size=16, shuffle=False, verbose=0)
    np.testing.assert_allclose(
        model.predict(X, verbose=0), copy.predict(X, verbose=0), atol=1e-6
    )


def test_an_exported_ensemble_serves_all_members(tmp_path, only_tensorflow):
    import tensorflow as tf

    model = fitted()
    keras_bdl.export(model, str(tmp_path / "served"))
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(X), model.predict(X, verbose=0), atol=1e-5)


def test_the_bootstrap_weighs_rows_by_member():
    model = keras_bdl.Ensemble(network(), 2, "bootstrap", seed=3)
    alone = [model.member(i) for i in range(2)]
    for first, second in zip(alone[0].get_weights(), alone[1].get_weights()):
        np.testing.assert_array_equal(first, second)
    counts = np.random.default_rng(3).multinomial(36, np.full(36, 1 / 36), 2)
    own = np.linspace(0.5, 1.5, 48)
    options = {"batch_size": 12, "epochs": 2, "shuffle": False, "verbose": 0}
    model.compile(keras.optimizers.SGD(0.1), LOSS, weighted_metrics=["accuracy"])
    history = model.fit(X, Y, sample_weight=own, validation_split=0.25, **options)
    for i, one in enumerate(alone):
        one.compile(keras.optimizers.SGD(0.1), LOSS)
        one.fit(X[:36], Y[:36], sample_weight=own[:36] * counts[i], **options)
        for found, expected in zip(model.member(i).get_weights(), one.get_weights()):
            np.testing.assert_allclose(found, expected, atol=1e-6)
    scores = model.evaluate(X[36:], Y[36:], sample_weight=own[36:], verbose=0)
    assert history.history["val_loss"][-1] == pytest.approx(scores[0], abs=1e-5)


def test_models_of_any_kind_have_members():
    model = keras_bdl.Ensemble(made_bare, 2)
    model.compile("adam", LOSS)
    assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()
    assert keras_bdl.predict(model, X, return_samples=True, verbose=0).std(0).max() > 0
    # Two outputs, an input of integers, and dropout.
    words = keras.Input((4,), dtype="int32")
    h = layers.LSTM(3)(layers.Dropout(0.3)(layers.Embedding(9, 4)(words)))
    outputs = {"a": layers.Dense(2)(h), "b": layers.Dense(1, "sigmoid")(h)}
    model = keras_bdl.Ensemble(keras.Model(words, outputs), 2)
    losses = {"a": LOSS, "b": "binary_crossentropy"}
    model.compile("adam", losses, metrics={"b": ["accuracy"]})
    x = rng.integers(0, 9, (48, 4))
    targets = {"a": Y % 2, "b": (Y > 0).astype("float32")[:, None]}
    model.fit(x, targets, verbose=0)
    result = keras_bdl.predict_uncertainty(model, x, verbose=0)
    assert result["a"].probabilities.shape == (48, 2)
    assert result["b"].mutual_information.shape == (48,)


def test_masks_are_those_of_the_network():
    x = np.array([[1, 2, 0, 0], [3, 1, 2, 0], [1, 0, 0, 0]])
    y = np.random.default_rng(0).normal(size=(3, 4, 1)).astype("float32")
    plain = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Embedding(5, 3, mask_zero=True),
            layers.SimpleRNN(4, return_sequences=True),
            layers.Dense(1),
        ]
    )
    model = keras_bdl.Ensemble(plain, 1)
    found = []
    for m in (plain, model):
        m.compile(keras.optimizers.SGD(0.1), "mse", weighted_metrics=["mae"])
        history = m.fit(x, y, epochs=3, shuffle=False, verbose=0).history
        # On JAX the masks of Keras do not reach the metrics of training.
        metrics = [] if BACKEND == "jax" else history["mae"]
        found.append([*history["loss"], *metrics, *m.evaluate(x, y, verbose=0)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_variables_that_are_frozen_one_by_one_stay():
    norm = layers.Normalization()
    norm.adapt(5.0 * X + 3.0)
    plain = keras.Sequential(
        [keras.Input((5,)), norm, layers.Dense(4), layers.Dense(3)]
    )
    plain.layers[1].enable_lora(2)
    kernel = to_numpy(plain.layers[1]._kernel)
    model = keras_bdl.Ensemble(plain, 2)
    assert not any(name == "kernel_1" for name in model.posterior.shapes)
    model.compile("adam", LOSS)
    model.fit(X, Y, verbose=0)
    draws = keras_bdl.predict(model, X, return_samples=True, verbose=0)
    for index in range(2):
        member = model.member(index)
        np.testing.assert_array_equal(to_numpy(member.layers[1]._kernel), kernel)
        probabilities = special.softmax(member.predict(X, verbose=0), axis=-1)
        np.testing.assert_allclose(probabilities, draws[index], atol=1e-5)


def test_inside_of_another_model_it_predicts_and_does_not_train():
    ensemble = keras_bdl.Ensemble(network(), 2)
    inputs = keras.Input((5,))
    outer = keras.Model(inputs, ensemble(inputs))
    np.testing.assert_allclose(
        outer.predict(X, verbose=0), ensemble.predict(X, verbose=0), atol=1e-6
    )
    outer.compile("sgd", LOSS)
    with pytest.raises(ValueError, match="trains as a model by itself.*Received"):
        outer.fit(X, Y, verbose=0)


def test_a_custom_loop_has_the_loss_of_all_members():
    model = keras_bdl.Ensemble(network(), 2)
    members = [model.member(index) for index in range(2)]
    losses = []
    for m in (*members, model):
        m.compile("sgd", LOSS)
        call = getattr(m, "outputs_of_members", lambda x, m=m: m(x, training=True))
        losses.append(float(to_numpy(m.compute_loss(None, Y, call(X)))))
    assert losses[2] == pytest.approx(np.mean(losses[:2]), rel=1e-5)


def test_a_file_of_members_with_seeds_of_their_own_is_loaded(tmp_path):
    seeds = itertools.count()

    def made():
        seed = next(seeds)
        return network(kernel_initializer=keras.initializers.GlorotUniform(seed=seed))

    model = keras_bdl.Ensemble(made, 2)
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        model.predict(X, verbose=0), copy.predict(X, verbose=0)
    )


def test_the_bootstrap_takes_several_outputs_and_weights_of_classes():
    inputs = keras.Input((5,))
    outputs = {name: layers.Dense(3, name=name)(inputs) for name in "ab"}
    model = keras_bdl.Ensemble(keras.Model(inputs, outputs), 2, "bootstrap")
    model.compile("sgd", {"a": LOSS, "b": LOSS})
    history = model.fit(X, {"a": Y, "b": Y}, validation_split=0.25, verbose=0).history
    assert np.isfinite(history["val_loss"]).all()
    weights, by_class = np.array([1.0, 2.0, 0.5]), {0: 1.0, 1: 2.0, 2: 0.5}
    models = [keras_bdl.Ensemble(network(), 2, "bootstrap", seed=3) for _ in range(2)]
    models[1].set_weights(models[0].get_weights())
    for m, options in zip(
        models, ({"class_weight": by_class}, {"sample_weight": weights[Y]})
    ):
        m.compile(keras.optimizers.SGD(0.1), LOSS)
        # Rows held out may be told by position too.
        m.fit(X, Y, 16, 2, 0, None, 0.25, shuffle=False, **options)
    for first, second in zip(models[0].get_weights(), models[1].get_weights()):
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_weights_of_classes_leave_the_rows_that_are_held_out():
    model = keras_bdl.Ensemble(network(), 2, "bootstrap")
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    history = model.fit(
        X, Y, validation_split=0.25, class_weight={0: 9.0, 1: 4.0}, verbose=0
    ).history
    plain = model.evaluate(X[36:], Y[36:], verbose=0)
    assert history["val_loss"][0] == pytest.approx(plain, rel=1e-4)


def test_frozen_layers_are_shared():
    base = keras.Sequential([keras.Input((5,)), layers.Dense(4, trainable=False)])
    plain = keras.Sequential([keras.Input((5,)), base, layers.Dense(3)])
    model = keras_bdl.Ensemble(plain, 3)
    assert set(model.posterior.shapes) == {"kernel_1", "bias_1"}
    before = base.get_weights()
    model.compile("adam", LOSS)
    model.fit(X, Y, verbose=0)
    for old, new in zip(before, model.member(2).layers[0].get_weights()):
        np.testing.assert_array_equal(old, new)
    assert not model.member(0).layers[0].trainable_weights


def test_mixed_precision_trains():
    if BACKEND == "torch":
        pytest.skip("PyTorch has no such products on a CPU in every version")
    keras.config.set_dtype_policy("mixed_float16")
    model = keras_bdl.Ensemble(network(), 2)
    model.compile("adam", LOSS)
    assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()
    assert all(s.dtype == "float32" for s in model.posterior.stacks().values())


def test_a_posterior_of_particles_needs_no_number_of_examples():
    plain = network()
    model = keras_bdl.Bayesian(plain, "all", posterior=Particles(2))
    first = {n: 0.0 * to_numpy(v) for n, v in model.bayesian.chosen.items()}
    model.bayesian.posterior.assign(1, first)
    model.compile(loss=LOSS)
    np.testing.assert_allclose(
        model.to_keras("sample", index=0).predict(X, verbose=0),
        plain.predict(X, verbose=0),
        atol=1e-6,
    )
    draws = keras_bdl.predict(model, X, return_samples=True, verbose=0)
    np.testing.assert_allclose(draws[1], 1 / 3, atol=1e-6)
    model.summary(print_fn=lambda line: None)
    assert np.isfinite(model.evaluate(X, Y, verbose=0))


def refused(make):
    return lambda: make(keras_bdl.Ensemble(network(), 2))


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: keras_bdl.Ensemble("network"), TypeError, "network"),
        (lambda: keras_bdl.Ensemble(lambda: 3), TypeError, "network"),
        (lambda: keras_bdl.Ensemble(network(), 0), ValueError, "size"),
        (lambda: keras_bdl.Ensemble(network(), 2, "depth"), ValueError, "diversity"),
        (lambda: keras_bdl.Ensemble(Bare(4)), ValueError, "built"),
        (lambda: keras_bdl.Ensemble(made_bare(), 2), ValueError, "get_config"),
        (
            lambda: keras_bdl.Ensemble(network(kernel_initializer="zeros"), 2),
            ValueError,
            "same weights",
        ),
        (refused(lambda m: m.to_keras()), ValueError, "no mean network"),
        (refused(lambda m: m.to_keras("mean", index=1)), ValueError, "beside `index`"),
        (refused(lambda m: m.member(2)), ValueError, "index"),
        (refused(keras_bdl.prior_from_posterior), ValueError, "cannot become"),
        (
            lambda: keras_bdl.to_keras(network(), "sample", index=1),
            ValueError,
            "Only an ensemble",
        ),
        (
            lambda: keras_bdl.VariationalDense(2, posterior=Particles(2)),
            ValueError,
            "whole model",
        ),
        (lambda: Particles(0), ValueError, "size"),
    ],
)
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=f"(?s){match}.*Received"):
        make()


def test_a_gradient_is_not_clipped_over_all_members():
    for wrap in (lambda optimizer: optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = wrap(keras.optimizers.Adam(global_clipnorm=1.0))
        model = keras_bdl.Ensemble(network(), 2)
        model.compile(optimizer, LOSS)
        with pytest.raises(ValueError, match="global_clipnorm.*Received"):
            model.fit(X, Y, verbose=0)
    model = keras_bdl.Ensemble(network(), 2, "bootstrap")
    model.compile("adam", LOSS)
    with pytest.raises(ValueError, match="arrays.*Received"):
        model.fit(((X, Y) for _ in range(2)), steps_per_epoch=1, verbose=0)
