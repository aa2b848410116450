"""`compress` and `sparsity_report`: equal outputs, smaller graphs, honest counts."""

import functools
import json
import pathlib
import tempfile
import warnings

import keras
import numpy as np
import pytest
from contract import BACKEND, to_numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

import keras_bdl
from keras_bdl import SparseVDConv1D, SparseVDConv2D, SparseVDDense, VariationalDense

pytestmark = pytest.mark.portable

ALIVE, PRUNED = -6.0, 6.0  # log standard deviations


def sparsify(model, rng, share=0.6, dead_units=0.3):
    """Prunes single weights and whole units of every sparse layer; random biases."""
    for layer in keras_bdl.core.stochastic.stochastic_layers(model):
        if not hasattr(layer, "sparsity"):
            continue
        shape = layer.kernel.shape
        pruned = rng.random(shape) < share
        pruned |= rng.random(shape[-1]) < dead_units
        pruned |= (rng.random(shape[-2]) < dead_units)[:, None]
        layer.kernel.assign(rng.normal(size=shape))
        layer.kernel_log_stddev.assign(np.where(pruned, PRUNED, ALIVE))
        if layer.bias is not None:
            bias = rng.normal(size=shape[-1])
            layer.bias.assign(np.where(rng.random(shape[-1]) < 0.5, bias, 0.0))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights(
                [rng.uniform(0.5, 1.5, size=w.shape) for w in layer.weights]
            )
    return model


def assert_equal_outputs(model, small, rng, rows=5):
    shapes = [tensor.shape[1:] for tensor in model.inputs]
    x = [rng.normal(size=(rows, *shape)).astype("float32") for shape in shapes]
    x = x[0] if len(x) == 1 else x
    expected, got = model(x, training=False), small(x, training=False)
    for a, b in zip(keras.tree.flatten(expected), keras.tree.flatten(got)):
        a, b = to_numpy(a), to_numpy(b)
        np.testing.assert_allclose(b, a, atol=2e-5 * max(1.0, np.abs(a).max()))


def num_weights(model):
    return sum(int(np.prod(w.shape)) for w in model.weights)


def small_lenet(rng):
    return sparsify(
        keras.Sequential(
            [
                keras.Input((12, 12, 1)),
                SparseVDConv2D(6, 3, activation="relu"),
                layers.MaxPooling2D(),
                SparseVDConv2D(8, 3, activation="relu"),
                layers.Flatten(),
                layers.Dropout(0.3),
                SparseVDDense(20, activation="relu"),
                SparseVDDense(5),
            ]
        ),
        rng,
    )


