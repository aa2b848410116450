"""`to_bayesian` and `to_keras`: what is replaced, with which weights, and back."""

import json

import keras
import numpy as np
import pytest
from contract import BACKEND, to_numpy
from keras import layers, ops
from scipy import stats

import keras_bdl
from keras_bdl import priors

pytestmark = pytest.mark.portable

METHODS = [
    "variational",
    "sparse_vd",
    "concrete_dropout",
    "mc_dropout",
    "variational_gaussian_dropout",
]
DTYPES = [None, "mixed_float16", "mixed_bfloat16", "float64"]
if BACKEND != "tensorflow":
    DTYPES = [None, "mixed_bfloat16"]
rng = np.random.default_rng(0)


def images(rows=4):
    return rng.normal(size=(rows, 8, 8, 3)).astype("float32")


def branched(dtype=None):
    """A functional net with a layer called twice, a branch, an inner net, dropout."""
    options = {"dtype": dtype}
    inputs = keras.Input((8, 8, 3))
    stem = layers.Conv2D(3, 1, name="stem", **options)(inputs)
    shared = layers.Conv2D(3, 3, padding="same", name="shared", **options)
    x = shared(shared(stem))
    x = layers.BatchNormalization(name="norm", **options)(x)
    x = layers.Add()([stem, 2.0 * x])
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(5, 3, name="conv", kernel_regularizer="l2", **options),
            layers.SpatialDropout2D(0.2, name="drop", **options),
            layers.GlobalAveragePooling2D(),
        ],
        name="inner",
    )
    x = layers.Dense(7, layers.PReLU(), name="hidden", **options)(inner(x))
    model = keras.Model(inputs, layers.Dense(2, name="head", **options)(x))
    for variable in model.variables:  # as a trained net: no zeros, no ones
        if "float" in variable.dtype:
            variable.assign(rng.uniform(0.1, 0.6, variable.shape))
    return model


