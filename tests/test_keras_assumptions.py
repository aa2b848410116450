"""Facts about Keras on which the design rests, seen on Keras 3.15.

No keras_bdl here: where a Keras upgrade breaks the library, it fails here first.
"""

import pathlib
import tempfile
import textwrap

import keras
import numpy as np
import pytest
from contract import to_numpy
from keras import ops
from test_distribution import run

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.filterwarnings("ignore:The model does not have any trainable")

TRACED = BACKEND in ("tensorflow", "jax")  # torch runs eagerly
X = np.arange(12, dtype="float32").reshape(4, 3) / 10


class Wrapper(keras.layers.Layer):
    """A custom layer with a layer inside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)


def functional(*layers):
    inputs = keras.Input((3,))
    outputs = inputs
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def compile_without_loss(model):
    """Compiled so that the loss is what `add_loss` and regularizers add."""
    zero = lambda y_true, y_pred: 0.0 * ops.sum(y_pred, axis=-1)  # noqa: E731
    model.compile(keras.optimizers.SGD(0.0), zero)
    return model


def fitted_loss(model, x=X):
    history = model.fit(x, np.zeros((4, 1)), batch_size=4, verbose=0)
    return history.history["loss"][0]


# --- Finding layers ----------------------------------------------------------


def test_flatten_layers_sees_inside_custom_layers_and_layers_does_not():
    inner, nested = keras.layers.Dense(2), keras.layers.Dense(3)
    model = functional(Wrapper(Wrapper(nested)), inner)
    assert not any(layer is nested for layer in model.layers)
    found = list(model._flatten_layers())
    assert found[0] is model
    assert [sum(layer is seen for seen in found) for layer in (inner, nested)] == [1, 1]


# --- Losses ------------------------------------------------------------------


def refuse(_):
    raise ValueError("number of examples unknown")


def refusing_model():
    model = compile_without_loss(functional(keras.layers.Dense(1)))
    model.layers[-1].kernel.regularizer = refuse
    return model


@pytest.mark.parametrize("read", ["losses", "fit", "evaluate"])
def test_a_regularizer_is_called_when_losses_are_read_and_not_by_predict(read):
    model = refusing_model()
    model.predict(X, verbose=0)
    model(X, training=True)
    with pytest.raises(ValueError, match="number of examples unknown"):
        if read == "losses":
            assert model.losses
        elif read == "fit":
            fitted_loss(model)
        else:
            model.evaluate(X, np.zeros((4, 1)), verbose=0)
    model.layers[-1].kernel.regularizer = None
    assert fitted_loss(model) == 0.0


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX takes the variables' values")
def test_an_error_in_a_jax_train_step_loses_the_weights():
    """The first error comes before, while Keras builds the loss; the second does not.

    If this fails, Keras puts the values back, and a second refusal does no harm.
    """
    model = refusing_model()
    for _ in range(2):
        with pytest.raises(ValueError, match="number of examples unknown"):
            fitted_loss(model)
    with pytest.raises(TypeError, match="NoneType"):
        model.predict(X, verbose=0)


class Plain(keras.layers.Layer):
    """Adds 1 to the loss in every call."""

    def call(self, inputs):
        self.add_loss(ops.convert_to_tensor(1.0))
        return inputs


class OnceTerm(keras.layers.Layer):
    def call(self, value):
        if not self.losses:
            self.add_loss(value)
        return value


class Guarded(keras.layers.Layer):
    """Adds 1 through a layer that does so once per forward pass."""

    def __init__(self):
        super().__init__()
        self.term = OnceTerm()

    def call(self, inputs):
        self.term(ops.convert_to_tensor(1.0))
        return inputs


@pytest.mark.parametrize("cls", [Plain, Guarded])
def test_only_a_guarded_loss_counts_once_in_a_layer_called_twice(cls):
    inputs, layer = keras.Input((3,)), cls()
    outputs = ops.sum(layer(inputs) + layer(2.0 * inputs), axis=-1, keepdims=True)
    model = compile_without_loss(keras.Model(inputs, outputs))
    # On JAX one of the two terms is lost.
    twice = 1.0 if cls is Guarded or BACKEND == "jax" else 2.0
    for _ in range(2):  # the second time on the cached function
        assert fitted_loss(model) == twice
        assert model.evaluate(X, np.zeros((4, 1)), verbose=0) == twice


# --- Traced functions --------------------------------------------------------


class Switch(keras.layers.Layer):
    """Adds a Python attribute and a variable to its inputs."""

    def __init__(self):
        super().__init__()
        self.attribute = 0.0
        self.variable = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        return inputs + self.attribute + self.variable


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_a_cached_predict_ignores_what_python_sets_around_it(first):
    layer = Switch()
    model = functional(layer)
    layer.attribute = first
    np.testing.assert_allclose(model.predict(X, verbose=0), X + first)
    layer.attribute = 1.0 - first
    seen = first if TRACED else 1.0 - first
    np.testing.assert_allclose(model.predict(X, verbose=0), X + seen)
    layer.variable.assign(5.0)  # a variable is always read
    np.testing.assert_allclose(model.predict(X, verbose=0), X + seen + 5.0)


def test_loops_take_closures_over_tensors():
    class Loops(keras.layers.Layer):
        def call(self, inputs):
            mapped = ops.map(lambda i: inputs * i, ops.arange(3, dtype="float32"))
            looped = ops.fori_loop(
                0,
                3,
                lambda i, total: total + inputs * ops.cast(i, "float32"),
                ops.zeros_like(inputs),
            )
            return ops.sum(mapped, axis=0) + 10.0 * looped

    np.testing.assert_allclose(Loops()(X), 33.0 * X, rtol=1e-6)
    model = functional(Loops())
    np.testing.assert_allclose(model.predict(X, verbose=0), 33.0 * X, rtol=1e-6)


# --- Rewiring a graph --------------------------------------------------------


def test_clone_model_rewires_the_same_layers_and_leaves_the_original(tmp_path):
    first, second = keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(2)
    model = functional(first, second)
    expected = model.predict(X, verbose=0)
    calls = []

    def call(layer, *args, **kwargs):
        calls.append(layer)
        outputs = layer(*args, **kwargs)
        return ops.multiply(outputs, 2.0) if layer is first else outputs

    rewired = keras.models.clone_model(
        model, clone_function=lambda layer: layer, call_function=call
    )
    assert any(layer is first for layer in calls)
    assert any(layer is first for layer in rewired.layers)
    assert any(layer is second for layer in rewired.layers)
    hidden = 2.0 * np.tanh(X @ to_numpy(first.kernel) + to_numpy(first.bias))
    doubled = hidden @ to_numpy(second.kernel) + to_numpy(second.bias)
    np.testing.assert_allclose(rewired.predict(X, verbose=0), doubled, atol=1e-6)

    np.testing.assert_array_equal(model.predict(X, verbose=0), expected)
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(copy.predict(X, verbose=0), expected, atol=1e-6)
    assert len(copy.layers) == 3


def test_a_model_may_start_at_intermediate_tensors():
    inputs = keras.Input((3,))
    left, right = keras.layers.Dense(3)(inputs), keras.layers.Dense(3)(inputs)
    outputs = left * right + 1.0
    suffix = keras.Model([left, right], outputs)
    a, b = X + 1.0, X - 1.0
    np.testing.assert_allclose(suffix.predict([a, b], verbose=0), a * b + 1, rtol=1e-5)
    prefix = keras.Model(inputs, [left, right])
    whole = keras.Model(inputs, outputs)
    np.testing.assert_allclose(
        to_numpy(suffix(prefix(X))), to_numpy(whole(X)), atol=1e-6
    )


def test_an_instance_attribute_call_is_what_a_layer_runs():
    layer = keras.layers.Dropout(0.5)
    object.__setattr__(layer, "call", lambda inputs, training=None: inputs + 7.0)
    np.testing.assert_allclose(layer(X), X + 7.0)
    object.__delattr__(layer, "call")
    np.testing.assert_allclose(layer(X), X)


# --- Random numbers ----------------------------------------------------------


def test_saved_models_do_not_hold_the_state_of_seed_generators(tmp_path):
    dropout = keras.layers.Dropout(0.5, seed=3)
    model = functional(dropout)
    start = to_numpy(dropout.seed_generator.state)
    model(X, training=True)
    assert not np.array_equal(start, to_numpy(dropout.seed_generator.state))
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    state = to_numpy(copy.layers[-1].seed_generator.state)
    np.testing.assert_array_equal(state, start)


@pytest.mark.skipif(BACKEND != "torch", reason="only torch adds seed and counter up")
def test_neighbouring_seeds_collide_on_torch():
    zero, one = keras.random.SeedGenerator(0), keras.random.SeedGenerator(1)
    keras.random.normal((5,), seed=zero)
    second_of_zero = to_numpy(keras.random.normal((5,), seed=zero))
    first_of_one = to_numpy(keras.random.normal((5,), seed=one))
    np.testing.assert_array_equal(second_of_zero, first_of_one)


@pytest.mark.skipif(BACKEND != "jax", reason="elsewhere a loop may assign variables")
def test_a_seed_generator_cannot_draw_in_a_loop_on_jax():
    generator = keras.random.SeedGenerator(0)
    before = to_numpy(generator.state)
    with pytest.raises(Exception, match="(?i)leak|tracer|side.effect"):
        ops.map(lambda i: i + keras.random.normal((), seed=generator), ops.arange(3.0))
        to_numpy(generator.state)
    generator.state.assign(before)


# --- Layers that ours subclass -----------------------------------------------


def test_causal_conv1d_is_wrong_through_convolution_op_and_right_if_padded():
    x = np.random.default_rng(0).normal(size=(2, 7, 3)).astype("float32")
    layer = keras.layers.Conv1D(4, 3, dilation_rate=2, padding="causal", use_bias=False)
    expected = to_numpy(layer(x))
    if BACKEND == "torch":  # takes it for "valid", without a word
        assert (
            layer.convolution_op(ops.convert_to_tensor(x), layer.kernel).shape[1] == 3
        )
    else:
        with pytest.raises(Exception, match="(?i)padding"):
            layer.convolution_op(x, layer.kernel)
    padded = np.pad(x, [(0, 0), (4, 0), (0, 0)])
    outputs = ops.conv(padded, layer.kernel, padding="valid", dilation_rate=2)
    np.testing.assert_allclose(to_numpy(outputs), expected, atol=1e-5)


def test_dense_saves_kernel_and_bias_alone():
    class Wider(keras.layers.Dense):
        def build(self, input_shape):
            super().build(input_shape)
            self.extra = self.add_weight(name="extra", shape=())

    layer = Wider(2)
    layer.build((None, 3))
    store = {}
    layer.save_own_variables(store)
    assert len(layer.weights) == 3 and len(store) == 2


def test_layers_make_their_variables_through_add_weight():
    class Kept(keras.layers.Dense):
        def add_weight(self, *args, **kwargs):
            kwargs["autocast"] = False
            return super().add_weight(*args, **kwargs)

    layer = Kept(2, dtype="mixed_bfloat16")
    layer.build((None, 3))
    seen = []
    object.__setattr__(
        layer, "call", lambda x: seen.append(ops.convert_to_tensor(layer.kernel)) or x
    )
    layer(X)
    assert keras.backend.standardize_dtype(seen[0].dtype) == "float32"


# --- Several processes --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
def test_fit_of_a_plain_dense_fails_in_a_multi_worker_strategy():
    script = """
        import json, os, sys
        rank, *ports = map(int, sys.argv[2:])
        workers = [f"127.0.0.1:{port}" for port in ports]
        os.environ["TF_CONFIG"] = json.dumps(
            {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
        )
        import keras, numpy as np, tensorflow as tf
        with tf.distribute.MultiWorkerMirroredStrategy().scope():
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
        try:
            model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)
        except ValueError as error:
            print(json.dumps("PerReplica" in str(error)))
        else:
            print(json.dumps(False))
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "multi_worker.py"
        path.write_text(textwrap.dedent(script))
        assert run(path, "fit", 2) == [True, True]
