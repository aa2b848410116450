"""Laplace's approximation: differences, exact posteriors, and what it predicts."""

import keras
import numpy as np
import pytest
from contract import BACKEND, to_numpy
from keras import layers
from laplace_tools import covariance_of, layer_of
from scipy import linalg, special

import keras_bdl
from keras_bdl.graphs.linearized import linear_layers, linearized
from keras_bdl.maps.wrapped import weights_inside

pytestmark = pytest.mark.portable


# Differences in float64, which Keras has throughout on TensorFlow alone.
DOUBLES = BACKEND == "tensorflow"
STEP, CLOSE = (
    (1e-5, {"rtol": 1e-3, "atol": 1e-6}) if DOUBLES else (1e-2, {"atol": 3e-3})
)


@pytest.fixture
def doubles():
    if DOUBLES:
        keras.config.set_dtype_policy("float64")
        keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


def dense_network(units=3):
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(units)]
    )


def conv_network():
    inputs = keras.Input((7, 6, 2))
    hidden = layers.Conv2D(3, 3, (2, 1), "same", activation="tanh")(inputs)
    hidden = layers.Conv2D(4, 2, dilation_rate=2, activation="softplus")(hidden)
    hidden = layers.BatchNormalization(trainable=False)(hidden)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(hidden)))


def shared_network():
    """Layers that are called twice, inside of another model, and on positions."""
    inputs = keras.Input((5, 2))
    inner = keras.Sequential([keras.Input((5, 2)), layers.Dense(2, "tanh")])
    twice = layers.Conv1D(2, 3, padding="causal", activation="tanh")
    hidden = twice(twice(inner(inputs)))
    hidden = layers.GlobalAveragePooling1D()(layers.Dropout(0.5)(hidden))
    return keras.Model(inputs, layers.Dense(2, use_bias=False)(hidden))


NETWORKS = {"dense": dense_network, "conv": conv_network, "shared": shared_network}


def inputs_for(network, rows=4):
    shape = (rows, *network.input_shape[1:])
    return np.random.default_rng(0).normal(size=shape)


def numeric_jacobian(network, x, weights, step=STEP):
    """Jacobian of the outputs by central differences, `(rows, units, weights)`."""
    columns = []
    for variable in weights:
        value = to_numpy(variable)
        for index in np.ndindex(*value.shape):
            found = []
            for sign in (1.0, -1.0):
                moved = value.copy()
                moved[index] += sign * step
                variable.assign(moved)
                found.append(to_numpy(network(x, training=False)))
            columns.append((found[0] - found[1]) / (2 * step))
        variable.assign(value)
    return np.stack(columns, axis=-1)


def laplace(network, x, y, structure, **options):
    if np.asarray(y).dtype.kind == "i" and not network.compiled:
        options = {"kind": "classification"} | options
    options = {"prior_precision": 2.0, "verbose": 0} | options
    return keras_bdl.fit_laplace(network, x, y, structure=structure, **options)


def slow_pair(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.every_backend
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_differences(name):
    network = NETWORKS[name]()
    x = inputs_for(network).astype("float32")
    outputs, calls = linearized(network, x, linear_layers(network))
    np.testing.assert_allclose(
        to_numpy(outputs), to_numpy(network(x)), rtol=1e-5, atol=1e-6
    )
    rng = np.random.default_rng(1)
    changes, before = {}, network.get_weights()
    for variable in network.trainable_variables:
        changes[id(variable)] = rng.normal(size=variable.shape).astype("float32")
    expected = []
    for sign in (1.0, -1.0):
        for variable, value in zip(network.weights, before):
            change = changes.get(id(variable), 0.0)
            variable.assign(value + sign * 1e-2 * change)
        expected.append(to_numpy(network(x, training=False)).astype("float64"))
    network.set_weights(before)
    found = 0.0
    for call in calls:
        own = {"kernel": call.layer.kernel, "bias": call.layer.bias}
        own = {n: changes[id(v)][None] for n, v in own.items() if v is not None}
        change = call.weight_map.affine_per_sample(call.layer, call.inputs, own)
        change = to_numpy(change).reshape(len(x), -1)
        gradients = to_numpy(call.gradients).reshape(outputs.shape[-1], len(x), -1)
        found = found + np.einsum("bk,cbk->bc", change, gradients)
    expected = (expected[0] - expected[1]) / 2e-2
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3)


