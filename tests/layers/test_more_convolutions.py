"""Transposed and separable convolutions: the contract, and their own."""

import dataclasses

import keras
import numpy as np
import pytest
from contract import BACKEND, Case, LayerContract, copy_means, set_stddev, to_numpy
from keras import layers, ops
from kl_oracles import kl_to_normal

import keras_bdl
from keras_bdl.core import scopes

pytestmark = pytest.mark.portable


@dataclasses.dataclass
class SeparableCase(Case):
    """A layer whose outputs are products of independent weights."""

    def moments(self, layer, x):
        """Mean and variance, by E (w h)^2 - (E w h)^2 for independent w and h.

        A channel h of the depthwise convolution has weights of its own, so channels
        are independent.
        """
        plain = self.plain(activation=None)
        copy_means(layer, plain)
        moments = layer.posterior.moments()
        mean = {name: to_numpy(m) for name, (m, _) in moments.items()}
        variance = {name: np.exp(2 * to_numpy(s)) for name, (_, s) in moments.items()}

        def depthwise(x, kernel):
            options = {"strides": layer.strides, "padding": layer.padding}
            return to_numpy(ops.depthwise_conv(x, kernel, **options))

        def pointwise(x, kernel):
            return x @ kernel.reshape(kernel.shape[-2:])

        square = depthwise(x, mean["depthwise_kernel"]) ** 2
        mean_square = square + depthwise(x**2, variance["depthwise_kernel"])
        kernel_square = mean["pointwise_kernel"] ** 2
        spread = pointwise(mean_square, kernel_square + variance["pointwise_kernel"])
        spread = spread - pointwise(square, kernel_square)
        return to_numpy(plain(x)), spread + variance.get("bias", 0.0)


def case(name, bayesian, args, shape, kind=Case, estimator=None, **fixed):
    own = {name: fixed.pop(name) for name in ("bias_posterior",) if name in fixed}
    own |= {} if estimator is None else {"estimator": estimator}
    return kind(
        name=name,
        make=lambda **options: bayesian(*args, **{**fixed, **own, **options}),
        plain=lambda **options: bayesian.keras_class(*args, **{**fixed, **options}),
        input_shape=shape,
        oracle_kl=kl_to_normal(0.0, 1.0),
        about=("layer",) if estimator is None else ("noise",),
        thorough=name == "thorough",
    )


@pytest.mark.one_backend
class TestVariationalConv1DTranspose(LayerContract):
    cases = [
        case(
            "output-padding",
            keras_bdl.VariationalConv1DTranspose,
            (2, 3),
            (4, 3),
            strides=3,
            padding="same",
            output_padding=1,
        )
    ]


class TestVariationalConv2DTranspose(LayerContract):
    cases = [
        case(
            name,
            keras_bdl.VariationalConv2DTranspose,
            (2, 3),
            (3, 4, 2),
            estimator=estimator,
            **fixed,
        )
        for name, estimator, fixed in (
            ("thorough", None, {"strides": 2}),
            ("local", "local_reparameterization", {"use_bias": False}),
            ("one-draw", "reparameterization", {"padding": "same"}),
        )
    ]


@pytest.mark.one_backend
class TestVariationalConv3DTranspose(LayerContract):
    cases = [
        case(
            "default",
            keras_bdl.VariationalConv3DTranspose,
            (2, 2),
            (2, 3, 2, 2),
            strides=2,
        )
    ]


@pytest.mark.one_backend
class TestVariationalSeparableConv1D(LayerContract):
    cases = [
        case(
            "no-bias",
            keras_bdl.VariationalSeparableConv1D,
            (4, 2),
            (6, 3),
            SeparableCase,
            depth_multiplier=2,
            use_bias=False,
        )
    ]


class TestVariationalSeparableConv2D(LayerContract):
    cases = [
        case(
            name,
            keras_bdl.VariationalSeparableConv2D,
            (4, 2),
            (5, 6, 3),
            SeparableCase,
            estimator,
            **fixed,
        )
        for name, estimator, fixed in (
            ("thorough", None, {"depth_multiplier": 2, "padding": "same"}),
            ("local", "local_reparameterization", {"strides": 2}),
            ("one-draw", "reparameterization", {"use_bias": False}),
            ("fixed-bias", "flipout", {"bias_posterior": False}),
        )
    ]


TRANSPOSED = [
    keras_bdl.VariationalConv1DTranspose,
    keras_bdl.VariationalConv2DTranspose,
    keras_bdl.VariationalConv3DTranspose,
]
SEPARABLE = [
    keras_bdl.VariationalSeparableConv1D,
    keras_bdl.VariationalSeparableConv2D,
]
OPTIONS = [
    *(
        (cls, options)
        for cls in TRANSPOSED
        for options in (
            {"padding": "same"},
            {"strides": 2, "activation": "tanh"},
            {"strides": 2, "padding": "same", "output_padding": 1},
            {"strides": 3, "output_padding": 2, "use_bias": False},
            {"dilation_rate": 2},
            {"data_format": "channels_first", "strides": 2},
        )
    ),
    *(
        (cls, options)
        for cls in SEPARABLE
        for options in (
            {"padding": "same", "activation": "tanh"},
            {"strides": 2, "depth_multiplier": 2},
            {"dilation_rate": 2, "use_bias": False},
            {"data_format": "channels_first", "depth_multiplier": 2},
        )
    ),
]


