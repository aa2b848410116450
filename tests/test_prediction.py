"""Sampled prediction against brute-force weight sampling, on every kind of model."""

import gc
import weakref

import keras
import numpy as np
import pytest
from contract import randomize, slow, to_numpy
from keras import ops

import keras_bdl
from keras_bdl.core import stochastic
from keras_bdl.graphs import split
from keras_bdl.prediction import predict

pytestmark = pytest.mark.portable

BACKEND = keras.backend.backend()


def dense(units, **options):
    return keras_bdl.VariationalDense(units, **options)


def sequential():
    return keras.Sequential([keras.Input((4,)), dense(6, activation="tanh"), dense(3)])


def pooled_convolution():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras_bdl.VariationalConv2D(4, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.GlobalAveragePooling2D(),
            dense(3),
        ]
    )


def branched_convolution():
    """The inputs go into convolutions of few and of many filters, and past them."""
    inputs = keras.Input((5, 5, 2))
    few = keras_bdl.VariationalConv2D(3, 3, padding="same", activation="relu")(inputs)
    many = keras_bdl.VariationalConv2D(16, 3, padding="same")(inputs)
    joined = keras.layers.Concatenate()([inputs, few, many])
    return keras.Model(inputs, dense(3)(keras.layers.Flatten()(joined)))


def deterministic_prefix():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, activation="relu")(inputs)
    outputs = dense(3)(keras.layers.Dense(4)(hidden))
    return keras.Model(inputs, outputs)


def merged():
    """Deterministic tensors meet sampled ones after the first sampled layer."""
    inputs = keras.Input((4,))
    plain = keras.layers.Dense(6)(inputs)
    sampled = dense(6, activation="tanh")(inputs)
    joined = keras.layers.Add()([plain, sampled])
    return keras.Model(inputs, dense(3)(keras.layers.Concatenate()([joined, plain])))


def shared():
    """One layer called twice: both calls see the same weights."""
    inputs = keras.Input((4,))
    layer = dense(3)
    return keras.Model(inputs, layer(inputs) - layer(0.5 * inputs))


def nested():
    inputs = keras.Input((4,))
    return keras.Model(inputs, dense(3)(sequential()(inputs)))


def positions():
    return keras.Sequential(
        [
            keras.Input((5, 4)),
            dense(6, activation="tanh"),
            keras.layers.GlobalAveragePooling1D(),
            dense(3),
        ]
    )


def fixed_batch():
    return keras.Sequential([keras.Input(batch_shape=(8, 4)), dense(3)])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = dense(6, activation="tanh")
        self.second = dense(3)

    def call(self, inputs, training=None):
        return self.second(self.first(inputs, training=training), training=training)


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 4), "float32"))
    return model


MODELS = [
    sequential,
    pooled_convolution,
    branched_convolution,
    deterministic_prefix,
    merged,
    shared,
    nested,
    positions,
    fixed_batch,
    subclassed,
]


def prepared(make):
    model = make()
    for index, layer in enumerate(stochastic.stochastic_layers(model)):
        randomize(layer, seed=index)
    return model


def inputs_of(model, rows=8):
    shape = model.input_shape[1:] if hasattr(model, "input_shape") else (4,)
    return np.random.default_rng(0).normal(size=(rows, *shape)).astype("float32")


def brute_force(model, x, count):
    """Outputs for `count` draws of all weights, set one after the other."""
    rng = np.random.default_rng(1)
    layers = stochastic.stochastic_layers(model)
    means = {
        id(v): to_numpy(v) for layer in layers for v in (layer._kernel, layer.bias)
    }
    # Compiled, unlike a call, where that is faster.
    predict = model if BACKEND == "torch" else model.predict_on_batch
    draws = []
    for _ in range(count):
        for layer in layers:
            for mean, log_stddev in (
                (layer._kernel, layer.kernel_log_stddev),
                (layer.bias, layer.bias_log_stddev),
            ):
                noise = rng.normal(size=mean.shape)
                mean.assign(means[id(mean)] + np.exp(to_numpy(log_stddev)) * noise)
        draws.append(predict(x))
    for layer in layers:
        for mean in (layer._kernel, layer.bias):
            mean.assign(means[id(mean)])
    return np.stack([to_numpy(y) for y in draws])


def assert_same_moments(draws, others):
    """Means and variances of two sets of draws agree within 5 standard errors."""
    error = np.sqrt(draws.var(0) / len(draws) + others.var(0) / len(others))
    assert (np.abs(draws.mean(0) - others.mean(0)) / error).max() < 5

    def variance_error(d):
        fourth = ((d - d.mean(0)) ** 4).mean(0)
        return (fourth - d.var(0) ** 2) / len(d)

    error = np.sqrt(variance_error(draws) + variance_error(others))
    assert (np.abs(draws.var(0) - others.var(0)) / error).max() < 5


