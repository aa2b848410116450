"""Hashed words and normals against their distributions."""

import numpy as np
import scipy.stats
from contract import to_numpy
from keras import ops

from keras_bdl.ops import hashing


def normals(keys, indices, size):
    keys = ops.convert_to_tensor(np.asarray(keys), "int32")
    return to_numpy(
        hashing.normal_by_index(keys, ops.convert_to_tensor(indices, "int32"), size)
    )


def test_normals_are_normal_and_independent():
    keys = np.array([[[1, 2]], [[1, 3]], [[2, 2]], [[2**31 - 1, 0]]])
    values = normals(keys, np.arange(3000)[None], 16)  # (4, 3000, 16)
    assert scipy.stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    assert abs(scipy.stats.kurtosis(values.ravel())) < 5 * (24 / values.size) ** 0.5
    assert np.abs(values).max() > 4.0
    for axis in range(3):  # neighbours on every axis
        first, second = np.delete(values, 0, axis), np.delete(values, -1, axis)
        for power in (1, 2):
            pair = np.corrcoef(first.ravel() ** power, second.ravel() ** power)
            assert abs(pair[0, 1]) < 5.0 / first.size**0.5
    columns = np.corrcoef(values.reshape(-1, 16).T) - np.eye(16)
    assert np.abs(columns).max() < 5.0 / 12_000**0.5


def test_normals_are_a_function_of_key_and_index():
    values = normals([[5, 6]], np.array([3, 9, 3]), 4)
    np.testing.assert_array_equal(values[0], values[2])
    np.testing.assert_array_equal(normals([[5, 6]], np.array([9]), 4)[0], values[1])
    assert np.abs(values[0] - values[1]).min() > 0.0


def test_no_vectors_repeat():
    values = normals([[5, 6]], np.arange(50_000), 2)
    assert len(np.unique(values, axis=0)) == 50_000


def test_extreme_words_are_finite():
    keys = np.random.default_rng(0).integers(-(2**31), 2**31, (200, 1, 2))
    values = normals(keys, np.arange(200)[None], 64)
    assert np.isfinite(values).all()
    assert np.abs(values).max() < 5.4
