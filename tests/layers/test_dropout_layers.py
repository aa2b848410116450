"""Dropout layers: the contract, their masks against quadrature, their objectives."""

import dataclasses
import functools
import math

import keras
import numpy as np
import pytest
from backend_tools import gradients
from contract import Case, LayerContract, fit_long, to_numpy
from keras import ops
from scipy import integrate, special

import keras_bdl
from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.ops import divergences, estimators

pytestmark = pytest.mark.portable

LENGTH_SCALE = 2.0


# Oracles


def relaxed_factor(logistic, p, temperature):
    """(1 - z) / (1 - p) at one value of log u - log(1 - u)."""
    return special.expit(-(special.logit(p) + logistic) / temperature) / (1 - p)


@functools.cache
def relaxed_moments(p, temperature):
    """Mean and variance of the relaxed mask, by quadrature over the logistic."""

    def expected(function):
        def integrand(v):
            density = special.expit(v) * special.expit(-v)
            return function(relaxed_factor(v, p, temperature)) * density

        edge = -special.logit(p)
        parts = (-40.0, edge - 1, edge, edge + 1, 40.0)
        return sum(integrate.quad(integrand, a, b)[0] for a, b in zip(parts, parts[1:]))

    mean = expected(lambda z: z)
    return mean, expected(lambda z: z**2) - mean**2


def gaussian_dropout_kl(log_alpha):
    """Twice the integral of Dawson's function, by quadrature."""
    u = np.exp(-0.5 * log_alpha) / np.sqrt(2.0)
    return 2.0 * integrate.quad(special.dawsn, 0.0, u)[0]


def by_channel(plain, kernel, x, axis):
    """Outputs of a linear layer for each input channel by itself, `(channels, ...)`."""
    plain.set_weights([kernel] + [np.zeros_like(w) for w in plain.get_weights()[1:]])
    outputs = []
    for channel in range(x.shape[axis]):
        alone = np.zeros_like(x)
        index = [slice(None)] * x.ndim
        index[axis] = channel
        alone[tuple(index)] = x[tuple(index)]
        outputs.append(to_numpy(plain(alone)))
    return np.stack(outputs)


# The contract


@dataclasses.dataclass
class InputNoiseCase(Case):
    """A layer whose inputs are multiplied by noise of known mean and variance."""

    axis: int = -1

    def noise(self, layer):
        if isinstance(layer, keras_bdl.ConcreteDropout):
            return relaxed_moments(layer.rate, layer.resolved_temperature())
        alpha = np.exp(to_numpy(layer.log_alpha))
        return 1.0, alpha

    def remove_noise(self, layer):
        name = "log_alpha" if hasattr(layer, "log_alpha") else "rate_logit"
        variable = getattr(layer, name)
        variable.assign(np.full(variable.shape, -30.0))

    def randomize(self, layer, seed=0):
        rng = np.random.default_rng(seed)
        for variable in layer.trainable_variables:
            centre = -0.5 if variable.name in ("log_alpha", "rate_logit") else 0.0
            variable.assign(centre + 0.3 * rng.normal(size=variable.shape))

    def copy_means(self, layer, plain, kernel=None):
        if layer.layer is not None:
            plain.build((None, *self.input_shape))
            plain.set_weights(layer.layer.get_weights())

    def moments(self, layer, x):
        mean, variance = self.noise(layer)
        if layer.layer is None:
            axes = tuple(range(1, x.ndim - 1))
            return x * mean, x**2 * variance + 0.0 * x.sum(axes, keepdims=True)
        plain = self.plain(activation=None)
        plain.build((None, *self.input_shape))
        kernel, bias = map(to_numpy, (layer.layer.kernel, layer.layer.bias))
        if np.ndim(variance) > 1:  # of every weight
            plain.set_weights([kernel, bias])
            centre = to_numpy(plain(x))
            plain.set_weights([kernel**2 * variance, 0 * bias])
            return centre, to_numpy(plain(x**2))
        parts = by_channel(plain, kernel, x, self.axis)
        shape = [1] * x.ndim
        shape[self.axis] = -1
        variance = np.reshape(
            np.broadcast_to(variance, len(parts)), (-1, *[1] * x.ndim)
        )
        return mean * parts.sum(0) + bias.reshape(shape), (variance * parts**2).sum(0)

    def kernel_moments(self, layer):
        mean, variance = self.noise(layer)
        kernel = to_numpy(layer.layer.kernel)
        if np.ndim(variance) == 1:
            variance = variance[:, None]
        return mean * kernel, variance * kernel**2


