"""BayesianRegressor: closed forms, SciPy, scales of the targets, refusals."""

import functools
import zlib

import keras
import numpy as np
import pytest
from contract import fit_long, to_numpy
from keras import ops

import keras_bdl
from keras_bdl.prediction.sampler import make_sampler

pytestmark = pytest.mark.portable

stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")

BACKEND = keras.backend.backend()
NOISES = ("heteroscedastic", "homoscedastic", "student_t")
RNG = np.random.default_rng(0)
N = 32  # one batch of Keras's default size: one shape to compile for
X = RNG.normal(size=(N, 3)).astype("float32")
Y = (5.0 + X[:, :1] + 0.3 * RNG.normal(size=(N, 1))).astype("float32")


def network(noise="homoscedastic", targets=1, layer=keras_bdl.VariationalDense):
    width = 2 * targets if noise == "heteroscedastic" else targets
    return keras.Sequential(
        [
            keras.Input((3,)),
            layer(6, activation="tanh", name="first"),
            layer(width, name="last"),
        ]
    )


def regressor(noise="homoscedastic", net=None, learning_rate=0.01, **options):
    options = {"num_samples": 8, **options}
    net = network(noise) if net is None else net
    model = keras_bdl.BayesianRegressor(net, noise, **options)
    model.compile(keras.optimizers.Adam(learning_rate))
    return model


def fitted(noise="homoscedastic", net=None, **options):
    model = regressor(noise, net, **options)
    model.fit(X, Y, epochs=2, verbose=0)
    return model


@functools.cache
def trained():
    """A model for tests that leave it as it is."""
    return fitted("heteroscedastic", normalize=True)


def plain(units=1, *hidden):
    return keras.Sequential([keras.Input((3,)), *hidden, keras.layers.Dense(units)])


def draws_of(model, x, num_samples, seed):
    """The draws behind a prediction of one batch with this seed, NumPy."""
    word = zlib.crc32(str(seed).encode()) >> 1
    return to_numpy(model.draw_outputs(ops.convert_to_tensor(x), num_samples, word))


def frozen(noise, draws):
    """SciPy distributions `(samples, n, d)` of parameters in the targets' units."""
    if noise == "student_t":
        location, log_scale, log_df = np.split(draws.astype("float64"), 3, axis=-1)
        return stats.t(np.exp(log_df), location, np.exp(log_scale))
    location, log_scale = np.split(draws.astype("float64"), 2, axis=-1)
    return stats.norm(location, np.exp(log_scale))


# --- The predictive ------------------------------------------------------------


def linear_posterior():
    """y = x w + b + noise with w and b from a posterior fixed by hand."""
    layer = keras_bdl.VariationalDense(1, num_examples=100, name="linear")
    model = regressor(net=keras.Sequential([keras.Input((3,)), layer]))
    layer.kernel.assign([[1.0], [-2.0], [0.5]])
    layer.kernel_log_stddev.assign(np.log([[0.5], [0.1], [0.8]]))
    layer.bias.assign([3.0])
    layer.bias_log_stddev.assign(np.log([0.2]))
    model.observation_noise.log_scale.assign(np.log([0.7]))
    mean = X @ [[1.0], [-2.0], [0.5]] + 3.0
    epistemic = np.sqrt(X**2 @ np.square([[0.5], [0.1], [0.8]]) + 0.2**2)
    return model, mean, epistemic