def test_outputs_are_equal_and_units_are_gone(rng):
    model = small_lenet(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        small = keras_bdl.compress(model)
    assert_equal_outputs(model, small, rng)
    assert num_weights(small) < 0.5 * num_weights(model)
    assert "keras_bdl" not in small.to_json()
    assert small.input_shape == model.input_shape
    assert small.output_shape == model.output_shape


# Random graphs


def _block(draw, x):
    """One random step of a graph on a tensor (n, h, w, c) or (n, c)."""
    spatial = len(x.shape) == 4
    activation = draw(st.sampled_from(["relu", "tanh", None, "sigmoid"]))
    units = draw(st.integers(1, 6))
    bias = draw(st.booleans())
    kind = draw(
        st.sampled_from(
            ["linear", "linear", "linear", "norm", "residual", "concatenate", "pool"]
        )
    )
    if kind == "linear" and spatial:
        return SparseVDConv2D(
            units,
            draw(st.sampled_from([1, 2, 3])),
            padding=draw(st.sampled_from(["valid", "same"])),
            activation=activation,
            use_bias=bias,
        )(x)
    if kind == "linear":
        return SparseVDDense(units, activation=activation, use_bias=bias)(x)
    if kind == "norm":
        return layers.ReLU()(layers.BatchNormalization()(x))
    if kind in ("residual", "concatenate"):
        width = x.shape[-1]
        if spatial:
            branch = SparseVDConv2D(width, 3, padding="same", activation=activation)(x)
        else:
            branch = SparseVDDense(width, activation=activation)(x)
        merge = layers.Add() if kind == "residual" else layers.Concatenate()
        return merge([x, branch])
    if spatial:
        return layers.MaxPooling2D(2, padding="same")(x)
    return layers.Activation("elu")(x)


@st.composite
def graphs(draw):
    x = inputs = keras.Input(draw(st.sampled_from([(8, 7, 2), (6,)])))
    for _ in range(draw(st.integers(1, 5))):
        if len(x.shape) == 4 and min(x.shape[1:3]) < 3:
            break
        x = _block(draw, x)
    if len(x.shape) == 4:
        pool = draw(st.sampled_from([layers.Flatten, layers.GlobalAveragePooling2D]))
        x = pool()(x)
    outputs = [SparseVDDense(3)(x)]
    if draw(st.booleans()):
        outputs.append(layers.Softmax()(SparseVDDense(2)(x)))
    return keras.Model(inputs, outputs), draw(st.integers(0, 2**31 - 1))


def settings_of(max_examples):
    return settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@settings_of(4)
@given(graphs())
def test_random_graphs_keep_their_outputs(case):
    check_random_graph(*case)


@pytest.mark.slow
@settings_of(50)
@given(graphs())
def test_more_random_graphs_keep_their_outputs(case):
    check_random_graph(*case)


def check_random_graph(model, seed):
    rng = np.random.default_rng(seed)
    sparsify(model, rng)
    small = keras_bdl.compress(model)
    assert_equal_outputs(model, small, rng)
    kernels = [w for w in small.weights if w.name == "kernel"]
    report = keras_bdl.sparsity_report(model)
    assert sum(np.count_nonzero(to_numpy(w)) for w in kernels) == report.non_zero
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "small.npz"
        keras_bdl.save_sparse(model, path, dtype="float32")
        assert_equal_outputs(model, keras_bdl.load_sparse(path), rng)
    keras.backend.clear_session()


# What stays, what goes


def test_a_constant_unit_is_folded_into_the_next_bias(rng):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            SparseVDDense(4, activation="sigmoid"),
            SparseVDDense(2),
        ]
    )
    sparsify(model, rng, share=0.0, dead_units=0.0)
    first = model.layers[0]
    log_stddev = np.full((3, 4), ALIVE)
    log_stddev[:, 1] = PRUNED  # unit 1 says sigmoid(bias) whatever comes in
    first.kernel_log_stddev.assign(log_stddev)
    first.bias.assign([0.0, 2.0, 0.0, 0.0])
    small = keras_bdl.compress(model)
    assert small.layers[1].units == 3
    assert_equal_outputs(model, small, rng)
    folded = to_numpy(small.layers[2].bias) - to_numpy(model.layers[1].bias)
    expected = to_numpy(model.layers[1].kernel)[1] / (1.0 + np.exp(-2.0))
    np.testing.assert_allclose(folded, expected, rtol=1e-5)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_constant_filter_under_zero_padding_is_kept(padding, rng):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            SparseVDConv2D(2, 3, padding="same"),
            SparseVDConv2D(3, 3, padding=padding),
        ]
    )
    sparsify(model, rng, share=0.0, dead_units=0.0)
    first = model.layers[0]
    first.kernel_log_stddev.assign(np.full(first.kernel.shape, [ALIVE, PRUNED]))
    first.bias.assign([0.5, 1.5])
    small = keras_bdl.compress(model)
    assert_equal_outputs(model, small, rng)
    assert small.layers[1].filters == (1 if padding == "valid" else 2)


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_layer_that_dies_completely(dead, rng):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            SparseVDDense(5, activation="relu"),
            SparseVDDense(6, activation="tanh"),
            SparseVDDense(2),
        ]
    )
    sparsify(model, rng, share=0.0, dead_units=0.0)
    layer = model.layers[dead]
    layer.kernel_log_stddev.assign(np.full(layer.kernel.shape, PRUNED))
    small = keras_bdl.compress(model)
    assert_equal_outputs(model, small, rng)
    assert num_weights(small) < num_weights(model) / 2
    report = keras_bdl.sparsity_report(model)
    row = report.rows[dead]
    assert row["non_zero"] == 0 and row["factor"] == float("inf")
    assert row["dead_outputs"] == layer.units and report.non_zero == 0


def test_a_layer_called_twice_stays_whole_and_is_named(rng):
    first, shared = SparseVDDense(4, activation="relu"), SparseVDDense(4, name="twice")
    inputs = keras.Input((3,))
    outputs = SparseVDDense(2)(shared(shared(first(inputs))))
    model = sparsify(keras.Model(inputs, outputs), rng)
    with pytest.warns(UserWarning, match="whole.*twice"):
        small = keras_bdl.compress(model)
    assert_equal_outputs(model, small, rng)