# The noise of a channel and of a weight are two.
ABOUT = dict.fromkeys(("dense", "weight"), ("layer", "noise"))


def wrapped(name, cls, plain, input_shape, oracle, fixed=None, **options):
    """A case of a layer around `plain(**fixed)`."""
    fixed = fixed or {}
    axis = 1 if fixed.get("data_format") == "channels_first" else -1

    def make(dtype=None, **more):
        inner = {k: more.pop(k) for k in ("activation",) if k in more}
        layer = None
        if plain is not None:
            layer = plain(**{**fixed, **inner, "dtype": dtype})
        return cls(layer=layer, dtype=dtype, **{**options, **more})

    def make_plain(**more):
        if plain is None:
            return keras.layers.Identity()
        return plain(**{**fixed, **more})

    return InputNoiseCase(
        name=name,
        make=make,
        plain=make_plain,
        input_shape=input_shape,
        oracle_kl=oracle,
        proper_prior=False,
        drop_in=False,
        about=("noise",) if name.startswith("unit") else ABOUT.get(name, ("layer",)),
        thorough=name in ("dense", "layer", "weight"),
        family=name == "dense",
        every_backend=name == "dense",
        axis=axis,
    )


def concrete_kl(layer):
    p = special.expit(float(to_numpy(layer.rate_logit)))
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    squares = 0.0
    if layer.layer is not None:
        squares = (to_numpy(layer.layer.kernel).astype("float64") ** 2).sum()
    value = LENGTH_SCALE**2 * squares / (2 * (1 - p)) - layer.num_channels * entropy
    return value, 1e-5 * abs(value)


def gaussian_kl(layer):
    log_alpha = to_numpy(layer.log_alpha).astype("float64").ravel()
    value = sum(map(gaussian_dropout_kl, log_alpha))
    if layer.alpha_per == "layer":
        value = value * layer.num_channels
    return value, 1e-5 * value


DENSE = {"units": 3}
CONV = {"filters": 3, "kernel_size": 2}


class TestConcreteDropout(LayerContract):
    cases = [
        wrapped(name, keras_bdl.ConcreteDropout, plain, shape, concrete_kl, fixed,
                length_scale=LENGTH_SCALE)
        for name, plain, shape, fixed in (
            ("dense", keras.layers.Dense, (9,), {**DENSE, "activation": "tanh"}),
            ("dense-positions", keras.layers.Dense, (4, 5), DENSE),
            ("conv1d", keras.layers.Conv1D, (6, 3), {**CONV, "padding": "causal"}),
            ("conv2d", keras.layers.Conv2D, (4, 5, 3), CONV),
            ("conv3d", keras.layers.Conv3D, (3, 3, 3, 4), CONV),
        )
    ]  # fmt: skip


class TestVariationalGaussianDropout(LayerContract):
    cases = [
        wrapped(name, keras_bdl.VariationalGaussianDropout, plain, shape, gaussian_kl,
                fixed, alpha_per=alpha_per)
        for name, plain, shape, fixed, alpha_per in (
            ("layer", keras.layers.Dense, (9,), DENSE, "layer"),
            ("unit", keras.layers.Dense, (9,), DENSE, "unit"),
            ("weight", keras.layers.Dense, (9,), DENSE, "weight"),
            ("unit-conv2d", keras.layers.Conv2D, (4, 5, 3), CONV, "unit"),
            ("weight-conv2d", keras.layers.Conv2D, (4, 5, 3), CONV, "weight"),
        )
    ]  # fmt: skip