# Layers that merge, a part without noise, and a loop over samples. That draws of the
# others are those of networks with these weights is tested one by one.
BRUTE_FORCE = [
    make if make in (merged, deterministic_prefix, subclassed) else slow(make)
    for make in MODELS
]


@pytest.mark.parametrize("make", BRUTE_FORCE)
def test_draws_and_marginals_agree_with_brute_force(make):
    model = prepared(make)
    x = inputs_of(model)
    exact = brute_force(model, x, 500)
    count = 800 if make not in (subclassed, fixed_batch) else 200  # one at a time
    draws = keras_bdl.predict(
        model, x, count, return_samples=True, seed=0, verbose=0, outputs="mean"
    )
    assert draws.shape == (count, *exact.shape[1:])
    assert_same_moments(draws, exact)

    result = keras_bdl.predict_uncertainty(
        model, x, count, seed=1, verbose=0, outputs="mean"
    )
    error = np.sqrt(exact.var(0) * (1 / 500 + 1 / count))
    assert (np.abs(result.mean - exact.mean(0)) / error).max() < 5
    fourth = ((exact - exact.mean(0)) ** 4).mean(0) - exact.var(0) ** 2
    error = np.sqrt(fourth * (1 / 500 + 1 / count))
    assert (np.abs(result.epistemic_variance - exact.var(0)) / error).max() < 5


@pytest.mark.every_backend
def test_moment_sampling_is_exact_in_every_layer():
    model = prepared(sequential)
    x = inputs_of(model)
    exact = brute_force(model, x, 500)
    result = keras_bdl.predict_uncertainty(
        model, x, 1000, seed=2, verbose=0, outputs="mean"
    )
    error = np.sqrt(exact.var(0) * (1 / 500 + 1 / 1000))
    assert (np.abs(result.mean - exact.mean(0)) / error).max() < 5
    fourth = ((exact - exact.mean(0)) ** 4).mean(0) - exact.var(0) ** 2
    error = np.sqrt(fourth * (1 / 500 + 1 / 1000))
    assert (np.abs(result.epistemic_variance - exact.var(0)) / error).max() < 5


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, marks=[pytest.mark.every_backend] * (make is nested))
        for make in MODELS
    ],
)
def test_a_draw_is_one_function_for_all_batches_and_calls(make):
    model = prepared(make)
    x = inputs_of(model)
    options = {"return_samples": True, "seed": 3, "verbose": 0}
    whole = keras_bdl.predict(model, x, 5, batch_size=8, **options)
    if make is not fixed_batch:
        parts = keras_bdl.predict(model, x, 5, batch_size=3, **options)
        np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-5)
    again = keras_bdl.predict(model, x, 5, batch_size=8, **options)
    np.testing.assert_array_equal(whole, again)
    other = keras_bdl.predict(model, x, 5, batch_size=8, **{**options, "seed": 4})
    assert np.abs(whole - other).max() > 1e-3
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_predicting_moves_neither_training_noise_nor_the_plain_prediction():
    model = prepared(sequential)
    x = inputs_of(model)
    states = [
        to_numpy(layer.noise.state) for layer in stochastic.stochastic_layers(model)
    ]
    before = model.predict(x, verbose=0)
    keras_bdl.predict(model, x, verbose=0)
    np.testing.assert_array_equal(before, model.predict(x, verbose=0))
    for state, layer in zip(states, stochastic.stochastic_layers(model)):
        np.testing.assert_array_equal(state, to_numpy(layer.noise.state))


def test_logits_are_averaged_as_probabilities():
    model = prepared(sequential)
    x = inputs_of(model)
    draws = keras_bdl.predict(
        model, x, 64, outputs="mean", return_samples=True, seed=0, verbose=0
    )
    softmax = np.exp(draws) / np.exp(draws).sum(-1, keepdims=True)
    samples = keras_bdl.predict(
        model, x, 64, outputs="logits", return_samples=True, seed=0, verbose=0
    )
    np.testing.assert_allclose(samples, softmax, atol=1e-5)
    result = keras_bdl.predict_uncertainty(
        model, x, 1000, outputs="logits", seed=0, verbose=0
    )
    many = brute_force(model, x, 500)
    many = np.exp(many) / np.exp(many).sum(-1, keepdims=True)
    np.testing.assert_allclose(result.probabilities, many.mean(0), atol=0.04)
    expected = -(many * np.log(many)).sum(-1).mean(0)
    np.testing.assert_allclose(result.expected_entropy, expected, atol=0.04)
    p = result.probabilities
    np.testing.assert_allclose(
        result.predictive_entropy, -(p * np.log(p)).sum(-1), rtol=1e-4
    )
    np.testing.assert_allclose(
        result.mutual_information,
        result.predictive_entropy - result.expected_entropy,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "loss, kind",
    [
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), "logits"),
        (keras.losses.BinaryCrossentropy(from_logits=True), "binary_logits"),
        (keras.losses.CategoricalCrossentropy(), "probabilities"),
        ("sparse_categorical_crossentropy", "probabilities"),
        (keras_bdl.losses.CategoricalNLL(), "logits"),
        ("mse", "mean"),
        (keras.losses.Huber(), "mean"),
        (keras.losses.Huber(name="crossentropy"), "mean"),
        (keras.losses.BinaryCrossentropy(name="loss"), "binary_probabilities"),
        (keras.losses.binary_crossentropy, "binary_probabilities"),
        (keras.losses.CategoricalFocalCrossentropy(from_logits=True), "logits"),
        ([keras.losses.CategoricalCrossentropy()], "probabilities"),
        (lambda y, p: keras.ops.mean(keras.ops.square(y - p)), None),
        (None, None),
    ],
)
def test_outputs_are_told_from_the_loss(loss, kind):
    model = sequential()
    model.compile("sgd", loss)
    assert predict.resolve_outputs(model, "auto") == kind