def test_a_linear_posterior_against_its_closed_form():
    model, mean, epistemic = linear_posterior()
    exact = stats.norm(mean, np.sqrt(epistemic**2 + 0.7**2))
    num_samples, levels = 4000, (0.1, 0.5, 0.9)
    result = model.predict_uncertainty(X, num_samples, levels, seed=0, verbose=0)
    error = epistemic / np.sqrt(num_samples)  # of one standard error
    assert (np.abs(result.mean - mean) < 5 * error).all()
    np.testing.assert_allclose(result.aleatoric_stddev, 0.7, rtol=1e-5)
    ratio = result.epistemic_stddev**2 / epistemic**2
    assert (np.abs(ratio - 1) < 5 * np.sqrt(2 / num_samples)).all()
    for level, quantile in zip(levels, result.quantiles):
        assert (np.abs(quantile - exact.ppf(level)) < 6 * error).all()
    y = mean + 1.5
    log_likelihood = model.log_likelihood(X, y, num_samples, seed=0, verbose=0)
    assert log_likelihood.shape == (N,)
    # E_w p(y | w)^2, for the standard error of the mean density.
    square = stats.norm(mean, np.sqrt(epistemic**2 + 0.7**2 / 2)).pdf(y)
    square /= 2 * 0.7 * np.sqrt(np.pi)
    error = np.sqrt((square / exact.pdf(y) ** 2 - 1) / num_samples)
    difference = log_likelihood - exact.logpdf(y)[:, 0]
    assert (np.abs(difference) < 5 * error[:, 0]).all()


