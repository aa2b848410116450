"""Recurrent layers and the wrapper of any layer: the contract, and their own."""

import dataclasses

import keras
import numpy as np
import pytest
from contract import BACKEND, Case, LayerContract, compile_zero_loss, to_numpy
from keras import layers, ops
from kl_oracles import kl_to_normal

import keras_bdl
from keras_bdl.core import scopes

pytestmark = pytest.mark.portable

N = 10


@dataclasses.dataclass
class DrawnCase(Case):
    """A layer that runs with one draw of its weights for all rows."""

    def with_draw(self, layer, x, drawn, **arguments):
        """The Keras layer's outputs with drawn weights."""
        plain = self.plain()
        self.copy_means(layer, plain)
        for name, variable in layer.weight_map.variables(plain).items():
            variable.assign(drawn[name])
        return plain(x, **arguments)


class DrawnContract(LayerContract):
    """The contract of layers whose outputs have no moments in closed form."""

    def check_draws(self, case, sample_at_inference):
        layer = case.built(sample_at_inference=sample_at_inference)
        case.randomize(layer)
        x = case.inputs(rows=3)
        state = to_numpy(layer.noise.state)
        drawn = layer.drawn_weights(layer.noise)
        drawn = {name: to_numpy(weight) for name, weight in drawn.items()}
        layer.noise.state.assign(state)
        outputs = to_numpy(layer(x, training=not sample_at_inference))
        expected = to_numpy(case.with_draw(layer, x, drawn))
        np.testing.assert_allclose(outputs, expected, atol=1e-5)
        assert np.abs(outputs - to_numpy(layer(x, training=False))).max() > (
            -1.0 if sample_at_inference else 1e-4
        )
        again = to_numpy(layer(x, training=not sample_at_inference))
        assert np.abs(again - outputs).max() > 1e-4

    def test_batch_of_one_and_none(self, case):
        layer, plain = case.built(), case.plain()
        x = case.inputs(rows=1)  # Keras's own cells refuse an empty batch
        for training in (False, True):
            assert layer(x, training=training).shape == plain(x).shape

    def test_draws_in_the_scope_have_the_exact_moments(self, case):
        layer = case.built()
        case.randomize(layer)
        x, count = case.inputs(rows=3), 4
        with scopes.SamplingScope(0, 0, count) as scope:
            scope.restart(layer.noise)
            drawn = layer.drawn_weights(layer.noise, count)
        drawn = {name: to_numpy(w) for name, w in drawn.items()}
        tiled = np.tile(x, (count,) + (1,) * len(case.input_shape))
        with scopes.SamplingScope(0, 0, count):
            outputs = to_numpy(layer(tiled))
        for i, output in enumerate(np.split(outputs, count)):
            sample = {name: w[i] for name, w in drawn.items()}
            expected = to_numpy(case.with_draw(layer, x, sample))
            np.testing.assert_allclose(output, expected, atol=1e-5)


def case(name, args, shape, thorough=False, kind=DrawnCase, **fixed):
    bayesian = getattr(keras_bdl, f"Variational{name}")
    plain = getattr(layers, name)

    def make(**options):
        return bayesian(*args, **{**fixed, **options})

    return kind(
        name="thorough" if thorough else "default",
        make=make,
        plain=lambda **options: plain(*args, **{**fixed, **options}),
        input_shape=shape,
        oracle_kl=kl_to_normal(0.0, 1.0),
        about=("layer",),
        thorough=thorough,
    )


class TestVariationalLSTM(DrawnContract):
    cases = [case("LSTM", (3,), (4, 2), thorough=True)]


class TestVariationalGRU(DrawnContract):
    cases = [case("GRU", (3,), (4, 2), return_sequences=True)]


@pytest.mark.one_backend
class TestVariationalSimpleRNN(DrawnContract):
    cases = [case("SimpleRNN", (3,), (4, 2), go_backwards=True)]


@pytest.mark.one_backend
class TestVariationalConvLSTM1D(DrawnContract):
    cases = [case("ConvLSTM1D", (2, 2), (3, 5, 2))]