def test_outputs_of_a_model_with_a_name_for_its_one_loss():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {"label": dense(3, name="label")(inputs)})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", {"label": loss})
    assert predict.resolve_outputs(model, "auto") == "logits"


def test_an_uncompiled_model_must_say_what_it_predicts():
    model = sequential()
    x = inputs_of(model)
    with pytest.raises(ValueError, match="outputs.*Received"):
        keras_bdl.predict_uncertainty(model, x, verbose=0)
    with pytest.raises(ValueError, match="outputs.*Received"):
        keras_bdl.predict(model, x, outputs="class")


@pytest.mark.eager
def test_binary_problem_with_one_logit():
    model = keras.Sequential([keras.Input((4,)), dense(1)])
    randomize(model.layers[0])
    x = inputs_of(model)
    result = keras_bdl.predict_uncertainty(model, x, outputs="logits", verbose=0)
    p = result.probabilities[:, 0]
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(result.predictive_entropy, entropy, rtol=1e-4)


@pytest.mark.eager
def test_aleatoric_variance_of_a_heteroscedastic_head():
    model = keras.Sequential([keras.Input((4,)), dense(2)])
    layer = model.layers[0]
    randomize(layer)
    layer.kernel_log_stddev.assign(np.full(layer.kernel.shape, -20.0))
    layer.bias_log_stddev.assign(np.full(layer.bias.shape, -20.0))
    x = inputs_of(model)
    out = model.predict(x, verbose=0)
    result = keras_bdl.predict_uncertainty(
        model, x, outputs="mean_and_log_stddev", verbose=0
    )
    np.testing.assert_allclose(result.mean, out[:, :1], atol=1e-5)
    np.testing.assert_allclose(result.aleatoric_variance, np.exp(2 * out[:, 1:]), 1e-4)
    np.testing.assert_allclose(result.epistemic_variance, 0, atol=1e-9)


def test_variance_keeps_its_digits_at_a_large_offset():
    model = keras.Sequential([keras.Input((4,)), dense(1)])
    layer = model.layers[0]
    randomize(layer)
    layer.bias.assign(np.array([1e4]))
    x = inputs_of(model)
    variance = keras_bdl.predict_uncertainty(
        model, x, 2000, outputs="mean", seed=0, verbose=0
    ).epistemic_variance
    stddevs = [np.exp(to_numpy(s)) for _, s in layer.gaussians().values()]
    exact = (x**2) @ stddevs[0] ** 2 + stddevs[1] ** 2
    np.testing.assert_allclose(variance, exact, rtol=5 * np.sqrt(2 / 2000))


@pytest.mark.eager
def test_nested_outputs_keep_their_structure():
    inputs = keras.Input((4,))
    hidden = dense(5, activation="tanh")(inputs)
    model = keras.Model(
        inputs, {"a": dense(2)(hidden), "b": keras.layers.ReLU()(inputs)}
    )
    x = inputs_of(model)
    result = keras_bdl.predict(model, x, 4, verbose=0)
    assert set(result) == {"a", "b"}
    np.testing.assert_allclose(result["b"], np.maximum(x, 0), atol=1e-6)
    draws = keras_bdl.predict(model, x, 4, return_samples=True, verbose=0)
    assert draws["a"].shape == (4, 8, 2)


@pytest.mark.eager
def test_several_inputs():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    model = keras.Model([left, right], dense(2)(left) + keras.layers.Dense(2)(right))
    x = inputs_of_rows(5)
    assert keras_bdl.predict(model, [x, x], 4, verbose=0).shape == (5, 2)


def inputs_of_rows(rows):
    return np.random.default_rng(0).normal(size=(rows, 4)).astype("float32")