def test_unknown_layers_stay_whole(rng):
    inputs = keras.Input((6, 3))
    x = SparseVDConv1D(5, 3, activation="relu")(inputs)
    x = layers.LayerNormalization(name="normal")(x)
    x = keras.ops.sin(x)
    x = layers.GlobalMaxPooling1D()(x)
    model = sparsify(keras.Model(inputs, SparseVDDense(2)(x)), rng)
    with pytest.warns(UserWarning, match="normal"):
        small = keras_bdl.compress(model)
    assert_equal_outputs(model, small, rng)


def test_nested_models_are_compressed_on_their_own(rng):
    block = keras.Sequential(
        [
            keras.Input((4,)),
            SparseVDDense(8, activation="relu"),
            SparseVDDense(4, activation="relu"),
        ],
        name="block",
    )
    inputs = keras.Input((3,))
    outputs = SparseVDDense(2)(block(SparseVDDense(4)(inputs)))
    model = sparsify(keras.Model(inputs, outputs), rng)
    small = keras_bdl.compress(model)
    assert_equal_outputs(model, small, rng)
    assert "keras_bdl" not in small.to_json()
    assert num_weights(small) < num_weights(model)


def test_layers_that_are_not_sparse_and_wrappers_of_models(rng):
    network = keras.Sequential(
        [
            keras.Input((5,)),
            VariationalDense(4, activation="relu"),
            layers.Dense(4, activation="relu"),
            SparseVDDense(3),
        ]
    )
    sparsify(network, rng)
    small = keras_bdl.compress(keras_bdl.BayesianClassifier(network))
    assert_equal_outputs(network, small, rng)


def test_several_inputs_and_outputs(rng):
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    x = layers.Concatenate()([SparseVDDense(5, activation="relu")(a), b])
    y = layers.Add()([SparseVDDense(8)(x), SparseVDDense(8)(b)])
    model = keras.Model([a, b], {"first": SparseVDDense(2)(y), "second": y})
    sparsify(model, rng)
    small = keras_bdl.compress(model)
    assert_equal_outputs(model, small, rng)
    assert set(small.output) == {"first", "second"}


def test_saves_and_exports(rng, tmp_path):
    model = small_lenet(rng)
    small = keras_bdl.compress(model)
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert_equal_outputs(model, again, rng)
    if BACKEND == "tensorflow":
        small.export(tmp_path / "saved", verbose=False)
        small.export(tmp_path / "small.tflite", format="litert", verbose=False)
        assert (tmp_path / "small.tflite").stat().st_size > 0


@pytest.mark.parametrize(
    "model", [None, "model", layers.Dense(3), keras.Sequential([layers.Dense(2)])]
)
def test_other_things_are_refused(model):
    for function in (keras_bdl.compress, keras_bdl.sparsity_report):
        with pytest.raises(TypeError, match="Received: model="):
            function(model)


def test_a_subclassed_model_is_refused():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = SparseVDDense(2)

        def call(self, inputs):
            return self.dense(inputs)

    network = Network()
    network(np.zeros((1, 3)))
    with pytest.raises(TypeError, match="functional or Sequential"):
        keras_bdl.compress(network)


class Twice(layers.Dense):
    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs) + 1.0


class Reverse(layers.Dropout):
    def call(self, inputs, training=None):
        return keras.ops.flip(inputs, axis=-1)


@pytest.mark.parametrize("layer", [Twice(6), Reverse(0.5)], ids=["Dense", "Dropout"])
def test_subclasses_with_a_call_of_their_own_stay_whole(layer, rng):
    inputs = keras.Input((4,))
    x = layer(SparseVDDense(6, activation="tanh")(inputs))
    model = sparsify(keras.Model(inputs, SparseVDDense(2)(x)), rng)
    with pytest.warns(UserWarning, match=layer.name):
        small = keras_bdl.compress(model)
    assert_equal_outputs(model, small, rng)


def test_a_subclass_of_a_sparse_layer_has_no_plain_counterpart():
    class Shifted(SparseVDDense):
        def call_mean(self, inputs):
            return 1.0 + super().call_mean(inputs)

    model = keras.Sequential([keras.Input((3,)), Shifted(2, name="shifted")])
    with pytest.raises(ValueError, match="shifted.*Received"):
        keras_bdl.compress(model)