@pytest.mark.one_backend
class TestVariationalConvLSTM2D(DrawnContract):
    cases = [case("ConvLSTM2D", (2, 2), (3, 4, 5, 2), padding="same")]


@pytest.mark.one_backend
class TestVariationalConvLSTM3D(DrawnContract):
    cases = [case("ConvLSTM3D", (2, 2), (2, 3, 4, 3, 2))]


@dataclasses.dataclass
class WrapperCase(DrawnCase):
    """A wrapper, whose plain layer is that inside."""

    def built(self, **options):
        layer = self.make(**{"num_examples": 1000, **options})
        layer(np.zeros((1, *self.input_shape), "float32"))
        return layer

    def copy_means(self, layer, plain, kernel=None):
        plain.build((None, *self.input_shape))
        plain.set_weights(layer.layer.get_weights())

    def kernel(self, layer, plain):
        return to_numpy(keras_bdl.maps.weights_inside(plain)["kernel_0"])

    def kernel_moments(self, layer):
        mean, log_stddev = layer.posterior.moments()["kernel_0"]
        return to_numpy(mean), np.exp(2 * to_numpy(log_stddev))

    def with_draw(self, layer, x, drawn):
        plain = self.plain()
        self.copy_means(layer, plain)
        for name, variable in keras_bdl.maps.weights_inside(plain).items():
            variable.assign(drawn[name])
        return plain(x)


def bidirectional(**options):
    return layers.Bidirectional(layers.SimpleRNN(2))


class TestBayesianWrapper(DrawnContract):
    cases = [
        WrapperCase(
            name="bidirectional",
            make=lambda activation=None, **options: keras_bdl.layers.BayesianWrapper(
                bidirectional(), **options
            ),
            plain=bidirectional,
            input_shape=(4, 2),
            oracle_kl=kl_to_normal(0.0, 1.0),
            about=("layer",),
            thorough=False,
            drop_in=False,
        )
    ]

    def test_to_keras_and_back(self, case):
        layer = case.built()
        case.randomize(layer)
        x = case.inputs()
        plain = layer.to_keras()
        assert type(plain) is layers.Bidirectional
        np.testing.assert_array_equal(to_numpy(plain(x)), to_numpy(layer(x)))
        again = type(layer).from_keras(plain, num_examples=N)
        np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(layer(x)))


# Options of the Keras layers

OPTIONS = {
    "LSTM": [
        {"return_sequences": True},
        {"return_state": True},
        {"return_sequences": True, "return_state": True, "go_backwards": True},
        {"unroll": True},
        {"use_bias": False, "activation": "relu"},
        {"recurrent_activation": "tanh", "unit_forget_bias": False},
    ],
    "GRU": [{"reset_after": False}, {"reset_after": True, "return_state": True}],
    "SimpleRNN": [{"return_sequences": True, "activation": "relu"}],
    "ConvLSTM1D": [{"strides": 2, "return_state": True}, {"dilation_rate": 2}],
}


@pytest.mark.parametrize(
    "name, options", [(name, o) for name, table in OPTIONS.items() for o in table]
)
def test_without_noise_every_option_is_that_of_keras(name, options):
    args, shape = ((3,), (2, 4, 2)) if "Conv" not in name else ((2, 2), (2, 3, 6, 2))
    layer = getattr(keras_bdl, f"Variational{name}")(
        *args, **options, initial_log_stddev=-30.0, num_examples=N
    )
    plain = getattr(layers, name)(*args, **options)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer(x), plain(x)
    plain.set_weights([to_numpy(w) for w in layer.weight_map.variables(layer).values()])
    for training in (False, True):
        got = keras.tree.flatten(layer(x, training=training))
        expected = keras.tree.flatten(plain(x))
        assert len(got) == len(expected)
        for a, b in zip(got, expected):
            np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-6)