def test_every_kind_of_data():
    model = prepared(sequential)
    x = inputs_of_rows(10)
    expected = keras_bdl.predict(model, x, 4, seed=0, verbose=0, batch_size=4)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return (x[4 * index : 4 * index + 4],)

    def generator():
        for start in range(0, 10, 4):
            yield (x[start : start + 4],)

    import tensorflow as tf

    for data, options in (
        (Batches(workers=1), {}),
        (generator(), {}),
        (tf.data.Dataset.from_tensor_slices((x, np.zeros(10))).batch(4), {}),
    ):
        result = keras_bdl.predict(model, data, 4, seed=0, verbose=0, **options)
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_progress_bar_as_in_keras(capsys):
    model = sequential()
    keras_bdl.predict(model, inputs_of_rows(10), 2, batch_size=5, verbose=1)
    assert "2/2" in capsys.readouterr().out


def test_a_model_with_nothing_sampled_raises():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    for mc_dropout in (False, True):
        with pytest.raises(ValueError, match="Nothing in model.*Received"):
            keras_bdl.predict(model, inputs_of_rows(2), mc_dropout=mc_dropout)


@pytest.mark.parametrize("num_samples", [0, -1])
def test_too_few_samples(num_samples):
    with pytest.raises(ValueError, match="num_samples.*Received"):
        keras_bdl.predict(sequential(), inputs_of_rows(2), num_samples)


def test_wrong_types():
    with pytest.raises(TypeError, match="num_samples.*Received"):
        keras_bdl.predict(sequential(), inputs_of_rows(2), 1.5)
    with pytest.raises(TypeError, match="seed.*Received"):
        keras_bdl.predict(sequential(), inputs_of_rows(2), 2, seed="a")
    with pytest.raises(TypeError, match="Keras model"):
        keras_bdl.predict(lambda x: x, inputs_of_rows(2), 2)


# Monte Carlo dropout


def dropout_net(layer):
    return keras.Sequential(
        [
            keras.Input((6, 4)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.BatchNormalization(),
            layer,
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )


@pytest.mark.parametrize(
    "layer, mask_shape, kind",
    [
        (lambda: keras.layers.Dropout(0.3), (6, 5), "functional"),
        (lambda: keras.layers.Dropout(0.3), (6, 5), "subclassed"),
        (lambda: keras.layers.SpatialDropout1D(0.3), (1, 5), "functional"),
        (lambda: keras.layers.Dropout(0.3, (None, 6, 1)), (6, 1), "functional"),
    ],
)
def test_mc_dropout_has_the_moments_of_bernoulli_masks(layer, mask_shape, kind):
    model = dropout_net(layer())
    batch_norm = model.layers[1]
    batch_norm.moving_mean.assign(np.full(5, 0.2))
    if kind == "subclassed":

        class Wrapped(keras.Model):
            def __init__(self):
                super().__init__()
                self.inner = model

            def call(self, inputs, training=None):
                return self.inner(inputs, training=training)

        target = Wrapped()
    else:
        target = model
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype("float32")
    hidden = to_numpy(model.layers[1](model.layers[0](x)))
    rng = np.random.default_rng(1)
    kernel, bias = (to_numpy(v) for v in model.layers[-1].weights)
    exact = []
    for _ in range(3000):
        mask = (rng.random(mask_shape) > 0.3) / 0.7
        exact.append((hidden * mask).reshape(3, -1) @ kernel + bias)
    count = 2000 if kind == "functional" else 400  # one sample at a time
    draws = keras_bdl.predict(
        target, x, count, mc_dropout=True, return_samples=True, verbose=0, seed=0
    )
    assert_same_moments(draws, np.stack(exact))
    np.testing.assert_allclose(to_numpy(batch_norm.moving_mean), 0.2, atol=1e-6)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), model.predict(x, verbose=0)
    )


def test_mc_dropout_leaves_the_layers_class_and_training_alone():
    model = dropout_net(keras.layers.Dropout(0.5))
    x = np.ones((2, 6, 4), "float32")
    keras_bdl.predict(model, x, 2, mc_dropout=True, verbose=0)
    dropout = model.layers[2]
    assert "call" not in dropout.__dict__
    ones = np.ones((1, 1000), "float32")
    assert (to_numpy(dropout(ones, training=True)) == 0).mean() > 0.3
    assert (to_numpy(dropout(ones)) == 1).all()


def test_dropout_of_time_steps_is_sampled_and_its_rate_is_followed():
    drop = keras.layers.Dropout(0.5)
    model = keras.Sequential([keras.Input((3, 40)), keras.layers.TimeDistributed(drop)])
    x = np.ones((2, 3, 40), "float32")
    for rate in (0.5, 0.25):
        drop.rate = rate
        draws = keras_bdl.predict(
            model, x, 50, mc_dropout=True, return_samples=True, seed=0, verbose=0
        )
        kept = (draws[:, 0] > 0).mean()  # masks are shared by the rows
        size = draws[:, 0].size / 3
        assert abs(kept - 1 + rate) < 5 * np.sqrt(rate * (1 - rate) / size)


