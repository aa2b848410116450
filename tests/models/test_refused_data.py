"""What is no data at all is refused by every call of the model classes."""

import keras
import numpy as np
import pytest

import keras_bdl

pytestmark = pytest.mark.portable

X = np.random.default_rng(0).uniform(size=(8, 3)).astype("float32")
Y = np.arange(8) % 2


def few_labels():
    model = keras_bdl.SemiSupervisedVAE.dense(
        (3,), 2, num_classes=2, hidden=(4,), likelihood="gaussian"
    )
    model.compile("sgd")
    model.build((None, 3))
    return model


def normalizing():
    network = keras.Sequential([keras.Input((3,)), keras_bdl.VariationalDense(2)])
    model = keras_bdl.BayesianRegressor(network, normalize=True)
    model.compile("sgd")
    model.fit(X, X[:, 0], verbose=0)
    return model


def classifier():
    network = keras.Sequential([keras.Input((3,)), keras_bdl.VariationalDense(2)])
    model = keras_bdl.BayesianClassifier(network, num_examples=8)
    model.compile("sgd")
    return model


def vae():
    model = keras_bdl.VAE.dense((3,), 2, hidden=(4,), likelihood="gaussian")
    model.compile("sgd")
    model.build((None, 3))
    return model


INFINITE = np.where(np.arange(24).reshape(8, 3) == 4, np.inf, X)


@pytest.mark.parametrize(
    "make, route, args, match",
    [
        (classifier, "fit", (INFINITE, Y), "finite inputs"),
        (classifier, "train_on_batch", (INFINITE, Y), "finite inputs"),
        (classifier, "train_on_batch", ({1, 2}, Y), "`x` to be an array"),
        (classifier, "train_on_batch", (X[:5], Y), "equally many rows"),
        (classifier, "test_on_batch", (X, Y[:5]), "equally many rows"),
        (classifier, "train_on_batch", (X, "labels"), "`y` to be an array"),
        (normalizing, "train_on_batch", (X, 1.0), "`y` to be an array"),
        (normalizing, "test_on_batch", (X, Y, "w"), "`sample_weight` to be an array"),
        (normalizing, "fit", ({"a": X}, Y), "x to be one array"),
        (normalizing, "evaluate", (None, Y), "x to be one array"),
        (few_labels, "train_on_batch", (X, Y + 0.5), "integers from -1"),
        (few_labels, "test_on_batch", (X, Y + 5), "integers from -1"),
        (few_labels, "train_on_batch", (X, Y, -np.ones(8)), "sample weights"),
        (few_labels, "train_on_batch", (X, Y, np.ones((8, 2, 2))), "positions of x"),
        (few_labels, "evaluate", (X, Y, 4, 0, np.full(8, np.nan)), "sample weights"),
        (few_labels, "predict", (X[:, :2],), "as the model was built"),
        (vae, "predict", (X[:, :2],), "as the model was built"),
        (vae, "predict", (X.astype("complex64"),), "real numbers"),
        (vae, "predict", (None,), "one array"),
        (vae, "fit", (X[:0],), "x with rows"),
        (vae, "encode", ({1, 2},), "one array"),
        (vae, "decode", (np.full((8, 2), "a"),), "array of numbers"),
    ],
)
def test_what_is_no_data_is_refused_by_every_route(make, route, args, match):
    model = make()
    before = model.get_weights()
    with pytest.raises((TypeError, ValueError), match=f"{match}.*Received"):
        getattr(model, route)(*args)
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("x", [X[:, :2], X.astype("complex64"), [X, X]])
def test_the_last_layer_is_fitted_to_inputs_of_the_network(x):
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    network.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    with pytest.raises((TypeError, ValueError), match="Expected.*Received"):
        keras_bdl.fit_last_layer(network, x, Y, verbose=0)