def test_normalization_survives_and_so_do_scalar_weights(rng, tmp_path):
    normalization = layers.Normalization()
    normalization.adapt(rng.normal(3.0, 5.0, size=(100, 4)))
    model = keras.Sequential(
        [keras.Input((4,)), normalization, SparseVDDense(6), SparseVDDense(2)]
    )
    sparsify(model, rng)
    assert_equal_outputs(model, keras_bdl.compress(model), rng)
    keras_bdl.save_sparse(model, tmp_path / "n.npz", dtype="float32")
    assert_equal_outputs(model, keras_bdl.load_sparse(tmp_path / "n.npz"), rng)


def test_inputs_of_unknown_size(rng):
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(10, 4, mask_zero=True)(tokens)
    x = layers.GlobalAveragePooling1D()(SparseVDDense(6, activation="relu")(x))
    model = sparsify(keras.Model(tokens, SparseVDDense(3)(x)), rng)
    small = keras_bdl.compress(model)
    x = rng.integers(0, 10, size=(4, 7))
    np.testing.assert_allclose(to_numpy(small(x)), to_numpy(model(x)), atol=1e-5)


def test_names_stay(rng):
    b, a = keras.Input((3,), name="b"), keras.Input((3,), name="a")
    block = keras.Sequential([keras.Input((3,)), SparseVDDense(3)], name="block")
    outputs = SparseVDDense(2)(layers.Add()([block(a), b]))
    model = sparsify(keras.Model([b, a], outputs, name="whole"), rng)
    small = keras_bdl.compress(model)
    x = {name: rng.normal(size=(2, 3)).astype("float32") for name in "ab"}
    np.testing.assert_allclose(to_numpy(small(x)), to_numpy(model(x)), atol=1e-5)
    assert small.name == "whole" and small.get_layer("block").name == "block"


def test_what_a_config_cannot_hold(rng):
    bias = keras.initializers.Constant(np.arange(5.0))
    model = keras.Sequential(
        [
            keras.Input((4,)),
            SparseVDDense(5, activation=lambda x: x * 2.0, bias_initializer=bias),
            layers.Activation(lambda x: x + 1.0),
            layers.Lambda(lambda x: 3.0 * x),
            SparseVDDense(5, activation="relu", bias_initializer=bias),
            SparseVDDense(2),
        ]
    )
    sparsify(model, rng)
    with pytest.warns(UserWarning, match="whole"):
        assert_equal_outputs(model, keras_bdl.compress(model), rng)


def relu(x):
    """Not Keras's: it mixes units."""
    return keras.ops.softmax(x)


def test_a_function_that_only_shares_a_name_with_keras_is_not_taken_for_it(rng):
    inputs = keras.Input((6,))
    hidden = SparseVDDense(5, activation=relu)(inputs)
    model = sparsify(keras.Model(inputs, SparseVDDense(3)(hidden)), rng, dead_units=0.5)
    assert_equal_outputs(model, keras_bdl.compress(model), rng)
    callable_object = functools.partial(keras.activations.leaky_relu)
    hidden = SparseVDDense(5, activation=callable_object)(inputs)
    keras_bdl.sparsity_report(keras.Model(inputs, SparseVDDense(3)(hidden)))


@pytest.mark.parametrize("make", [SparseVDDense, layers.Dense])
def test_an_activation_with_weights_goes_along(make, rng):
    inputs = keras.Input((6,))
    layer = make(5, activation=layers.PReLU())
    model = keras.Model(inputs, SparseVDDense(3)(layer(SparseVDDense(6)(inputs))))
    sparsify(model, rng)
    model(np.zeros((1, 6), "float32"))  # builds the activation
    layer.activation.alpha.assign(rng.normal(size=5))
    small = keras_bdl.compress(model)
    assert_equal_outputs(model, small, rng)
    assert all(inner is not layer.activation for inner in small.layers)
    copies = [getattr(inner, "activation", None) for inner in small.layers]
    assert all(copy is not layer.activation for copy in copies)