def test_masks_and_initial_states_are_those_of_keras():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5, 2)).astype("float32")
    mask = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 0], [1, 1, 1, 1, 1]], bool)
    state = [rng.normal(size=(3, 4)).astype("float32") for _ in range(2)]
    layer = keras_bdl.VariationalLSTM(
        4, initial_log_stddev=-30.0, return_sequences=True, num_examples=N
    )
    plain = layers.LSTM(4, return_sequences=True)
    layer(x), plain(x)
    plain.set_weights([to_numpy(w) for w in layer.weight_map.variables(layer).values()])
    for training in (False, True):
        got = to_numpy(layer(x, initial_state=state, mask=mask, training=training))
        expected = to_numpy(plain(x, initial_state=state, mask=mask))
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_samples_take_masks_of_their_rows(name):
    inputs = keras.Input((None,), dtype="int32")
    embedded = keras_bdl.VariationalEmbedding(9, 3, mask_zero=True)(inputs)
    layer = getattr(keras_bdl, f"Variational{name}")(4, initial_log_stddev=-1.0)
    model = keras.Model(inputs, layer(embedded))
    options = {"return_samples": True, "outputs": "mean", "seed": 0, "verbose": 0}
    padded = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    draws = keras_bdl.predict(model, padded, 9, **options)
    alone = keras_bdl.predict(model, padded[:1, :3], 9, **options)
    np.testing.assert_allclose(alone[:, 0], draws[:, 0], atol=1e-6)
    assert draws.std(axis=0).min() > 1e-3


def test_every_step_has_the_same_weights():
    layer = keras_bdl.VariationalSimpleRNN(
        1,
        activation="linear",
        return_sequences=True,
        initial_log_stddev=0.0,
        bias_posterior=False,
        num_examples=N,
    )
    x = np.ones((2, 6, 1), "float32")
    outputs = to_numpy(layer(x, training=True))[:, :, 0]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-6)  # one draw per batch
    w, r = outputs[0, 0], (outputs[0, 1] - outputs[0, 0]) / outputs[0, 0]
    expected = [w * sum(r**k for k in range(step + 1)) for step in range(6)]
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-4)


@pytest.mark.every_backend
def test_kl_counts_once_in_bidirectional_and_stacked_layers():
    inputs = keras.Input((4, 2))
    one = keras_bdl.VariationalLSTM(3, return_sequences=True, num_examples=N)
    x = layers.Bidirectional(one)(inputs)
    last = keras_bdl.VariationalGRU(2, num_examples=N)
    shared = last(x) + last(2.0 * x)
    model = compile_zero_loss(keras.Model(inputs, shared))
    found = [x for x in model._flatten_layers() if hasattr(x, "measured_kl")]
    assert len(found) == 3
    total = sum(float(to_numpy(layer.kl())) for layer in found) / N
    data = np.ones((5, 4, 2), "float32")
    loss = float(model.evaluate(data, np.zeros((5, 2)), verbose=0))
    assert loss == pytest.approx(total, rel=1e-5)
    fitted = model.fit(data, np.zeros((5, 2)), verbose=0).history["loss"][0]
    assert fitted == pytest.approx(total, rel=1e-5)


def test_a_stateful_layer_carries_its_state_in_training():
    layer = keras_bdl.VariationalGRU(
        2, stateful=True, initial_log_stddev=-30.0, num_examples=N
    )
    plain = layers.GRU(2, stateful=True)
    x = np.ones((2, 3, 1), "float32")
    layer(x), plain(x)
    plain.set_weights([to_numpy(w) for w in layer.weight_map.variables(layer).values()])
    layer.reset_state(), plain.reset_state()
    for training in (True, False, True):
        got, expected = to_numpy(layer(x, training=training)), to_numpy(plain(x))
        np.testing.assert_allclose(got, expected, atol=1e-6)
    inputs = keras.Input(batch_shape=(2, 3, 1))
    model = keras.Model(inputs, layer(inputs))
    with pytest.raises(ValueError, match="stateful=False.*Received"):
        keras_bdl.predict(model, x, 2, outputs="mean", verbose=0)