def test_quantiles_cover_data_from_the_predictive():
    model, mean, epistemic = linear_posterior()
    rng = np.random.default_rng(1)
    quantiles = model.predict_uncertainty(X, 1000, (0.05, 0.5, 0.95), verbose=0)[-1]
    shape = (N, 200)
    y = mean + epistemic * rng.normal(size=shape) + 0.7 * rng.normal(size=shape)
    for level, quantile in zip((0.05, 0.5, 0.95), quantiles):
        share = (y < quantile).mean()
        error = np.sqrt(level * (1 - level) * (1 / y.size + 1 / 1000))
        assert abs(share - level) < 5 * error


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.eager
def test_the_mixture_of_the_draws_against_scipy(noise):
    model = regressor(noise, network(noise, targets=2), normalize=True, num_examples=N)
    y = np.concatenate([Y, 20.0 - 3.0 * Y], axis=1)
    model.fit(X, y, epochs=1, verbose=0)
    x, y, seed, levels = X[:5], y[:5], 3, (0.02, 0.6)
    mixture = frozen(noise, draws_of(model, x, 8, seed))
    result = model.predict_uncertainty(x, 8, levels, seed=seed, verbose=0)
    np.testing.assert_allclose(result.mean, mixture.mean().mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(
        result.aleatoric_stddev, np.sqrt(mixture.var().mean(axis=0)), rtol=1e-3
    )
    np.testing.assert_allclose(
        result.epistemic_stddev, mixture.mean().std(axis=0), rtol=1e-2, atol=1e-4
    )
    assert result.quantiles.shape == (2, 5, 2)
    for level, quantile in zip(levels, result.quantiles):
        # The distribution function is steep enough to tell a wrong quantile.
        np.testing.assert_allclose(mixture.cdf(quantile).mean(0), level, atol=1e-4)
    density = np.exp(mixture.logpdf(y).sum(axis=-1)).mean(axis=0)
    np.testing.assert_allclose(
        model.log_likelihood(x, y, 8, seed=seed, verbose=0),
        np.log(density),
        rtol=1e-3,
        atol=1e-3,
    )
    np.testing.assert_allclose(
        model.predict(x, num_samples=8, seed=seed, verbose=0), result.mean, rtol=1e-4
    )


def test_evaluate_is_the_sampled_bound_and_the_predictive_scores():
    model = fitted(num_examples=N)
    result = model.evaluate(X, Y, verbose=0, return_dict=True)
    x = ops.convert_to_tensor(X)
    draws = to_numpy(model.draw_outputs(x, 8, seed=0))
    log_probs = frozen("homoscedastic", draws).logpdf(Y)[..., 0]
    kl = sum(float(to_numpy(layer.kl())) for layer in model.network.layers)
    assert result["loss"] == pytest.approx(-log_probs.mean() + kl / N, rel=1e-4)
    nll = -np.log(np.exp(log_probs).mean(axis=0)).mean()
    assert result["nll"] == pytest.approx(nll, rel=1e-4)
    error = draws[..., :1].mean(axis=0) - Y
    assert result["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
    parts = model.evaluate(X, Y, batch_size=20, verbose=0, return_dict=True)
    assert parts == pytest.approx(result, rel=1e-3)
    weights = np.r_[np.ones(N // 2), np.zeros(N // 2)]
    weighted = model.evaluate(X, Y, sample_weight=weights, verbose=0, return_dict=True)
    half = model.evaluate(X[: N // 2], Y[: N // 2], verbose=0, return_dict=True)
    for name in ("nll", "rmse"):
        assert weighted[name] == pytest.approx(half[name], rel=1e-4)


def test_training_loss_is_nll_plus_kl():
    model = regressor(learning_rate=0.0)
    logs = model.fit(X, Y, validation_split=0.5, verbose=0).history
    assert set(logs) == {
        f"{p}{n}" for p in ("", "val_") for n in ("loss", "nll", "rmse")
    }
    kl = sum(float(to_numpy(layer.kl())) for layer in model.network.layers)
    assert logs["loss"][0] == pytest.approx(logs["nll"][0] + kl / 16, rel=1e-4)


@pytest.mark.eager
def test_the_functions_of_the_package_agree():
    model = trained()
    ours = model.predict_uncertainty(X, seed=1, verbose=0)
    theirs = keras_bdl.predict_uncertainty(model, X, 8, seed=1, verbose=0)
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-4)
    np.testing.assert_allclose(
        ours.aleatoric_stddev**2, theirs.aleatoric_variance, rtol=1e-3
    )
    np.testing.assert_allclose(
        ours.epistemic_stddev**2, theirs.epistemic_variance, rtol=1e-2, atol=1e-6
    )
    with pytest.raises(ValueError, match="Cannot tell.*Received"):
        keras_bdl.predict_uncertainty(regressor("student_t"), X, 2, verbose=0)


def test_the_network_is_sampled_in_blocks_from_moments():
    sampler = make_sampler(trained(), 16, "mean", None)
    assert sampler.block > 1 and len(sampler.cut.parts.moment_layers) == 2


# --- Scales ---------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 6])
def test_inputs_of_another_width_are_refused(columns):
    model = trained()
    x = np.ones((N, columns), "float32")
    for call in (
        lambda: model.fit(x, Y, verbose=0),
        lambda: model.predict(x, verbose=0),
        lambda: model.predict_uncertainty(x, verbose=0),
        lambda: model.log_likelihood(x, Y, verbose=0),
        lambda: keras_bdl.predict(model, x, 2, verbose=0),
        lambda: model(x),
        lambda: model.evaluate(x, Y, verbose=0),
        lambda: model.train_on_batch(x, Y),
    ):
        with pytest.raises(ValueError, match="3 channels|incompatible|was built"):
            call()


def test_a_data_set_of_another_width_is_refused(only_tensorflow):
    import tensorflow as tf

    model = fitted(normalize=True)
    for columns in (2, 1):  # the second meets a function of unknown sizes
        x = np.ones((N, columns), "float32")
        data = tf.data.Dataset.from_tensor_slices((x, Y)).batch(8)
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            model.evaluate(data, verbose=0)


def test_log_likelihood_refuses_what_predict_refuses():
    network = keras.Sequential([keras.Input((3,)), keras_bdl.VariationalDense(2)])
    model = keras_bdl.BayesianRegressor(network, num_examples=4, normalize=False)
    x, y = np.zeros((4, 2), "float32"), np.zeros((4, 1), "float32")
    for given in (lambda: model.predict(x), lambda: model.log_likelihood(x, y)):
        with pytest.raises(ValueError, match=r"of shape \('n', 3\).*\(4, 2\)"):
            given()


@pytest.mark.eager
def test_a_single_column_may_come_without_its_axis():
    network = keras.Sequential([keras.Input((1,)), keras_bdl.VariationalDense(1)])
    answers = []
    for x in (X[:, 0], X[:, :1]):
        # A function of Keras is traced for one rank alone.
        model = regressor(net=network, normalize=True)
        model.build((None, 1))
        model._adapt(x, Y, {})
        answers.append(model.predict(x, seed=0, verbose=0))
    np.testing.assert_allclose(*answers, rtol=1e-5)


@pytest.mark.parametrize("noise", ["heteroscedastic", "student_t"])
@pytest.mark.eager
def test_normalize_is_standardisation_by_hand(noise):
    x, y = 7.0 + 3.0 * X, 100.0 + 20.0 * Y
    x[:, 1] = 4.0  # constant
    net = network(noise)
    model = regressor(noise, net, normalize=True, learning_rate=0.0)
    model.fit(x, y, verbose=0)
    mean, stddev = x.mean(axis=0), x.std(axis=0)
    assert stddev[1] == 0.0
    stddev[1] = 1.0
    np.testing.assert_allclose(scales(model)[1], stddev, rtol=1e-5)
    by_hand = regressor(noise, net, num_examples=N)
    x_hand, y_hand = (x - mean) / stddev, (y - y.mean()) / y.std()
    options = {"num_samples": 8, "seed": 0, "verbose": 0}
    ours = model.predict_uncertainty(x, **options)
    theirs = by_hand.predict_uncertainty(x_hand, **options)
    scale = y.std()
    tolerance = {"rtol": 1e-3, "atol": 1e-3 * scale}
    np.testing.assert_allclose(ours.mean, theirs.mean * scale + y.mean(), **tolerance)
    np.testing.assert_allclose(
        ours.quantiles, theirs.quantiles * scale + y.mean(), **tolerance
    )
    for name in ("aleatoric_stddev", "epistemic_stddev"):
        expected = getattr(theirs, name) * scale
        np.testing.assert_allclose(getattr(ours, name), expected, **tolerance)
    np.testing.assert_allclose(
        model.log_likelihood(x, y, **options),
        by_hand.log_likelihood(x_hand, y_hand, **options) - np.log(scale),
        atol=2e-3,
    )
    location = to_numpy(model(x))[:, :1]
    expected = to_numpy(by_hand(x_hand))[:, :1] * scale + y.mean()
    np.testing.assert_allclose(location, expected, **tolerance)


def scales(model):
    inputs, targets = model.inputs_standardization, model.targets_standardization
    variables = (inputs.mean, inputs.stddev, targets.mean, targets.stddev)
    return [to_numpy(variable) for variable in variables]


@pytest.mark.eager
def test_scales_are_those_of_the_training_rows_and_are_kept():
    model = regressor(normalize=True)
    model.fit(X, Y, validation_split=0.5, verbose=0)
    x, y = X[:16], Y[:16]
    expected = [x.mean(0), x.std(0), y.mean(0), y.std(0)]
    for value, exact in zip(scales(model), expected):
        np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-6)
    model.fit(10.0 * X, 10.0 * Y, verbose=0)
    for value, exact in zip(scales(model), expected):
        np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-6)


class Batches(keras.utils.PyDataset):
    num_batches = 2

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return X[16 * i : 16 * (i + 1)], Y[16 * i : 16 * (i + 1)]


@pytest.mark.filterwarnings("ignore:The number of training examples")
@pytest.mark.parametrize("form", ["tf.data", "PyDataset"])
@pytest.mark.eager
def test_scales_of_data_sets(form):
    if form == "tf.data":
        tf = pytest.importorskip("tensorflow")
        data = tf.data.Dataset.from_tensor_slices((X, Y[:, 0])).batch(16)
    else:
        data = Batches()
    model = regressor(normalize=True)
    model.fit(data, validation_data=data, verbose=0)
    for value, exact in zip(scales(model), [X.mean(0), X.std(0), Y.mean(0), Y.std(0)]):
        np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-5)
    assert float(to_numpy(model.network.layers[0]._num_examples)) == N
    assert model.predict(data, verbose=0).shape == (N, 1)


@pytest.mark.eager
def test_large_targets_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    y = 1e6 + 1e4 * Y  # beyond float16
    model = regressor(normalize=True)
    history = model.fit(X, y, epochs=2, validation_data=(X, y), verbose=0).history
    assert np.isfinite(list(history.values())).all()
    result = model.predict_uncertainty(X, verbose=0)
    assert (np.abs(result.mean - y) < 1e5).all()


# --- Learning --------------------------------------------------------------------


def test_heteroscedastic_noise_is_found():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(640, 3)).astype("float32")
    stddev = np.exp(x[:, 0])
    y = 2.0 * x[:, 1] + stddev * rng.normal(size=640)
    model = regressor("heteroscedastic", plain(2), learning_rate=0.03)
    fit_long(model, x, y, epochs=30, batch_size=64)
    found = model.predict_uncertainty(x, verbose=0).aleatoric_stddev[:, 0]
    # 0.5 would be the error of a constant.
    assert np.abs(np.log(found / stddev)).mean() < 0.2


def test_homoscedastic_noise_is_found():
    rng = np.random.default_rng(0)
    y = np.stack([X[:, 0], 9 + X[:, 1]], axis=1)
    y = np.tile(y, (20, 1)) + [0.2, 3.0] * rng.normal(size=(20 * N, 2))
    x = np.tile(X, (20, 1))
    net = keras.Sequential([keras.Input((3,)), keras_bdl.VariationalDense(2)])
    options = {"normalize": True, "num_examples": len(x)}
    model = regressor(net=net, learning_rate=0.05, **options)
    fit_long(model, x, y, epochs=30, batch_size=64)
    stddev = model.predict_uncertainty(X, verbose=0).aleatoric_stddev
    np.testing.assert_allclose(stddev, np.tile([0.2, 3.0], (N, 1)), rtol=0.2)


def test_student_t_resists_outliers():
    rng = np.random.default_rng(0)
    x = np.tile(X, (10, 1))
    clean = x @ [[1.0], [2.0], [-1.0]]
    y = clean + 0.1 * rng.normal(size=clean.shape)
    y[::15] += 40.0
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    least_squares = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    model = regressor("student_t", plain(), learning_rate=0.05)
    fit_long(model, x, y, epochs=50, batch_size=64)
    error = np.abs(model.predict(x, verbose=0) - clean).mean()
    assert error < 0.3 < 1.0 < np.abs(least_squares - clean).mean()
    df = np.exp(to_numpy(model(x))[0, 2])
    assert 2.0 < df < 4.0


# --- Networks ---------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["heteroscedastic", "student_t"])
@pytest.mark.eager
def test_a_plain_network_has_no_epistemic_uncertainty(noise):
    model = fitted(noise, plain(2 if noise == "heteroscedastic" else 1))
    assert model.evaluate(X, Y, verbose=0)[0] == pytest.approx(
        -model.log_likelihood(X, Y, verbose=0).mean(), rel=1e-4
    )
    result = model.predict_uncertainty(X, verbose=0)
    assert (result.epistemic_stddev == 0.0).all()
    np.testing.assert_allclose(result.mean, to_numpy(model(X))[:, :1], rtol=1e-5)
    np.testing.assert_array_equal(model.predict(X, verbose=0), result.mean)
    np.testing.assert_allclose(result.quantiles[1], result.mean, atol=1e-4)


@pytest.mark.eager
def test_monte_carlo_dropout():
    net = plain(1, keras.layers.Dense(8), keras.layers.Dropout(0.5))
    model = fitted(net=net)
    result = model.predict_uncertainty(X, seed=0, verbose=0)
    assert (result.epistemic_stddev > 0.0).all()
    other = model.predict_uncertainty(X, seed=1, verbose=0)
    assert np.abs(result.mean - other.mean).max() > 1e-3
    off = keras_bdl.BayesianRegressor(net, "homoscedastic", mc_dropout=False)
    result = off.predict_uncertainty(X, verbose=0)
    assert (result.epistemic_stddev == 0.0).all()


@pytest.mark.eager
def test_layers_without_a_kl_need_no_number_of_examples():
    net = plain(1, keras_bdl.MCDropout(0.5))

    def batches():
        while True:
            yield X[:8], Y[:8]

    model = fitted(net=net)
    assert (model.predict_uncertainty(X, verbose=0).epistemic_stddev > 0.0).all()
    regressor(net=net).fit(batches(), steps_per_epoch=2, verbose=0)


@pytest.mark.eager
def test_sampled_prediction_leaves_batch_normalisation_alone():
    net = network()
    net = keras.Sequential(
        [keras.Input((3,)), net.layers[0], keras.layers.BatchNormalization()]
        + [keras.layers.Dropout(0.2), net.layers[1]]
    )
    model = fitted(net=net)
    before = [to_numpy(v) for v in model.non_trainable_variables]
    model.predict_uncertainty(X, verbose=0)
    model.log_likelihood(X, Y, verbose=0)
    model.evaluate(X, Y, verbose=0)
    for variable, value in zip(model.non_trainable_variables, before):
        np.testing.assert_array_equal(to_numpy(variable), value)


def test_networks_that_are_built_by_fit():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras_bdl.VariationalDense(2)

        def call(self, inputs, training=None):
            return self.layer(inputs, training=training)

    sequential = keras.Sequential([keras_bdl.VariationalDense(2)])
    for net, normalize in ((Net(), True), (sequential, False)):
        model = fitted("heteroscedastic", net, normalize=normalize)
        assert model.predict(X, verbose=0).shape == (N, 1)
        result = model.predict_uncertainty(X, num_samples=3, verbose=0)
        assert (result.epistemic_stddev > 0).all()
        with pytest.raises(ValueError, match=r"y.shape=\(32, 2\)"):
            model.evaluate(X, np.concatenate([Y, Y], axis=1), verbose=0)


@pytest.mark.eager
def test_several_inputs():
    inputs = {name: keras.Input((3,), name=name) for name in ("a", "b")}
    hidden = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    model = regressor(net=keras.Model(inputs, keras_bdl.VariationalDense(1)(hidden)))
    x = {"a": X, "b": X}
    model.fit(x, Y, verbose=0)
    assert model.log_likelihood(x, Y, verbose=0).shape == (N,)
    assert model.predict_uncertainty(x, verbose=0).mean.shape == (N, 1)
    with pytest.raises(ValueError, match="one input of floats.*Received"):
        regressor(net=model.network, normalize=True)


# --- Keras -------------------------------------------------------------------------


@pytest.mark.eager
def test_save_load_fit_continues_with_the_optimizer(tmp_path):
    model = fitted("student_t", normalize=True)
    model.predict_uncertainty(X, verbose=0)  # what it makes is not saved
    model.save(tmp_path / "r.keras")
    copy = keras.models.load_model(tmp_path / "r.keras")
    for a, b in zip(
        model.predict_uncertainty(X, seed=0, verbose=0),
        copy.predict_uncertainty(X, seed=0, verbose=0),
    ):
        np.testing.assert_array_equal(a, b)
    assert int(copy.optimizer.iterations.value) == int(model.optimizer.iterations.value)
    assert copy.evaluate(X, Y, verbose=0) == pytest.approx(
        model.evaluate(X, Y, verbose=0), rel=1e-4
    )
    for m in (model, copy):
        m.fit(X, Y, shuffle=False, verbose=0)
    assert len(model.weights) == len(copy.weights)
    for a, b in zip(model.weights, copy.weights):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-5)