def test_functions_without_a_name_in_layers_that_stay_whole(rng):
    shared = SparseVDDense(
        6,
        activation=lambda t: 2.0 * t,
        bias_initializer=lambda *a, **k: keras.ops.ones(6),
    )
    inputs = keras.Input((6,))
    hidden = shared(shared(SparseVDDense(6)(inputs)))
    model = sparsify(keras.Model(inputs, SparseVDDense(2)(hidden)), rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names the layer called twice
        assert_equal_outputs(model, keras_bdl.compress(model), rng)
    steps = keras.Input((4, 6))
    wrapped = layers.TimeDistributed(layers.Dense(5, activation=lambda t: 2.0 * t))
    model = keras.Model(steps, SparseVDDense(2)(wrapped(steps)))
    with pytest.raises(ValueError, match="register_keras.*Received: layer='time"):
        keras_bdl.compress(model)


def test_initializers_of_the_full_width_do_not_matter(rng):
    inputs = keras.Input((5,))
    gamma = keras.initializers.Constant(np.arange(6.0))
    hidden = layers.BatchNormalization(gamma_initializer=gamma)(
        SparseVDDense(6)(inputs)
    )
    model = sparsify(keras.Model(inputs, SparseVDDense(3)(hidden)), rng, dead_units=0.6)
    small = keras_bdl.compress(model)
    assert num_weights(small) < num_weights(model)
    assert_equal_outputs(model, small, rng)


def test_masks_and_lists_of_tensors_stay_apart(rng):
    inputs, mask = keras.Input((6, 3)), keras.Input((6,))
    hidden = SparseVDConv1D(5, 3, padding="same")(inputs)
    hidden = layers.BatchNormalization()(hidden, mask=keras.ops.cast(mask, "bool"))
    outputs = SparseVDDense(2)(layers.GlobalMaxPooling1D()(hidden))
    model = sparsify(keras.Model([inputs, mask], outputs), rng)
    first, second = keras.Input((6,)), keras.Input((3,))
    pair = layers.Identity()([SparseVDDense(4)(first), SparseVDDense(5)(second)])
    outputs = SparseVDDense(2)(layers.Concatenate()(pair))
    listed = sparsify(keras.Model([first, second], outputs), rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names the layers that stay whole
        for made in (model, listed):
            assert_equal_outputs(made, keras_bdl.compress(made), rng)


def test_lora_stays_whole(rng):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5), SparseVDDense(6), SparseVDDense(2)]
    )
    sparsify(model, rng)
    model.layers[0].enable_lora(2)
    assert_equal_outputs(model, keras_bdl.compress(model), rng)


def test_weights_that_are_not_numbers_are_not_pruned():
    layer = SparseVDDense(3)
    layer.build((None, 2))
    layer.kernel.assign(np.full((2, 3), np.nan))
    assert layer.sparsity() == 0.0
    assert np.isnan(to_numpy(layer.mean_kernel())).all()


# The report


