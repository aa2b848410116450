"""`fit_last_layer`: the exact posterior, Laplace's, and the models that come of it."""

import keras
import numpy as np
import pytest
from contract import BACKEND, to_numpy
from keras import layers
from scipy import optimize, special

import keras_bdl
from keras_bdl.inference import laplace, last_layer

pytestmark = pytest.mark.portable

rng = np.random.default_rng(0)


def regressor(units=1, use_bias=True):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(6, activation="tanh"),
            layers.Dropout(0.2),
            layers.Dense(units, use_bias=use_bias),
        ]
    )
    model.compile("adam", "mse")
    return model


def regression_data(units=1, rows=50):
    x = rng.normal(size=(rows, 3)).astype("float32")
    y = np.stack([(i + 1) * x[:, i] for i in range(units)], axis=1)
    return x, (y + 0.1 * rng.normal(size=y.shape)).astype("float32")


def classifier(units=4, activation=None, behind=()):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(5, activation="tanh"),
            layers.Dense(units, activation=activation),
            *behind,
        ]
    )
    return model


def class_data(classes=4, rows=60):
    x = rng.normal(size=(rows, 3)).astype("float32")
    return x, rng.integers(0, classes, rows)


def features_of(model, x, bias=True):
    phi = to_numpy(keras.Sequential(model.layers[:2])(x))
    return np.hstack([phi, np.ones((len(x), 1))]) if bias else phi


def covariance_of(bayesian):
    factor = to_numpy(bayesian.network.layers[-1].factor).astype("float64")
    return factor @ factor.transpose(0, 2, 1)


def assert_same_covariance(bayesian, other):
    """Equal to rounding, which is of the size of the stddevs."""
    actual, expected = covariance_of(bayesian), covariance_of(other)
    stddev = np.sqrt(np.diagonal(expected, axis1=1, axis2=2))
    scale = stddev[:, :, None] * stddev[:, None, :]
    np.testing.assert_allclose(actual / scale, expected / scale, atol=1e-4)


# Regression


@pytest.mark.one_backend
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("units", [1, 2])
def test_regression_is_exact(units, use_bias):
    model = regressor(units, use_bias)
    x, y = regression_data(units)
    bayesian = keras_bdl.fit_last_layer(
        model, x, y, prior_precision=0.7, noise_precision=50.0, verbose=0
    )
    phi = features_of(model, x).astype("float64")
    phi = phi if use_bias else phi[:, :-1]
    prior = 0.7 * np.eye(phi.shape[1])
    if use_bias:
        prior[-1, -1] = 0.0  # flat
    covariance = np.linalg.inv(prior + 50.0 * phi.T @ phi)
    mean = 50.0 * covariance @ phi.T @ y  # Bishop, eq. 3.53
    layer = bayesian.network.layers[-1]
    weights = to_numpy(layer.kernel)
    if use_bias:
        weights = np.vstack([weights, to_numpy(layer.bias)])
    np.testing.assert_allclose(weights, mean, rtol=1e-5, atol=1e-5)
    scale = np.abs(covariance).max()
    np.testing.assert_allclose(
        covariance_of(bayesian) / scale,
        np.tile(covariance / scale, (units, 1, 1)),
        atol=1e-5,
    )
    x_new = rng.normal(size=(20, 3)).astype("float32")
    result = bayesian.predict_uncertainty(x_new, num_samples=4000, seed=0, verbose=0)
    phi = features_of(model, x_new)
    phi = phi if use_bias else phi[:, :-1]
    variance = np.einsum("ni,ij,nj->n", phi, covariance, phi)
    np.testing.assert_allclose(result.aleatoric_stddev, 50.0**-0.5, rtol=1e-5)
    np.testing.assert_allclose(
        result.epistemic_stddev**2, np.tile(variance[:, None], (1, units)), rtol=0.15
    )


