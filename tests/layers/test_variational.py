"""Variational layers: the contract, and what is their own."""

import keras
import numpy as np
import pytest
from contract import Case, LayerContract, randomize, to_numpy
from kl_oracles import gaussians, kl_by_quadrature, kl_to_normal
from scipy import stats

import keras_bdl
from keras_bdl import priors
from keras_bdl.layers.posterior_layer import ESTIMATORS

pytestmark = pytest.mark.portable


def make(cls, *args, **fixed):
    return lambda **options: cls(*args, **{**fixed, **options})


def cases_of(
    bayesian, plain, args, input_shape, estimators=ESTIMATORS, about=("noise",), **fixed
):
    """A case per estimator, under the default prior."""
    return [
        Case(
            name=f"{bayesian.__name__}-{estimator}",
            make=make(bayesian, *args, estimator=estimator, **fixed),
            plain=make(plain, *args, **fixed),
            input_shape=input_shape,
            oracle_kl=kl_to_normal(0.0, 1.0),
            about=about,
            thorough=estimator == "flipout" and len(input_shape) in (1, 3),
            family=estimator == "flipout" and len(input_shape) == 1,
            every_backend=estimator == "flipout" and len(input_shape) == 1,
            every_use=estimator == "flipout" and bayesian is keras_bdl.VariationalDense,
            traced="groups" in fixed,
        )
        for estimator in estimators
    ]


class TestVariationalDense(LayerContract):
    cases = cases_of(
        keras_bdl.VariationalDense, keras.layers.Dense, (3,), (5,), activation="tanh"
    ) + [
        Case(
            name="VariationalDense-positions",
            make=make(keras_bdl.VariationalDense, 3),
            plain=make(keras.layers.Dense, 3),
            input_shape=(4, 5),
            oracle_kl=kl_to_normal(0.0, 1.0),
            about=("noise",),
            thorough=False,
        ),
        Case(
            name="VariationalDense-mixture",
            make=make(keras_bdl.VariationalDense, 3, prior="scale_mixture"),
            plain=make(keras.layers.Dense, 3),
            input_shape=(5,),
            oracle_kl=kl_by_quadrature(
                lambda w: (
                    np.logaddexp(
                        stats.norm.logpdf(w, 0, 1.0), stats.norm.logpdf(w, 0, 0.0025)
                    )
                    - np.log(2.0)
                )
            ),
            closed_kl=False,
            about=("prior",),
            thorough=False,
        ),
        Case(
            name="VariationalDense-laplace",
            make=make(keras_bdl.VariationalDense, 3, prior=priors.Laplace(0.1, 0.3)),
            plain=make(keras.layers.Dense, 3),
            input_shape=(5,),
            oracle_kl=kl_by_quadrature(lambda w: stats.laplace.logpdf(w, 0.1, 0.3)),
            about=("prior",),
            thorough=False,
        ),
        Case(
            name="VariationalDense-learned",
            make=make(keras_bdl.VariationalDense, 3, prior=priors.LearnedNormal(0.2)),
            plain=make(keras.layers.Dense, 3),
            input_shape=(5,),
            oracle_kl=kl_to_normal(0.0, 0.2),
            about=("prior",),
            thorough=False,
        ),
    ]


class TestVariationalConv1D(LayerContract):
    cases = cases_of(
        keras_bdl.VariationalConv1D,
        keras.layers.Conv1D,
        (2, 3),
        (6, 2),
        estimators=("local_reparameterization", "flipout"),
        about=("layer",),
        padding="causal",
    )


class TestVariationalConv2D(LayerContract):
    cases = cases_of(
        keras_bdl.VariationalConv2D,
        keras.layers.Conv2D,
        (4, (2, 3)),
        (5, 6, 2),
        groups=2,
        strides=2,
        padding="same",
    )


class TestVariationalConv3D(LayerContract):
    cases = cases_of(
        keras_bdl.VariationalConv3D,
        keras.layers.Conv3D,
        (2, 2),
        (3, 3, 3, 2),
        estimators=("flipout",),
        about=("layer",),
    )