def test_export_serves_the_noise_of_the_mean_network(tmp_path, only_tensorflow):
    import tensorflow as tf

    model = fitted("student_t", normalize=True)
    model.export(str(tmp_path / "e"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "e"))
    served = loaded.serve(X).numpy()
    assert served.shape == (N, 3)
    np.testing.assert_allclose(served, to_numpy(model(X)), rtol=1e-5)


def test_clone_model():
    model = trained()
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(to_numpy(clone(X)), to_numpy(model(X)), rtol=1e-6)


@pytest.mark.eager
def test_flat_targets_and_metrics_of_the_means():
    model = regressor("heteroscedastic", num_examples=N)
    model.compile("adam", metrics=["mae", "rmse"])
    column = model.evaluate(X, Y, verbose=0, return_dict=True)
    flat = model.evaluate(X, Y[:, 0], verbose=0, return_dict=True)
    assert flat == pytest.approx(column, rel=1e-5)
    error = np.abs(to_numpy(model(X))[:, :1] - Y).mean()
    assert column["mae"] == pytest.approx(error, rel=1e-4)
    assert set(column) == {"loss", "nll", "rmse", "mae"}
    model.fit(X, Y[:, 0], verbose=0)
    a, b = (model.log_likelihood(X, y, seed=0, verbose=0) for y in (Y, Y[:, 0]))
    np.testing.assert_array_equal(a, b)