def test_evidence_and_data_sets():
    model = regressor()
    x, y = regression_data()
    bayesian = keras_bdl.fit_last_layer(model, x, y, batch_size=7, verbose=0)
    exact = keras_bdl.BayesianLinearRegression().fit(
        features_of(model, x, bias=False), y[:, 0]
    )
    mean, stddev = exact.predict(features_of(model, x, bias=False), return_std=True)
    np.testing.assert_allclose(to_numpy(bayesian.network(x))[:, 0], mean, rtol=1e-4)
    noise = float(np.exp(to_numpy(bayesian.observation_noise.log_scale))[0])
    assert noise == pytest.approx(exact.noise_precision_**-0.5, rel=1e-5)
    variance = to_numpy(
        bayesian.network.layers[-1].output_covariance(
            features_of(model, x, bias=False).astype("float32")
        )
    )
    np.testing.assert_allclose(variance[:, 0, 0] + noise**2, stddev**2, rtol=1e-4)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            rows = slice(10 * index, 10 * index + 10)
            return x[rows], y[rows]

    again = keras_bdl.fit_last_layer(model, Batches(), verbose=0)
    assert_same_covariance(again, bayesian)


def test_blocks_give_what_all_rows_give(monkeypatch):
    x, y = regression_data()
    whole = keras_bdl.fit_last_layer(regressor(), x, y, verbose=0)
    monkeypatch.setattr(last_layer, "_BLOCK_VALUES", 60)
    blocks = keras_bdl.fit_last_layer(regressor(), x, y, batch_size=8, verbose=0)
    assert_same_covariance(blocks, whole)


# Classification


def negative_log_joint(weights, phi, y, alpha, classes):
    """Of all weights, output by output, the bias last."""
    w = weights.reshape(classes, -1)
    log_p = special.log_softmax(phi @ w.T, axis=1)
    return -log_p[np.arange(len(y)), y].sum() + 0.5 * alpha * np.sum(weights**2)


def hessian(function, at, step=1e-4):
    """By central differences of gradients."""
    rows = []
    for direction in np.eye(len(at)):
        up = optimize.approx_fprime(at + step * direction, function, 1e-6)
        down = optimize.approx_fprime(at - step * direction, function, 1e-6)
        rows.append((up - down) / (2.0 * step))
    return np.array(rows)


@pytest.mark.every_backend
def test_classification_is_laplace():
    model = classifier()
    x, y = class_data()
    bayesian = keras_bdl.fit_last_layer(
        model, x, y, kind="classification", prior_precision=0.5, verbose=0
    )
    phi = features_of(classifier_features(model), x)
    weights = np.vstack([to_numpy(w) for w in model.layers[-1].get_weights()]).T
    expected = hessian(
        lambda w: negative_log_joint(w, phi, y, 0.5, 4),
        weights.reshape(-1).astype("float64"),
    )
    precision = np.linalg.inv(covariance_of(bayesian)[0])
    np.testing.assert_allclose(precision, expected, atol=0.02)
    np.testing.assert_allclose(
        to_numpy(bayesian.network(x)), to_numpy(model(x)), rtol=1e-5
    )


def classifier_features(model):
    return keras.Sequential([keras.Input((3,)), model.layers[0], layers.Identity()])


def test_prior_precision_is_of_highest_evidence():
    values = rng.exponential(3.0, size=12)
    squares = 4.0
    alpha = laplace.best_prior_precision(values, squares)
    gamma = np.sum(values / (values + alpha))
    assert alpha * squares == pytest.approx(gamma, rel=1e-4)  # MacKay's fixed point

    def log_evidence(a):
        return -0.5 * a * squares + 0.5 * np.sum(np.log(a / (values + a)))

    for other in (0.5 * alpha, 0.9 * alpha, 1.1 * alpha, 2.0 * alpha):
        assert log_evidence(alpha) > log_evidence(other)


@pytest.mark.parametrize(
    "units, activation, behind",
    [
        (4, "softmax", ()),
        (4, None, (layers.Softmax(),)),
        (4, None, (layers.Activation("softmax"),)),
        (1, "sigmoid", ()),
        (2, "softmax", ()),
    ],
)
def test_every_kind_of_classifier(units, activation, behind):
    model = classifier(units, activation, behind)
    x, y = class_data(max(units, 2))
    bayesian = keras_bdl.fit_last_layer(model, x, y, verbose=0)
    logits = to_numpy(bayesian.network(x))
    expected = to_numpy(model(x))
    if units == 1:
        expected = np.hstack([1.0 - expected, expected])
    np.testing.assert_allclose(
        special.softmax(logits, axis=1), expected, rtol=1e-4, atol=1e-6
    )
    p = bayesian.predict(x, verbose=0)
    assert p.shape == (60, max(units, 2))
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-5)
    result = bayesian.evaluate(x, y, verbose=0, return_dict=True)
    assert np.isfinite(result["nll"])


