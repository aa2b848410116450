"""Sparse variational dropout layers: the contract, and what is their own."""

import keras
import numpy as np
import pytest
from backend_tools import gradients, traced
from contract import Case, LayerContract, fit_long, randomize, slow, to_numpy
from keras import ops
from scipy import integrate, special

import keras_bdl
from keras_bdl.ops import divergences
from keras_bdl.posteriors.sparse_vd import DIVERGENCES

pytestmark = pytest.mark.portable


def log_alpha(layer):
    theta = to_numpy(layer._kernel).astype("float64")
    return 2 * to_numpy(layer.kernel_log_stddev) - np.log(theta**2)


def pruned_kernel(layer):
    return np.where(log_alpha(layer) < layer.threshold, to_numpy(layer._kernel), 0.0)


def exact_kl(layer):
    """Twice the integral of Dawson's function, by SciPy's quadrature."""
    total = sum(
        2.0 * integrate.quad(special.dawsn, 0.0, np.exp(-0.5 * a) / np.sqrt(2.0))[0]
        for a in log_alpha(layer).ravel()
    )
    return total, 3e-6 * total


def approximate_kl(layer):
    a = log_alpha(layer)
    terms = 0.63576 * (1 - special.expit(1.87320 + 1.48695 * a))
    total = float((terms + 0.5 * np.log1p(np.exp(-a))).sum())
    return total, 3e-6 * total


def make(cls, *args, **fixed):
    return lambda **options: cls(*args, **{**fixed, **options})


def case_of(rank, args, input_shape, name="", oracle=exact_kl, plain=None, **options):
    kind = "Dense" if rank == 0 else f"Conv{rank}D"
    plain = plain or {}
    return Case(
        name=f"SparseVD{kind}{name}",
        make=make(getattr(keras_bdl, f"SparseVD{kind}"), *args, **plain, **options),
        plain=make(getattr(keras.layers, kind), *args, **plain),
        input_shape=input_shape,
        oracle_kl=oracle,
        inference_kernel=pruned_kernel,
        proper_prior=False,
        about={"": ("layer",), "-approximate": ("prior",)}.get(name, ("noise",)),
        traced="groups" in plain,
        thorough=not name and rank in (0, 2),
        family=not name and rank == 0,
    )


class TestSparseVDDense(LayerContract):
    cases = [
        case_of(0, (3,), (5,), plain={"activation": "tanh"}),
        case_of(0, (3,), (5,), "-approximate", approximate_kl, kl_form="approximate"),
        case_of(0, (3,), (4, 5), "-flipout", estimator="flipout"),
    ]


class TestSparseVDConv1D(LayerContract):
    cases = [case_of(1, (2, 3), (6, 2), plain={"padding": "causal"})]


class TestSparseVDConv2D(LayerContract):
    cases = [
        case_of(2, (4, (2, 3)), (5, 6, 2), plain={"groups": 2, "padding": "same"}),
        case_of(2, (2, 2), (4, 4, 1), "-reparameterization"),
    ]


class TestSparseVDConv3D(LayerContract):
    cases = [case_of(3, (2, 2), (3, 3, 3, 2))]


def dense_layer(**options):
    layer = keras_bdl.SparseVDDense(40, num_examples=10, **options)
    layer.build((None, 30))
    randomize(layer)
    return layer


def test_log_alpha_and_sparsity():
    layer = dense_layer(threshold=1.0)
    np.testing.assert_allclose(
        to_numpy(layer.log_alpha()), log_alpha(layer), rtol=2e-5, atol=1e-6
    )
    assert layer.sparsity() == pytest.approx(np.mean(log_alpha(layer) >= 1.0))
    assert 0.1 < layer.sparsity() < 0.9


@pytest.mark.parametrize("form", DIVERGENCES)
@pytest.mark.parametrize("log_variance", [-30.0, slow(-10.0), slow(0.0), 10.0])
@pytest.mark.parametrize("theta", [0.0, slow(1e-6), slow(0.3), 5.0])
def test_values_and_gradients_are_finite(form, log_variance, theta):
    layer = keras_bdl.SparseVDDense(1, kl_form=form, use_bias=False)
    layer.build((None, 1))

    def kl(mean, log_stddev):
        log_alpha = divergences.log_alpha(mean, log_stddev)
        return ops.sum(DIVERGENCES[form](log_alpha))

    for gradient in gradients(kl, ([[theta]], [[0.5 * log_variance]])):
        assert np.isfinite(gradient).all()
    layer.kernel.assign([[theta]])
    layer.kernel_log_stddev.assign([[0.5 * log_variance]])
    assert np.isfinite(float(to_numpy(layer.kl())))
    for x in (0.0, 1.0, 300.0):
        outputs = layer(np.full((2, 1), x, "float32"), training=True)
        assert np.isfinite(to_numpy(outputs)).all()