class DropsRows(keras.layers.Dropout):
    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs, training=training)


def test_dropout_with_a_call_of_its_own_is_refused():
    model = keras.Sequential([keras.Input((4,)), DropsRows(0.5)])
    with pytest.raises(ValueError, match="`call` of its own.*Received: DropsRows"):
        keras_bdl.predict(model, inputs_of_rows(2), 2, mc_dropout=True, verbose=0)


@pytest.mark.eager
def test_a_transformer_block_with_mc_dropout():
    inputs = keras.Input((6, 8))
    attended = keras.layers.MultiHeadAttention(2, 4, dropout=0.2)(inputs, inputs)
    outputs = keras.layers.Dense(2)(keras.layers.LayerNormalization()(attended))
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).normal(size=(3, 6, 8)).astype("float32")
    draws = keras_bdl.predict(
        model, x, 4, mc_dropout=True, return_samples=True, verbose=0
    )
    assert draws.shape == (4, 3, 6, 2)
    assert np.abs(draws[0] - draws[1]).max() > 1e-4


# Machinery


def test_the_prefix_runs_what_comes_before_the_first_sampled_layer():
    model = prepared(deterministic_prefix)
    parts = split.split(model, stochastic.stochastic_layers, moments=True)
    x = inputs_of(model)
    boundary = parts.prefix(ops.convert_to_tensor(x))
    mean, stddev = (to_numpy(tensor) for tensor, _ in boundary)
    np.testing.assert_allclose(mean, model.predict(x, verbose=0), atol=1e-5)
    assert stddev.shape == mean.shape and (stddev > 0).all()


def test_samplers_are_reused_and_die_with_the_model():
    model = prepared(sequential)
    x = inputs_of_rows(4)
    keras_bdl.predict(model, x, 2, verbose=0)
    first = dict(model._keras_bdl_kept.samplers)
    keras_bdl.predict(model, x, 2, verbose=0)
    assert model._keras_bdl_kept.samplers == first and len(first) == 1
    layers = model.layers
    assert [type(layer).__name__ for layer in layers] == ["VariationalDense"] * 2
    if BACKEND == "tensorflow":
        return  # function caches of TensorFlow are global and freed later
    reference = weakref.ref(model)
    del model, layers, first
    keras.backend.clear_session()
    gc.collect()
    assert reference() is None


@pytest.mark.eager
def test_the_original_saves_after_predicting(tmp_path):
    model = prepared(merged)
    x = inputs_of(model)
    keras_bdl.predict(model, x, 2, verbose=0)
    model.save(tmp_path / "m.keras")
    copy = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(
        copy.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )
    np.testing.assert_allclose(
        keras_bdl.predict(copy, x, 3, seed=0, verbose=0),
        keras_bdl.predict(model, x, 3, seed=0, verbose=0),
        atol=1e-5,
    )


def test_changed_weights_are_seen():
    model = prepared(sequential)
    x = inputs_of_rows(4)
    before = keras_bdl.predict(model, x, 4, seed=0, verbose=0)
    model.layers[-1].bias.assign(to_numpy(model.layers[-1].bias) + 5.0)
    after = keras_bdl.predict(model, x, 4, seed=0, verbose=0)
    np.testing.assert_allclose(after - before, 5.0, atol=1e-4)


@pytest.mark.eager
def test_mixed_precision_gives_finite_probabilities():
    keras.config.set_dtype_policy("mixed_float16")
    model = prepared(sequential)
    p = keras_bdl.predict(model, inputs_of_rows(4), 16, outputs="logits", verbose=0)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-3)


@pytest.mark.parametrize("subclassed", [False, True])
def test_a_dropout_layer_called_twice_draws_twice(subclassed):
    drop = keras.layers.Dropout(0.5)
    inputs = keras.Input((400,))
    model = keras.Model(inputs, drop(keras.layers.Activation("relu")(drop(inputs))))
    if subclassed:
        graph = model

        class Wrapped(keras.Model):
            def call(self, x, training=None):
                x = self.drop(x, training=training)
                return self.drop(x, training=training)

        model = Wrapped()
        model.drop = drop
        model(np.zeros((1, 400), "float32"))
        del graph
    draws = keras_bdl.predict(
        model,
        np.ones((1, 400), "float32"),
        50,
        mc_dropout=True,
        return_samples=True,
        seed=0,
        verbose=0,
    )
    kept = (draws > 0).mean()  # a share 1/4, 20,000 draws
    assert abs(kept - 0.25) < 5 * np.sqrt(0.25 * 0.75 / draws.size)
    assert abs(draws.mean() - 1.0) < 5 * np.sqrt(3.0 / draws.size)