def test_a_binary_model_has_the_posterior_of_its_logit():
    model = classifier(1, "sigmoid")
    x, y = class_data(2)
    bayesian = keras_bdl.fit_last_layer(model, x, y, prior_precision=1.0, verbose=0)
    phi = features_of(classifier_features(model), x)
    p = to_numpy(model(x))[:, 0]
    precision = phi.T @ (phi * (p * (1 - p))[:, None]) + np.eye(6)
    found = covariance_of(bayesian)[0]
    assert not found[:6].any()
    np.testing.assert_allclose(
        found[6:, 6:], np.linalg.inv(precision), rtol=1e-3, atol=1e-5
    )


@pytest.mark.one_backend
def test_probit_is_near_the_samples():
    model = classifier()
    x, y = class_data()
    options = {"kind": "classification", "prior_precision": 0.05, "verbose": 0}
    sampled = keras_bdl.fit_last_layer(model, x, y, **options)
    probit = keras_bdl.fit_last_layer(model, x, y, probit=True, **options)
    exact = sampled.predict(x, num_samples=5000, seed=0, verbose=0)
    near = special.softmax(to_numpy(probit.network(x)), axis=1)
    plain = special.softmax(to_numpy(model(x)), axis=1)
    assert np.abs(near - exact).mean() < 0.5 * np.abs(plain - exact).mean()


# What comes of it


def test_it_saves_loads_and_exports(tmp_path):
    x, y = class_data()
    bayesian = keras_bdl.fit_last_layer(classifier(4, "softmax"), x, y, verbose=0)
    if BACKEND == "tensorflow":
        bayesian.export(tmp_path / "mean", verbose=False)  # never called before
    bayesian.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    expected = bayesian.predict(x, seed=0, verbose=0)
    np.testing.assert_array_equal(again.predict(x, seed=0, verbose=0), expected)
    plain = keras_bdl.to_keras(again)
    np.testing.assert_array_equal(to_numpy(plain(x)), to_numpy(bayesian(x)))
    if BACKEND == "tensorflow":
        import tensorflow as tf

        keras_bdl.export(again, tmp_path / "served", num_samples=500, verbose=False)
        served = tf.saved_model.load(tmp_path / "served")
        p = served.predictive(x)["probabilities"].numpy()
        np.testing.assert_allclose(p, expected, atol=0.15)


def test_a_convolutional_net_and_its_original():
    keras.utils.set_random_seed(0)
    body = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Conv2D(3, 3), layers.BatchNormalization()]
    )
    inputs = keras.Input((6, 6, 1))
    x = layers.GlobalAveragePooling2D()(layers.Add()([body(inputs), body(inputs)]))
    model = keras.Model(inputs, layers.Dense(3)(x))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = rng.normal(size=(10, 6, 6, 1)).astype("float32")
    before = model.get_weights()
    bayesian = keras_bdl.fit_last_layer(model, images, np.arange(10) % 3, verbose=0)
    np.testing.assert_allclose(to_numpy(bayesian(images)), to_numpy(model(images)))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not bayesian.trainable_variables


def test_the_kind_is_that_of_the_loss():
    model, (x, y) = classifier(), class_data()
    model.compile("sgd", keras_bdl.losses.CategoricalNLL())
    bayesian = keras_bdl.fit_last_layer(model, x, y, verbose=0)
    assert isinstance(bayesian, keras_bdl.BayesianClassifier)
    model.compile("sgd", keras_bdl.losses.GaussianNLL())  # of means and stddevs
    with pytest.raises(ValueError, match="Received: kind='auto', loss="):
        keras_bdl.fit_last_layer(model, x, y, verbose=0)


def test_several_inputs():
    a, b = keras.Input((2,)), keras.Input((3,))
    model = keras.Model([a, b], layers.Dense(1)(layers.Concatenate()([a, b])))
    model.compile("sgd", "mse")
    x = [rng.normal(size=(9, n)).astype("float32") for n in (2, 3)]
    y = rng.normal(size=9)
    bayesian = keras_bdl.fit_last_layer(model, x, y, batch_size=4, verbose=0)
    exact = keras_bdl.BayesianLinearRegression().fit(np.hstack(x), y)
    np.testing.assert_allclose(
        to_numpy(bayesian.network(x))[:, 0], exact.predict(np.hstack(x)), atol=1e-5
    )


def compiled_with(model, loss):
    model.compile("adam", loss)
    return model