@dataclasses.dataclass
class DropConnectCase(Case):
    def remove_noise(self, layer):
        layer.rate = 1e-9

    def kernel_moments(self, layer):
        kernel = to_numpy(layer.kernel)
        return kernel, kernel**2 * layer.rate / (1 - layer.rate)

    def moments(self, layer, x):
        kernel, variance = self.kernel_moments(layer)
        return x @ kernel + to_numpy(layer.bias), x**2 @ variance


def drop_connect_kl(layer):
    squares = (to_numpy(layer.kernel).astype("float64") ** 2).sum()
    value = LENGTH_SCALE**2 * squares / (2 * (1 - layer.rate))
    return value, 1e-5 * value


class TestDropConnectDense(LayerContract):
    cases = [
        DropConnectCase(
            name=name,
            make=lambda **options: keras_bdl.DropConnectDense(
                4, **{"rate": 0.3, "length_scale": LENGTH_SCALE, **options}
            ),
            plain=lambda **options: keras.layers.Dense(4, **options),
            input_shape=shape,
            oracle_kl=drop_connect_kl,
            proper_prior=False,
            about=("noise",),
            thorough=name == "dense",
        )
        for name, shape in (("dense", (9,)), ("positions", (3, 9)))
    ]


@dataclasses.dataclass
class MaskCase(Case):
    def randomize(self, layer, seed=0):
        pass

    def remove_noise(self, layer):
        layer.rate = 0.0

    def copy_means(self, layer, plain, kernel=None):
        pass

    def moments(self, layer, x):
        return x, x**2 * layer.rate / (1 - layer.rate)


class TestMCDropout(LayerContract):
    cases = [
        MaskCase(
            name="mask",
            make=lambda activation=None, **options: keras_bdl.MCDropout(
                **{"rate": 0.3, **options}
            ),
            plain=lambda **options: keras.layers.Dropout(0.3),
            input_shape=(40,),
            oracle_kl=lambda layer: (0.0, 0.0),
            has_kl=False,
            family=True,
        )
    ]


# Masks


