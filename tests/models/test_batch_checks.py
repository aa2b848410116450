"""What a likelihood cannot take is refused on every way into training."""

import keras
import numpy as np
import pytest

import keras_bdl

pytestmark = pytest.mark.portable

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 3)).astype("float32")
LABELS = RNG.integers(0, 3, 24)
TARGETS = X[:, :1] * 2.0


def classifier(**options):
    network = keras.Sequential([keras.Input((3,)), keras_bdl.VariationalDense(3)])
    model = keras_bdl.BayesianClassifier(network, 2, num_examples=24, **options)
    model.compile(keras.optimizers.Adam(0.1))
    return model


def regressor(**options):
    network = keras.Sequential([keras.Input((3,)), keras_bdl.VariationalDense(2)])
    model = keras_bdl.BayesianRegressor(
        network, num_samples=2, num_examples=24, **options
    )
    model.compile(keras.optimizers.Adam(0.1))
    return model


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return tuple(array[rows] for array in self.arrays)


def generator(*arrays):
    batches = Batches(*arrays)
    return (batches[index] for index in range(3))


def with_entry(array, value, dtype="float32"):
    array = array.astype(dtype)
    array.reshape(-1)[1] = value
    return array


# Arrays with something wrong in them, and what the error says.
WRONG = {
    "multi-hot": (classifier, {"y": np.ones((24, 3), "float32")}, "probabilities"),
    "fractional": (classifier, {"y": LABELS + np.float32(0.5)}, "whole|class prob"),
    "beyond": (
        classifier,
        {"y": with_entry(LABELS, 3, "int32")},
        "labels from 0|whole|class probabilities",
    ),
    "below": (
        classifier,
        {"y": with_entry(LABELS, -1, "int32")},
        "labels from 0|whole|class probabilities",
    ),
    "NaN label": (
        classifier,
        {"y": with_entry(LABELS, np.nan)},
        "finite|whole|class probabilities",
    ),
    "NaN target": (regressor, {"y": with_entry(TARGETS, np.nan)}, "finite targets"),
    "infinite": (regressor, {"y": with_entry(TARGETS, np.inf)}, "finite targets"),
    "NaN input": (classifier, {"x": with_entry(X, np.nan)}, "finite inputs"),
    "NaN weight": (
        regressor,
        {"y": TARGETS, "weights": with_entry(np.ones(24), np.nan)},
        "at least 0",
    ),
    "negative weight": (
        classifier,
        {"weights": with_entry(np.ones(24), -1.0)},
        "at least 0",
    ),
}
WRONG = {
    name: (make, {"x": X, "y": LABELS, "weights": np.ones(24), **arrays}, match)
    for name, (make, arrays, match) in WRONG.items()
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.every_backend
def test_arrays_are_refused_before_a_step(name):
    make, data, match = WRONG[name]
    model = make()
    x, y, weights = data["x"], data["y"], data["weights"].astype("float32")
    before = model.get_weights()
    for call in (
        lambda: model.fit(x, y, sample_weight=weights, verbose=0),
        lambda: model.evaluate(x, y, sample_weight=weights, verbose=0),
        lambda: model.train_on_batch(x, y, weights),
        lambda: model.test_on_batch(x, y, weights),
    ):
        with pytest.raises(ValueError, match=f"(?s)({match}).*Received"):
            call()
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "make, y",
    [
        (classifier, LABELS),
        pytest.param(regressor, TARGETS, marks=pytest.mark.every_backend),
    ],
)
def test_batches_are_refused_and_leave_finite_weights(make, y):
    model = make()
    for of_model, data, match in WRONG.values():
        if of_model is not make:
            continue
        arrays = data["x"], data["y"].astype("float32"), data["weights"]
        for call in (model.fit, model.evaluate):
            with pytest.raises(ValueError, match=f"(?s)({match}).*Received"):
                call(Batches(*arrays), verbose=0)
        assert all(np.isfinite(w).all() for w in model.get_weights())
    right = generator(X, y.astype("float32"), np.ones(24))
    assert np.isfinite(model.fit(right, verbose=0).history["loss"]).all()