def test_report_counts_what_survives():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            SparseVDDense(4, activation="relu", use_bias=False),
            SparseVDDense(2),
        ]
    )
    alive = [
        np.array([[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool),
        np.array([[1, 0], [1, 1], [0, 0], [0, 1]], bool),
    ]
    for layer, mask in zip(model.layers, alive):
        layer.kernel.assign(np.ones(layer.kernel.shape))
        layer.kernel_log_stddev.assign(np.where(mask, ALIVE, PRUNED))
    report = keras_bdl.sparsity_report(model)
    # Units 1 and 3 have no input, unit 2 no reader: its weight counts as removed.
    first, second = report.rows
    assert (first["weights"], first["non_zero"]) == (12, 2)
    assert (first["dead_inputs"], first["dead_outputs"]) == (1, 3)
    assert (second["weights"], second["non_zero"]) == (8, 1)
    assert (second["dead_inputs"], second["dead_outputs"]) == (3, 1)
    assert report.factor == pytest.approx(20 / 3)
    assert json.loads(json.dumps(report.to_dict()))["non_zero"] == 3
    table = str(report)
    assert "dead inputs" in table and "6.7x" in table and len(table.splitlines()) == 4


def test_report_counts_kernels_of_every_kind():
    inputs = keras.Input((9, 8, 4))
    x = inputs
    for layer in (
        layers.Conv2DTranspose(6, 3),
        layers.SeparableConv2D(6, 3),
        layers.DepthwiseConv2D(3),
        layers.TimeDistributed(layers.SeparableConv1D(6, 3)),
    ):
        x = layer(x)
    model = keras.Model(inputs, SparseVDDense(3)(layers.GlobalMaxPooling2D()(x)))
    kernels = [
        w for w in model.weights if len(w.shape) > 1 and w.name != "kernel_log_stddev"
    ]
    report = keras_bdl.sparsity_report(model)
    assert report.weights == sum(int(np.prod(w.shape)) for w in kernels)
    assert report.non_zero == report.weights


def test_report_counts_shared_nested_and_wrapped_layers_once():
    shared = SparseVDDense(4)
    block = keras.Sequential([keras.Input((4,)), SparseVDDense(4), SparseVDDense(4)])
    inputs = keras.Input((3, 4))
    x = layers.TimeDistributed(SparseVDDense(4))(inputs)
    x = shared(shared(layers.GlobalMaxPooling1D()(x)))
    model = keras.Model(inputs, block(x))
    for _ in range(3):
        report = keras_bdl.sparsity_report(model)
        assert [row["weights"] for row in report.rows] == [16] * 4
        assert report.factor == 1.0
    assert len(shared._inbound_nodes) == 4  # a report adds calls once, not each time


# The file


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float16", 2e-3)])
def test_sparse_file_round_trips(dtype, tolerance, rng, tmp_path):
    model = small_lenet(rng)
    size = keras_bdl.save_sparse(model, tmp_path / "small.npz", dtype=dtype)
    assert size == (tmp_path / "small.npz").stat().st_size
    small = keras_bdl.load_sparse(tmp_path / "small.npz")
    x = rng.normal(size=(4, 12, 12, 1)).astype("float32")
    expected, got = to_numpy(model(x)), to_numpy(small(x))
    np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max())


def test_sparse_file_keeps_numbers_beyond_float16(rng, tmp_path):
    normalization = layers.Normalization()
    x = 1e-5 * rng.normal(size=(100, 4)) + 1e5
    normalization.adapt(x)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, SparseVDDense(3)(normalization(inputs)))
    model.layers[-1].kernel.assign(1e-7 * rng.normal(size=(4, 3)))
    keras_bdl.save_sparse(model, tmp_path / "small.npz")
    small = keras_bdl.load_sparse(tmp_path / "small.npz")
    expected = to_numpy(model(x))
    np.testing.assert_allclose(
        to_numpy(small(x)), expected, atol=2e-3 * np.abs(expected).max()
    )


def test_a_file_that_could_not_be_read_is_not_written(tmp_path):
    inputs = keras.Input((6,))
    hidden = SparseVDDense(5, activation=lambda t: 2.0 * t)(inputs)
    with pytest.raises(ValueError, match="register_keras_serializable.*Received"):
        keras_bdl.save_sparse(
            keras.Model(inputs, SparseVDDense(3)(hidden)), tmp_path / "x.npz"
        )
    assert not (tmp_path / "x.npz").exists()


def test_damaged_files_are_refused_or_load(rng, tmp_path):
    keras_bdl.save_sparse(small_lenet(rng), tmp_path / "good.npz")
    good = (tmp_path / "good.npz").read_bytes()
    refused = 0
    for position in np.linspace(30, len(good) - 1, 40).astype(int):
        damaged = bytearray(good)
        damaged[position] ^= 0x55
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            keras_bdl.load_sparse(tmp_path / "bad.npz")
        except ValueError as error:
            refused += "save_sparse" in str(error)
    assert refused > 20


def test_bad_files_and_types_are_refused(rng, tmp_path):
    model = small_lenet(rng)
    with pytest.raises(ValueError, match="Received: dtype='int8'"):
        keras_bdl.save_sparse(model, tmp_path / "x.npz", dtype="int8")
    for wrong in (3, None):
        with pytest.raises(TypeError, match="file name. Received: path"):
            keras_bdl.save_sparse(model, wrong)
        with pytest.raises(TypeError, match="file name. Received: path"):
            keras_bdl.load_sparse(wrong)
    model.layers[-1].bias.assign(np.full(5, np.inf))
    with pytest.raises(ValueError, match="Expected finite weights. Received"):
        keras_bdl.save_sparse(model, tmp_path / "x.npz")
    model.layers[-1].bias.assign(np.full(5, 1e6))
    keras_bdl.save_sparse(model, tmp_path / "large.npz", dtype="float32")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    whole = (tmp_path / "large.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("other", "array", "empty", "cut"):
        with pytest.raises(ValueError, match="save_sparse.*Received"):
            keras_bdl.load_sparse(tmp_path / f"{name}.npz")


@pytest.mark.parametrize(
    "layer",
    [
        lambda: VariationalDense(5, activation="relu"),
        lambda: keras_bdl.DropConnectDense(5, activation="relu"),
        lambda: keras_bdl.ConcreteDropout(layers.Dense(5, activation="relu")),
        lambda: keras_bdl.MCDropout(0.3),
        lambda: keras_bdl.VariationalGaussianDropout(),
        lambda: keras_bdl.BayesianLastLayer(5),
        lambda: layers.Identity(),
    ],
)
def test_every_layer_with_a_counterpart(layer, rng):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            SparseVDDense(8, activation="relu"),
            layer(),
            SparseVDDense(6, activation="relu"),
            SparseVDDense(3),
        ]
    )
    sparsify(model, rng)
    small = keras_bdl.compress(model)
    assert_equal_outputs(model, small, rng)
    assert not keras_bdl.core.stochastic.stochastic_layers(small)
    report = keras_bdl.sparsity_report(model)
    again = keras_bdl.sparsity_report(keras_bdl.to_keras(model))
    if not isinstance(model.layers[1], keras_bdl.ConcreteDropout):  # stays whole
        assert report.non_zero == again.non_zero
    kernels = [w.shape for w in model.weights if w.path.endswith("/kernel")]
    assert report.weights == sum(int(np.prod(shape)) for shape in kernels)
    assert num_weights(small) < num_weights(keras_bdl.to_keras(model))