@pytest.mark.parametrize("p", [0.02, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("temperature", [0.1, 2 / 3])
def test_relaxed_masks_against_quadrature(p, temperature):
    count = 200_000
    generator = NoiseGenerator(0)
    logit = ops.convert_to_tensor(np.float32(special.logit(p)))
    mask = to_numpy(
        estimators.concrete_keep_mask(logit, (count,), temperature, generator)
    ).astype("float64")
    mean, variance = relaxed_moments(p, temperature)
    assert abs(mask.mean() - mean) < 5 * math.sqrt(variance / count)
    fourth = ((mask - mask.mean()) ** 4).mean()
    assert abs(mask.var() - variance) < 5 * math.sqrt((fourth - variance**2) / count)
    dropped = mask * (1 - p) < 0.5  # z > 1/2
    assert abs(dropped.mean() - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_the_bias_of_the_relaxation_is_that_of_the_docstring():
    assert relaxed_moments(0.1, 2 / 3)[0] == pytest.approx(0.950, abs=5e-4)
    assert relaxed_moments(0.3, 2 / 3)[0] == pytest.approx(0.946, abs=5e-4)
    assert relaxed_moments(0.1, 0.1)[0] == pytest.approx(0.998, abs=1e-3)
    assert relaxed_moments(0.1, 2 / 3)[1] < 0.1 / 0.9


@pytest.mark.parametrize("p", [0.1, 0.4])
@pytest.mark.parametrize("temperature", [0.1, 2 / 3])
def test_gradient_of_the_rate_against_quadrature(p, temperature):
    """d E[mask^2] / d logit p, of the relaxed mask."""
    step, logit = 1e-3, float(special.logit(p))

    def second_moment(logit):
        mean, variance = relaxed_moments(float(special.expit(logit)), temperature)
        return variance + mean**2

    exact = (second_moment(logit + step) - second_moment(logit - step)) / (2 * step)
    count, repeats = 20_000, 10
    estimates = []
    for seed in range(repeats):
        generator = NoiseGenerator(seed)
        (gradient,) = gradients(
            lambda x, generator=generator: ops.mean(
                ops.square(
                    estimators.concrete_keep_mask(x, (count,), temperature, generator)
                )
            ),
            [np.float32(logit)],
        )
        estimates.append(float(gradient))
    error = np.std(estimates, ddof=1) / math.sqrt(repeats)
    assert abs(np.mean(estimates) - exact) < 6 * error + 1e-3


@pytest.mark.parametrize("logit", [-30.0, -5.0, 0.0, 4.0, 30.0])
def test_bernoulli_entropy_against_scipy(logit):
    p = special.expit(logit)
    exact = special.entr(p) + special.entr(special.expit(-logit))
    value = float(to_numpy(divergences.bernoulli_entropy(np.float32(logit))))
    assert value == pytest.approx(exact, rel=1e-5, abs=1e-12)


def test_the_objective_is_the_expected_prior_term_less_the_entropy():
    """l^2 / 2 E|w|^2 - H over hard masks, by enumeration of all of them."""
    layer = keras_bdl.ConcreteDropout(
        keras.layers.Dense(2), length_scale=LENGTH_SCALE, initial_rate=0.3
    )
    layer.build((None, 3))
    kernel = np.random.default_rng(0).normal(size=(3, 2))
    layer.layer.kernel.assign(kernel)
    expected = 0.0
    for bits in np.ndindex(2, 2, 2):
        kept = np.array(bits)
        q = np.prod(np.where(kept, 0.7, 0.3))
        weights = kernel * kept[:, None] / 0.7
        expected += q * (LENGTH_SCALE**2 / 2 * (weights**2).sum() + np.log(q))
    assert float(to_numpy(layer.kl())) == pytest.approx(expected, rel=1e-5)


def test_without_a_layer_only_the_entropy_is_left():
    layer = keras_bdl.ConcreteDropout(initial_rate=0.2, num_examples=10)
    x = np.random.default_rng(0).normal(size=(4, 3, 6)).astype("float32")
    np.testing.assert_array_equal(to_numpy(layer(x)), x)
    entropy = special.entr(0.2) + special.entr(0.8)
    assert float(to_numpy(layer.kl())) == pytest.approx(-6 * entropy, rel=1e-5)
    ratio = to_numpy(layer(x, training=True)) / x
    np.testing.assert_allclose(ratio, ratio[:, :1] + 0 * ratio, rtol=1e-4)  # channels
    assert ratio[:, 0].std() > 0.1
    plain = layer.to_keras()
    assert type(plain) is keras.layers.Dropout
    assert plain.rate == pytest.approx(0.2) and plain.noise_shape == (None, 1, None)
    with pytest.raises(ValueError, match="Received: weights='sample'"):
        layer.to_keras("sample")
    gaussian = keras_bdl.VariationalGaussianDropout(0.3, num_examples=10)
    gaussian.build((None, 4))
    plain = gaussian.to_keras()
    assert type(plain) is keras.layers.GaussianDropout
    assert plain.rate == pytest.approx(0.3)


def test_masks_of_a_channels_first_convolution_are_of_channels():
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no channels_first convolution on CPU")
    conv = keras.layers.Conv2D(2, 3, data_format="channels_first")
    layer = keras_bdl.VariationalGaussianDropout(0.3, conv, alpha_per="unit")
    layer.build((None, 4, 6, 5))
    assert layer.log_alpha.shape == (4,)
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 5)).astype("float32")
    assert layer(x, training=True).shape == (2, 2, 4, 3)


# Learning


def test_an_unneeded_input_gets_a_high_rate_and_a_needed_one_a_low_rate():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4)).astype("float32")
    y = x @ np.array([[1.0], [-1.0], [2.0], [1.0]]) + 0.1 * rng.normal(size=(400, 1))
    rates = []
    for inputs in (x, rng.normal(size=x.shape).astype("float32")):
        layer = keras_bdl.ConcreteDropout(
            keras.layers.Dense(1), num_examples=400, seed=0
        )
        model = keras.Sequential([keras.Input((4,)), layer])
        model.compile(
            keras.optimizers.Adam(0.05), keras_bdl.losses.GaussianNLL(stddev=2.0)
        )
        model.fit(inputs, y, epochs=60, batch_size=50, verbose=0)
        rates.append(layer.rate)
    assert rates[0] < 0.05 and rates[1] > 0.2