class Block(layers.Layer):
    """A user's layer that holds others, builds one of them, and has a weight."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = layers.Dense(units, activation="tanh", name="first")
        self.rest = [
            layers.Dense(units, name="second"),
            layers.LayerNormalization(name="norm"),
        ]

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(1,), initializer="ones")
        self.first.build(input_shape)

    def call(self, inputs):
        x = self.first(inputs)
        for layer in self.rest:
            x = layer(x)
        return x * self.scale

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Subclassed(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.block = Block(units, name="block")
        self.heads = {
            "a": layers.TimeDistributed(layers.Dense(2, name="timed")),
            "b": layers.Dense(2, name="head"),
        }

    def call(self, inputs):
        x = self.block(inputs)
        return self.heads["a"](x) + self.heads["b"](x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def subclassed():
    model = Subclassed(5)
    x = rng.normal(size=(3, 4, 6)).astype("float32")
    model(x)
    model.block.scale.assign([3.0])
    return model, x


# Values


@pytest.mark.parametrize(
    "method, dtype",
    [
        pytest.param(
            method,
            dtype,
            # Every method, and every dtype of one.
            marks=pytest.mark.slow if dtype and method != METHODS[0] else (),
        )
        for method in METHODS
        for dtype in DTYPES
    ],
)
def test_there_and_back_is_the_identity(method, dtype):
    model, x = branched(dtype), images()
    expected = to_numpy(model(x))
    bayesian = keras_bdl.to_bayesian(model, 100, method=method)
    np.testing.assert_array_equal(to_numpy(bayesian(x)), expected)
    back = keras_bdl.to_keras(bayesian)
    np.testing.assert_array_equal(to_numpy(back(x)), expected)
    for old, new in zip(model.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert "keras_bdl" not in back.to_json()
    assert [a.name for a in back.layers] == [a.name for a in model.layers]


def test_a_copy_has_variables_of_its_own():
    model = branched()
    bayesian = keras_bdl.to_bayesian(model, 100, layers="last")
    old = {id(variable) for variable in model.variables}
    assert not any(id(variable) in old for variable in bayesian.variables)
    bayesian.get_layer("norm").gamma.assign(np.zeros(3))
    assert to_numpy(model.get_layer("norm").gamma).all()


def test_shared_layers_stay_shared():
    bayesian = keras_bdl.to_bayesian(branched(), 100)
    shared = bayesian.get_layer("shared")
    assert type(shared) is keras_bdl.VariationalConv2D
    assert sum(layer is shared for layer in bayesian.layers) == 1
    bayesian(images())
    expected = sum(
        float(layer.kl()) / 100 for layer in bayesian.layers if hasattr(layer, "kl")
    )
    expected += float(bayesian.get_layer("inner").get_layer("conv").kl()) / 100
    assert float(sum(bayesian.losses)) == pytest.approx(expected, rel=1e-6)


def test_a_layer_in_two_models_stays_one():
    dense = layers.Dense(4, name="dense")
    inner = keras.Sequential([keras.Input((4,)), dense], name="inner")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, dense(inner(inputs)))
    bayesian = keras_bdl.to_bayesian(model, 10)
    assert bayesian.get_layer("inner").layers[0] is bayesian.get_layer("dense")
    assert len(bayesian.trainable_variables) == 4


@pytest.mark.eager
def test_subclassed_models_and_layers():
    model, x = subclassed()
    expected = to_numpy(model(x))
    bayesian, report = keras_bdl.to_bayesian(model, 50, return_report=True)
    assert set(report.replaced) == {"first", "second", "timed", "head"}
    assert type(bayesian.block.first) is keras_bdl.VariationalDense
    assert type(bayesian.heads["a"].layer) is keras_bdl.VariationalDense
    np.testing.assert_array_equal(to_numpy(bayesian(x)), expected)
    assert len(bayesian.losses) == 4
    draws = keras_bdl.predict(bayesian, x, 4, return_samples=True, seed=0, verbose=0)
    assert (draws.std(0) > 0).all()
    back = keras_bdl.to_keras(bayesian)
    assert type(back.block.first) is layers.Dense
    np.testing.assert_array_equal(to_numpy(back(x)), expected)
    wrapped = keras.Sequential([keras.Input((4, 6)), Block(3), layers.Dense(2)])
    copied = keras_bdl.to_bayesian(wrapped, 50, layers=["first"])
    np.testing.assert_array_equal(to_numpy(copied(x)), to_numpy(wrapped(x)))
    assert len(keras_bdl.layers.bayesian.bayesian_layers(copied)) == 1


@pytest.mark.eager
def test_a_bayesian_copy_trains_saves_and_loads(tmp_path):
    model, x = branched(), images(8)
    before = to_numpy(model(x))
    bayesian = keras_bdl.to_bayesian(model, 8, moped=0.1)
    bayesian.compile("sgd", "mse")
    bayesian.fit(x, np.zeros((8, 2)), verbose=0)
    np.testing.assert_array_equal(to_numpy(model(x)), before)
    bayesian.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(bayesian(x)))
    first, second = bayesian.get_layer("stem"), loaded.get_layer("stem")
    assert float(first.kl()) == float(second.kl()) > 0
    plain = keras_bdl.to_keras(loaded)
    other = keras_bdl.to_keras(loaded)
    other.compile("sgd", "mse")
    other.fit(x, np.zeros((8, 2)), verbose=0)  # leaves `loaded` alone
    plain.save(tmp_path / "plain.keras")
    again = keras.models.load_model(tmp_path / "plain.keras")
    np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(bayesian(x)))


def test_files_of_a_subclassed_copy(tmp_path):
    model, x = subclassed()
    bayesian = keras_bdl.to_bayesian(model, 50, initial_log_stddev=-3.0)
    file = tmp_path / "model.keras"
    bayesian.save(file)
    again = keras_bdl.to_bayesian(subclassed()[0], 50)
    again.load_weights(file)
    np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(bayesian(x)))
    assert float(again.block.first.kl()) == float(bayesian.block.first.kl())
    names = {"Subclassed": Subclassed, "Block": Block}
    loaded = keras.models.load_model(file, custom_objects=names)
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(bayesian(x)))
    assert float(loaded.block.first.kl()) == float(bayesian.block.first.kl())


@pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT is of TensorFlow")
def test_the_plain_model_runs_on_litert(tmp_path):
    import tensorflow as tf

    bayesian = keras_bdl.to_bayesian(branched(), 100)
    keras_bdl.to_keras(bayesian).export(tmp_path / "m.tflite", format="litert")
    interpreter = tf.lite.Interpreter(str(tmp_path / "m.tflite"))
    interpreter.allocate_tensors()
    x = images(1)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(output, to_numpy(bayesian(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="one backend: it is about files")
def test_the_plain_model_runs_on_onnx(tmp_path):
    pytest.importorskip("tf2onnx", reason="ONNX needs the package tf2onnx")
    reference = pytest.importorskip("onnx.reference", reason="ONNX needs onnx")
    bayesian = keras_bdl.to_bayesian(branched(), 100)
    regressor = keras_bdl.BayesianRegressor(bayesian, noise="homoscedastic")
    keras_bdl.to_keras(regressor).export(tmp_path / "regressor.onnx", format="onnx")
    keras_bdl.to_keras(bayesian).export(tmp_path / "model.onnx", format="onnx")
    session = reference.ReferenceEvaluator(str(tmp_path / "model.onnx"))
    x = images(2)
    (output,) = session.run(None, {session.input_names[0]: x})
    np.testing.assert_allclose(output, to_numpy(bayesian(x)), rtol=1e-4, atol=1e-5)


def test_trainable_flags_are_kept():
    model = branched()
    model.get_layer("stem").trainable = False
    model.get_layer("inner").trainable = False
    named = ["stem", "conv", "shared"]
    bayesian = keras_bdl.to_bayesian(model, 10, layers=named)
    assert type(bayesian.get_layer("stem")) is keras_bdl.VariationalConv2D
    assert not bayesian.get_layer("stem").trainable
    assert not bayesian.get_layer("inner").get_layer("conv").trainable
    assert bayesian.get_layer("shared").trainable
    assert not bayesian.get_layer("stem").losses


def test_frozen_layers_are_left_unless_asked_for():
    model = branched()
    model.get_layer("stem").trainable = False
    model.get_layer("inner").trainable = False
    left = {name: "is frozen (`trainable=False`)" for name in ("stem", "conv")}
    for chosen, replaced in (
        ("all", ["shared", "hidden", "head"]),
        ("last", ["head"]),
        (["stem", "head"], ["stem", "head"]),
        (lambda layer: layer.name in ("conv", "hidden"), ["conv", "hidden"]),
    ):
        _, report = keras_bdl.to_bayesian(model, 10, chosen, return_report=True)
        assert report.replaced == replaced
        expected = {name: why for name, why in left.items() if name not in replaced}
        assert {name: report.left.get(name) for name in expected} == expected
    model.trainable = False
    with pytest.raises(ValueError, match="name frozen layers.*Received.*is frozen"):
        keras_bdl.to_bayesian(model, 10)
    dropouts = keras_bdl.to_bayesian(model, method="mc_dropout")  # has no weights
    assert isinstance(
        dropouts.get_layer("inner").get_layer("drop"), keras_bdl.MCDropout
    )


# MOPED


def test_moped_sets_prior_and_posterior_by_the_weights():
    model = branched()
    kernel = np.array(model.get_layer("head").kernel)
    bias = np.array([0.0, 0.5])
    kernel[0, 0] = 0.0
    model.get_layer("head").set_weights([kernel, bias])
    layer = keras_bdl.to_bayesian(model, 10, moped=0.2).get_layer("head")
    for weights, mean, log_stddev, prior_mean in (
        (kernel, layer.kernel, layer.kernel_log_stddev, layer.prior_kernel_mean),
        (bias, layer.bias, layer.bias_log_stddev, layer.prior_bias_mean),
    ):
        stddev = np.maximum(0.2 * np.abs(weights), 1e-4)
        np.testing.assert_allclose(np.exp(to_numpy(log_stddev)), stddev, rtol=1e-5)
        np.testing.assert_array_equal(to_numpy(mean), weights.astype("float32"))
        np.testing.assert_array_equal(to_numpy(prior_mean), to_numpy(mean))
    stddevs = np.concatenate([kernel.ravel(), bias])
    stddevs = np.maximum(0.2 * np.abs(stddevs), 1e-4)
    expected = np.sum((stddevs**2 - 1.0) / 2.0 - np.log(stddevs))  # means are equal
    assert float(layer.kl()) == pytest.approx(expected, rel=1e-5)


def test_prior_of_every_weight_is_that_of_scipy():
    layer = keras_bdl.VariationalDense(3, prior=priors.NormalPerWeight())
    layer.build((None, 4))
    moments = {
        name: rng.normal(size=(4, 3)).astype("float32")
        for name in ("mean", "log_stddev", "prior_mean", "prior_log_stddev")
    }
    layer.kernel.assign(moments["mean"])
    layer.kernel_log_stddev.assign(moments["log_stddev"])
    layer.prior_kernel_mean.assign(moments["prior_mean"])
    layer.prior_kernel_log_stddev.assign(moments["prior_log_stddev"])
    layer.bias_log_stddev.assign(np.zeros(3))  # the bias is at its prior
    q = stats.norm(moments["mean"], np.exp(moments["log_stddev"]))
    p = stats.norm(moments["prior_mean"], np.exp(moments["prior_log_stddev"]))
    draws = q.rvs((400_000, 4, 3), random_state=0)
    terms = (q.logpdf(draws) - p.logpdf(draws)).sum(axis=(1, 2))
    error = terms.std() / np.sqrt(len(terms))
    assert abs(float(layer.kl()) - terms.mean()) < 5 * error
    assert not layer.prior_kernel_mean.trainable


# Samples


def test_samples_are_of_the_posterior():
    model = keras_bdl.to_bayesian(branched(), 10, initial_log_stddev=-1.0)
    x = images(2)
    first, again, other = (
        to_numpy(keras_bdl.to_keras(model, "sample", seed)(x)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).min() > 0
    plain = keras_bdl.to_keras(model, "sample", seed=3)
    for name in ("stem", "head"):
        layer, drawn = model.get_layer(name), plain.get_layer(name)
        noise = (to_numpy(drawn.kernel) - to_numpy(layer.kernel)) / np.exp(-1.0)
        assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    two = keras.Sequential(
        [keras.Input((3,)), *(keras_bdl.VariationalDense(3) for _ in range(2))]
    )
    drawn = keras_bdl.to_keras(two, "sample", seed=0)
    noise = [
        to_numpy(new.kernel) - to_numpy(old.kernel)
        for old, new in zip(two.layers, drawn.layers)
    ]
    assert np.abs(noise[0] - noise[1]).min() > 0


# What is chosen, and the report


@pytest.mark.parametrize(
    "chosen, expected",
    [
        ("last", ["head"]),
        (["stem", "conv"], ["stem", "conv"]),
        (lambda layer: isinstance(layer, layers.Dense), ["hidden", "head"]),
        ("all", ["stem", "shared", "conv", "hidden", "head"]),
    ],
)
def test_layers_are_chosen(chosen, expected):
    _, report = keras_bdl.to_bayesian(branched(), 10, layers=chosen, return_report=True)
    assert report.replaced == expected


def test_the_report_says_why():
    inputs = keras.Input((6, 4))
    x = layers.Dense(4, kernel_constraint="non_neg", name="bound")(inputs)
    x = layers.LSTM(4, return_sequences=True, name="recurrent")(x)
    x = keras_bdl.VariationalDense(4, name="bayesian")(x)
    x = layers.MultiHeadAttention(2, 2, bias_constraint="non_neg", name="above")(x, x)
    x = layers.GroupQueryAttention(2, 2, 1, name="attention")(x, x)
    x = layers.LayerNormalization(name="norm")(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    _, report = keras_bdl.to_bayesian(model, 10, return_report=True)
    assert report.replaced == ["recurrent", "attention", "head"]
    assert report.left == {
        "bound": "has a kernel_constraint",
        "bayesian": "is Bayesian already",
        "above": "has a bias_constraint",
        "norm": "has no trained matrix of weights",
    }
    assert "VariationalDense" in str(report) and "kernel_constraint" in str(report)
    _, report = keras_bdl.to_bayesian(branched(), 10, layers="last", return_report=True)
    assert report.left["stem"] == "not chosen by `layers`"


# Model classes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.one_backend
def test_a_classifier_gives_its_network(dtype):
    network = keras_bdl.to_bayesian(branched(dtype), 10)
    classifier = keras_bdl.BayesianClassifier(network)
    x = images()
    plain = keras_bdl.to_keras(classifier)
    np.testing.assert_array_equal(to_numpy(plain(x)), to_numpy(classifier(x)))


@pytest.mark.parametrize(
    "noise, normalize",
    [
        ("heteroscedastic", True),
        ("homoscedastic", True),
        ("student_t", True),
        ("student_t", False),
        pytest.param("heteroscedastic", False, marks=pytest.mark.slow),
        pytest.param("homoscedastic", False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.eager
def test_a_regressor_gives_its_scales_and_noise_too(noise, normalize):
    network = keras.Sequential(
        [
            keras.Input((3,)),
            keras_bdl.VariationalDense(4, "tanh"),
            keras_bdl.VariationalDense(2),
        ]
    )
    model = keras_bdl.BayesianRegressor(network, noise, normalize=normalize)
    x = rng.normal(3.0, 2.0, size=(32, 3)).astype("float32")
    y = 10.0 + 5.0 * x[:, : 1 if noise == "heteroscedastic" else 2]
    model.compile("adam")
    model.fit(x, y, epochs=2, verbose=0)
    plain = keras_bdl.to_keras(model)
    np.testing.assert_allclose(to_numpy(plain(x)), to_numpy(model(x)), rtol=1e-5)
    assert "keras_bdl" not in plain.to_json()


@pytest.mark.unbuilt  # activations make variables when they are called
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=pytest.mark.slow) if dtype in DTYPES[::2] else dtype
        for dtype in DTYPES
    ],
)
@pytest.mark.eager
@pytest.mark.one_backend
def test_a_regressor_of_every_dtype_policy(dtype):
    network = keras_bdl.to_bayesian(branched(dtype), 8)
    model = keras_bdl.BayesianRegressor(network, normalize=True)
    x = images(8)
    model.compile("sgd")
    model.fit(x, 5.0 + x[:, 0, 0, 0], verbose=0)
    plain = keras_bdl.to_keras(model)
    tolerance = 1e-2 if dtype and "16" in dtype else 1e-5
    np.testing.assert_allclose(to_numpy(plain(x)), to_numpy(model(x)), rtol=tolerance)


# Bad input


class ReadsItsKernel(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3, name="dense")

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        return ops.matmul(inputs, self.dense.kernel)


def test_what_cannot_be_replaced_safely_is_refused():
    model = ReadsItsKernel()
    model(np.ones((2, 4), "float32"))
    with pytest.raises(ValueError, match="Received.*dense: has weights.*reads"):
        keras_bdl.to_bayesian(model, 10, ["dense"])
    with pytest.raises(ValueError, match="Received.*dense: has weights.*reads"):
        keras_bdl.to_bayesian(model, 10, method="sparse_vd")
    bayesian, report = keras_bdl.to_bayesian(model, 10, return_report=True)
    assert report.replaced == [model.name] and report.share == 1.0
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(to_numpy(bayesian(x)), to_numpy(model(x)))


@pytest.mark.parametrize(
    "options, match",
    [
        ({"layers": ["nothing"]}, "'nothing' in layers"),
        ({"layers": 3}, "layers=3"),
        ({"layers": lambda layer: False}, "layers=<function"),
        ({"method": "laplace"}, "method='laplace'"),
        ({"moped": -1.0}, "moped=-1.0"),
        ({"moped": 0.1, "method": "sparse_vd"}, "method='sparse_vd'"),
        ({"moped": 0.1, "prior": "laplace"}, "prior='laplace'"),
        ({"prior": "cauchy"}, "prior='cauchy'"),
        ({"estimator": "magic"}, "estimator='magic'"),
        ({"length_scale": 1.0}, "length_scale=1.0"),
        ({"num_examples": 0}, "num_examples=0"),
    ],
)
def test_bad_arguments_are_refused(options, match):
    with pytest.raises(ValueError, match=f"Received.*{match}"):
        keras_bdl.to_bayesian(branched(), **options)


def test_bad_models_are_refused():
    unbuilt = keras.Sequential([layers.Dense(2)])
    pooling = keras.Sequential([keras.Input((4, 4, 1)), layers.MaxPooling2D()])
    classifier = keras_bdl.BayesianClassifier(keras_bdl.to_bayesian(branched(), 10))
    for model, match in (
        (unbuilt, "built"),
        (pooling, "no such layers"),
        (classifier, "convert the network"),
    ):
        with pytest.raises(ValueError, match=f"{match}"):
            keras_bdl.to_bayesian(model, 10)
    with pytest.raises(TypeError, match="Received: model=3"):
        keras_bdl.to_bayesian(3, 10)
    with pytest.raises(TypeError, match="Received: model=None"):
        keras_bdl.to_keras(None)
    with pytest.raises(ValueError, match="Received: weights='median'"):
        keras_bdl.to_keras(branched(), "median")
    block = keras_bdl.EarlyExitResBlock([layers.Dense(3), layers.Dense(3)])
    early = keras.Sequential([keras.Input((3,)), block])
    with pytest.raises(ValueError, match="no plain Keras counterpart"):
        keras_bdl.to_keras(early)
    with pytest.raises(ValueError, match="model.encoder"):
        keras_bdl.to_keras(keras_bdl.VAE.dense((6,), 2, hidden=(4,)))
    masks = keras_bdl.to_bayesian(branched(), 10, method="mc_dropout")
    with pytest.raises(ValueError, match="weights='sample'"):
        keras_bdl.to_keras(masks, "sample")


# Nets that people have

APPLICATIONS = {
    "ConvNeXtTiny": 32,
    "InceptionV3": 75,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Large": 32,
    "MobileNetV3Small": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "VGG19": 32,
    "Xception": 71,
}
# Depthwise, with gates; layers of a model's own are those of `test_user_layers`.
TYPICAL = ("MobileNetV3Small",)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="one backend: it is about graphs")
@pytest.mark.parametrize(
    "name",
    [
        name if name in TYPICAL else pytest.param(name, marks=pytest.mark.slow)
        for name in APPLICATIONS
    ],
)
def test_keras_applications_there_and_back(name):
    size = APPLICATIONS[name]
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), include_top=False, pooling="avg"
    )
    bayesian, report = keras_bdl.to_bayesian(model, 10, return_report=True)
    back = keras_bdl.to_keras(bayesian)
    assert any("Conv" in row["class"] for row in report.rows if row["replaced_by"])
    assert "keras_bdl" not in json.dumps(back.get_config(), default=str)
    weights = zip(model.get_weights(), back.get_weights(), strict=True)
    assert all(np.array_equal(old, new) for old, new in weights)
    x = rng.normal(size=(2, size, size, 3)).astype("float32")
    expected = to_numpy(model(x))
    np.testing.assert_array_equal(to_numpy(bayesian(x)), expected)
    np.testing.assert_array_equal(to_numpy(back(x)), expected)


def text_network():
    inputs = keras.Input((5,), dtype="int32")
    hidden = layers.Embedding(9, 4)(inputs)
    hidden = layers.Bidirectional(layers.LSTM(3, name="cell"))(hidden)
    hidden = layers.LayerNormalization(name="norm")(hidden)
    return keras.Model(inputs, layers.Dense(2, name="head")(hidden))


@pytest.mark.parametrize(
    ("chosen", "replaced", "count"),
    [
        (["forward_cell"], {"bidirectional"}, 96),
        (["bidirectional"], {"bidirectional"}, 192),
        (["norm", "head"], {"norm", "head"}, 12 + 14),
        (lambda layer: layer.name == "backward_cell", {"bidirectional"}, 96),
        (lambda layer: "norm" in layer.name, None, None),
    ],
)
def test_layers_inside_of_a_wrapped_one_are_chosen(chosen, replaced, count, tmp_path):
    plain = text_network()
    x = np.random.default_rng(0).integers(0, 9, (10, 5))
    if replaced is None:  # scales are given posteriors by their names alone
        with pytest.raises(ValueError, match="at least one layer"):
            keras_bdl.to_bayesian(plain, 10, layers=chosen)
        return
    model, report = keras_bdl.to_bayesian(plain, 10, chosen, return_report=True)
    assert {name.split("_")[0] for name in report.replaced} == replaced
    np.testing.assert_allclose(report.share, count / plain.count_params())
    draws = keras_bdl.predict(model, x, 5, return_samples=True, seed=0, verbose=0)
    assert draws.std(axis=0).max() > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)
    back = keras_bdl.to_keras(loaded)
    np.testing.assert_allclose(back.predict(x, verbose=0), expected, atol=1e-6)


def test_names_that_nothing_has_inside_are_refused():
    with pytest.raises(ValueError, match="Received: 'forward' in layers"):
        keras_bdl.to_bayesian(text_network(), 10, layers=["forward", "head"])
    with pytest.raises(ValueError, match="name layers inside.*Received: weights="):
        keras_bdl.Bayesian(text_network(), weights=["forward"])
    with pytest.raises(TypeError, match="list of names.*Received: weights=3"):
        keras_bdl.Bayesian(text_network(), weights=3)


@keras.saving.register_keras_serializable("test_conversion")
class Unnamed(keras.Model):
    """Its layers have other names in every copy, and it reads the weights of one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = layers.Dense(4), layers.Dense(4)

    def call(self, x):
        hidden = self.second(self.first(x))
        return ops.matmul(hidden, ops.transpose(self.first.kernel))


def test_named_layers_inside_are_the_same_in_copies_and_files(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    plain = Unnamed()
    plain(x)
    model = keras_bdl.Bayesian(plain, weights=[plain.second.name], num_examples=6)
    assert model.bayesian.which == ["kernel_1", "bias_1"]
    expected = to_numpy(model(x))
    back = keras_bdl.to_keras(model)
    np.testing.assert_allclose(to_numpy(back(x)), expected, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(loaded(x)), expected, atol=1e-6)
    assert loaded.bayesian.which == model.bayesian.which