def test_a_sparse_layer_in_a_wrapper(rng):
    inputs = keras.Input((4, 3))
    hidden = layers.TimeDistributed(SparseVDDense(5))(inputs)
    model = sparsify(keras.Model(inputs, SparseVDDense(2)(hidden)), rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names the wrapper
        assert_equal_outputs(model, keras_bdl.compress(model), rng)


@pytest.mark.parametrize("noise", ["heteroscedastic", "homoscedastic"])
@pytest.mark.eager
def test_a_regressor_gives_a_plain_model(noise, rng, tmp_path):
    units = 2 if noise == "heteroscedastic" else 1
    network = keras.Sequential(
        [keras.Input((4,)), SparseVDDense(6, activation="relu"), SparseVDDense(units)]
    )
    sparsify(network, rng)
    model = keras_bdl.BayesianRegressor(network, noise=noise, normalize=True)
    model.compile("adam")
    x = rng.normal(2.0, 3.0, (20, 4)).astype("float32")
    model.fit(x, x.sum(axis=1), verbose=0)
    sparsify(network, rng)
    small = keras_bdl.compress(model)
    for result, of_model in zip(
        keras.tree.flatten(small(x)), keras.tree.flatten(model(x))
    ):
        np.testing.assert_allclose(to_numpy(result), to_numpy(of_model), atol=1e-4)
    assert "keras_bdl" not in json.dumps(keras.saving.serialize_keras_object(small))
    keras_bdl.save_sparse(model, tmp_path / "small.npz", dtype="float32")
    loaded = keras_bdl.load_sparse(tmp_path / "small.npz")
    for result, of_model in zip(
        keras.tree.flatten(loaded(x)), keras.tree.flatten(model(x))
    ):
        np.testing.assert_allclose(to_numpy(result), to_numpy(of_model), atol=1e-4)


# Layers say what their weights are


class Renamed(SparseVDDense):
    """A subclass of a user's, which changes nothing."""


class Rescaled(SparseVDDense):
    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs, training=training)


class Gated(VariationalDense):
    """A subclass with one more matrix."""

    def build(self, input_shape):
        super().build(input_shape)
        self.gate = self.add_weight(shape=(input_shape[-1], self.units))

    def call_mean(self, inputs):
        return super().call_mean(inputs) * keras.ops.matmul(inputs, self.gate)


class Scaled(keras_bdl.layers.bayesian.BayesianLayer, layers.Layer):
    """A posterior of a user's own: one scale for each input and output."""

    def build(self, input_shape):
        self.scales = self.add_weight(shape=(input_shape[-1], 3))
        super().build(input_shape)

    def build_posterior(self):
        self.spread = self.add_weight(shape=self.scales.shape, name="spread")

    def saved_variables(self):
        variables = {"scales": self.scales, "spread": self.spread}
        return {**variables, **super().saved_variables()}

    def kl(self):
        return keras.ops.sum(keras.ops.square(self.scales))

    def call_mean(self, inputs):
        return keras.ops.matmul(inputs, self.scales)