def test_gaussian_dropout_of_weights_is_relative_to_their_size():
    layer = keras_bdl.VariationalGaussianDropout(
        0.2, keras.layers.Dense(3), alpha_per="weight", num_examples=1
    )
    layer.build((None, 2))
    sizes = np.array([[1e-12, 1e-6, 0.0], [1.0, 1e-9, 100.0]])
    layer.layer.kernel.assign(sizes)
    draws = layer.posterior.draw(keras.random.SeedGenerator(0), 2_000)
    draws = to_numpy(draws["kernel"])
    assert np.abs(draws[:, 0, 2]).max() < 1e-37
    live = sizes > 0
    spread = draws.astype("float64").std(axis=0)[live] / sizes[live]
    np.testing.assert_allclose(spread, np.sqrt(0.2 / 0.8), rtol=0.1)


@pytest.mark.one_backend
def test_gaussian_dropout_learns_which_weights_are_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype("float32")
    y = 2.0 * x[:, :1] + 0.1 * rng.normal(size=(400, 1))
    layer = keras_bdl.VariationalGaussianDropout(
        0.1, keras.layers.Dense(1), alpha_per="weight", num_examples=400, seed=0
    )
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.Adam(0.05), keras_bdl.losses.GaussianNLL(stddev=0.1))
    fit_long(model, x, y, epochs=60, batch_size=50)
    log_alpha = to_numpy(layer.log_alpha)[:, 0]
    assert log_alpha[0] < -6.0 and log_alpha[1:].min() > log_alpha[0] + 4.0


def test_the_rate_is_logged():
    layer = keras_bdl.ConcreteDropout(
        keras.layers.Dense(1), num_examples=10, name="first"
    )
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("sgd", "mse")
    history = model.fit(
        np.ones((8, 3)),
        np.ones((8, 1)),
        epochs=2,
        verbose=0,
        callbacks=[keras_bdl.callbacks.DropoutRateLogger()],
    ).history
    assert history["rate_first"][-1] == pytest.approx(layer.rate)
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    plain.compile("sgd", "mse")
    with pytest.raises(ValueError, match="DropoutRateLogger.*Received"):
        plain.fit(
            np.ones((8, 3)),
            np.ones((8, 1)),
            callbacks=[keras_bdl.callbacks.DropoutRateLogger()],
        )


# Use


@pytest.mark.every_backend
def test_a_network_of_mc_dropout_is_sampled_without_being_told():
    model = keras.Sequential(
        [keras.Input((5,)), keras_bdl.MCDropout(0.3), keras.layers.Dense(2)]
    )
    x = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    draws = keras_bdl.predict(model, x, 2000, return_samples=True, seed=0, verbose=0)
    kernel = to_numpy(model.layers[-1].kernel)
    variance = (x**2 @ kernel**2) * 0.3 / 0.7
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.25)
    mean_error = np.sqrt(variance / len(draws))
    assert (np.abs(draws.mean(0) - x @ kernel) / mean_error).max() < 5
    again = keras_bdl.predict(
        model, x, 2000, return_samples=True, seed=0, verbose=0, mc_dropout=True
    )
    np.testing.assert_array_equal(draws, again)