def numeric_hessian(network, x, kind, precision=1.0):
    weights = list(weights_inside(network, "all").values())
    jacobian = numeric_jacobian(network, x, weights)
    total = 0.0
    for rows, outputs in zip(jacobian, to_numpy(network(x, training=False))):
        p = special.softmax(outputs)
        second = np.diag(p) - np.outer(p, p)
        if kind == "regression":
            second = precision * np.eye(len(outputs))
        total = total + rows.T @ second @ rows
    return total


@pytest.mark.parametrize(
    "name, kind",
    [
        ("dense", "regression"),
        pytest.param("conv", "classification", marks=pytest.mark.every_backend),
        ("shared", "classification"),
    ],
)
def test_the_matrix_is_that_of_differences(name, kind, doubles):
    network = NETWORKS[name]()
    x = inputs_for(network, 6)
    units = network.output_shape[-1]
    y = np.arange(6) % units
    if kind == "regression":
        y = np.random.default_rng(1).normal(size=(6, units))
    options = {"kind": kind, "batch_size": 4}
    if kind == "regression":
        options["noise_precision"] = 3.0
    hessian = numeric_hessian(network, x, kind, 3.0)
    found = {
        structure: covariance_of(laplace(network, x, y, structure, **options))
        for structure in ("full", "diagonal")
    }
    identity = 2.0 * np.eye(len(hessian))
    exact = linalg.inv(hessian + identity)
    np.testing.assert_allclose(found["full"], exact, **CLOSE)
    exact = 1.0 / np.diag(hessian + identity)
    np.testing.assert_allclose(np.diag(found["diagonal"]), exact, **CLOSE)


def test_kronecker_is_exact_for_one_row(doubles):
    network = dense_network()
    x, y = inputs_for(network, 1), np.array([1])
    hessian = numeric_hessian(network, x, "classification")
    blocks, start = [], 0
    for layer in network.layers:
        size = layer.count_params()
        part = slice(start, start + size)
        blocks.append(linalg.inv(hessian[part, part] + 2.0 * np.eye(size)))
        start += size
    found = covariance_of(laplace(network, x, y, "kronecker"))
    exact = linalg.block_diag(*blocks)
    np.testing.assert_allclose(found, exact, **CLOSE)


ROWS, NOISE = 40, 0.4
rng = np.random.default_rng(0)
X = rng.normal(size=(ROWS, 3))
Y = X @ [0.5, -0.3, 0.8] + 0.2 + NOISE * rng.normal(size=ROWS)


def linear_model(alpha, beta, units=1):
    """A Dense layer at the mode, and the exact covariance of its weights."""
    design = np.column_stack([X, np.ones(ROWS)])
    precision = beta * design.T @ design + alpha * np.eye(4)
    mean = linalg.solve(precision, beta * design.T @ Y)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(units)])
    tiled = np.tile(mean[:, None], (1, units))
    model.layers[0].set_weights([tiled[:-1], tiled[-1]])
    model.compile(loss="mse")
    return model, mean, linalg.inv(precision)


@pytest.mark.every_backend
@pytest.mark.parametrize("structure", ["full", "kronecker"])
def test_linear_regression_is_exact(structure):
    model, mean, covariance = linear_model(2.0, NOISE**-2, units=2)
    bayesian = laplace(
        model, X, np.tile(Y[:, None], 2), structure, noise_precision=NOISE**-2
    )
    found = covariance_of(bayesian)
    exact = np.kron(covariance, np.eye(2))
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-7)
    x = np.random.default_rng(2).normal(size=(5, 3))
    result = bayesian.predict_uncertainty(x, 2000, seed=0, verbose=0)
    design = np.column_stack([x, np.ones(5)])
    variance = np.einsum("ni,ij,nj->n", design, covariance, design)
    np.testing.assert_allclose(
        result.epistemic_stddev, np.sqrt(variance)[:, None].repeat(2, 1), rtol=0.1
    )
    np.testing.assert_allclose(result.aleatoric_stddev, NOISE, rtol=1e-4)
    # A wrong number of rows is seen.
    half = laplace(
        model,
        X[::2],
        np.tile(Y[::2, None], 2),
        structure,
        noise_precision=NOISE**-2,
    )
    assert (np.diag(covariance_of(half)) > 1.3 * np.diag(found)).any()