def test_dropout_inside_is_that_of_keras_and_idle_in_samples():
    layer = keras_bdl.VariationalLSTM(
        3, dropout=0.5, recurrent_dropout=0.5, seed=1, num_examples=N
    )
    inputs = keras.Input((4, 2))
    model = keras.Model(inputs, layer(inputs))
    model.compile("adam", "mse")
    x = np.ones((4, 4, 2), "float32")
    assert np.isfinite(model.fit(x, np.zeros((4, 3)), verbose=0).history["loss"]).all()
    options = {"return_samples": True, "outputs": "mean", "seed": 0, "verbose": 0}
    first = keras_bdl.predict(model, x, 3, **options)
    np.testing.assert_array_equal(first, keras_bdl.predict(model, x, 3, **options))
    np.testing.assert_allclose(first[:, 0], first[:, 1], atol=1e-6)
    assert layer.dropout == 0.5 and layer.get_config()["seed"] == 1


# The wrapper


@keras.saving.register_keras_serializable("test_recurrent")
class Statistics(keras.layers.Layer):
    """A matrix product with a running statistic, a loss and a mask."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], 2), name="w")
        self.count = self.add_weight(
            shape=(), name="count", initializer="zeros", trainable=False
        )

    def call(self, x, training=False, mask=None):
        if training:
            self.count.assign_add(1.0)
        self.add_loss(1e-3 * ops.sum(self.w**2))
        y = ops.matmul(x, self.w)
        if mask is not None:
            y = y * ops.cast(mask[..., None], y.dtype)
        return y

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 2)


@pytest.mark.every_backend
def test_a_wrapped_layer_keeps_losses_masks_and_state():
    inputs = keras.Input((3, 2))
    wrapper = keras_bdl.Bayesian(
        Statistics(), num_examples=N, kl_weight=0.0, initial_log_stddev=-30.0
    )
    model = keras.Model(inputs, wrapper(layers.Masking()(inputs)))
    x = np.ones((4, 3, 2), "float32")
    x[:, 2] = 0.0  # masked
    plain_inputs = keras.Input((3, 2))
    plain_layer = Statistics()
    plain = keras.Model(plain_inputs, plain_layer(layers.Masking()(plain_inputs)))
    plain_layer.w.assign(to_numpy(wrapper.layer.w))
    histories = []
    for m in (model, plain):
        m.compile(keras.optimizers.SGD(0.1), "mse")
        histories.append(
            m.fit(x, np.ones((4, 3, 2)), epochs=3, verbose=0).history["loss"]
        )
    np.testing.assert_allclose(*histories, rtol=1e-5)
    np.testing.assert_allclose(
        to_numpy(wrapper.layer.w), to_numpy(plain_layer.w), atol=1e-5
    )
    assert float(to_numpy(wrapper.layer.count)) == 3.0
    assert not np.any(model.predict(x, verbose=0)[:, 2])


@pytest.mark.parametrize(
    "make", [lambda: layers.Attention(use_scale=True), layers.AdditiveAttention]
)
def test_a_layer_named_in_conversion_takes_a_list_with_masks(make):
    words = keras.Input((6,), dtype="int32")
    h = layers.Embedding(9, 4, "random_normal", mask_zero=True)(words)
    h = layers.Rescaling(20.0)(h)
    attention = make()
    h = layers.LSTM(3)(attention([h, h]))
    plain = keras.Model(words, h)
    for variable in attention.trainable_variables:
        variable.assign(np.full(variable.shape, 0.7))
    model, report = keras_bdl.to_bayesian(
        plain, num_examples=N, layers=[attention.name], return_report=True
    )
    assert report.share > 0.0
    x = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 0]])
    expected = plain.predict(x, verbose=0)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    samples = keras_bdl.predict(model, x, 4, return_samples=True, verbose=0)
    assert np.ptp(samples, axis=0).max() > 1e-4


@pytest.mark.every_backend
def test_batch_statistics_move_in_training_and_stay_in_samples():
    network = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4), layers.BatchNormalization()]
    )
    model = keras_bdl.Bayesian(network, num_examples=N)
    assert set(model.bayesian.chosen) == {"kernel_0", "bias_0"}  # matrices by default
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(3.0, 1.0, (8, 3)).astype("float32")
    model.fit(x, np.zeros((8, 4)), verbose=0)
    moved = to_numpy(network.layers[1].moving_mean)
    assert np.abs(moved).min() > 0.0
    keras_bdl.predict(model, x, 4, outputs="mean", seed=0, verbose=0)
    np.testing.assert_array_equal(moved, to_numpy(network.layers[1].moving_mean))


class Bare(keras.Model):
    """A subclassed model without a config, whose `call` uses a layer's weights."""

    def __init__(self, width):
        super().__init__()
        self.first = layers.Dense(width)
        self.table = layers.Embedding(5, width)

    def call(self, x):
        return ops.matmul(self.first(x), ops.transpose(self.table.embeddings))

    def build(self, input_shape):
        self.first.build(input_shape)
        self.table.build()
        self.built = True