def test_prediction_of_a_batch():
    assert trained().predict_on_batch(X[:5]).shape == (5, 1)


@pytest.mark.eager
def test_a_generator_needs_an_explicit_number():
    def batches():
        while True:
            yield X[:8], Y[:8]

    with pytest.raises(ValueError, match="BayesianRegressor.*Received"):
        regressor().fit(batches(), steps_per_epoch=2, verbose=0)
    regressor(num_examples=N).fit(batches(), steps_per_epoch=2, verbose=0)
    regressor(net=plain()).fit(batches(), steps_per_epoch=2, verbose=0)
    with pytest.raises(ValueError, match="normalize=True.*Received"):
        model = regressor(num_examples=N, normalize=True)
        model.fit(batches(), steps_per_epoch=2, verbose=0)


def test_refusals():
    make = keras_bdl.BayesianRegressor
    with pytest.raises(TypeError, match="network.*Received"):
        make(keras.layers.Dense(2))
    with pytest.raises(ValueError, match="noise.*Received: noise='gaussian'"):
        make(network(), "gaussian")
    with pytest.raises(ValueError, match="even number.*Received: width=1"):
        make(network("homoscedastic"), "heteroscedastic")
    with pytest.raises(ValueError, match="network.*Received: outputs of shape"):
        make(keras.Sequential([keras.Input((3, 4)), keras_bdl.VariationalDense(2)]))
    with pytest.raises(ValueError, match="own likelihood.*Received"):
        regressor().compile("adam", "mse")
    with pytest.raises(ValueError, match="mc_dropout.*Received"):
        make(plain(2, keras.layers.GaussianDropout(0.1)))
    make(plain(2, keras.layers.GaussianDropout(0.1)), mc_dropout=False)