@pytest.mark.parametrize("form", ["logits", "probabilities"])
@pytest.mark.eager
def test_independent_labels_keep_their_own_probabilities(form):
    activation = "sigmoid" if form == "probabilities" else None
    layer = dense(5, activation=activation, initial_log_stddev=-20.0)
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=form == "logits"))
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    p = model.predict(x, verbose=0)
    if form == "logits":
        p = 1 / (1 + np.exp(-p))
    result = keras_bdl.predict_uncertainty(model, x, verbose=0)
    np.testing.assert_allclose(result.probabilities, p, atol=1e-5)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    np.testing.assert_allclose(result.predictive_entropy, entropy, atol=1e-5)
    np.testing.assert_allclose(keras_bdl.predict(model, x, verbose=0), p, atol=1e-5)


@pytest.mark.eager
def test_a_loss_in_a_list_is_read():
    model = sequential()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", [loss])
    p = keras_bdl.predict(model, inputs_of_rows(4), verbose=0)
    np.testing.assert_allclose(p.sum(axis=-1), 1.0, atol=1e-5)


def test_rows_that_are_positions_share_one_weight_draw():
    inputs = keras.Input((8, 3))
    layer = dense(1, use_bias=False, initial_log_stddev=0.0)
    hidden = layer(keras.ops.reshape(inputs, (-1, 3)))
    outputs = keras.ops.mean(keras.ops.reshape(hidden, (-1, 8)), axis=1, keepdims=True)
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).normal(size=(1, 8, 3)).astype("float32")
    exact = (x[0].mean(axis=0) ** 2).sum()  # of unit variances
    result = keras_bdl.predict_uncertainty(
        model, x, 500, outputs="mean", seed=0, verbose=0
    )
    error = 5 * exact * np.sqrt(2 / 500)
    assert abs(float(result.epistemic_variance[0, 0]) - exact) < error


class ScaledInputs(keras_bdl.VariationalDense):
    def call(self, inputs, training=None):
        return super().call(10.0 * inputs, training=training)


@pytest.mark.eager
def test_a_subclass_with_a_call_of_its_own_is_called():
    layer = ScaledInputs(2, initial_log_stddev=-20.0)
    model = keras.Sequential([keras.Input((3,)), layer])
    x = np.ones((1, 3), "float32")
    np.testing.assert_allclose(
        keras_bdl.predict(model, x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )


@pytest.mark.eager
def test_inputs_reach_the_model_unrounded_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    layers = [keras.layers.Rescaling(1e-5, dtype="float32"), dense(2)]
    model = keras.Sequential([keras.Input((1,)), *layers])
    p = keras_bdl.predict(model, np.array([[90000.0]]), outputs="mean", verbose=0)
    assert np.isfinite(p).all()
    classifier = keras_bdl.BayesianClassifier(model)
    x = np.array([[90000.0]], "float32")
    assert np.isfinite(classifier.predict(x, verbose=0)).all()
    assert np.isfinite(to_numpy(classifier(x))).all()


# What must not be sampled in silence


@pytest.mark.eager
def test_a_layer_called_in_training_mode_is_refused():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dropout(0.5)(inputs, training=True)
    model = keras.Model(inputs, dense(2)(hidden))
    with pytest.raises(ValueError, match="training=True.*Received: layer="):
        keras_bdl.predict(model, inputs_of_rows(2), 2, verbose=0)
    keras_bdl.predict(model, inputs_of_rows(2), 2, mc_dropout=True, verbose=0)


def test_a_stateful_recurrent_layer_is_refused():
    inputs = keras.Input(batch_shape=(2, 6, 4))
    hidden = keras.layers.GRU(3, stateful=True)(inputs)
    model = keras.Model(inputs, dense(2)(hidden))
    with pytest.raises(ValueError, match="stateful.*Received"):
        keras_bdl.predict(model, np.zeros((2, 6, 4)), 2, verbose=0)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.GaussianDropout(0.2),
        lambda: keras.layers.AlphaDropout(0.2),
        lambda: keras.layers.RNN(keras.layers.LSTMCell(3, dropout=0.2)),
        lambda: keras.layers.RNN(
            [keras.layers.GRUCell(3), keras.layers.GRUCell(3, recurrent_dropout=0.2)]
        ),
    ],
)
def test_dropout_that_mc_dropout_cannot_sample_is_refused(layer):
    model = keras.Sequential(
        [keras.Input((6, 4)), keras.layers.Dropout(0.2), layer(), dense(2)]
    )
    with pytest.raises(ValueError, match="mc_dropout.*Received"):
        keras_bdl.predict(model, np.zeros((2, 6, 4)), mc_dropout=True)


