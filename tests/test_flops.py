"""`flops_report` of models of the user's own, whose layers it does not touch."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_bdl


class Held(keras.Model):
    """Layers as attributes, in lists and in dicts, and an early-exit block."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(5)
        self.others = [layers.Dense(5), {"convolution": layers.Conv1D(4, 2)}]
        self.block = keras_bdl.EarlyExitResBlock([layers.Dense(4) for _ in range(3)])

    def call(self, inputs):
        hidden = self.others[0](self.first(inputs))
        return self.block(ops.mean(self.others[1]["convolution"](hidden), axis=1))


class Closed(keras.Model):
    """A layer that a function closes over."""

    def __init__(self):
        super().__init__()
        dense = self.dense = layers.Dense(4)
        self.function = lambda x: dense(x)

    def call(self, inputs):
        return self.function(inputs)


@pytest.fixture
def x(rng):
    return rng.normal(size=(4, 6, 8)).astype("float32")


def test_layers_in_attributes_lists_and_dicts(x):
    report = keras_bdl.flops_report(Held(), x, verbose=0)
    dense, convolution, unit, head = 6 * 8 * 5 + 6 * 5 * 5, 5 * 2 * 5 * 4, 4 * 4, 4
    counts = [row["multiply_adds"] for row in report.rows]
    assert counts == [dense + convolution, unit + head, unit + head, unit]
    assert report.not_counted == []


def test_calls_out_of_reach_are_named(x):
    model = Closed()
    report = keras_bdl.flops_report(model, x, verbose=0)
    assert report.not_counted == [model.dense.name]


def test_the_model_is_not_touched(x):
    inputs = keras.Input((6, 8))
    attended = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    outputs = layers.TimeDistributed(layers.Dense(3))(attended)
    model = keras.Model(inputs, outputs)
    before = {layer.name: dict(vars(layer)) for layer in model.layers}
    expected = model.predict(x, verbose=0)
    report = keras_bdl.flops_report(model, x, verbose=0)
    projection = 6 * 8 * 8  # of queries, keys, values and outputs
    assert report.full == 4 * projection + 6 * 8 * 3
    assert report.not_counted == []
    assert {layer.name: dict(vars(layer)).keys() for layer in model.layers} == {
        name: attributes.keys() for name, attributes in before.items()
    }
    assert all("call" not in vars(layer) for layer in model.layers)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)


@pytest.mark.parametrize("is_bayesian", [False, True])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_transposed_and_separable_convolutions(is_bayesian, data_format):
    if keras.backend.backend() == "tensorflow" and data_format == "channels_first":
        pytest.skip("TensorFlow convolves channels_first on a GPU alone")
    shape = (5, 6, 3) if data_format == "channels_last" else (3, 5, 6)
    inputs = keras.Input(shape)
    options = {"padding": "same", "data_format": data_format}
    x = layers.Conv2DTranspose(4, 3, strides=2, **options)(inputs)
    x = layers.SeparableConv2D(7, 3, strides=3, depth_multiplier=2, **options)(x)
    model = keras.Model(inputs, x)
    if is_bayesian:
        model = keras_bdl.to_bayesian(model, num_examples=10)
    # Each of 5 x 6 inputs is multiplied by a kernel (3, 3, 4, 3). Of 10 x 12 outputs
    # the separable convolution keeps 4 x 4: 3 x 3 for each of 4 x 2 channels, and a
    # product of these with 7 filters.
    transposed = 5 * 6 * (3 * 3 * 4 * 3)
    separable = 4 * 4 * (3 * 3 * 4 * 2 + 4 * 2 * 7)
    report = keras_bdl.flops_report(model, np.zeros((1, *shape)), verbose=0)
    assert report.full == transposed + separable
    assert report.not_counted == []