def test_refusals_of_data():
    model = regressor(normalize=True)
    wide = np.concatenate([Y, Y], axis=1)
    bad = np.where(np.arange(N)[:, None] == 3, np.nan, Y)
    for y, message in (
        (wide, r"y.shape=\(32, 2\)"),
        (bad, "NaN"),
        (Y[None], "y.shape"),
    ):
        for call in (model.fit, model.evaluate):
            with pytest.raises(ValueError, match=f"Received.*{message}"):
                call(X, y, verbose=0)
        with pytest.raises(ValueError, match=f"Received.*{message}"):
            model.fit(X, Y, validation_data=(X, y), verbose=0)
    with pytest.raises(ValueError, match="numbers.*Received"):
        model.fit(X, np.array(["a"] * N), verbose=0)
    with pytest.raises(ValueError, match="finite inputs.*Received"):
        model.fit(np.where(X > 1, np.nan, X), Y, verbose=0)


def test_refusals_of_log_likelihood():
    model = trained()
    with pytest.raises(TypeError, match="`y` to be an array.*Received: y of type list"):
        model.log_likelihood(X, list(Y), verbose=0)
    with pytest.raises(TypeError, match="`x` to be an array.*Received"):
        model.log_likelihood(list(X[:, 0]), Y, verbose=0)
    with pytest.raises(ValueError, match="each row.*Received: 32 rows of x, 5 of y"):
        model.log_likelihood(X, Y[:5], verbose=0)


