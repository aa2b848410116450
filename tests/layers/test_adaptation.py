"""Adapters of low rank with a posterior: `posterior="lora"` and `method="lora"`."""

import dataclasses

import keras
import numpy as np
import pytest
import scipy.stats
from contract import Case, LayerContract, to_numpy
from keras import layers

import keras_bdl
from keras_bdl.posteriors import LowRankAdaptation

pytestmark = pytest.mark.portable


def adapters(layer, name):
    """Mean and standard deviation of A with its scale, and B with that of the rank."""
    variables = {n: to_numpy(v) for n, v in layer.posterior.variables().items()}
    a, b = variables[f"{name}_lora_a"], variables[f"{name}_lora_b"]
    posterior = layer.posterior
    scale = np.sqrt(2.0 / len(a)) * (posterior.alpha or posterior.rank) / posterior.rank
    return scale * a, scale * np.exp(variables[f"{name}_lora_a_log_stddev"]), b


def kl_of_adapters(layer):
    total = 0.0
    for name in layer.posterior.shapes:
        variables = layer.posterior.variables()
        mean = to_numpy(variables[f"{name}_lora_a"]).astype("float64")
        log_stddev = to_numpy(variables[f"{name}_lora_a_log_stddev"])
        q = scipy.stats.norm(mean, np.exp(log_stddev.astype("float64")))
        # E_q[log q - log p] of Gaussians, in the entropy of SciPy.
        cross = 0.5 * np.log(2 * np.pi) + 0.5 * (q.mean() ** 2 + q.var())
        total += np.sum(cross - q.entropy())
    return total, 1e-5 * abs(total) + 1e-4


@dataclasses.dataclass
class AdaptedCase(Case):
    def kernel_moments(self, layer):
        name = layer.weight_map.kernel
        kernel = to_numpy(layer.weight_map.variables(layer)[name])
        mean, stddev, b = adapters(layer, name)
        variance = np.square(stddev) @ np.square(b)
        return kernel + (mean @ b).reshape(kernel.shape), variance.reshape(kernel.shape)

    def built(self, **options):
        layer = super().built(**options)
        b = layer.posterior.variables()["kernel_lora_b"]
        b.assign(np.random.default_rng(0).normal(size=b.shape))  # 0 has no noise
        return layer

    def moments(self, layer, x):
        mean, variance = self.kernel_moments(layer)
        return x @ mean + to_numpy(layer.bias), x**2 @ variance


def inference_kernel(layer):
    kernel, (mean, _, b) = to_numpy(layer.kernel), adapters(layer, "kernel")
    return kernel + mean @ b


def make(cls, **options):
    return cls(3, **{"activation": "tanh", **options})


def dense(**options):
    layer = keras_bdl.VariationalDense(
        3, posterior=LowRankAdaptation(2, alpha=3.0), num_examples=10, **options
    )
    layer.build((None, 4))
    rng = np.random.default_rng(0)
    for variable in layer.posterior.variables().values():
        variable.assign(rng.normal(size=variable.shape) - 0.5)
    layer.bias.assign(rng.normal(size=3))
    return layer


def test_outputs_have_the_moments_of_the_adapters():
    layer = dense()
    x = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(inputs))
    options = {"outputs": "mean", "seed": 0, "verbose": 0, "return_samples": True}
    draws = keras_bdl.predict(model, x, 4000, **options)
    a, stddev, b = adapters(layer, "kernel")
    mean = x @ (to_numpy(layer.kernel) + a @ b) + to_numpy(layer.bias)
    # Outputs x A B share the noise of the rank.
    covariance = np.einsum("ni,ir,ro,rp->nop", x**2, stddev**2, b, b)
    np.testing.assert_allclose(to_numpy(layer(x)), mean, rtol=1e-4, atol=1e-4)
    for row in range(len(x)):
        scale = np.sqrt(np.diag(covariance[row]))
        error = np.abs(draws[:, row].mean(axis=0) - mean[row]) / scale
        assert error.max() < 5.0 / np.sqrt(len(draws))
        measured = np.cov(draws[:, row].T) / np.outer(scale, scale)
        expected = covariance[row] / np.outer(scale, scale)
        np.testing.assert_allclose(
            measured, expected, atol=5.0 * np.sqrt(2.0 / len(draws))
        )


@pytest.mark.parametrize("prior", ["normal", keras_bdl.priors.NormalPerWeight()])
def test_the_kl_is_that_of_the_factors(prior):
    layer = dense(prior=prior)
    expected, tolerance = kl_of_adapters(layer)
    np.testing.assert_allclose(to_numpy(layer.kl()), expected, atol=tolerance)


def test_a_layer_starts_as_it_was():
    plain = keras.layers.Dense(3)
    plain.build((None, 4))
    layer = keras_bdl.VariationalDense.from_keras(plain, posterior="lora")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    np.testing.assert_array_equal(to_numpy(layer(x)), to_numpy(plain(x)))
    names = {v.name for v in layer.trainable_variables}
    expected = {"kernel_lora_a", "kernel_lora_a_log_stddev", "kernel_lora_b"}
    assert names == expected
    layer.trainable = True  # Keras sets every variable
    assert {v.name for v in layer.trainable_variables} == expected
    assert layer.posterior.prior_shapes == {"kernel": (4, 8)}