@pytest.mark.parametrize("structure", ["full", "kronecker", "diagonal"])
def test_evidence_finds_the_precisions_of_highest_marginal_likelihood(structure):
    model, mean, _ = linear_model(1.0, NOISE**-2)
    bayesian = laplace(model, X, Y, structure, prior_precision="evidence")
    design = np.column_stack([X, np.ones(ROWS)])
    gram = design.T @ design
    if structure == "diagonal":
        gram = np.diag(np.diag(gram))
    error = np.square(Y - design @ mean).sum()

    def evidence(alpha, beta):
        log_det = np.linalg.slogdet(beta * gram + alpha * np.eye(4))[1]
        fit = 0.5 * ROWS * np.log(beta) - 0.5 * beta * error
        return fit - 0.5 * (log_det - 4 * np.log(alpha) + alpha * mean @ mean)

    alphas, betas = np.logspace(-1, 2, 300), np.logspace(0, 1.5, 300)
    grid = np.array([[evidence(a, b) for b in betas] for a in alphas])
    best = np.unravel_index(grid.argmax(), grid.shape)
    alpha, beta = alphas[best[0]], betas[best[1]]
    noise = float(np.exp(to_numpy(bayesian.observation_noise.log_scale))[0])
    assert noise**-2 == pytest.approx(beta, rel=0.02)
    exact = linalg.inv(beta * gram + alpha * np.eye(4))
    np.testing.assert_allclose(covariance_of(bayesian), exact, rtol=0.03, atol=1e-5)


def classes(network, rows=60, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, *network.input_shape[1:]))
    y = (x.reshape(rows, -1)[:, 0] > 0).astype(int) + (x.reshape(rows, -1)[:, 1] > 1)
    return x.astype("float32"), y


@pytest.mark.every_backend
@pytest.mark.parametrize("structure", ["kronecker", "diagonal", "full"])
def test_draws_are_linear_in_the_weights(structure):
    network = dense_network()
    x, y = classes(network)
    bayesian = laplace(network, x, y, structure, prior_precision=5.0)
    weights = list(weights_inside(network, "all").values())
    jacobian = numeric_jacobian(network, x[:3], weights, step=1e-2)
    exact = jacobian.reshape(9, -1)
    exact = exact @ covariance_of(bayesian) @ exact.T
    draws = keras_bdl.predict(
        bayesian.network, x[:3], 1500, outputs="mean", return_samples=True, verbose=0
    ).reshape(1500, 9)
    mean = to_numpy(network(x[:3])).ravel()
    scale = np.sqrt(np.diag(exact))
    assert (np.abs(draws.mean(axis=0) - mean) / scale).max() < 5 / np.sqrt(1500)
    np.testing.assert_allclose(
        np.cov(draws.T) / np.outer(scale, scale),
        exact / np.outer(scale, scale),
        atol=0.16,
    )


@pytest.mark.parametrize(
    "name, structure",
    [
        ("conv", "kronecker"),
        slow_pair("conv", "diagonal"),
        slow_pair("shared", "full"),
        pytest.param("shared", "kronecker", marks=pytest.mark.every_backend),
    ],
)
def test_moments_of_outputs_are_exact(name, structure):
    network = NETWORKS[name]()
    x, y = classes(network, 20)
    layer = layer_of(laplace(network, x, y % network.output_shape[-1], structure))
    weights = list(weights_inside(network, "all").values())
    jacobian = numeric_jacobian(network, x[:3], weights, step=1e-2)
    exact = jacobian @ covariance_of(layer) @ jacobian.swapaxes(1, 2)
    mean, factor = map(to_numpy, layer.moments(x[:3]))
    np.testing.assert_allclose(mean, to_numpy(network(x[:3])), atol=1e-5)
    found = factor @ factor.swapaxes(1, 2)
    np.testing.assert_allclose(found, exact, atol=0.02 * exact.max())


