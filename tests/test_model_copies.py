"""What copies of a model keep: vocabularies, functions, nothing of the original."""

import gc
import weakref

import keras
import numpy as np
import pytest
from contract import to_numpy
from keras import layers

import keras_bdl

pytestmark = pytest.mark.portable


def load_saved(model, folder):
    keras_bdl.save_sparse(model, folder / "small.npz", dtype="float32")
    return keras_bdl.load_sparse(folder / "small.npz")


COPIES = {
    "to_bayesian": lambda model, _: keras_bdl.to_bayesian(model, num_examples=10),
    "to_keras": lambda model, _: keras_bdl.to_keras(model),
    "compress": lambda model, _: keras_bdl.compress(model),
    "load_sparse": load_saved,
}


@pytest.fixture(params=COPIES)
def copy(request, tmp_path):
    return lambda model: COPIES[request.param](model, tmp_path)


def text_model(vectorization, dtype="string"):
    inputs = keras.Input((1,), dtype=dtype)
    features = vectorization(inputs)
    if "int" in str(features.dtype):
        features = layers.Flatten()(layers.Embedding(9, 4)(features))
    return keras.Model(inputs, layers.Dense(3)(features))


WORDS = [["red"], ["green"], ["blue"], ["blue"], ["green green"]]


@pytest.mark.parametrize(
    "vectorization",
    [
        lambda: layers.StringLookup(),
        lambda: layers.StringLookup(vocabulary=["blue", "red"]),
        lambda: layers.StringLookup(output_mode="one_hot"),
        lambda: layers.TextVectorization(output_sequence_length=2),
    ],
)
def test_vocabularies_go_along(vectorization, copy, only_tensorflow):
    layer, words = vectorization(), keras.ops.convert_to_tensor(WORDS)
    if not getattr(layer, "input_vocabulary", None):
        layer.adapt(words)
    model = text_model(layer)
    expected = to_numpy(model(words))
    assert len(np.unique(expected.round(5), axis=0)) > 2
    np.testing.assert_allclose(to_numpy(copy(model)(words)), expected, atol=1e-5)


def test_functions_without_a_name_go_along():
    scale = 3.0
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Lambda(lambda x: scale * x),
            layers.Dense(2),
        ]
    )
    x = np.ones((2, 4), "float32")
    expected = to_numpy(model(x))
    for name in ("to_bayesian", "to_keras", "compress"):
        result = COPIES[name](model, None)
        np.testing.assert_allclose(to_numpy(result(x)), expected, atol=1e-5)


@pytest.mark.every_backend
def test_nothing_is_shared_with_the_original(copy):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.ZeroPadding2D(),
            keras_bdl.SparseVDConv2D(4, 3, activation="relu"),
            layers.GlobalMaxPooling2D(),
            layers.Activation("tanh"),
            layers.Dense(2),
        ]
    )
    result = copy(model)
    mine = {id(x) for x in keras_bdl.core.finding.flatten_layers(model)}
    assert not mine & {id(x) for x in keras_bdl.core.finding.flatten_layers(result)}
    alive = weakref.ref(result)
    del result
    gc.collect()
    assert alive() is None


class Shifted(keras_bdl.VariationalDense):
    """A user's layer with another forward pass."""

    def call_mean(self, inputs):
        return 1.0 + super().call_mean(inputs)


class ShiftedWithCounterpart(Shifted):
    def to_keras(self, weights="mean", seed=None):
        plain = super().to_keras(weights, seed)
        plain.bias.assign(plain.bias + 1.0)
        return plain


@pytest.mark.parametrize("convert", [keras_bdl.to_keras, keras_bdl.compress])
def test_layers_of_the_users_own(convert):
    model = keras.Sequential([keras.Input((3,)), Shifted(2, name="shifted")])
    with pytest.raises(ValueError, match="shifted.*to_keras.*Received"):
        convert(model)
    model = keras.Sequential([keras.Input((3,)), ShiftedWithCounterpart(2)])
    x = np.ones((2, 3), "float32")
    plain = convert(model)
    np.testing.assert_allclose(to_numpy(plain(x)), to_numpy(model(x)), atol=1e-6)