@pytest.mark.parametrize("size", [7, 400_000])
def test_an_embedding_adapts_the_rows_that_it_looks_up(size):
    layer = keras_bdl.VariationalEmbedding(
        size, 3, posterior=LowRankAdaptation(2, alpha=5.0), num_examples=10
    )
    inputs = keras.Input((3,), dtype="int32")
    model = keras.Model(inputs, layer(inputs))
    rng = np.random.default_rng(0)
    for variable in layer.posterior.variables().values():
        variable.assign(rng.normal(size=variable.shape))
    words, count = np.array([4, 1, 4]), 8000 if size == 7 else 1000
    a, stddev, b = adapters(layer, "embeddings")
    table = to_numpy(layer.embeddings) + a @ b
    mean = table[words]
    np.testing.assert_allclose(to_numpy(layer(words[None]))[0], mean, rtol=1e-5)
    # Words that differ are independent, and units share the noise of the rank.
    variance = stddev[words[:2]] ** 2
    covariance = np.einsum("ir,ru,rv->iuv", variance, b, b)
    x = np.tile(words, (count, 1))
    options = {"outputs": "mean", "seed": 0, "verbose": 0, "return_samples": True}
    sampled = keras_bdl.predict(model, words[None], count, **options)[:, 0]
    for draws in (to_numpy(layer(x, training=True)), sampled):
        np.testing.assert_array_equal(draws[:, 0], draws[:, 2])
        flat = draws[:, :2].reshape(count, 6)
        expected = np.zeros((2, 3, 2, 3))
        for i in range(2):
            expected[i, :, i] = covariance[i]
        expected = expected.reshape(6, 6)
        scale = np.sqrt(np.diag(expected))
        error = np.abs(flat.mean(axis=0) - mean[:2].ravel()) / scale
        assert error.max() < 5.0 / np.sqrt(count)
        measured = np.cov(flat.T) / np.outer(scale, scale)
        tolerance = 5.0 * np.sqrt(2.0 / count)
        np.testing.assert_allclose(
            measured, expected / np.outer(scale, scale), atol=tolerance
        )


def text_model():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(12, 6)(inputs)
    x = layers.LSTM(4, return_sequences=True)(x)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3)(x, x))
    x = layers.BatchNormalization()(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def data():
    x = np.random.default_rng(0).integers(0, 12, (60, 5))
    return x, x[:, 0] % 3


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.03), loss)
    return model