def test_probit_is_near_the_mean_of_many_samples():
    network = dense_network()
    x, y = classes(network)
    sampled = laplace(network, x, y, "kronecker", prior_precision=2.0)
    closed = laplace(network, x, y, "kronecker", prior_precision=2.0, probit=True)
    expected = sampled.predict(x, num_samples=4000, seed=0, verbose=0)
    found = special.softmax(to_numpy(closed.network(x)), axis=-1)
    plain = special.softmax(to_numpy(network(x)), axis=-1)
    assert np.abs(found - expected).max() < 0.5 * np.abs(plain - expected).max()


def test_a_posterior_that_does_not_fit_its_data_says_so():
    network = keras.Sequential(
        [keras.Input((4,)), layers.Dense(100, "relu"), layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(0.01), loss)
    x, y = classes(network)
    network.fit(x, y, epochs=100, verbose=0)
    options = {"num_samples": 20, "prior_precision": None}
    with pytest.warns(UserWarning, match="nats.*validation_data"):
        laplace(network, x, y, "kronecker", **options)


@pytest.mark.every_backend
def test_a_fit_predicts_saves_and_is_taken_off(tmp_path):
    network = conv_network()
    x, y = classes(network, 20)
    before = network.get_weights()
    bayesian = laplace(network, x, y, "kronecker")
    for value, old in zip(network.get_weights(), before):
        np.testing.assert_array_equal(value, old)
    np.testing.assert_allclose(
        to_numpy(bayesian.network(x)), to_numpy(network(x)), atol=1e-5
    )
    options = {"num_samples": 20, "seed": 3, "verbose": 0}
    whole = keras_bdl.predict(bayesian, x, return_samples=True, **options)
    parts = keras_bdl.predict(bayesian, x, return_samples=True, batch_size=7, **options)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert whole.std(axis=0).max() > 1e-3
    bayesian.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    again = keras_bdl.predict(loaded, x, return_samples=True, **options)
    np.testing.assert_allclose(again, whole, atol=1e-5)
    plain = keras_bdl.to_keras(bayesian)
    np.testing.assert_allclose(to_numpy(plain(x)), to_numpy(bayesian(x)), atol=1e-5)
    with pytest.raises(ValueError, match="(?s)linearised.*Received"):
        keras_bdl.to_keras(bayesian, "sample")


def test_an_exported_fit_serves_what_it_predicts(tmp_path, only_tensorflow):
    network = dense_network()
    x, y = classes(network)
    bayesian = laplace(network, x, y, "kronecker")
    keras_bdl.export(bayesian, tmp_path, 400, verbose=False)
    import tensorflow as tf

    served = tf.saved_model.load(str(tmp_path))
    expected = bayesian.predict(x, num_samples=400, seed=7, verbose=0)
    found, other = (
        served.predictive_seeded(x, tf.constant(seed))["probabilities"]
        for seed in (7, 8)
    )
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert np.abs(found - other).max() > 1e-4


def test_weights_may_be_drawn_for_the_network_itself():
    network = dense_network()
    x, y = classes(network)
    bayesian = laplace(network, x, y, "kronecker", prediction="weights")
    sample = keras_bdl.to_keras(bayesian, "sample", seed=0)
    assert np.abs(to_numpy(sample(x)) - to_numpy(network(x))).max() > 1e-3
    draws = keras_bdl.predict(bayesian, x[:9], 20, return_samples=True, verbose=0)
    linear = laplace(network, x, y, "kronecker", prior_precision=2e4)
    close = laplace(
        network, x, y, "kronecker", prediction="weights", prior_precision=2e4
    )
    assert draws.std(axis=0).min() > 0.0
    stddevs = [
        keras_bdl.predict(m, x[:9], 200, return_samples=True, verbose=0, seed=0)
        for m in (linear, close)
    ]
    stddevs = [draws.std(axis=0) for draws in stddevs]
    np.testing.assert_allclose(stddevs[0], stddevs[1], rtol=0.4, atol=1e-4)


@pytest.mark.parametrize("units, ending", [(1, "sigmoid"), (3, "softmax"), (1, None)])
def test_every_kind_of_classifier(units, ending):
    network = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, "relu"), layers.Dense(units, ending)]
    )
    x, y = classes(network)
    y = y > 0 if units == 1 else y
    if ending is None:
        network.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    bayesian = laplace(network, x, np.asarray(y, int), "kronecker")
    found = bayesian.predict(x, num_samples=20, verbose=0)
    assert found.shape == (60, max(units, 2))
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, atol=1e-5)
    p = to_numpy(network(x))
    p = special.expit(p) if ending is None else p
    np.testing.assert_allclose(found[:, -1], p[:, -1], atol=0.25)


