"""Our layers against those of TensorFlow Probability at equal parameters.

TFP's layers need the Keras 2 of `tf_keras`, so they run in one other process,
which writes KL and draws to a file.
"""

import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from contract import to_numpy

import keras_bdl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="the layers of TensorFlow Probability exist on TensorFlow only",
    ),
]

DRAWS = 2000
DENSE_SHAPE, CONV_SHAPE = (5, 3), (2, 2, 2, 3)

# TFP's class, ours, and the estimator.
CASES = {
    "DenseReparameterization": ("dense", "reparameterization"),
    "DenseFlipout": ("dense", "flipout"),
    "DenseLocalReparameterization": ("dense", "local_reparameterization"),
    "Convolution2DReparameterization": ("conv", "reparameterization"),
    "Convolution2DFlipout": ("conv", "flipout"),
}

_TFP = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

arguments, results = sys.argv[1:]
data = dict(np.load(arguments))
tf.random.set_seed(0)
saved = {}
for name in %(names)s:
    kind = "dense" if name.startswith("Dense") else "conv"
    shape = data[kind + "_kernel"].shape
    layer = getattr(tfp.layers, name)(
        shape[-1],
        *([shape[:2]] if kind == "conv" else []),
        bias_posterior_fn=tfp.layers.default_mean_field_normal_fn(),
        bias_prior_fn=tfp.layers.default_multivariate_normal_fn,
    )
    inputs = tf.constant(data[kind + "_inputs"])
    layer(inputs)
    for variable in layer.weights:  # scale = eps + softplus(untransformed_scale)
        part = "kernel" if "kernel_posterior" in variable.name else "bias"
        value = data[f"{kind}_{part}"]
        if "untransformed_scale" in variable.name:
            stddev = data[f"{kind}_{part}_stddev"].astype("float64")
            value = np.log(np.expm1(stddev - np.finfo("float32").eps))
        variable.assign(value.astype("float32"))
    layer(inputs)
    saved[name + "_kl"] = sum(float(loss) for loss in layer.losses[-2:])
    draw = tf.function(lambda: tf.stack([layer(inputs) for _ in range(10)]))
    saved[name] = np.concatenate([draw() for _ in range(%(draws)d // 10)])
np.savez(results, **saved)
"""


def make_parameters():
    """Means, standard deviations and inputs of one dense and one conv layer."""
    rng = np.random.default_rng(0)
    data = {}
    for kind, shape, rows in (
        ("dense", DENSE_SHAPE, (3, 5)),
        ("conv", CONV_SHAPE, (2, 4, 3, 2)),
    ):
        for part, size in (("kernel", shape), ("bias", shape[-1:])):
            data[f"{kind}_{part}"] = 0.4 * rng.normal(size=size)
            data[f"{kind}_{part}_stddev"] = np.exp(-1.5 + 0.5 * rng.normal(size=size))
        data[f"{kind}_inputs"] = rng.normal(size=rows)
    return {name: value.astype("float32") for name, value in data.items()}


@pytest.fixture(scope="module")
def parameters():
    return make_parameters()


@pytest.fixture(scope="module")
def tfp_results(parameters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfp")
    np.savez(folder / "arguments.npz", **parameters)
    script = _TFP % {"names": list(CASES), "draws": DRAWS}
    files = [str(folder / "arguments.npz"), str(folder / "results.npz")]
    result = subprocess.run(
        [sys.executable, "-c", script, *files],
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return dict(np.load(files[1]))


def make_layer(parameters, name):
    """Our layer with these parameters, and its inputs."""
    kind, estimator = CASES[name]
    options = {"estimator": estimator, "num_examples": 1}
    if kind == "dense":
        layer = keras_bdl.VariationalDense(DENSE_SHAPE[-1], **options)
    else:
        shape = CONV_SHAPE
        layer = keras_bdl.VariationalConv2D(shape[-1], shape[:2], **options)
    inputs = parameters[f"{kind}_inputs"]
    layer.build(inputs.shape)
    layer.kernel.assign(parameters[f"{kind}_kernel"])
    layer.bias.assign(parameters[f"{kind}_bias"])
    layer.kernel_log_stddev.assign(np.log(parameters[f"{kind}_kernel_stddev"]))
    layer.bias_log_stddev.assign(np.log(parameters[f"{kind}_bias_stddev"]))
    return layer, inputs


def assert_same_mean(a, b, standard_errors=5.0):
    """Means of two sets of draws `(draws, ...)`, by their own standard errors."""
    error = np.sqrt(a.var(axis=0, ddof=1) / len(a) + b.var(axis=0, ddof=1) / len(b))
    z = (a.mean(axis=0) - b.mean(axis=0)) / error
    assert np.abs(z).max() < standard_errors


def products_within_rows(draws, centre):
    """Products of deviations of every two outputs of a row: their mean is the
    covariance of positions and units, variances on the diagonal."""
    deviations = (draws - centre).reshape(*draws.shape[:2], -1)
    return np.einsum("sri,srj->srij", deviations, deviations)


@pytest.mark.parametrize("name", CASES)
def test_kl_equals_that_of_tfp(name, parameters, tfp_results):
    layer, _ = make_layer(parameters, name)
    expected = float(tfp_results[f"{name}_kl"])
    assert expected > 10.0
    assert float(to_numpy(layer.kl())) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_draws_are_distributed_as_those_of_tfp(name, parameters, tfp_results):
    import tensorflow as tf

    layer, inputs = make_layer(parameters, name)
    draw = tf.function(
        lambda: tf.stack([layer(inputs, training=True) for _ in range(10)])
    )
    ours = np.concatenate([draw().numpy() for _ in range(DRAWS // 10)])
    theirs = tfp_results[name]
    assert ours.shape == theirs.shape
    assert_same_mean(ours, theirs)
    centre = to_numpy(layer(inputs, training=False))
    assert_same_mean(
        products_within_rows(ours, centre), products_within_rows(theirs, centre)
    )
    # Fresh noise in every draw, or the standard errors above mean nothing.
    first = ours.reshape(DRAWS, -1)[:, 0] - centre.reshape(-1)[0]
    correlation = np.corrcoef(first[1:], first[:-1])[0, 1]
    assert abs(correlation) < 5.0 / math.sqrt(DRAWS)