class OwnNoise(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(0)

    def call(self, inputs):
        noise = keras.random.normal(ops.shape(inputs), seed=self.generator)
        return inputs + ops.cast(noise, inputs.dtype)


@pytest.mark.parametrize("num_samples", [2, 20])
@pytest.mark.eager
def test_noise_of_a_layers_own(num_samples):
    model = keras.Sequential([keras.Input((4,)), dense(3), OwnNoise(), dense(2)])
    if BACKEND != "jax":
        keras_bdl.predict(model, inputs_of_rows(2), num_samples, verbose=0)
        return
    with pytest.raises(ValueError, match="noise of its own.*Received: variable="):
        keras_bdl.predict(model, inputs_of_rows(2), num_samples, verbose=0)


def test_uncertainty_of_several_outputs_is_nested_like_them():
    inputs = keras.Input((4,))
    # The names of the layers are in another order than those of the outputs.
    outputs = {"a": dense(2, name="z")(inputs), "b": dense(1, name="y")(inputs)}
    model = keras.Model(inputs, outputs)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", {"a": cross_entropy, "b": "mse"})
    x = inputs_of_rows(3)
    options = {"seed": 0, "verbose": 0}
    both = keras_bdl.predict_uncertainty(model, x, 400, **options)
    assert type(both) is dict and sorted(both) == ["a", "b"]
    for name, kind in (("a", "logits"), ("b", "mean")):
        alone = keras.Model(inputs, outputs[name])
        expected = keras_bdl.predict_uncertainty(alone, x, 400, outputs=kind, **options)
        for got, other in zip(both[name], expected):
            if got is not None:  # the places of the noise are others
                np.testing.assert_allclose(got, other, atol=0.1)
    mean = keras_bdl.predict(model, x, 400, **options)
    np.testing.assert_allclose(mean["a"], both["a"].probabilities, atol=1e-6)
    listed = keras.Model(inputs, [outputs["a"], outputs["b"]])
    same = keras_bdl.predict_uncertainty(
        listed, x, 400, outputs=["logits", "mean"], **options
    )
    assert type(same) is list
    np.testing.assert_allclose(same[1].mean, both["b"].mean, atol=1e-6)
    for kinds, match in (
        (["logits"], "each of 2.*Received: 1 kinds"),
        (["logits", "odd"], "Received: outputs='odd'"),
    ):
        with pytest.raises(ValueError, match=match):
            keras_bdl.predict_uncertainty(listed, x, outputs=kinds, verbose=0)
    with pytest.raises(ValueError, match="Cannot tell.*Received"):
        keras_bdl.predict_uncertainty(listed, x, verbose=0)


class BatchMean(keras.layers.Layer):
    """Rows that see each other."""

    def call(self, inputs):
        return inputs - ops.mean(inputs, axis=0, keepdims=True)


@pytest.mark.parametrize("form", ["layer", "operations"])
@pytest.mark.eager
def test_samples_do_not_mix_where_rows_do(form):
    inputs = keras.Input((4,))
    hidden = dense(3)(inputs)
    centred = BatchMean()(hidden) if form == "layer" else hidden - ops.mean(hidden, 0)
    model = keras.Model(inputs, centred)
    draws = keras_bdl.predict(
        model, inputs_of_rows(5), 20, return_samples=True, seed=0, verbose=0
    )
    np.testing.assert_allclose(draws.mean(axis=1), 0.0, atol=1e-5)
    assert np.abs(draws[0] - draws[1]).max() > 1e-4


@pytest.mark.parametrize(
    "joins_rows",
    [
        lambda x: ops.softmax(x, axis=0),
        lambda x: ops.cumsum(x, axis=-2),
        ops.flip,
        lambda x: keras.layers.Softmax(axis=0)(x),
        lambda x: keras.layers.UnitNormalization(axis=0)(x),
        lambda x: keras.layers.Activation(lambda t: t - ops.mean(t, axis=0))(x),
        lambda x: keras.layers.Activation(lambda t: t * ops.sigmoid(t))(x),  # not this
    ],
)
@pytest.mark.eager
def test_operations_over_rows_see_those_of_one_sample(joins_rows):
    inputs = keras.Input((4,))
    hidden = dense(3, initial_log_stddev=-20.0)(inputs)
    model = keras.Model(inputs, joins_rows(keras.layers.Dropout(1e-7)(hidden)))
    x = inputs_of_rows(5)
    for mc_dropout in (False, True):
        samples = keras_bdl.predict(
            model, x, 9, mc_dropout=mc_dropout, outputs="mean", verbose=0
        )
        np.testing.assert_allclose(samples, model.predict(x, verbose=0), atol=1e-5)


@pytest.mark.parametrize("num_samples", [3, 20])
@pytest.mark.eager
def test_a_tensor_without_rows_is_not_tiled(num_samples):
    inputs = keras.Input((4,))
    scale = ops.sqrt(ops.mean(ops.square(inputs), axis=0, keepdims=True))
    model = keras.Model(inputs, dense(4, initial_log_stddev=-20.0)(inputs) * scale)
    x = inputs_of_rows(5)
    samples = keras_bdl.predict(model, x, num_samples, verbose=0)
    np.testing.assert_allclose(samples, model.predict(x, verbose=0), atol=1e-5)


def test_a_layer_at_the_top_and_in_a_nested_model_has_one_draw():
    layer = dense(3, initial_log_stddev=-1.0)
    inputs = keras.Input((4,))
    nested = keras.Sequential([keras.Input((4,)), layer])
    model = keras.Model(inputs, layer(inputs) - nested(inputs))
    result = keras_bdl.predict_uncertainty(
        model, inputs_of_rows(5), 50, outputs="mean", verbose=0
    )
    np.testing.assert_allclose(result.epistemic_variance, 0.0, atol=1e-10)


@pytest.mark.eager
def test_seeds_beyond_32_bits_differ():
    model = prepared(sequential)
    x = inputs_of_rows(2)
    draws = [
        keras_bdl.predict(model, x, 2, seed=seed, verbose=0)
        for seed in (0, 2**31, 2**32, -1)
    ]
    for i, draw in enumerate(draws):
        for other in draws[:i]:
            assert np.abs(draw - other).max() > 1e-4


def test_a_users_cross_entropy_does_not_tell_logits_from_probabilities():
    def my_crossentropy(y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, True)

    model = sequential()
    model.compile("sgd", my_crossentropy)
    with pytest.raises(ValueError, match="Cannot tell"):
        keras_bdl.predict_uncertainty(model, inputs_of_rows(2), verbose=0)


def test_steps_of_a_wrong_type():
    with pytest.raises(TypeError, match="steps.*Received"):
        keras_bdl.predict(sequential(), inputs_of_rows(2), steps="a", verbose=0)


@pytest.mark.filterwarnings("error:.*does not support masking")
@pytest.mark.parametrize(
    "first", ["prefix", pytest.param("suffix", marks=pytest.mark.every_backend)]
)
def test_masks_reach_the_layers_that_read_them(first):
    """A recurrent layer behind the sampled one skips the padded steps."""
    inputs = keras.Input((6,), dtype="int32")
    options = {"initial_log_stddev": -20.0}
    hidden = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    if first == "prefix":
        hidden = keras.layers.LayerNormalization()(hidden)
    hidden = dense(4, **options)(hidden)
    outputs = dense(2, **options)(keras.layers.GRU(5)(hidden))
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).integers(1, 9, size=(10, 6))
    x[:5, 3:] = 0
    samples = keras_bdl.predict(model, x, 20, verbose=0)
    np.testing.assert_allclose(samples, model.predict(x, verbose=0), atol=1e-5)