def test_any_model_is_wrapped(tmp_path):
    network = Bare(4)
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    expected = to_numpy(network(x))
    model = keras_bdl.Bayesian(network, num_examples=6, initial_log_stddev=-1.0)
    np.testing.assert_array_equal(to_numpy(model(x)), expected)
    model.compile("adam", "mse")
    assert np.isfinite(model.fit(x, expected, verbose=0).history["loss"]).all()
    options = {"outputs": "mean", "seed": 0, "verbose": 0}
    draws = keras_bdl.predict(model, x, 5, return_samples=True, **options)
    assert draws.shape == (5, 6, 5) and draws.std(axis=0).min() > 1e-3
    parts = keras_bdl.predict(model, x, 5, return_samples=True, batch_size=2, **options)
    np.testing.assert_allclose(parts, draws, atol=1e-5)
    model.save_weights(tmp_path / "w.weights.h5")
    other = keras_bdl.Bayesian(Bare(4), num_examples=6)
    other(x)
    other.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(to_numpy(other(x)), to_numpy(model(x)))


def test_a_compiled_model_inside_keeps_its_metrics_to_itself(tmp_path):
    network = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    network.compile("sgd", "mse", metrics=["mae"])
    network.fit(np.ones((8, 3)), np.ones((8, 2)), verbose=0)
    model = keras_bdl.Bayesian(network, num_examples=8, initial_log_stddev=-30.0)
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
    x, y = np.ones((8, 3)), np.ones((8, 2))
    expected = network.evaluate(x, y, verbose=0, return_dict=True)
    history = model.fit(x, y, verbose=0).history
    assert history["mae"][0] == pytest.approx(expected["mae"], rel=1e-5)
    assert history["loss"][0] > expected["loss"]  # and the KL
    scores = model.evaluate(x, y, verbose=0, return_dict=True)
    assert scores["mae"] == pytest.approx(expected["mae"], rel=1e-5)
    model.summary(print_fn=lambda line: None)
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert copy.evaluate(x, y, verbose=0)[1] == pytest.approx(scores["mae"])


def test_to_keras_takes_a_posterior_off_a_model():
    network = keras.Sequential([keras.Input((4, 2)), layers.LSTM(3), layers.Dense(1)])
    model = keras_bdl.Bayesian(network, initial_log_stddev=-1.0)
    x = np.ones((2, 4, 2), "float32")
    plain = keras_bdl.to_keras(model)
    assert type(plain) is keras.Sequential and plain is not network
    np.testing.assert_array_equal(to_numpy(plain(x)), to_numpy(network(x)))
    drawn = keras_bdl.to_keras(model, "sample", seed=0)
    assert np.abs(to_numpy(drawn(x)) - to_numpy(plain(x))).max() > 1e-3
    with pytest.raises(ValueError, match="weights.*Received"):
        keras_bdl.to_keras(model, "median")


