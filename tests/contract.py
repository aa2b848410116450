"""The contract of a Bayesian layer (see DESIGN), one test per clause.

A layer's test file subclasses `LayerContract` with a list of `Case`; a test by
reflection fails when a registered layer has none.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable

import keras
import numpy as np
import pytest
from backend_tools import compiled, traced
from keras import ops

import keras_bdl
from keras_bdl import maps
from keras_bdl.core import scopes, stochastic
from keras_bdl.layers.posterior_layer import PosteriorLayer

BACKEND = keras.backend.backend()
N = 1000  # number of training examples in every case


@dataclasses.dataclass
class Case:
    """One configuration of a layer.

    Attributes:
        name: test id.
        make: builds the Bayesian layer; keyword arguments are added to its own.
        plain: builds the Keras layer that it replaces.
        input_shape: shape of one example.
        oracle_kl: function of the built layer, its KL by independent means.
        inference_kernel: function of the built layer, its kernel at inference where
            that is not the mean.
        proper_prior: whether KL is 0 at the prior.
        closed_kl: whether `kl()` has no noise.
        about: what the case is of: "layer" (a class, or what its map does), "noise"
            (an estimator), "prior". The tests of other things are left to others.
        also: what else it is of, on demand.
        thorough: whether it is of everything, Keras's machinery too (tests marked
            `structural`): one dense and one convolutional case of a family are.
        family: whether it stands for its family: the tests of Keras's programs, files
            and dtypes (marked `machinery`) are on demand for other thorough cases.
        every_backend: whether it is a mechanism of its own in a program of JAX, so that
            it stands for its family on other backends than TensorFlow too.
        every_use: whether the KL is counted in every use and dtype policy.
        drop_in: whether the layer is one of the class that it replaces.
        has_kl: whether there are weights with a posterior and a KL.
        traced: whether it trains in programs of TensorFlow alone: on a CPU there are
            no other gradients of grouped convolutions.
    """

    name: str
    make: Callable
    plain: Callable
    input_shape: tuple
    oracle_kl: Callable
    inference_kernel: Callable = lambda layer: None
    proper_prior: bool = True
    closed_kl: bool = True
    about: tuple = ("layer", "noise")
    also: tuple = ()
    thorough: bool = True
    family: bool = False
    every_backend: bool = False
    every_use: bool = False
    drop_in: bool = True
    has_kl: bool = True
    traced: bool = False

    def takes(self, test):
        """Whether a test of the contract is for this case."""
        about = getattr(test, "about", self.about)
        capabilities = getattr(test, "only", ())
        of_this = not set(about).isdisjoint(self.about + self.also)
        return (self.thorough or of_this) and all(
            getattr(self, name) for name in capabilities
        )

    def on_demand(self, test):
        """Whether a test that is for this case is left to `-m slow`."""
        elsewhere = BACKEND != "tensorflow"
        if getattr(test, "about", ()) == ("noise",):
            return "noise" not in self.about or (elsewhere and not self.family)
        if elsewhere and "thorough" in getattr(test, "only", ()):
            return not self.every_backend
        return getattr(test, "machinery", False) and not self.family

    # What is known of a layer: here, of one with Gaussian weights.

    def randomize(self, layer, seed=0):
        randomize(layer, seed)

    def set_stddev(self, layer, stddev):
        set_stddev(layer, stddev)

    def remove_noise(self, layer):
        self.set_stddev(layer, 1e-9)

    def copy_means(self, layer, plain, kernel=None):
        copy_means(layer, plain, kernel)

    def moments(self, layer, x):
        """Mean and variance of the linear outputs."""
        return closed_moments(layer, self.plain(activation=None), x, self.square(x))

    def kernel_moments(self, layer):
        mean, log_stddev = layer.posterior.moments()[layer.weight_map.kernel]
        return to_numpy(mean), np.exp(2 * to_numpy(log_stddev))

    def kernel(self, layer, plain):
        """The kernel of a plain layer that `layer` became."""
        weight_map = getattr(layer, "weight_map", maps.Dense())
        return to_numpy(weight_map.variables(plain)[weight_map.kernel])

    def square(self, x):
        """What the plain layer takes beside variances of the kernel."""
        return x**2

    def inputs(self, rows=4, seed=0, scale=1.0):
        rng = np.random.default_rng(seed)
        return (scale * rng.normal(size=(rows, *self.input_shape))).astype("float32")

    def built(self, **options):
        if self.has_kl:
            options = {"num_examples": N, **options}
        layer = self.make(**options)
        layer.build((None, *self.input_shape))
        return layer

    def model(self, **options):
        if not self.has_kl:
            options.pop("num_examples", None)
        inputs = keras.Input(self.input_shape)
        layer = self.make(**options)
        return keras.Model(inputs, layer(inputs)), layer


SHAPES = ("shared", "siamese", "time", "time_unknown", "subclassed")
USES = [
    pytest.param("single", "float32", marks=pytest.mark.slow),
    *[(shape, "float32") for shape in SHAPES],
    pytest.param("shared", "mixed_bfloat16", marks=pytest.mark.eager),
    pytest.param("time_unknown", "mixed_float16", marks=pytest.mark.eager),
    pytest.param("shared", "mixed_float16", marks=pytest.mark.slow),
    pytest.param("time_unknown", "mixed_bfloat16", marks=pytest.mark.slow),
]
if BACKEND != "tensorflow":
    USES = [("subclassed", "float32"), ("time_unknown", "mixed_bfloat16")]


# Registered classes that a fit makes around a network, and that are no case of the
# contract: tests/inference has their tests.
FITTED = {"LinearizedNetwork"}


def only(capability):
    """Marks a test of the contract for the cases that have a capability."""

    def mark(test):
        test.only = (*getattr(test, "only", ()), capability)
        return test

    return mark


def about(*kinds):
    """Marks a test of the contract for the cases that are of one of these."""

    def mark(test):
        test.about = kinds
        return test

    return mark


def machinery(test):
    """Marks a `structural` test that is of a family, and costs more than others."""
    test.machinery = True
    return structural(test)


structural, in_every_use = only("thorough"), only("every_use")
of_weights, of_drop_ins = only("has_kl"), only("drop_in")
of_layers, of_noise, of_priors = about("layer"), about("noise"), about("prior")
of_layers_and_noise = about("layer", "noise")
# Of what is the same without a program: see `suite.programs`.
eager = pytest.mark.eager


def slow(value):
    """A parameter of tests on demand."""
    return pytest.param(value, marks=pytest.mark.slow)


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(ops.stop_gradient(ops.convert_to_tensor(x))))


def set_stddev(layer, stddev):
    if not isinstance(layer, PosteriorLayer):
        return  # noise of another kind
    for name, variable in layer.posterior.variables().items():
        value = math.log(stddev) if name.endswith("_log_stddev") else 0.0
        variable.assign(np.full(variable.shape, value, "float32"))


def randomize(layer, seed=0):
    """Means of scale .3 and stddevs of about .2, so that nothing is degenerate."""
    rng = np.random.default_rng(seed)
    variables = layer.weight_map.variables(layer) | layer.posterior.variables()
    for name, variable in variables.items():
        centre = math.log(0.2) if name.endswith("_log_stddev") else 0.0
        variable.assign(centre + 0.3 * rng.normal(size=variable.shape))


def copy_means(layer, plain, kernel=None):
    """Gives the plain layer the posterior means, or `kernel` in place of its own."""
    (shape, *_) = layer._build_shapes_dict.values()
    plain.build((None, *shape[1:]))
    weight_map = layer.weight_map
    values = {n: to_numpy(w) for n, w in weight_map.variables(layer).items()}
    if kernel is not None:
        values[weight_map.kernel] = kernel
    for name, variable in weight_map.variables(plain).items():
        variable.assign(values[name])


def closed_moments(layer, plain, x, square):
    """Mean and variance of linear outputs, by the plain layer on m, and on s^2."""
    copy_means(layer, plain)
    mean = to_numpy(plain(x))
    moments = layer.posterior.moments()
    for name, variable in layer.weight_map.variables(plain).items():
        variance = np.zeros(variable.shape)
        if name in moments:
            variance = np.exp(2 * to_numpy(moments[name][1]))
        variable.assign(variance)
    return mean, to_numpy(plain(square))


def assert_moments(draws, mean, variance, standard_errors=5.0):
    """Mean and variance of draws `(S, ...)` against the exact ones."""
    count = len(draws)
    z_mean = (draws.mean(axis=0) - mean) / np.sqrt(variance / count)
    assert np.abs(z_mean).max() < standard_errors
    # Of heavier tails than a Gaussian's, the variance is less certain.
    fourth = ((draws - draws.mean(axis=0)) ** 4).mean(axis=0) / variance**2
    ratio = draws.var(axis=0, ddof=1) / variance
    error = np.sqrt(np.maximum(fourth - 1.0, 2.0) / (count - 1))
    assert (np.abs(ratio - 1) / error).max() < standard_errors


def compile_zero_loss(model, **options):
    """A compiled model whose loss is its `add_loss` terms alone."""
    model.compile(
        keras.optimizers.SGD(0.0), lambda y, p: 0.0 * ops.sum(p, axis=-1), **options
    )
    return model


def evaluated_loss(model, x, y=None):
    y = np.zeros((len(x), 1), "float32") if y is None else y
    return float(model.evaluate(x, y, batch_size=len(x), verbose=0))


def fit_long(model, x, y, epochs, batch_size=None):
    """As many steps as in `epochs`, of one epoch: its start and end cost most."""
    rows = np.tile(np.arange(len(x)), epochs)
    model.fit(x[rows], y[rows], batch_size=batch_size or len(x), verbose=0)


class LayerContract:
    """Every clause of the contract; subclasses set `cases`."""

    cases: list = []

    # Outputs

    @of_layers_and_noise
    def test_without_variance_it_is_the_keras_layer(self, case):
        layer = case.built()
        case.randomize(layer)
        case.remove_noise(layer)
        plain = case.plain()
        case.copy_means(layer, plain)
        x = case.inputs()
        expected = to_numpy(plain(x))
        for training in (False, True):
            outputs = to_numpy(layer(x, training=training))
            np.testing.assert_allclose(outputs, expected, atol=1e-5)

    @of_layers
    def test_inference_is_the_mean_and_repeats(self, case):
        layer, plain = case.built(), case.plain()
        case.randomize(layer)
        case.copy_means(layer, plain, case.inference_kernel(layer))
        x = case.inputs()
        first = to_numpy(layer(x, training=False))
        np.testing.assert_array_equal(first, to_numpy(layer(x)))
        np.testing.assert_allclose(first, to_numpy(plain(x)), atol=1e-6)

    @machinery
    def test_integers_are_taken_for_floats(self, case):
        layer = case.built()
        case.randomize(layer)

        def outputs(x):
            with scopes.SamplingScope(0, 0, 1):
                sampled = layer(x)
            return [to_numpy(y) for y in (layer(x), sampled)]

        for dtype in ("int32", "bool"):
            whole = ops.cast(ops.round(2.0 * case.inputs()), dtype)
            floats = ops.cast(whole, "float32")
            for got, expected in zip(outputs(whole), outputs(floats)):
                assert got.dtype == "float32"
                np.testing.assert_array_equal(got, expected)
            assert np.isfinite(to_numpy(layer(whole, training=True))).all()

    @of_layers_and_noise
    def test_draws_have_the_exact_moments(self, case):
        self.check_draws(case, sample_at_inference=False)

    @machinery
    def test_draws_at_inference_have_the_exact_moments(self, case):
        self.check_draws(case, sample_at_inference=True)

    def check_draws(self, case, sample_at_inference):
        layer = case.built(sample_at_inference=sample_at_inference, activation=None)
        case.randomize(layer)
        x = case.inputs(rows=3)
        mean, variance = case.moments(layer, x)
        draw = traced(lambda: layer(x, training=not sample_at_inference))
        draws = np.stack([to_numpy(draw()) for _ in range(60)])
        assert_moments(draws, mean, variance)

    @of_layers_and_noise
    def test_draws_in_the_scope_have_the_exact_moments(self, case):
        layer = case.built(activation=None)
        case.randomize(layer)
        x = case.inputs(rows=3)
        mean, variance = case.moments(layer, x)
        count, block = 30, 8
        tiled = np.tile(x, (block,) + (1,) * len(case.input_shape))

        @compiled
        def draw(index):
            with scopes.SamplingScope(0, index, block):
                return layer(tiled)

        draws = [to_numpy(draw(ops.convert_to_tensor(i))) for i in range(count)]
        draws = np.reshape(draws, (count * block, *mean.shape))
        assert_moments(draws, mean, variance)

    @of_noise
    def test_the_scope_repeats_and_adds_no_loss(self, case):
        layer = case.built()
        x = case.inputs()
        state = to_numpy(layer.noise.state)
        outputs = []
        for seed in (0, 0, *range(1, 9)):
            with scopes.SamplingScope(seed, 0, 1):
                outputs.append(to_numpy(layer(x)))
                assert not layer.losses
        np.testing.assert_array_equal(outputs[0], outputs[1])
        # A discrete draw may be equal once.
        assert max(np.abs(outputs[0] - other).max() for other in outputs[2:]) > 0
        np.testing.assert_array_equal(state, to_numpy(layer.noise.state))

    @of_noise
    def test_a_sample_in_the_scope_is_one_function(self, case):
        layer = case.built()
        x = case.inputs(rows=6)
        with scopes.SamplingScope(0, 0, 1):
            whole = to_numpy(layer(x))
        with scopes.SamplingScope(0, 0, 1):
            parts = [to_numpy(layer(x[:2])), to_numpy(layer(x[2:]))]
        np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)

    @of_noise
    def test_noise_in_a_traced_loop(self, case):
        layer = case.built()
        x = ops.convert_to_tensor(case.inputs())

        def draw(index):
            with scopes.SamplingScope(0, index, 1):
                return layer(x)

        stacked = to_numpy(ops.map(draw, ops.arange(5)))
        looped = to_numpy(
            ops.fori_loop(
                0, 5, lambda i, total: total + draw(i), ops.zeros_like(draw(0))
            )
        )
        assert np.abs(stacked - stacked[0]).max() > 0
        np.testing.assert_allclose(stacked.sum(axis=0), looped, atol=1e-4)

    @of_noise
    def test_noise_differs_between_calls_and_layers(self, case):
        x = np.ones((1, *case.input_shape), "float32")
        streams = []
        for seed in (0, 1, 0):
            layer = case.built(seed=seed)
            case.randomize(layer)
            centre = to_numpy(layer(x))
            streams += [
                (to_numpy(layer(x, training=True)) - centre).ravel() for _ in range(3)
            ]
        for i in range(len(streams)):
            for j in range(i):
                assert np.abs(streams[i] - streams[j]).max() > 1e-6

    # KL

    @about("layer", "prior")
    @of_weights
    def test_kl_equals_an_independent_value(self, case):
        layer = case.built()
        case.randomize(layer)
        expected, tolerance = case.oracle_kl(layer)
        if case.closed_kl:
            value = float(to_numpy(layer.kl()))
        else:
            draw = traced(layer.kl)
            draws = [float(to_numpy(draw())) for _ in range(100)]
            value = float(np.mean(draws))
            tolerance += 5 * float(np.std(draws, ddof=1)) / math.sqrt(len(draws))
        assert abs(value - expected) <= tolerance
        assert keras.backend.standardize_dtype(layer.kl().dtype) == "float32"

    @of_priors
    @of_weights
    def test_kl_is_zero_at_the_prior_and_falls_on_the_way(self, case):
        if not (case.proper_prior and case.closed_kl):
            pytest.skip("the prior is improper, or no Gaussian equals it")
        layer = case.built(prior=keras_bdl.priors.Normal(0.1, 0.5))
        case.randomize(layer)
        start = {
            n: (to_numpy(m), to_numpy(s)) for n, (m, s) in layer.gaussians().items()
        }
        values = []
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            for name, (mean, log_stddev) in start.items():
                variable = layer.weight_map.variables(layer)[name]
                variable.assign((1 - share) * mean + share * 0.1)
                getattr(layer, f"{name}_log_stddev").assign(
                    (1 - share) * log_stddev + share * math.log(0.5)
                )
            values.append(float(to_numpy(layer.kl())))
        assert all(a > b for a, b in zip(values, values[1:]))
        weights = sum(mean.size for mean, _ in start.values())
        assert abs(values[-1]) < 1e-6 * weights

    @of_weights
    @machinery
    def test_kl_counts_once(self, case):
        self.check_kl_counts_once(case, "shared", "mixed_float16")

    @in_every_use
    @pytest.mark.parametrize("shape, policy", USES)
    def test_kl_counts_once_in_every_use(self, case, shape, policy):
        self.check_kl_counts_once(case, shape, policy)

    def check_kl_counts_once(self, case, shape, policy):
        keras.config.set_dtype_policy(policy)
        layer = case.make(num_examples=N)
        model, x = _use_layer(layer, case, shape)
        compile_zero_loss(model)
        y = np.zeros((len(x[0]) if isinstance(x, list) else len(x), 1), "float32")
        rows = len(y)
        history = model.fit(x, y, batch_size=rows, verbose=0).history["loss"][0]
        loss = float(model.evaluate(x, y, batch_size=rows, verbose=0))
        if case.closed_kl:
            expected = float(to_numpy(layer.kl())) / N
            assert history == pytest.approx(expected, rel=1e-5)
            assert loss == pytest.approx(expected, rel=1e-5)
        else:
            draw = traced(layer.kl)
            draws = [float(to_numpy(draw())) / N for _ in range(50)]
            margin = 6 * np.std(draws)
            assert abs(loss - np.mean(draws)) < margin
            assert abs(history - np.mean(draws)) < margin

    @of_weights
    @machinery
    def test_kl_is_scaled_by_weight_and_examples(self, case):
        model, layer = case.model(num_examples=50, kl_weight=0.25)
        compile_zero_loss(model)
        x = case.inputs()
        kl = float(to_numpy(layer.measured_kl()))
        assert evaluated_loss(model, x) == pytest.approx(0.25 * kl / 50, rel=1e-5)
        layer.kl_weight.assign(0.5)  # no retracing: the value is a variable
        assert evaluated_loss(model, x) == pytest.approx(0.5 * kl / 50, rel=1e-5)
        keras_bdl.set_num_examples(model, 25)
        assert evaluated_loss(model, x) == pytest.approx(0.5 * kl / 25, rel=1e-5)

    @of_weights
    @structural
    @eager
    def test_a_frozen_layer_adds_no_kl(self, case):
        model, layer = case.model(num_examples=N)
        layer.trainable = False
        compile_zero_loss(model)
        assert evaluated_loss(model, case.inputs()) == 0.0

    @of_weights
    @machinery
    @eager
    def test_unknown_num_examples_raises_in_fit_and_evaluate_only(self, case):
        x = case.inputs()
        y = np.zeros((len(x), 1), "float32")
        for method in ("fit", "evaluate"):
            model, layer = case.model()
            compile_zero_loss(model)
            with pytest.raises(ValueError, match=f"'{layer.name}'.*set_num_examples"):
                getattr(model, method)(x, y, verbose=0)
            assert np.isfinite(model.predict(x, verbose=0)).all()
            keras_bdl.set_num_examples(model, N)
            getattr(model, method)(x, y, verbose=0)

    # Training

    @of_noise
    @of_weights
    @eager
    def test_every_trainable_variable_gets_a_gradient(self, case):
        model, layer = case.model(num_examples=10)
        case.randomize(layer)
        before = [to_numpy(v) for v in model.trainable_variables]
        model.compile(keras.optimizers.SGD(0.1), "mse")
        x = case.inputs(rows=8)
        model.fit(x, to_numpy(model(x)) + 1.0, batch_size=8, verbose=0)
        after = [to_numpy(v) for v in model.trainable_variables]
        assert len(before) >= 2
        for old, new in zip(before, after):
            assert np.isfinite(new).all()
            assert (old != new).mean() > 0.9

    @machinery
    @eager
    @pytest.mark.parametrize("policy", [slow("float32"), "mixed_float16"])
    def test_zero_input_and_zero_variance_train(self, case, policy):
        keras.config.set_dtype_policy(policy)
        model, layer = case.model(num_examples=10)
        case.set_stddev(layer, math.exp(-30))
        model.compile(keras.optimizers.SGD(1e-3), "mse")
        x = np.zeros((4, *case.input_shape), "float32")
        model.fit(x, to_numpy(model(x)), epochs=2, verbose=0)
        for variable in model.trainable_variables:
            assert np.isfinite(to_numpy(variable)).all()

    @machinery
    @pytest.mark.unbuilt
    def test_jit_compiled_training(self, case):
        if BACKEND != "tensorflow":
            pytest.skip("JAX compiles every program; torch needs a toolchain, minutes")
        model, layer = case.model(num_examples=10)
        model.compile("sgd", "mse", jit_compile=True)
        x = case.inputs()
        history = model.fit(x, to_numpy(model(x)), epochs=2, verbose=0)
        assert np.isfinite(history.history["loss"]).all()

    # Numbers

    @of_noise
    def test_half_precision_keeps_variance(self, case):
        self.check_half_precision(case, "mixed_float16")

    @machinery
    @pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
    def test_other_half_precisions_keep_variance(self, case, policy):
        self.check_half_precision(case, policy)

    def check_half_precision(self, case, policy):
        keras.config.set_dtype_policy(policy)
        layer = case.built(activation=None, sample_at_inference=True)
        keras.config.set_dtype_policy("float32")
        case.set_stddev(layer, math.exp(-9))
        x = np.full((1, *case.input_shape), 300.0, "float32")
        for call in (layer, lambda x: layer(x, training=True)):
            assert np.isfinite(to_numpy(ops.cast(call(x), "float32"))).all()
        if case.has_kl:
            assert np.isfinite(float(to_numpy(layer.kl())))
            assert keras.backend.standardize_dtype(layer.kl().dtype) == "float32"

    @of_weights
    @structural
    def test_float64_is_not_narrowed(self, case):
        if BACKEND == "jax":
            pytest.skip("JAX has no float64 unless it is enabled for the process")
        layer = case.built(dtype="float64")
        outputs = layer(case.inputs().astype("float64"), training=True)
        assert keras.backend.standardize_dtype(outputs.dtype) == "float64"
        assert keras.backend.standardize_dtype(layer.kl().dtype) == "float64"

    # Serialisation

    @of_weights
    @structural
    def test_config_is_json_and_round_trips(self, case):
        layer = case.built(kl_weight=0.5, seed=3)
        config = json.loads(json.dumps(layer.get_config()))
        copy = type(layer).from_config(config)
        assert copy.get_config() == layer.get_config()
        copy.build((None, *case.input_shape))
        assert [v.shape for v in copy.variables] == [v.shape for v in layer.variables]

    @machinery
    @eager
    @pytest.mark.parametrize("policy", ["float32", slow("mixed_float16")])
    def test_saved_model_continues_exactly(self, case, policy, tmp_path):
        keras.config.set_dtype_policy(policy)
        model, layer = case.model(num_examples=10)
        case.randomize(layer)
        model.compile("adam", "mse")
        x = case.inputs()
        y = to_numpy(model(x)) + 1.0
        model.fit(x, y, verbose=0, shuffle=False)
        path = tmp_path / "model.keras"
        model.save(path)
        copy = keras.models.load_model(path)  # safe_mode is the default
        np.testing.assert_array_equal(
            model.predict(x, verbose=0), copy.predict(x, verbose=0)
        )
        for m in (model, copy):
            m.fit(x, y, verbose=0, shuffle=False)
        for a, b in zip(model.weights, copy.weights):
            np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-6)

    @of_drop_ins
    @of_weights
    @structural
    def test_weights_of_another_layer_are_refused(self, case, tmp_path):
        model, layer = case.model(num_examples=10)
        inputs = keras.Input(case.input_shape)
        plain = keras.Model(inputs, case.plain()(inputs))
        path = tmp_path / "plain.weights.h5"
        plain.save_weights(path)
        with pytest.raises(ValueError, match="Received"):
            model.load_weights(path)

    @machinery
    def test_clone_and_export(self, case, tmp_path):
        model, layer = case.model(num_examples=10)
        case.randomize(layer)
        x = case.inputs()
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        expected = to_numpy(model(x))
        np.testing.assert_allclose(to_numpy(clone(x)), expected, atol=1e-6)
        if BACKEND == "tensorflow":
            import tensorflow as tf

            model.export(str(tmp_path / "export"), verbose=False)
            loaded = tf.saved_model.load(str(tmp_path / "export"))
            served = loaded.serve(x)
            np.testing.assert_allclose(served.numpy(), expected, atol=1e-5)

    # Conversion

    @of_layers
    @of_weights
    def test_to_keras_and_back(self, case):
        layer = case.built()
        case.randomize(layer)
        x = case.inputs()
        plain = layer.to_keras()
        assert type(plain) is type(case.plain())
        assert "keras_bdl" not in json.dumps(plain.get_config())
        np.testing.assert_array_equal(to_numpy(plain(x)), to_numpy(layer(x)))
        again = type(layer).from_keras(plain, num_examples=N)
        np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(layer(x)))

    @of_weights
    @structural
    def test_to_keras_samples_the_posterior(self, case):
        layer = case.built()
        case.randomize(layer)
        draws = np.stack(
            [case.kernel(layer, layer.to_keras("sample", seed)) for seed in range(60)]
        )
        assert_moments(draws, *case.kernel_moments(layer))
        with pytest.raises(ValueError, match="weights.*Received"):
            layer.to_keras("median")
        with pytest.raises(ValueError, match="from_keras.*Received"):
            type(layer).from_keras(keras.layers.Flatten())

    # Refusals

    @of_drop_ins
    @of_weights
    @structural
    @pytest.mark.parametrize("kind", ["_regularizer", "_constraint"])
    def test_arguments_that_the_prior_replaces_are_refused(self, case, kind):
        value = {"_regularizer": "l2", "_constraint": "non_neg"}[kind]
        names = [n for n in case.plain().get_config() if n.endswith(kind)]
        names = [name for name in names if name != "activity_regularizer"]
        assert names
        for name in names:
            with pytest.raises(ValueError, match=f"{name}.*Received"):
                case.make(**{name: value})

    @of_weights
    @structural
    @pytest.mark.parametrize(
        "options",
        [
            {"prior": "no such prior"},
            {"num_examples": 0},
            {"num_examples": -5},
            {"kl_weight": -1.0},
            {"kl_weight": float("nan")},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_bad_arguments_raise_value_errors(self, case, options):
        with pytest.raises(ValueError, match="Received"):
            case.make(**options)

    @of_weights
    @structural
    @pytest.mark.parametrize(
        "options",
        [
            {"num_examples": 2.5},
            {"num_examples": True},
            {"kl_weight": "1"},
            {"sample_at_inference": 1},
            {"seed": 1.5},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_arguments_of_wrong_type_raise_type_errors(self, case, options):
        with pytest.raises(TypeError, match="Received"):
            case.make(**options)

    @of_weights
    @structural
    def test_inherited_methods_do_not_lie(self, case):
        layer = case.built()
        with pytest.raises(ValueError, match=r"to_keras.*Received"):
            layer.enable_lora(2)
        with pytest.raises(ValueError, match=r"to_keras.*Received"):
            layer.quantize("int8")

    # Use

    @of_layers
    def test_it_is_the_keras_layer(self, case):
        layer, plain = case.built(), case.plain()
        assert isinstance(layer, type(plain)) or not case.drop_in
        assert type(layer).__name__ in stochastic.REGISTRY
        shape = (7, *case.input_shape)
        assert layer.compute_output_shape(shape) == plain.compute_output_shape(shape)

    @of_layers_and_noise
    def test_batch_of_one_and_none(self, case):
        layer, plain = case.built(), case.plain()
        for rows in (1, 0):
            if rows == 0 and len(case.input_shape) > 1 and not _convolves_no_rows():
                return
            x = case.inputs(rows=rows)
            expected = tuple(plain(x).shape)
            assert tuple(layer(x, training=True).shape) == expected
            assert tuple(layer(x).shape) == expected


@functools.cache
def _convolves_no_rows():
    """Whether the backend's own convolution takes an empty batch.

    PyTorch refuses it, and TensorFlow returns other channels on some processors.
    """
    try:
        outputs = ops.conv(ops.zeros((0, 3, 3, 2)), ops.ones((2, 2, 2, 5)))
    except Exception:
        return False
    return tuple(outputs.shape) == (0, 2, 2, 5)


def _mean_per_row(t):
    return ops.mean(ops.reshape(t, (ops.shape(t)[0], -1)), axis=-1, keepdims=True)


def _use_layer(layer, case, shape):
    """A model that uses a layer in one of several ways, and inputs for it."""
    x = case.inputs()
    pool = keras.layers.Lambda(_mean_per_row, output_shape=(1,))
    if shape == "single":
        inputs = keras.Input(case.input_shape)
        return keras.Model(inputs, pool(layer(inputs))), x
    if shape == "shared":
        inputs = keras.Input(case.input_shape)
        return keras.Model(inputs, pool(layer(inputs) + layer(2.0 * inputs))), x
    if shape == "siamese":
        left, right = keras.Input(case.input_shape), keras.Input(case.input_shape)
        return keras.Model([left, right], pool(layer(left) - layer(right))), [x, x]
    if shape.startswith("time"):
        steps = 5
        inputs = keras.Input((steps if shape == "time" else None, *case.input_shape))
        outputs = keras.layers.TimeDistributed(layer)(inputs)
        return keras.Model(inputs, pool(outputs)), np.stack([x] * steps, axis=1)

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = layer

        def call(self, inputs, training=None):
            outputs = self.inner(inputs, training=training)
            return _mean_per_row(outputs)

    return Subclassed(), x