def test_validation_takes_the_best_precision_of_other_rows():
    network = dense_network()
    x, y = classes(network)
    network.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    network.fit(x, y, epochs=30, verbose=0)
    other = classes(network, 40, seed=9)
    found = {"prior_precision": "validation", "validation_data": other}
    bayesian = laplace(network, x, y, "diagonal", num_samples=20, **found)
    keras.utils.set_random_seed(0)
    best = bayesian.evaluate(*other, verbose=0, return_dict=True)["nll"]
    for alpha in (1e-2, 1.0, 100.0):
        fixed = laplace(
            network, x, y, "diagonal", prior_precision=alpha, num_samples=20
        )
        keras.utils.set_random_seed(0)
        nll = fixed.evaluate(*other, verbose=0, return_dict=True)["nll"]
        assert best < nll + 0.02


def test_only_named_layers_and_linear_ones_have_a_posterior():
    network = keras.Sequential(
        [
            keras.Input((4, 2)),
            layers.LSTM(3),
            layers.Dense(4, name="a"),
            layers.Dense(3),
        ]
    )
    x, y = classes(network)
    with pytest.warns(UserWarning, match="keep their values"):
        whole = laplace(network, x, y, "full")
    named = laplace(network, x, y, "full", layers=["a"])
    assert covariance_of(whole).shape == (31, 31)
    assert covariance_of(named).shape == (16, 16)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"structure": "block"}, "structure"),
        ({"prediction": "mean"}, "prediction"),
        ({"prior_precision": -1.0}, "prior_precision"),
        ({"prior_precision": "validation"}, "validation_data"),
        ({"layers": ["other"]}, "layers"),
        ({"structure": "last_layer", "layers": ["a"]}, "layers"),
        ({"noise_precision": 1.0}, "noise_precision"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_arguments_are_refused(options, match):
    network = dense_network()
    network.compile(loss=keras.losses.SparseCategoricalCrossentropy(True))
    x, y = classes(network)
    with pytest.raises(ValueError, match=f"(?s){match}.*Received"):
        keras_bdl.fit_laplace(network, x, y, verbose=0, **options)


def test_too_many_weights_for_all_pairs_are_refused():
    network = keras.Sequential([keras.Input((4000,)), layers.Dense(4)])
    with pytest.raises(ValueError, match="(?s)GB.*Received"):
        laplace(network, np.ones((2, 4000)), [0, 1], "full", kind="classification")


def test_several_inputs_are_predicted():
    inputs = {name: keras.Input((4,), name=name) for name in "ab"}
    hidden = layers.Concatenate()(list(inputs.values()))
    hidden = layers.Dense(5, "relu")(inputs=hidden)  # by keyword
    model = keras.Model(inputs, layers.Dense(3, "softmax")(hidden))
    x, y = classes(dense_network())
    x = {"a": x, "b": x[::-1]}
    bayesian = laplace(model, x, y, "kronecker", prior_precision=None)
    result = bayesian.predict_uncertainty(x, 200, seed=0, verbose=0)
    assert result.probabilities.shape == (60, 3)
    assert (result.mutual_information > 0.0).all()
    twin = np.concatenate(list(x.values()), axis=-1)
    flat = keras.Sequential([keras.Input((8,)), *model.layers[-2:]])
    other = laplace(flat, twin, y, "kronecker", prior_precision=None)
    exact = other.predict_uncertainty(twin, 200, seed=0, verbose=0)
    np.testing.assert_allclose(
        result.mutual_information, exact.mutual_information, rtol=0.5, atol=0.02
    )


class WithoutConfig(layers.Layer):
    def __init__(self, given):
        super().__init__()
        self.kept = given

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 5))

    def call(self, inputs):
        return keras.ops.tanh(inputs @ self.kernel)