def skip_what_keras_lacks(layer_class, options):
    if BACKEND != "tensorflow" or layer_class not in TRANSPOSED:
        return
    if options.get("data_format") == "channels_first":
        pytest.skip("TensorFlow convolves channels_first on a GPU alone")
    if options.get("dilation_rate", 1) > 1:
        pytest.skip("TensorFlow dilates transposed convolutions on a GPU alone")


def shape_of(layer_class, rows=4):
    """Inputs of 4 channels with axes of different lengths, for both data formats."""
    rank = int(layer_class.__name__.partition("Conv")[2][0])
    return (rows, *(5, 6, 4)[:rank], 4)


@pytest.mark.parametrize("layer_class, options", OPTIONS)
def test_without_noise_every_option_is_that_of_keras(layer_class, options):
    skip_what_keras_lacks(layer_class, options)
    shape = shape_of(layer_class)
    layer = layer_class(3, 3, **options, seed=0)
    plain = layer_class.keras_class(3, 3, **options)
    layer.build(shape)
    copy_means(layer, plain)
    set_stddev(layer, 1e-9)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    expected = to_numpy(plain(x))
    assert layer.compute_output_shape(shape) == plain.compute_output_shape(shape)
    for training in (False, True):
        outputs = to_numpy(layer(x, training=training))
        np.testing.assert_allclose(outputs, expected, atol=1e-5)
    both = np.concatenate([expected, expected])
    for is_shared in (False, True):
        given = x if is_shared else np.concatenate([x, x])
        shared = {id(layer)} if is_shared else ()
        with scopes.SamplingScope(0, 0, 2, shared_layers=shared):
            outputs = to_numpy(layer(given))
        np.testing.assert_allclose(outputs, both, atol=1e-5)


@pytest.mark.parametrize("layer_class", [*TRANSPOSED, *SEPARABLE])
def test_the_arguments_are_in_their_places(layer_class):
    config = layer_class(3, 2).get_config()
    plain = layer_class.keras_class(3, 2)
    code = layer_class.keras_class.__init__.__code__
    names = code.co_varnames[1 : code.co_argcount]
    values = {name: plain.get_config()[name] for name in names}
    values |= {"strides": (1,) * plain.rank, "activation": "tanh", "use_bias": False}
    values |= {"padding": "same", "data_format": "channels_last"}
    by_position = layer_class(*values.values(), name=config["name"]).get_config()
    by_name = layer_class(**values, name=config["name"]).get_config()
    assert by_position == by_name
    with pytest.raises(TypeError, match="filters.*Received"):
        layer_class(2.5, 2)


PER_SAMPLE = [
    *((cls, {"strides": 2, "padding": "same", "filters": 3}) for cls in TRANSPOSED),
    (TRANSPOSED[1], {"filters": 20, "strides": 2, "output_padding": 1}),
    (TRANSPOSED[1], {"filters": 3, "data_format": "channels_first"}),
    *((cls, {"filters": 3, "strides": 2, "depth_multiplier": 2}) for cls in SEPARABLE),
    *((cls, {"filters": 3, "data_format": "channels_first"}) for cls in SEPARABLE),
]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("layer_class, options", PER_SAMPLE)
def test_each_sample_has_its_own_weights(layer_class, options, use_bias, shared):
    skip_what_keras_lacks(layer_class, options)
    shape, num_samples = shape_of(layer_class), 3
    layer = layer_class.keras_class(
        kernel_size=3, activation="tanh", use_bias=use_bias, **options
    )
    layer.build(shape)
    rng, weight_map = np.random.default_rng(0), layer_class.weight_map
    variables = weight_map.variables(layer)
    assert ("bias" in variables) == use_bias
    weights = {
        name: rng.normal(size=(num_samples, *v.shape)).astype("float32")
        for name, v in variables.items()
    }
    x = 0.1 * rng.normal(size=(num_samples, *shape)).astype("float32")
    if shared:
        x[:] = x[0]
    expected = []
    for sample in range(num_samples):
        for name, variable in variables.items():
            variable.assign(weights[name][sample])
        expected.append(to_numpy(layer(x[sample])))
    outputs = weight_map.apply_per_sample(
        layer,
        ops.convert_to_tensor(x[0] if shared else x.reshape(-1, *shape[1:])),
        {name: ops.convert_to_tensor(w) for name, w in weights.items()},
        shared,
    )
    np.testing.assert_allclose(to_numpy(outputs), np.concatenate(expected), atol=1e-5)


def test_rows_of_a_transposed_convolution_have_draws_of_their_own():
    layer = keras_bdl.VariationalConv2DTranspose(4, 3, strides=2, num_examples=10)
    outputs = to_numpy(layer(np.ones((2, 3, 3, 5), "float32"), training=True))
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    # One draw at all positions: inputs of one size give a pattern that repeats.
    np.testing.assert_allclose(outputs[:, 2:4, 2:4], outputs[:, 4:6, 4:6], atol=1e-5)