def test_refusals_of_what_a_data_set_yields():
    tf = pytest.importorskip("tensorflow", reason="tf.data is TensorFlow's")
    wide = np.concatenate([Y, Y], axis=1)
    for data, message in (
        ((X, wide), r"y.shape=\((None|8), 2\)"),
        ((X, Y, wide), r"sample_weight.shape=\((None|8), 2\)"),
    ):
        data_set = tf.data.Dataset.from_tensor_slices(data).batch(8)
        with pytest.raises(ValueError, match=f"Received: {message}"):
            regressor().fit(data_set, verbose=0)


def test_refusals_of_options_of_prediction():
    model = trained()
    for quantiles in ((0.0,), (0.5, 1.0), (float("nan"),)):
        with pytest.raises(ValueError, match="quantiles.*Received"):
            model.predict_uncertainty(X, quantiles=quantiles)
    for quantiles in (0.5, (), ("a",)):
        with pytest.raises(TypeError, match="quantiles.*Received"):
            model.predict_uncertainty(X, quantiles=quantiles)
    for call in (model.predict, model.predict_uncertainty):
        with pytest.raises(ValueError, match="num_samples.*Received"):
            call(X, num_samples=0, verbose=0)
    with pytest.raises(TypeError, match="`y`.*Received"):
        model.log_likelihood(X, None)