def test_the_model_keeps_its_layers_and_the_process_its_seeds():
    network = keras.Sequential(
        [keras.Input((4,)), WithoutConfig(object()), layers.Dense(3, "softmax")]
    )
    x, y = classes(network)
    with pytest.raises(ValueError, match="(?s)get_config"):
        laplace(network, x, y, "kronecker")
    keras_bdl.fit_last_layer(network, x, y, verbose=0)
    assert len(network.trainable_variables) == 3
    np.random.seed(3)
    found = {"prior_precision": None, "validation_data": (x, y), "num_samples": 5}
    laplace(dense_network(), x, y, "diagonal", **found)
    after = np.random.rand()
    np.random.seed(3)
    assert after == np.random.rand()


def test_noise_of_a_fixed_precision_is_that_of_the_evidence():
    """With nearly as many weights as rows residuals are too small."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 30))
    y = x @ rng.normal(size=30) + rng.normal(size=60)
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    model = keras.Sequential([keras.Input((30,)), layers.Dense(1, use_bias=False)])
    model.layers[0].set_weights([weights[:, None]])
    model.compile(loss="mse")
    unbiased = np.sqrt(np.square(y - x @ weights).sum() / 30)
    bayesian = laplace(model, x, y, "full", prior_precision=1e-3)
    noise = float(np.exp(to_numpy(bayesian.observation_noise.log_scale))[0])
    assert noise == pytest.approx(unbiased, rel=0.02)


def test_dead_layers_and_single_frozen_weights():
    dead = layers.Dense(5, "relu", bias_initializer=keras.initializers.Constant(-99.0))
    network = keras.Sequential([keras.Input((4,)), dead, layers.Dense(3)])
    x, y = classes(network)
    bayesian = laplace(network, x, y, "kronecker", prior_precision=None)
    assert np.isfinite(bayesian.predict(x, verbose=0)).all()
    network.layers[0].kernel.trainable = False
    network.layers[1].bias.trainable = False
    found = laplace(network, x, y, "full")
    assert covariance_of(found).shape == (15, 15)


def test_training_mode_of_the_result_has_no_dropout():
    network = shared_network()
    x, y = classes(network)
    bayesian = laplace(network, x, y % 2, "kronecker")
    np.testing.assert_allclose(
        to_numpy(bayesian.network(x, training=True)), to_numpy(network(x)), atol=1e-5
    )
    options = {"return_samples": True, "verbose": 0, "outputs": "mean"}
    draws = keras_bdl.predict(bayesian.network, x, 3, seed=0, **options)
    again = keras_bdl.predict(bayesian.network, x, 3, seed=0, **options)
    np.testing.assert_array_equal(draws, again)


def test_adapted_layers_keep_their_values():
    network = dense_network()
    x, y = classes(network)
    network.layers[0].enable_lora(1)
    with pytest.warns(UserWarning, match="keep their values"):
        bayesian = laplace(network, x, y, "full")
    assert covariance_of(bayesian).shape == (18, 18)


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"x": np.full((60, 4), np.nan)}, ValueError, "finite"),
        ({"prior_precision": "evidnce"}, ValueError, "prior_precision"),
        ({"prior_precision": 0.0}, ValueError, "prior_precision"),
        ({"layers": 3}, TypeError, "layers"),
        ({"validation_data": {"x": 1}}, TypeError, "validation_data"),
        ({"validation_data": (np.ones((2, 3)), [0, 1])}, ValueError, "x"),
        ({"validation_data": (np.ones((2, 4)), [0, 9])}, ValueError, "labels"),
    ],
)
def test_bad_data_are_refused(change, error, match):
    network = dense_network()
    x, y = classes(network)
    options = {"structure": "diagonal", "kind": "classification"}
    if "validation_data" not in change:
        options["prior_precision"] = 1.0
    options |= {"x": x, "y": y} | change
    with pytest.raises(error, match=f"(?s){match}.*Received"):
        keras_bdl.fit_laplace(network, verbose=0, **options)
