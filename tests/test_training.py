"""Reading the number of examples off the data, and setting it."""

import keras
import numpy as np
import pytest

import keras_bdl
from keras_bdl.training import data, num_examples

pytestmark = pytest.mark.portable


def model(**options):
    return keras.Sequential(
        [keras.Input((3,)), keras_bdl.VariationalDense(2, **options)]
    )


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.zeros((5, 3), "float32"), np.zeros((5,), "int32")


def test_arrays_count_rows_after_the_split():
    x = np.zeros((103, 3))
    assert num_examples.infer_num_examples(x) == 103
    assert num_examples.infer_num_examples({"a": x, "b": x}) == 103
    # Keras keeps floor(103 * .8) = 82 rows.
    assert num_examples.infer_num_examples(x, validation_split=0.2) == 82
    assert num_examples.infer_num_examples(x, None, 0.2, validation_data=(x, x)) == 103


def test_the_split_is_that_of_keras():
    class Count(keras.callbacks.Callback):
        rows = 0

        def on_train_batch_end(self, batch, logs=None):
            self.rows += 1

    x, y = np.zeros((103, 3), "float32"), np.zeros((103, 2), "float32")
    counter = Count()
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    net.compile("sgd", "mse")
    net.fit(x, y, batch_size=1, validation_split=0.2, verbose=0, callbacks=[counter])
    assert counter.rows == num_examples.infer_num_examples(x, validation_split=0.2)


def test_tf_data_is_counted_in_rows_not_batches():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((np.zeros((21, 3)), np.zeros(21)))
    assert num_examples.infer_num_examples(data.batch(8)) == 21
    filtered = data.filter(lambda x, y: y < 1).batch(8)  # unknown cardinality
    assert num_examples.infer_num_examples(filtered) == 21
    assert num_examples.infer_num_examples(data.repeat(2).batch(8)) == 42


def test_endless_tf_data_warns_with_the_number():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(np.zeros((21, 3))).batch(7).repeat()
    with pytest.warns(UserWarning, match="35"):
        assert num_examples.infer_num_examples(data, steps_per_epoch=5) == 35
    assert num_examples.infer_num_examples(data) is None


def test_pydataset_warns_with_the_number():
    with pytest.warns(UserWarning, match="20"):
        assert num_examples.infer_num_examples(Batches(workers=1)) == 20


def test_a_generator_is_unknown():
    assert num_examples.infer_num_examples(iter([1])) is None


def test_set_num_examples_reaches_nested_layers_and_config():
    outer = keras.Sequential([keras.Input((3,)), model(), keras.layers.Dense(1)])
    assert keras_bdl.set_num_examples(outer, 77) is outer
    layer = outer.layers[0].layers[0]
    assert layer.num_examples == 77
    assert layer.get_config()["num_examples"] == 77


def test_an_inferred_number_never_overrides_and_is_not_in_the_config():
    layer = model().layers[0]
    layer.set_num_examples(10, inferred=True)
    layer.set_num_examples(20, inferred=True)
    assert float(layer._num_examples.value) == 20
    assert layer.get_config()["num_examples"] is None
    layer.set_num_examples(30)
    layer.set_num_examples(40, inferred=True)
    assert float(layer._num_examples.value) == 30


@pytest.mark.parametrize("value", [0, -1])
def test_set_num_examples_refuses_small_numbers(value):
    with pytest.raises(ValueError, match="num_examples.*Received"):
        keras_bdl.set_num_examples(model(), value)


def test_set_num_examples_refuses_a_plain_model():
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="has none.*Received"):
        keras_bdl.set_num_examples(plain, 3)


def test_a_bayesian_layer_in_a_recurrent_cell_is_refused():
    class Cell(keras.layers.Layer):
        state_size = 2

        def __init__(self):
            super().__init__()
            self.inner = keras_bdl.VariationalDense(2)

        def build(self, input_shape):
            self.inner.build(input_shape)

        def call(self, inputs, states):
            outputs = self.inner(inputs) + states[0]
            return outputs, [outputs]

    net = keras.Sequential([keras.Input((4, 3)), keras.layers.RNN(Cell())])
    with pytest.raises(ValueError, match="TimeDistributed.*Received"):
        keras_bdl.set_num_examples(net, 5)


def test_set_weights_carries_weights_and_nothing_else():
    def make(num_examples, kl_weight=1.0):
        layer = keras_bdl.VariationalDense(
            2, num_examples=num_examples, kl_weight=kl_weight
        )
        return keras.Sequential([keras.Input((3,)), layer])

    model = make(100)
    for other in (make(60_000, 0.5), make(None)):
        model.set_weights(other.get_weights())
        layer = model.layers[-1]
        assert float(layer._num_examples) == layer.num_examples == 100
        assert float(layer.kl_weight) == 1.0
        np.testing.assert_array_equal(layer.kernel, other.layers[-1].kernel)


def test_float64_models_train():
    keras.config.set_dtype_policy("float64")
    layer = keras_bdl.VariationalDense(2, num_examples=8)
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("sgd", "mse")
    model.fit(np.ones((8, 3)), np.ones((8, 2)), verbose=0)
    assert np.isfinite(model.evaluate(np.ones((8, 3)), np.ones((8, 2)), verbose=0))


def test_all_readers_take_the_rows_that_keras_trains_on():
    x = np.zeros((10, 4), "float32")
    x[7:] = 1.0  # what a reader of eight rows would see
    split = {"validation_split": 0.25}
    seen = []

    class Rows(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(batch)

    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    plain.compile("sgd", "mse")
    plain.fit(x, x[:, :1], batch_size=1, callbacks=[Rows()], verbose=0, **split)
    assert len(seen) == 7
    assert num_examples.infer_num_examples(x, **split) == 7
    batches = list(data.training_batches(x, x, **split))
    assert [len(part) for part in batches[0]] == [7, 7]
    vae = keras_bdl.VAE.dense((4,), 2, hidden=(3,))
    vae.compile(keras.optimizers.SGD(0.0))
    vae.fit(x, verbose=0, **split)
    last = [x for x in vae.decoder.layers if isinstance(x, keras.layers.Dense)][-1]
    bias = keras.ops.convert_to_numpy(last.bias)
    np.testing.assert_allclose(bias, np.log(1e-3 / (1.0 - 1e-3)), rtol=1e-4)