def test_a_saved_wrapper_is_loaded(tmp_path):
    inputs = keras.Input((4, 2))
    wrapper = keras_bdl.Bayesian(
        layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]),
        num_examples=N,
        prior=keras_bdl.priors.Normal(0.0, 2.0),
        posterior=keras_bdl.posteriors.LowRank(1, initial_log_stddev=-1.0),
    )
    model = keras.Model(inputs, layers.Dense(1)(wrapper(inputs)))
    model.compile("adam", "mse")
    x = np.ones((4, 4, 2), "float32")
    model.fit(x, np.ones((4, 1)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    options = {"return_samples": True, "outputs": "mean", "seed": 0, "verbose": 0}
    np.testing.assert_allclose(
        keras_bdl.predict(loaded, x, 3, **options),
        keras_bdl.predict(model, x, 3, **options),
        atol=1e-6,
    )
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(to_numpy(clone(x)), to_numpy(model(x)), atol=1e-6)
    posterior = clone.layers[1].posterior
    assert isinstance(posterior, keras_bdl.posteriors.LowRank)


def test_refusals_say_what_to_do():
    with pytest.raises(TypeError, match="Keras layer.*Received"):
        keras_bdl.Bayesian("lstm")
    with pytest.raises(ValueError, match="keras_bdl layers.*Received"):
        keras_bdl.Bayesian(keras.Sequential([keras_bdl.VariationalDense(2)]))
    with pytest.raises(ValueError, match="no weight to give a posterior.*Received"):
        keras_bdl.Bayesian(layers.BatchNormalization())(np.ones((2, 3), "float32"))
    frozen = layers.Dense(2, trainable=False)
    with pytest.raises(ValueError, match="no weight to give a posterior.*Received"):
        keras_bdl.Bayesian(frozen)(np.ones((2, 3), "float32"))
    with pytest.raises(ValueError, match="constraint.*Received"):
        keras_bdl.Bayesian(layers.LSTM(2, kernel_constraint="non_neg"))(
            np.ones((2, 3, 1), "float32")
        )
    with pytest.raises(ValueError, match="weights.*Received"):
        keras_bdl.Bayesian(layers.Dense(2), weights="some")
    norm = layers.SpectralNormalization(layers.Dense(2))
    layer = keras_bdl.Bayesian(norm, num_examples=N)
    with pytest.raises(ValueError, match="assigns its weight.*Received"):
        layer(np.ones((2, 3), "float32"), training=True)
    with pytest.raises(ValueError, match="kernel_regularizer.*Received"):
        keras_bdl.VariationalLSTM(2, kernel_regularizer="l2")
    with pytest.raises(ValueError, match="once for a batch.*Received: estimator"):
        keras_bdl.VariationalLSTM(2, estimator="flipout")
    with pytest.raises(ValueError, match="recurrent_constraint.*Received"):
        keras_bdl.VariationalGRU(2, recurrent_constraint="non_neg")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_that_of_the_layer_inside(policy):
    if BACKEND == "torch" and policy == "mixed_float16":
        pytest.skip("PyTorch has no such products on a CPU in every version")
    network = keras.Sequential(
        [
            keras.Input((4, 3)),
            layers.GRU(4, dtype=policy),
            layers.Dense(2, dtype=policy),
        ]
    )
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).astype("float32")
    expected = to_numpy(ops.cast(network(x), "float32"))
    wrapped = keras_bdl.Bayesian(network, initial_log_stddev=-30.0, num_examples=N)
    for training in (False, True):
        got = to_numpy(ops.cast(wrapped(x, training=training), "float32"))
        np.testing.assert_array_equal(got, expected)
    keras.config.set_dtype_policy(policy)
    layer = keras_bdl.VariationalGRU(4, initial_log_stddev=-30.0, num_examples=N)
    layer(x)
    plain = layers.GRU(4)
    plain(x)
    plain.set_weights([to_numpy(w) for w in layer.weight_map.variables(layer).values()])
    for training in (False, True):
        got = to_numpy(ops.cast(layer(x, training=training), "float32"))
        expected = to_numpy(ops.cast(plain(x), "float32"))
        np.testing.assert_allclose(got, expected, atol=2e-3)


@pytest.mark.parametrize(
    "cls",
    [layers.SimpleRNN, layers.GRU, pytest.param(layers.LSTM, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "rates",
    [
        pytest.param({"dropout": 0.3}, marks=pytest.mark.slow),
        {"dropout": 0.3, "recurrent_dropout": 0.4},
    ],
)
def test_dropout_inside_is_sampled_on_demand(cls, rates):
    inputs = keras.Input((3, 3))
    model = keras.Model(inputs, layers.Dense(2)(cls(5, **rates)(inputs)))
    x = np.random.default_rng(0).normal(size=(3, 3, 3)).astype("float32")
    options = {"outputs": "mean", "verbose": 0, "seed": 0, "return_samples": True}
    draws = keras_bdl.predict(model, x, 80, mc_dropout=True, **options)
    # Keras in training has a mask of its own for every row.
    rows = to_numpy(model(np.repeat(x, 500, axis=0), training=True))
    exact = rows.reshape(3, 500, 2).swapaxes(0, 1)
    error = np.sqrt(draws.var(axis=0) / 80 + exact.var(axis=0) / 500)
    assert (np.abs(draws.mean(axis=0) - exact.mean(axis=0)) / error).max() < 5
    fourth = [((y - y.mean(axis=0)) ** 4).mean(axis=0) for y in (draws, exact)]
    error = np.sqrt(fourth[0] / 80 + fourth[1] / 500)
    assert (np.abs(draws.var(axis=0) - exact.var(axis=0)) / error).max() < 5
    alone = keras_bdl.predict(model, x[1:2], 80, mc_dropout=True, **options)
    np.testing.assert_allclose(alone[:, 0], draws[:, 1], atol=1e-6)


def test_dropout_in_both_directions_and_beside_a_posterior_is_sampled():
    inputs = keras.Input((5,), dtype="int32")
    embedded = layers.Embedding(9, 4, mask_zero=True)(inputs)
    hidden = layers.Bidirectional(layers.GRU(3, dropout=0.5, return_sequences=True))
    model = keras.Model(inputs, layers.LSTM(3)(hidden(embedded)))
    x = np.array([[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]])
    options = {"outputs": "mean", "verbose": 0, "seed": 0, "return_samples": True}
    draws = keras_bdl.predict(model, x, 20, mc_dropout=True, **options)
    assert draws.std(axis=0).min() > 1e-4
    cut = keras_bdl.predict(model, x[:1], 20, mc_dropout=True, **options)
    np.testing.assert_allclose(cut[:, 0], draws[:, 0], atol=1e-6)

    inputs = keras.Input((5, 4))
    layer = keras_bdl.VariationalLSTM(3, dropout=0.5, recurrent_dropout=0.1)
    model = keras.Model(inputs, layer(inputs))
    x = np.random.default_rng(0).normal(size=(2, 5, 4))
    weights_alone = keras_bdl.predict(model, x, 60, **options).std(axis=0)
    both = keras_bdl.predict(model, x, 60, mc_dropout=True, **options).std(axis=0)
    assert (both > 3.0 * weights_alone).all()
    assert (weights_alone > 0.0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LSTM(3, dropout=0.5, stateful=True),
        lambda: layers.RNN([layers.LSTMCell(3, dropout=0.5)]),
    ],
)
def test_dropout_that_is_no_draw_of_weights_is_refused(make):
    inputs = keras.Input(batch_shape=(2, 5, 4))
    model = keras.Model(inputs, make()(inputs))
    with pytest.raises(ValueError, match="dropout inside.*not stateful.*Received"):
        keras_bdl.predict(model, np.zeros((2, 5, 4)), 3, mc_dropout=True, verbose=0)


def test_a_frozen_wrapper_loads_from_its_file(tmp_path):
    for weights in ("matrices", "all"):
        network = keras.Sequential(
            [keras.Input((3,)), layers.Dense(4), layers.BatchNormalization()]
        )
        model = keras_bdl.Bayesian(network, weights, num_examples=5)
        model.trainable = False
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        assert list(loaded.bayesian.chosen) == list(model.bayesian.chosen)
        assert not loaded.trainable_variables
        options = {"num_samples": 5, "seed": 0, "outputs": "mean", "verbose": 0}
        x = np.ones((2, 3))
        np.testing.assert_allclose(
            keras_bdl.predict(loaded, x, **options),
            keras_bdl.predict(model, x, **options),
            atol=1e-6,
        )
        sample = keras_bdl.to_keras(loaded, "sample", seed=0)
        assert np.abs(to_numpy(sample(x)) - to_numpy(model(x))).max() > 0