def test_dropout_is_converted_and_back():
    layer = keras_bdl.MCDropout.from_keras(keras.layers.Dropout(0.3, (None, 1)))
    layer.build((2, 5))
    plain = layer.to_keras()
    assert (plain.rate, plain.noise_shape) == (0.3, (None, 1))
    with pytest.raises(ValueError, match="Received: weights='sample'"):
        layer.to_keras("sample")
    spatial = keras.layers.SpatialDropout2D(0.3)
    assert keras_bdl.MCDropout.from_keras(spatial).noise_shape == (None, 1, 1, None)
    with pytest.raises(ValueError, match="Received: layer="):
        keras_bdl.MCDropout.from_keras(keras.layers.Dense(2))


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: keras_bdl.ConcreteDropout(keras.layers.LSTM(2)), TypeError, "layer="),
        (lambda: keras_bdl.ConcreteDropout(keras_bdl.VariationalDense(2)), TypeError,
         "layer="),
        (lambda: keras_bdl.ConcreteDropout(
            keras.layers.Dense(2, kernel_regularizer="l2")), ValueError,
         "kernel_regularizer"),
        (lambda: keras_bdl.ConcreteDropout(keras.layers.Conv2D(4, 3, groups=2)),
         ValueError, "groups"),
        (lambda: keras_bdl.ConcreteDropout(length_scale=0.0), ValueError,
         "length_scale"),
        (lambda: keras_bdl.ConcreteDropout(initial_rate=1.0), ValueError,
         "initial_rate"),
        (lambda: keras_bdl.ConcreteDropout(temperature=-1.0), ValueError,
         "temperature"),
        (lambda: keras_bdl.VariationalGaussianDropout(0.1, alpha_per="weight"),
         ValueError, "alpha_per"),
        (lambda: keras_bdl.VariationalGaussianDropout(0.1, alpha_per="unit2"),
         ValueError, "alpha_per"),
        (lambda: keras_bdl.VariationalGaussianDropout(0.0), ValueError, "initial_rate"),
        (lambda: keras_bdl.DropConnectDense(3, rate=1.5), ValueError, "rate"),
        (lambda: keras_bdl.DropConnectDense(3, prior="normal"), ValueError, "prior"),
        (lambda: keras_bdl.MCDropout(1.0), ValueError, "rate"),
        (lambda: keras_bdl.MCDropout("a"), TypeError, "rate"),
        (lambda: keras_bdl.MCDropout(0.1, num_examples=3), ValueError, "num_examples"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(make, error, match):
    with pytest.raises(error, match=f"Received: {match}"):
        make()


def test_posteriors_have_the_moments_of_the_layers(only_tensorflow):
    pytest.importorskip("tensorflow_probability", reason="TFP is not installed")
    dense = keras.layers.Dense
    concrete = keras_bdl.ConcreteDropout(dense(2), initial_rate=0.3)
    connect = keras_bdl.DropConnectDense(2, rate=0.2)
    units = keras_bdl.VariationalGaussianDropout(0.4, dense(2), alpha_per="unit")
    weights = keras_bdl.VariationalGaussianDropout(0.4, dense(2), alpha_per="weight")
    for layer in (concrete, connect, units, weights):
        layer.build((None, 5))
    for layer, shape, rate in ((concrete, (5,), 0.3), (connect, (5, 2), 0.2)):
        mean = layer.posterior_distribution().model["keep"].mean()
        np.testing.assert_allclose(to_numpy(mean), np.full(shape, 1 - rate), rtol=1e-6)
    noise = units.posterior_distribution().model["noise"]
    np.testing.assert_allclose(to_numpy(noise.mean()), np.ones(5))
    np.testing.assert_allclose(to_numpy(noise.variance()), np.full(5, 2 / 3), rtol=1e-5)
    kernel = weights.posterior_distribution().model["kernel"]
    np.testing.assert_allclose(
        to_numpy(kernel.variance()), 2 / 3 * to_numpy(weights.layer.kernel) ** 2, 1e-4
    )


@pytest.mark.parametrize(
    "make",
    [
        keras_bdl.VariationalGaussianDropout,
        lambda: keras_bdl.VariationalGaussianDropout(alpha_per="unit"),
        keras_bdl.ConcreteDropout,
        lambda: keras_bdl.ConcreteDropout(keras.layers.Dense(2)),
    ],
)
def test_noise_does_not_widen_inputs_of_one_channel(make):
    layer = make()
    layer.build((None, 4))
    one = np.ones((5, 1), "float32")
    for training in (False, True):
        with pytest.raises(ValueError, match="4 channels.*Received"):
            layer(one, training=training)