@pytest.mark.parametrize("posterior", ["gaussian", "low_rank"])
@pytest.mark.parametrize("estimator", [None, "reparameterization"])
def test_rows_of_a_separable_convolution_have_draws_of_their_own(posterior, estimator):
    layer = keras_bdl.VariationalSeparableConv2D(
        4,
        3,
        posterior=posterior,
        estimator=estimator,
        initial_log_stddev=-2.0,
        num_examples=10,
        seed=0,
    )
    x = np.ones((2, 5, 5, 3), "float32")
    first, second = (to_numpy(layer(x, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-2
    # A draw is one for all positions, here of equal inputs.
    np.testing.assert_allclose(first, first[:, :1, :1] + 0.0 * first, atol=1e-5)
    if estimator is None:
        assert np.abs(first[0] - first[1]).max() > 1e-2
    else:
        np.testing.assert_allclose(first[0], first[1], atol=1e-6)


def test_both_kernels_of_a_row_share_the_factor_of_a_direction():
    layer = keras_bdl.VariationalSeparableConv1D(
        1,
        1,
        use_bias=False,
        posterior=keras_bdl.posteriors.LowRank(rank=1, initial_log_stddev=-20.0),
    )
    layer.build((None, 2, 1))
    for variable in layer.posterior.variables().values():
        if not variable.name.endswith("log_stddev"):
            variable.assign(np.ones(variable.shape))
    for kernel in (layer.depthwise_kernel, layer.pointwise_kernel):
        kernel.assign(np.zeros(kernel.shape))
    outputs = to_numpy(layer(np.ones((2000, 2, 1), "float32"), training=True))
    # Both kernels are the factor z itself, so outputs are z^2, of mean 1.
    assert outputs.min() >= 0.0
    assert abs(outputs[:, 0].mean() - 1.0) < 5 * (2 / 2000) ** 0.5


@pytest.fixture(scope="module")
def u_net():
    """A small U-Net, and images whose outlines it is to find."""
    options = {"padding": "same", "activation": "relu"}
    inputs = keras.Input((8, 8, 1))
    top = layers.Conv2D(4, 3, **options)(inputs)
    x = layers.MaxPooling2D()(top)
    x = layers.SeparableConv2D(6, 3, **options)(x)
    x = layers.Conv2DTranspose(4, 2, strides=2, **options)(x)
    x = layers.Concatenate()([top, x])
    x = layers.SeparableConv2D(4, 3, **options)(x)
    plain = keras.Model(inputs, layers.Conv2D(1, 1)(x))
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32")
    return plain, images, (images > 0).astype("float32")


@pytest.mark.parametrize(
    "posterior", ["gaussian", pytest.param("low_rank", marks=pytest.mark.slow)]
)
def test_a_u_net_converts_trains_predicts_and_returns(u_net, posterior, tmp_path):
    plain, x, y = u_net
    model, report = keras_bdl.to_bayesian(
        plain, num_examples=len(x), posterior=posterior, return_report=True
    )
    assert len(report.replaced) == 5 and not report.left
    expected = plain.predict(x, verbose=0)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    loss = model.fit(x, y, batch_size=8, epochs=8, verbose=0).history["loss"]
    assert loss[-1] < loss[0]
    options = {"outputs": "mean", "seed": 0, "verbose": 0}
    draws = keras_bdl.predict(model, x, 9, return_samples=True, **options)
    assert draws.shape == (9, 16, 8, 8, 1) and draws.std(axis=0).min() > 0.0
    alone = keras_bdl.predict(model, x[:1], 9, return_samples=True, **options)
    np.testing.assert_allclose(alone[:, 0], draws[:, 0], atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = keras_bdl.predict(loaded, x, 9, return_samples=True, **options)
    np.testing.assert_allclose(again, draws, atol=1e-5)
    mean = model.predict(x, verbose=0)
    back = keras_bdl.to_keras(loaded)
    np.testing.assert_allclose(back.predict(x, verbose=0), mean, atol=1e-5)
    assert [type(layer) for layer in back.layers] == [type(p) for p in plain.layers]


def test_tools_know_the_layers_of_a_u_net(u_net):
    plain, x, _ = u_net
    model = keras_bdl.to_bayesian(plain, num_examples=len(x))
    kernels = [w for w in plain.weights if len(w.shape) > 1]
    report = keras_bdl.sparsity_report(model)
    assert report.weights == sum(int(np.prod(w.shape)) for w in kernels)
    assert len(report.rows) == 5
    flops = keras_bdl.flops_report(model, x, verbose=0)
    assert flops.full == keras_bdl.flops_report(plain, x, verbose=0).full
    assert flops.not_counted == []
    small = keras_bdl.compress(model)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(small.predict(x, verbose=0), expected, atol=1e-5)
    today = keras_bdl.prior_from_posterior(model)
    np.testing.assert_allclose(today.predict(x, verbose=0), expected, atol=1e-6)
