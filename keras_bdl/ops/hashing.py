"""Hashes of integers to words of 32 bits, and random numbers made of them.

Words are `uint32` on JAX, and on other backends `int64`, where every operation exists.
"""

import math

import numpy as np
from keras import backend, ops

from keras_bdl.core.typing import Tensor

__all__ = ["mixed", "normal_by_index"]

_MASK = 0xFFFFFFFF
# The `lowbias32` permutation: C. Wellons, "Prospecting for hash functions", 2018.
_SCRAMBLE = ((16, 0x7FEB352D), (15, 0x846CA68B))
_LAST_SHIFT = 16


def mixed(a: Tensor, b: Tensor) -> Tensor:
    """Mixes integers (or word pairs) a and b into a pair of 32-bit words.

    Linear forms of odd determinant keep distinct integers (a, b) distinct; each word
    is then scrambled by a permutation.

    Args:
        a, b: integers, integer tensors `(..., 1)` or pairs of words `(..., 2)`.

    Returns:
        Words `(..., 2)`.
    """
    a, b = _words(a), _words(b)
    x = a * _constant(0x9E3779B1, 0x85EBCA76) + b * _constant(0xC2B2AE3C, 0x27D4EB2F)
    x = _words(x + _constant(0x165667B1))
    for shift, factor in _SCRAMBLE:
        x = _words(_folded(x, shift) * _constant(factor))
    return _folded(x, _LAST_SHIFT)


def normal_by_index(keys: Tensor, indices: Tensor, size: int) -> Tensor:
    """Returns standard normal vectors that are a function of key and index alone.

    Equal keys and indices have equal vectors in every call, as if each key had a table
    with a vector for every index.

    Args:
        keys: pairs of words, `(..., 2)`.
        indices: integers that broadcast with `keys[..., 0]`.
        size: integer, size of the vectors.

    Returns:
        Tensor `(..., size)`, float32, of values below 5.4 in size.
    """
    pair = mixed(keys, ops.expand_dims(indices, -1))
    first, second = pair[..., :1], pair[..., 1:]
    x = _words(first + _words(ops.arange(size)) * _constant(0x9E3779B1))
    # The second word enters in the middle, so that two vectors with overlapping ranges
    # of first words still differ.
    for (shift, factor), key in zip(_SCRAMBLE, (second, 0)):
        x = _words(_folded(x, shift) * _constant(factor) + key)
    x = _folded(x, _LAST_SHIFT)
    # 23 bits and a half are exact in float32, and so is 1 less.
    uniform = ops.cast(ops.right_shift(x, _constant(9)), "float32") + 0.5
    return math.sqrt(2.0) * ops.erfinv(uniform * 2.0**-22 - 1.0)


def _folded(x, shift):
    return ops.bitwise_xor(x, ops.right_shift(x, _constant(shift)))


def _dtype():
    return "uint32" if backend.backend() == "jax" else "int64"


def _constant(*values):
    return ops.convert_to_tensor(np.array(values, _dtype()))


def _words(x):
    """Converts an integer to a tensor of 32-bit words in a dtype that holds them."""
    dtype = _dtype()
    if isinstance(x, int):
        x = np.array(x & _MASK, dtype)
    x = ops.cast(x, dtype)
    return x if dtype == "uint32" else ops.bitwise_and(x, np.array(_MASK, dtype))