def make_wide():
    return keras.Sequential([keras.Input((300,)), layers.Dense(100)])


@pytest.mark.parametrize(
    "make, data, options, match",
    [
        (lambda: layers.Dense(3), class_data, {}, "Received: model="),
        (classifier, class_data, {}, "Received: kind='auto'"),
        (classifier, class_data, {"kind": "ordinal"}, "Received: kind='ordinal'"),
        (
            lambda: classifier(4, "relu"),
            class_data,
            {"kind": "classification"},
            "Received: activation=",
        ),
        (
            lambda: classifier(behind=[layers.ReLU()]),
            class_data,
            {"kind": "classification"},
            "Received: activation='ReLU'",
        ),
        (
            lambda: classifier(4, "softmax"),
            lambda: class_data(7),
            {},
            "labels from 0 to 3",
        ),
        (
            lambda: classifier(4, "softmax"),
            class_data,
            {"noise_precision": 2.0},
            "Received: noise_precision=2.0",
        ),
        (
            lambda: classifier(4, "softmax"),
            class_data,
            {"kind": "regression"},
            "without activation",
        ),
        (regressor, lambda: regression_data(2), {}, "Received: y of shape"),
        (
            regressor,
            lambda: (np.full((4, 3), np.nan, "float32"), np.zeros(4)),
            {},
            "NaN or infinity",
        ),
        (
            regressor,
            lambda: (np.zeros((4, 3), "float32"), np.zeros(5)),
            {},
            r"Received: \[4\] inputs, 5 targets",
        ),
        (
            regressor,
            lambda: (np.zeros((4, 3), "float32"), None),
            {},
            "Received: y=None",
        ),
        (
            regressor,
            lambda: ([[0.0, 1.0, 2.0]], [0.0]),
            {},
            "np.asarray.*Received",
        ),
        (
            regressor,
            lambda: (np.zeros((4, 3), "float32"), np.arange(4).astype("M8[D]")),
            {},
            "dtype datetime64",
        ),
        (
            lambda: classifier(3, "sigmoid"),
            lambda: (np.zeros((4, 3), "float32"), np.eye(3)[[0, 1, 2, 0]]),
            {},
            "independently.*each. Received",
        ),
        (
            lambda: compiled_with(
                classifier(3), keras.losses.BinaryCrossentropy(from_logits=True)
            ),
            lambda: (np.zeros((4, 3), "float32"), np.eye(3)[[0, 1, 2, 0]]),
            {},
            "independently.*each. Received",
        ),
        (
            lambda: classifier(3, "softmax"),
            lambda: (np.zeros((4, 3), "float32"), np.ones((4, 3))),
            {},
            "one-hot.*Received",
        ),
        (
            make_wide,
            lambda: (np.zeros((4, 300), "float32"), np.zeros(4)),
            {"kind": "classification"},
            "20000 weights at most",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, data, options, match):
    x, y = data()
    with pytest.raises((TypeError, ValueError), match=match):
        keras_bdl.fit_last_layer(make(), x, y, verbose=0, **options)


@pytest.mark.parametrize("end", [layers.Softmax(), keras.ops.softmax])
def test_a_functional_softmax_is_dropped(end):
    inputs = keras.Input((3,))
    x, y = class_data(4)
    model = keras.Model(inputs, end(layers.Dense(4)(inputs)))
    bayesian = keras_bdl.fit_last_layer(model, x, y.tolist(), verbose=0)
    np.testing.assert_allclose(
        to_numpy(keras.ops.softmax(bayesian(x))), to_numpy(model(x)), atol=1e-6
    )
    assert bayesian.predict(x, seed=0, verbose=0).shape == (60, 4)


def test_the_precision_of_weight_decay_makes_trained_weights_the_mode():
    """At l, the gradient of the log posterior with alpha = 2 l n is 0."""
    x, y = class_data(2, rows=40)
    decay = 0.01

    def loss(w):
        logits = x @ w[:3] + w[3]
        nll = np.logaddexp(0.0, logits) - y * logits
        return nll.mean() + decay * w @ w

    w = optimize.minimize(loss, np.zeros(4), options={"gtol": 1e-9}).x
    p = special.expit(x @ w[:3] + w[3])
    gradient = np.hstack([x, np.ones((40, 1))]).T @ (y - p) - 2.0 * decay * 40 * w
    np.testing.assert_allclose(gradient, 0.0, atol=1e-4)