def test_an_error_does_not_cost_the_weights():
    model = prepared(sequential)
    x = inputs_of(model)
    before = keras_bdl.predict(model, x, 3, seed=0, verbose=0)
    state = model.get_weights()

    def breaks_off():
        yield (x,)
        raise RuntimeError("the disk is gone")

    for data, error in ((x[:, :3], Exception), (breaks_off(), RuntimeError)):
        with pytest.raises(error):
            keras_bdl.predict(model, data, 3, seed=0, verbose=0)
    for old, new in zip(state, model.get_weights()):
        np.testing.assert_array_equal(old, new)
    after = keras_bdl.predict(model, x, 3, seed=0, verbose=0)
    np.testing.assert_allclose(before, after, atol=1e-6)


@pytest.mark.eager
def test_weights_load_into_a_model_that_has_predicted(tmp_path):
    x = np.ones((4, 3), "float32")
    model, other = (
        keras.Sequential(
            [keras.Input((3,)), keras_bdl.VariationalDense(2, num_examples=4)]
        )
        for _ in range(2)
    )
    for m in (model, other):
        keras_bdl.predict(m, x, 2, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), other.predict(x, verbose=0)
    )


def test_several_blocks_of_samples_where_floatx_is_float64(only_tensorflow):
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras_bdl.VariationalDense(3)(inputs))
        x = np.ones((2, 4))
        mean = keras_bdl.predict(model, x, 20, outputs="mean")
        samples = keras_bdl.predict(model, x, 20, outputs="mean", return_samples=True)
        expected = model.predict(x, verbose=0)
    finally:
        keras.config.set_floatx("float32")
    assert samples.shape == (20, 2, 3)
    error = samples.std(axis=0) / np.sqrt(20)
    for estimate in (mean, samples.mean(axis=0)):
        assert (np.abs(estimate - expected) < 5 * error).all()