@pytest.mark.eager
def test_an_error_in_prediction_does_not_cost_the_weights():
    model = trained()
    before = model.predict(X, seed=0, verbose=0)
    for call in (model.predict, model.predict_uncertainty):
        with pytest.raises(Exception):  # noqa: B017 (whatever the backend says)
            call(X[:, :2], verbose=0)
    np.testing.assert_array_equal(model.predict(X, seed=0, verbose=0), before)


@pytest.mark.parametrize("noise, width", [("heteroscedastic", 2), ("student_t", 1)])
@pytest.mark.eager
def test_an_hdf5_file_gives_the_model_back(tmp_path, noise, width):
    network = keras.Sequential([keras.Input((3,)), keras_bdl.VariationalDense(width)])
    model = keras_bdl.BayesianRegressor(network, noise, 2, 16, normalize=True)
    model.compile()
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    model.fit(x, 5.0 * x[:, 0] + 2.0, verbose=0)
    model.save(tmp_path / "model.h5")
    classes = (keras_bdl.BayesianRegressor, keras_bdl.VariationalDense)
    loaded = keras.saving.load_model(
        tmp_path / "model.h5", custom_objects={cls.__name__: cls for cls in classes}
    )
    np.testing.assert_allclose(to_numpy(loaded(x)), to_numpy(model(x)), rtol=1e-6)
    assert np.isfinite(loaded.evaluate(x, x[:, 0], verbose=0)).all()


@pytest.mark.every_backend
def test_noise_of_far_inputs_and_exact_targets_stays_finite():
    """The network alone would give log standard deviations that overflow."""
    model = regressor("heteroscedastic", plain(2), 0.03, normalize=True)
    x = np.concatenate([X, [[1e4, -1e4, 1e4]]]).astype("float32")
    y = np.where(x[:, :1] > 0.0, 3.0, np.r_[Y, [[5.0]]])
    model.fit(X, Y, epochs=1, verbose=0)  # scales of rows without the far one
    history = model.fit(x, y, epochs=30, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    kernel, bias = model.network.layers[-1].get_weights()
    model.network.layers[-1].set_weights([kernel, bias + [0.0, -60.0]])
    outputs = to_numpy(model.network(model._standardized(ops.convert_to_tensor(x))))
    log_stddev = outputs[:, 1].astype("float64")
    beyond = np.log1p(np.maximum(np.abs(log_stddev) - 6.0, 0.0))
    expected = np.sign(log_stddev) * (np.minimum(np.abs(log_stddev), 6.0) + beyond)
    found = to_numpy(model(x))
    expected += np.log(to_numpy(model.targets_standardization.stddev)[0])
    np.testing.assert_allclose(found[:, 1], expected, rtol=1e-4)
    assert beyond.max() > 1.0 and beyond.min() >= 0.0
    np.testing.assert_allclose(to_numpy(model.to_keras()(x)), found, rtol=1e-4)
    assert np.isfinite(model.fit(x, y, epochs=3, verbose=0).history["loss"]).all()


def test_training_that_diverged_says_so():
    model = regressor("heteroscedastic", plain(2))
    model.compile(keras.optimizers.SGD(1e30))
    with pytest.warns(UserWarning, match="diverged.*Received: loss="):
        model.fit(X, Y, epochs=5, verbose=0)
