"""A kernel per sample against the plain layer called once per sample."""

import keras
import numpy as np
import pytest
from contract import to_numpy
from keras import layers, ops

from keras_bdl import maps

BACKEND = keras.backend.backend()

CASES = [
    (layers.Dense(5), (3, 4)),
    (layers.Dense(5), (3, 2, 4)),
    (layers.Conv1D(5, 3, padding="causal", dilation_rate=2), (3, 7, 4)),
    (layers.Conv2D(5, 3, strides=2, padding="same"), (3, 7, 6, 4)),
    (layers.Conv2D(20, 3), (3, 7, 6, 4)),
    (layers.Conv2D(6, 3, groups=2), (3, 7, 6, 4)),
    (layers.Conv2D(5, (3, 2), data_format="channels_first"), (3, 4, 7, 6)),
    (layers.Conv3D(5, 2), (3, 4, 5, 3, 2)),
]


# Shapes decide; JAX compiles each operation of each of them.
ELSEWHERE = pytest.mark.slow if BACKEND == "jax" else ()


@pytest.mark.parametrize("num_samples", [pytest.param(1, marks=ELSEWHERE), 4])
@pytest.mark.parametrize("has_bias", [True, pytest.param(False, marks=ELSEWHERE)])
@pytest.mark.parametrize("layer, shape", CASES)
def test_each_sample_has_its_own_kernel(layer, shape, has_bias, num_samples):
    if BACKEND == "tensorflow" and getattr(layer, "data_format", 0) == "channels_first":
        pytest.skip("TensorFlow convolves channels_first on a GPU alone")
    rng = np.random.default_rng(0)
    layer = type(layer).from_config(layer.get_config())  # one layer is built once
    layer.build(shape)
    kernels = rng.normal(size=(num_samples, *layer.kernel.shape)).astype("float32")
    biases = rng.normal(size=(num_samples, *layer.bias.shape)).astype("float32")
    biases *= has_bias
    inputs = rng.normal(size=(num_samples, *shape)).astype("float32")

    def by_sample(parts):
        outputs = []
        for part, kernel, bias in zip(parts, kernels, biases):
            layer.kernel.assign(kernel)
            layer.bias.assign(bias)
            outputs.append(to_numpy(layer(part)))
        return np.concatenate(outputs)

    given = {"kernel": ops.convert_to_tensor(kernels)}
    if has_bias:
        given["bias"] = ops.convert_to_tensor(biases)
    weight_map = maps.of(layer)
    own = weight_map.apply_per_sample(layer, inputs.reshape(-1, *shape[1:]), given)
    np.testing.assert_allclose(to_numpy(own), by_sample(inputs), atol=1e-4)
    shared = weight_map.apply_per_sample(layer, inputs[0], given, shared=True)
    expected = by_sample([inputs[0]] * num_samples)
    np.testing.assert_allclose(to_numpy(shared), expected, atol=1e-4)