def test_the_default_estimator_follows_the_rank():
    def resolved(layer, shape):
        layer.build(shape)
        return layer.resolved_estimator()

    dense = keras_bdl.VariationalDense
    assert resolved(dense(2), (None, 3)) == "local_reparameterization"
    assert resolved(dense(2), (None, 4, 3)) == "flipout"
    assert resolved(keras_bdl.VariationalConv2D(2, 3), (None, 8, 8, 1)) == "flipout"


def test_flipout_rows_see_one_weight_at_all_positions():
    layer = keras_bdl.VariationalDense(3, num_examples=1)
    layer.build((None, 4, 5))
    randomize(layer)
    outputs = to_numpy(layer(np.ones((6, 4, 5), "float32"), training=True))
    np.testing.assert_allclose(outputs, outputs[:, :1].repeat(4, axis=1), atol=1e-5)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_a_deterministic_bias_has_no_posterior():
    layer = keras_bdl.VariationalDense(3, bias_posterior=False)
    layer.build((None, 5))
    assert layer.bias_log_stddev is None
    assert list(layer.gaussians()) == ["kernel"]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_channels_first_convolution(data_format):
    if data_format == "channels_first" and keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no channels_first convolution on CPU")
    shape = (5, 5, 2) if data_format == "channels_last" else (2, 5, 5)
    layer = keras_bdl.VariationalConv2D(3, 2, data_format=data_format, num_examples=1)
    plain = keras.layers.Conv2D(3, 2, data_format=data_format)
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    layer.build(x.shape)
    plain.build(x.shape)
    layer.kernel_log_stddev.assign(np.full(layer.kernel.shape, -20.0, "float32"))
    layer.bias_log_stddev.assign(np.full(layer.bias.shape, -20.0, "float32"))
    plain.set_weights([to_numpy(layer.kernel), to_numpy(layer.bias)])
    np.testing.assert_allclose(
        to_numpy(layer(x, training=True)), to_numpy(plain(x)), atol=1e-5
    )


def test_masks_pass_through():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Embedding(6, 3, mask_zero=True),
            keras_bdl.VariationalDense(3, num_examples=2),
            keras.layers.GlobalAveragePooling1D(),
        ]
    )
    padded = model.predict(np.array([[1, 2, 0, 0]]), verbose=0)
    other = model.predict(np.array([[1, 2, 0, 0]]), verbose=0)
    short = keras.Sequential(model.layers)
    np.testing.assert_allclose(padded, other)
    np.testing.assert_allclose(
        padded, short.predict(np.array([[1, 2]]), verbose=0), atol=1e-6
    )


@pytest.mark.every_backend
def test_a_large_layer_does_not_overflow_in_half_precision():
    layer = keras_bdl.VariationalDense(1000, num_examples=10, dtype="mixed_float16")
    layer.build((None, 1000))
    kl = float(to_numpy(layer.kl()))
    assert 1e6 < kl < 1e8  # far above float16's 65504
    layer(np.ones((2, 1000), "float16"), training=True)
    assert np.isfinite(float(to_numpy(layer.losses[0])))


def test_posterior_is_a_tfp_distribution():
    tfp = pytest.importorskip("tensorflow_probability", reason="TFP is not installed")
    layer = keras_bdl.VariationalDense(3)
    layer.build((None, 5))
    randomize(layer)
    posterior = layer.posterior_distribution()
    assert isinstance(posterior, tfp.distributions.Distribution)
    sample = posterior.sample(seed=0)
    expected = sum(
        stats.norm(mean, stddev).logpdf(np.asarray(sample[name])).sum()
        for name, (mean, stddev) in zip(("kernel", "bias"), gaussians(layer))
    )
    assert float(posterior.log_prob(sample)) == pytest.approx(expected, rel=1e-4)


def test_positional_regularizers_are_refused_too():
    with pytest.raises(ValueError, match="kernel_regularizer"):
        keras_bdl.VariationalDense(3, None, True, "zeros", "zeros", "l2")


def test_kernel_stays_float32_under_mixed_precision():
    layer = keras_bdl.VariationalDense(3, dtype="mixed_float16")
    layer.build((None, 5))
    for variable in layer.trainable_variables:
        assert keras.backend.standardize_dtype(variable.dtype) == "float32"