class Held(layers.Layer):
    """A layer of a user's with others inside, one of which is never called."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.unused = SparseVDDense(7)

    def build(self, input_shape):
        self.mix = self.add_weight(shape=(input_shape[-1], input_shape[-1]))
        self.layer.build(input_shape)
        self.built = True

    def call(self, inputs):
        return self.layer(keras.ops.matmul(inputs, self.mix))


class Last(keras_bdl.BayesianLastLayer):
    """A subclass of a user's."""


PER_WEIGHT = keras_bdl.priors.NormalPerWeight()
UNPRUNED = {"initial_log_stddev": -9.0}  # whatever the weights at the start
WEIGHTS = {
    "renamed": (lambda: Renamed(4, **UNPRUNED), 20),
    "rescaled": (lambda: Rescaled(4, **UNPRUNED), 20),
    "gated": (lambda: Gated(4), 40),
    "own_posterior": (lambda: Scaled(), 15),
    "own_posterior_under_prior": (lambda: Held(Scaled(prior=PER_WEIGHT)), 40),
    "prior_per_weight": (lambda: VariationalDense(4, prior=PER_WEIGHT), 20),
    "subclass_with_prior": (lambda: Gated(4, prior=PER_WEIGHT), 40),
    "subclass_held": (lambda: Held(Renamed(4, **UNPRUNED)), 45),
    "held": (lambda: Held(SparseVDDense(4, **UNPRUNED)), 45),
    "held_in_held": (lambda: Held(Held(VariationalDense(4, prior=PER_WEIGHT))), 70),
    "distributed": (lambda: layers.TimeDistributed(Renamed(4, **UNPRUNED)), 20),
    "last": (lambda: keras_bdl.BayesianLastLayer(4), 20),
    "last_subclass": (lambda: Last(4, covariance="full"), 20),
    "last_held": (lambda: Held(Last(4)), 45),
    "drop_connect": (lambda: Held(keras_bdl.DropConnectDense(4)), 45),
    "concrete": (lambda: keras_bdl.ConcreteDropout(layers.Dense(4)), 20),
    "alpha_per_weight": (
        lambda: keras_bdl.VariationalGaussianDropout(
            0.5, layers.Dense(4), alpha_per="weight"
        ),
        20,
    ),
    "alpha_per_unit_held": (
        lambda: Held(keras_bdl.VariationalGaussianDropout(0.5, alpha_per="unit")),
        25,
    ),
    "early_exit": (
        lambda: keras_bdl.EarlyExitResBlock(
            [
                Renamed(5, **UNPRUNED),
                layers.Dense(5),
                VariationalDense(5, prior=PER_WEIGHT),
            ]
        ),
        3 * 25 + 2 * 5,
    ),
    "latent": (
        lambda: keras_bdl.GaussianLatent(
            3, prior=keras_bdl.layers.GaussianMixture(num_components=8)
        ),
        5 * 6,
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_report_counts_weights_and_nothing_that_is_known_of_them(name):
    make, expected = WEIGHTS[name]
    shape = (2, 5) if name == "distributed" else (5,)
    model = keras.Sequential([keras.Input(shape), make()])
    report = keras_bdl.sparsity_report(model)
    assert (report.weights, report.non_zero) == (expected, expected)


@pytest.mark.parametrize("make", [Renamed, Rescaled, lambda n: Held(Renamed(n))])
def test_a_subclass_of_a_sparse_layer_says_what_is_pruned(make):
    model = keras.Sequential([keras.Input((5,)), make(4)])
    (sparse,) = [
        layer
        for layer in keras_bdl.core.stochastic.stochastic_layers(model)
        if layer.built
    ]
    log_stddev = np.full((5, 4), PRUNED)
    log_stddev[1, 2] = ALIVE
    sparse.kernel.assign(np.ones((5, 4)))
    sparse.kernel_log_stddev.assign(log_stddev)
    row = keras_bdl.sparsity_report(model).rows[0]
    assert (row["layer"], row["weights"], row["non_zero"]) == (sparse.name, 20, 1)
    assert (row["dead_inputs"], row["dead_outputs"]) == (4, 3)


def test_flops_report_names_layers_with_weights_that_it_cannot_count(rng):
    inputs = keras.Input((5,))
    outputs = Held(keras_bdl.VariationalGaussianDropout(0.5, layers.Dense(5)))(inputs)
    model = keras.Model(inputs, Scaled(name="scaled")(outputs))
    report = keras_bdl.flops_report(model, rng.normal(size=(2, 5)), verbose=0)
    assert report.full == 25
    assert report.not_counted == [model.layers[1].name, "scaled"]