@pytest.mark.parametrize("form", DIVERGENCES)
def test_the_gradient_never_freezes(form):
    # log sigma^2 = -10 and a mean of 5: log alpha is -13.2, where a clip at 8 stops.
    log_alphas = np.array([-20.0, -13.2, -8.0, 0.0, 8.0, 12.0])
    (gradient,) = gradients(lambda a: ops.sum(DIVERGENCES[form](a)), [log_alphas])
    assert (gradient < 0.0).all()
    u = np.exp(-0.5 * log_alphas) / np.sqrt(2.0)
    if form == "exact":
        np.testing.assert_allclose(gradient, -u * special.dawsn(u), rtol=2e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("form", DIVERGENCES)
def test_weights_of_any_size_are_judged_by_alpha_alone(form, policy):
    sizes = np.array([1e-12, 1e-8, 1e-6, 1e-3, 1.0, 1e3])
    log_alphas = np.array([-12.0, 0.0, 2.9, 3.1, 9.0])
    layer = keras_bdl.SparseVDDense(5, kl_form=form, use_bias=False, dtype=policy)
    layer.build((None, 6))
    layer.kernel.assign(np.repeat(sizes[:, None], 5, axis=1))
    layer.kernel_log_stddev.assign(np.log(sizes)[:, None] + 0.5 * log_alphas)
    found = to_numpy(layer.log_alpha())
    np.testing.assert_allclose(found, np.tile(log_alphas, (6, 1)), atol=2e-5)
    assert (to_numpy(layer.pruned_kernel()) == 0).sum(axis=1).tolist() == [2] * 6
    alone = to_numpy(DIVERGENCES[form](ops.cast(log_alphas, "float32")))
    total = float(to_numpy(layer.kl()))
    assert total == pytest.approx(6 * alone.sum(), rel=2e-5)


def test_a_mean_of_0_is_pruned_whatever_its_noise():
    layer = keras_bdl.SparseVDDense(3, use_bias=False)
    layer.build((None, 1))
    layer.kernel.assign([[0.0, 0.0, 0.0]])
    layer.kernel_log_stddev.assign([[-40.0, -9.0, 10.0]])
    assert layer.sparsity() == 1.0
    assert float(to_numpy(layer.kl())) == 0.0
    assert np.isfinite(to_numpy(layer.log_alpha())).all()


@pytest.mark.parametrize("prune", [False, True])
def test_pruned_means_in_training(prune):
    layer = dense_layer(prune_in_training=prune, threshold=0.0)
    x = np.random.default_rng(1).normal(size=(2, 30)).astype("float32")
    draw = traced(lambda: layer(x, training=True))
    draws = np.stack([to_numpy(draw()) for _ in range(400)])
    kernel = pruned_kernel(layer) if prune else to_numpy(layer.kernel)
    mean = x @ kernel + to_numpy(layer.bias)
    variance = x**2 @ np.exp(2 * to_numpy(layer.kernel_log_stddev))
    z = (draws.mean(axis=0) - mean) / np.sqrt(variance / len(draws))
    assert np.abs(z).max() < 5.0
    ratio = draws.var(axis=0, ddof=1) / variance
    assert np.abs(ratio - 1).max() < 5 * np.sqrt(2 / len(draws))


def test_dense_equals_a_convolution_of_size_one():
    dense = keras_bdl.SparseVDDense(4, num_examples=1)
    conv = keras_bdl.SparseVDConv2D(4, 1, num_examples=1)
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 5)).astype("float32")
    dense.build(x.shape)
    conv.build(x.shape)
    randomize(dense)
    for name in ("kernel", "kernel_log_stddev"):
        value = to_numpy(getattr(dense, name))
        getattr(conv, name).assign(value[None, None])
    conv.bias.assign(dense.bias)
    np.testing.assert_allclose(to_numpy(dense(x)), to_numpy(conv(x)), atol=1e-5)
    assert float(to_numpy(dense.kl())) == pytest.approx(float(to_numpy(conv.kl())))
    assert dense.sparsity() == conv.sparsity()


@pytest.mark.one_backend
def test_training_tells_relevant_weights_from_others():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 10)).astype("float32")
    y = x[:, :1] - 2.0 * x[:, 1:2] + 0.1 * rng.normal(size=(500, 1))
    inputs = keras.Input((10,))
    layer = keras_bdl.SparseVDDense(1, num_examples=500, seed=0)
    model = keras.Model(inputs, layer(inputs))
    model.compile(
        keras.optimizers.Adam(0.05),
        lambda t, p: ops.mean(ops.square(t - p), axis=-1) / (2 * 0.1**2),
    )
    fit_long(model, x, y, epochs=60, batch_size=50)
    learned = to_numpy(layer.log_alpha())[:, 0]
    assert learned[:2].max() < -8.0 and learned[2:].min() > -5.0
    np.testing.assert_allclose(to_numpy(layer.kernel)[:2, 0], [1, -2], atol=0.05)


@pytest.mark.parametrize(
    "options, error",
    [
        ({"kl_form": "exactly"}, ValueError),
        ({"threshold": "3"}, TypeError),
        ({"threshold": float("nan")}, ValueError),
        ({"prune_in_training": 1}, TypeError),
        ({"prior": "normal"}, ValueError),
        ({"bias_posterior": True}, ValueError),
        ({"estimator": "lrt"}, ValueError),
        ({"estimator": np.array(["flipout"])}, TypeError),
    ],
    ids=lambda value: str(value),
)
def test_bad_arguments_are_named(options, error):
    (name,) = options if isinstance(options, dict) else ("",)
    with pytest.raises(error, match=f"{name}.*Received"):
        keras_bdl.SparseVDDense(3, **options)


def test_the_short_name_is_the_two_dimensional_convolution():
    assert keras_bdl.SparseVDConv is keras_bdl.SparseVDConv2D


def test_what_the_posterior_holds_are_attributes_of_the_layer():
    layer = dense_layer(kl_form="approximate", threshold=1.0, prune_in_training=True)
    assert (layer.kl_form, layer.threshold) == ("approximate", 1.0)
    assert layer.prune_in_training and layer.initial_log_stddev == -5.0
    layer.threshold = -100.0
    assert layer.sparsity() == 1.0 and layer.get_config()["threshold"] == -100.0
    assert not to_numpy(layer.mean_kernel()).any()
    dropped = keras_bdl.DropConnectDense(3, rate=0.3, length_scale=2.0)
    assert (dropped.rate, dropped.length_scale) == (0.3, 2.0)
    assert keras_bdl.BayesianLastLayer(3, covariance="full").covariance == "full"