def test_a_refused_batch_moves_no_weight():
    model = classifier()
    x = np.full_like(X, np.nan)
    before = model.network.get_weights()
    with pytest.raises(ValueError, match="finite inputs"):
        model.fit(Batches(x, LABELS), verbose=0)
    for old, new in zip(before, model.network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_wrong_validation_batches_are_refused():
    model = classifier()
    wrong = Batches(X, LABELS + 3)
    with pytest.raises(ValueError, match="whole labels.*Received"):
        model.fit(X, LABELS, validation_data=wrong, verbose=0)
    assert np.isfinite(model.evaluate(X, LABELS, verbose=0)).all()


def test_a_data_set_of_tensorflow_is_refused(only_tensorflow):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((X, np.ones((24, 3), "float32")))
    with pytest.raises(ValueError, match="probabilities.*Received"):
        classifier().fit(data.batch(8), verbose=0)


def test_a_vae_refuses_a_batch_that_fit_refuses():
    vae = keras_bdl.VAE.dense((3,), 1, hidden=(4,))
    vae.compile()
    for call in (vae.fit, vae.train_on_batch, vae.test_on_batch):
        for x, match in ((with_entry(X, np.nan), "finite"), (2.0 + X**2, "0 to 1")):
            with pytest.raises(ValueError, match=f"{match}.*Received"):
                call(x)


@pytest.mark.eager
def test_a_regressor_learns_its_scales_before_a_batch():
    model = regressor(normalize=True)
    with pytest.raises(ValueError, match="first `fit` takes them.*Received"):
        model.train_on_batch(X, TARGETS)
    model.fit(X, TARGETS, verbose=0)
    assert np.isfinite(model.train_on_batch(X, TARGETS)).all()


@pytest.mark.parametrize("make", [classifier, regressor])
def test_targets_must_be_there_and_be_numbers(make):
    model = make()
    for call in (
        lambda: model.fit(X, verbose=0),
        lambda: model.evaluate(X, verbose=0),
        lambda: model.train_on_batch(X),
        lambda: model.fit(Batches(X), verbose=0),
    ):
        with pytest.raises(ValueError, match="targets.*Received: y=None"):
            call()
    days = np.datetime64("2020-01-01") + np.arange(24)
    for y in (TARGETS[:, 0] + 1j, days, days - days[0]):
        with pytest.raises((TypeError, ValueError), match="of dtype [cdt<]"):
            model.fit(X, y, verbose=0)


# Weights of classes


def sequences(rank):
    x = np.random.default_rng(1).normal(size=(16, 5, 3)).astype("float32")
    y = np.random.default_rng(2).integers(0, 2, (16, 5))
    return (x, y) if rank == 2 else (x[:, 0], y[:, 0])


def loss_of_fit(x, y, **options):
    keras.utils.set_random_seed(0)
    layer = keras_bdl.VariationalDense(2, seed=3, name="dense")
    network = keras.Sequential([keras.Input(x.shape[1:]), layer])
    model = keras_bdl.BayesianClassifier(network, 2)
    model.compile("sgd")
    options = {"shuffle": False, "batch_size": 8, "verbose": 0, **options}
    history = model.fit(x, y, **options).history
    return [history[name][0] for name in history]


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.eager
def test_class_weights_are_weights_of_every_label(rank):
    x, y = sequences(rank)
    by_label = np.where(y == 1, 10.0, 1.0).astype("float32")
    right = loss_of_fit(x, y, sample_weight=by_label)
    for labels in (y, y[..., None], np.eye(2, dtype="float32")[y]):
        got = loss_of_fit(x, labels, class_weight={1: 10.0})
        np.testing.assert_allclose(got, right, rtol=1e-4)


@pytest.mark.eager
def test_class_weights_multiply_sample_weights_and_leave_validation_alone():
    x, y = sequences(2)
    rows = np.linspace(0.5, 2.0, 16).astype("float32")
    both = rows[:, None] * np.where(y == 1, 3.0, 1.0).astype("float32")
    right = loss_of_fit(x, y, sample_weight=both)
    got = loss_of_fit(x, y, class_weight={1: 3.0}, sample_weight=rows)
    np.testing.assert_allclose(got, right, rtol=1e-4)
    held_out = x[8:], y[8:]
    by_label = np.where(y[:8] == 1, 3.0, 1.0).astype("float32")
    right = loss_of_fit(x[:8], y[:8], sample_weight=by_label, validation_data=held_out)
    got = loss_of_fit(x, y, class_weight={1: 3.0}, validation_split=0.5)
    np.testing.assert_allclose(got, right, rtol=1e-4)


def test_class_weights_that_say_nothing_are_refused():
    x, y = sequences(2)
    with pytest.raises(ValueError, match="third part of each batch.*Received"):
        classifier().fit(Batches(X, LABELS), class_weight={0: 2.0}, verbose=0)
    for weights, error in (
        ({5: 1.0}, ValueError),
        ({0: -1.0}, ValueError),
        ([1], TypeError),
    ):
        with pytest.raises(error, match="class_weight.*Received"):
            loss_of_fit(x, y, class_weight=weights)
    with pytest.raises(ValueError, match="no classes.*Received: class_weight"):
        regressor().fit(X, TARGETS, class_weight={0: 2.0}, verbose=0)


# Data of several ranks


@pytest.mark.eager
def test_arrays_and_data_sets_of_the_same_targets_go_together(only_tensorflow):
    import tensorflow as tf

    def data(*arrays):
        return tf.data.Dataset.from_tensor_slices(arrays).batch(8)

    model = regressor()
    flat, weights = TARGETS[:, 0], np.ones(24, "float32")
    model.fit(X, flat, validation_data=data(X, flat), verbose=0)
    results = [
        model.evaluate(*arrays, verbose=0, return_dict=True)["nll"]
        for arrays in ((X, flat), (data(X, flat),), (X, TARGETS), (data(X, TARGETS),))
    ]
    np.testing.assert_allclose(results, results[0], rtol=1e-5)
    model.fit(data(X, flat, weights), verbose=0)
    model.fit(data(X, flat, weights[:, None]), verbose=0)

    model = classifier()
    one_hot = np.eye(3, dtype="float32")[LABELS]
    results = [
        model.evaluate(values, verbose=0, return_dict=True)["nll"]
        for y in (LABELS, LABELS[:, None], one_hot)
        for values in (data(X, y.astype("float32")),)
    ]
    results.append(model.evaluate(X, LABELS, verbose=0, return_dict=True)["nll"])
    np.testing.assert_allclose(results, results[0], rtol=1e-5)
    with pytest.raises(ValueError, match="Received"):
        model.evaluate(data(X, LABELS.astype("float32") + 7.0), verbose=0)


def test_log_likelihood_of_a_data_set():
    model = regressor()
    right = model.log_likelihood(X, TARGETS, seed=0, batch_size=8, verbose=0)
    got = model.log_likelihood(Batches(X, TARGETS), seed=0)
    np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="pairs of inputs and targets.*Received"):
        model.log_likelihood(Batches(X))
    with pytest.raises(TypeError, match="array with rows.*Received"):
        model.log_likelihood(generator(X, TARGETS))