def test_adapters_alone_are_trained_and_merge_into_the_plain_model(tmp_path):
    plain = text_model()
    x, y = data()
    model, report = keras_bdl.to_bayesian(
        plain, len(x), method="lora", rank=2, return_report=True
    )
    assert report.share > 0.8
    np.testing.assert_array_equal(to_numpy(model(x)), to_numpy(plain(x)))
    before = {v.path: to_numpy(v) for v in model.variables}
    trained = {v.path for v in model.trainable_variables}
    assert all("_lora_" in path for path in trained)
    compiled(model)
    losses = model.fit(x, y, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for variable in model.variables:
        moved = np.any(to_numpy(variable) != before[variable.path])
        assert moved == (variable.path in trained) or "seed" in variable.path
    merged = keras_bdl.to_keras(model)
    assert [type(layer) for layer in merged.layers] == [
        type(layer) for layer in plain.layers
    ]
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(merged.predict(x, verbose=0), expected, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)
    assert {v.path for v in loaded.trainable_variables} == trained
    loaded.fit(x, y, verbose=0)


@keras.saving.register_keras_serializable("test_adaptation")
class Tied(keras.Model):
    """Reads the weights of a layer inside, so that it is wrapped whole."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = layers.Embedding(12, 6)
        self.norm = layers.BatchNormalization()
        self.hidden = layers.Dense(6)

    def call(self, x):
        hidden = self.hidden(self.norm(keras.ops.mean(self.table(x), axis=1)))
        return keras.ops.matmul(hidden, keras.ops.transpose(self.table.embeddings))


def test_a_model_that_is_wrapped_whole_has_adapters(tmp_path):
    x, y = data()
    plain = Tied()
    plain(x)
    model = keras_bdl.to_bayesian(plain, len(x), method="lora", rank=2)
    assert isinstance(model, keras_bdl.models.BayesianModel)
    before = {v.path: to_numpy(v) for v in model.variables}
    trained = {v.path for v in model.trainable_variables}
    assert trained and all("_lora_" in path for path in trained)
    compiled(model).fit(x, y, epochs=2, verbose=0)
    for variable in model.variables:
        moved = np.any(to_numpy(variable) != before[variable.path])
        assert moved == (variable.path in trained) or "seed" in variable.path
    expected = model.predict(x, verbose=0)
    merged = keras_bdl.to_keras(model)
    np.testing.assert_allclose(merged.predict(x, verbose=0), expected, atol=1e-6)
    assert np.abs(expected - plain.predict(x, verbose=0)).max() > 1e-4
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)
    names = [v.name for v in model.trainable_variables]
    assert [v.name for v in loaded.trainable_variables] == names


@keras.saving.register_keras_serializable("test_adaptation")
class Block(layers.Layer):
    """Has weights of its own and a layer that no adapter takes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = layers.Dense(8)
        self.norm = layers.BatchNormalization()

    def build(self, input_shape):
        self.hidden.build(input_shape)
        self.norm.build((None, 8))
        self.offset = self.add_weight(name="offset", shape=(8,))

    def call(self, x):
        return self.norm(self.hidden(x)) + self.offset


@pytest.mark.parametrize("method", ["lora", "variational"])
def test_what_is_frozen_in_a_users_layer_is_frozen_in_a_loaded_one(method, tmp_path):
    inputs = keras.Input((20,))
    block = Block()
    plain = keras.Model(inputs, block(inputs))
    block.norm.trainable = False
    model = keras_bdl.to_bayesian(plain, 20, method=method)
    trained = [v.name for v in model.trainable_variables]
    assert not {"gamma", "beta"} & set(trained)
    assert ("offset" in trained) == (method == "variational")
    x = np.random.default_rng(0).normal(size=(20, 20))
    model.compile("adam", "mse")
    model.fit(x, np.zeros((20, 8)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [v.name for v in loaded.trainable_variables] == trained
    assert loaded.optimizer.iterations == model.optimizer.iterations
    loaded.fit(x, np.zeros((20, 8)), verbose=0)
    np.testing.assert_array_equal(
        to_numpy(loaded.layers[1].norm.moving_mean), np.zeros(8)
    )


@keras.saving.register_keras_serializable("test_adaptation")
class Unbuilt(layers.Layer):
    """Its inner layers are built when they are called, in either order."""

    def __init__(self, norm_first=False, **kwargs):
        super().__init__(**kwargs)
        self.norm_first = norm_first
        if norm_first:
            self.norm = layers.BatchNormalization()
        self.hidden = layers.Dense(8)
        if not norm_first:
            self.norm = layers.BatchNormalization()

    def call(self, x):
        return self.norm(self.hidden(x))

    def get_config(self):
        return {**super().get_config(), "norm_first": self.norm_first}


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("method", ["lora", "variational"])
def test_layers_that_are_built_late_are_loaded_as_they_were(
    method, norm_first, tmp_path
):
    inputs = keras.Input((20,))
    plain = keras.Model(inputs, Unbuilt(norm_first)(inputs))
    model = keras_bdl.to_bayesian(plain, 20, method=method)
    trained = [v.name for v in model.trainable_variables]
    x = np.random.default_rng(0).normal(size=(20, 20))
    model.compile("adam", "mse")
    model.fit(x, np.zeros((20, 8)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert sorted(v.name for v in loaded.trainable_variables) == sorted(trained)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)


def test_layers_that_are_bayesian_already_are_frozen_by_adapters():
    inputs = keras.Input((4,))
    hidden = keras_bdl.VariationalDense(5, num_examples=10)(inputs)
    plain = keras.Model(inputs, layers.Dense(2)(hidden))
    model = keras_bdl.to_bayesian(plain, 10, method="lora")
    assert all("_lora_" in v.name for v in model.trainable_variables)


@pytest.mark.every_backend
def test_attention_alone_is_adapted_and_given_back():
    inputs = keras.Input((4, 6))
    attended = layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs)
    plain = keras.Model(inputs, layers.Dense(2)(attended))
    model = keras_bdl.to_bayesian(plain, 10, ["attention"], method="lora", rank=2)
    assert all("_lora_" in v.name for v in model.trainable_variables)
    back = keras_bdl.to_keras(model)
    assert len(back.trainable_variables) == len(plain.trainable_variables)


def test_weights_of_one_axis_have_no_adapters():
    layer = layers.LayerNormalization()
    layer.build((None, 3))
    with pytest.raises(ValueError, match="two axes.*Received: posterior=LowRank"):
        keras_bdl.Bayesian(layer, weights="all", posterior="lora")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank.*Received: rank=0"),
        ({"alpha": -1.0}, "alpha.*Received: alpha=-1"),
        ({"posterior": "gaussian"}, "own.*Received: posterior='gaussian'"),
        ({"moped": 0.1}, "moped.*Received: moped=0.1"),
        ({"estimator": "flipout"}, "estimator.*Received: estimator='flipout'"),
        ({"width": 3}, "width: no argument.*Received: width=3"),
    ],
)
def test_wrong_options_are_refused(options, message):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(ValueError, match=message):
        keras_bdl.to_bayesian(model, 10, method="lora", **options)


class TestLowRankAdaptation(LayerContract):
    cases = [
        AdaptedCase(
            name="VariationalDense",
            make=lambda **options: make(
                keras_bdl.VariationalDense, **{"posterior": "lora", **options}
            ),
            plain=lambda **options: make(keras.layers.Dense, **options),
            input_shape=(5,),
            oracle_kl=kl_of_adapters,
            inference_kernel=inference_kernel,
            proper_prior=False,
            about=("layer",),
        ),
    ]
