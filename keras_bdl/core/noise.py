"""Randomness: one seed generator per layer.

Outside the `SamplingScope` a `NoiseGenerator` hashes its (key, counter) state, so every
draw differs. Inside, it hashes the scope's seed with the layer's place in the model and
the index of the sample: draws repeat, also in other processes, and no variable is
assigned.
"""

import random as python_random
import zlib

import numpy as np
from keras import backend, ops, random

from keras_bdl.core.scopes import FrozenNoise, SamplingScope
from keras_bdl.core.typing import Tensor

_MASK = 0xFFFFFFFF


class NoiseGenerator(random.SeedGenerator):
    """A `keras.random.SeedGenerator` whose streams never overlap.

    Keras's own generator returns (seed, counter). The torch backend adds these up, so
    neighbouring seeds share noise, and they are equal on every replica of a
    `tf.distribute` strategy and in every process of `torch.distributed`. This class
    hashes the seed and the name of the layer into a key, and the key, the counter and
    the replica into each draw.

    Args:
        seed: integer, or None for a random one, which `keras.utils.set_random_seed`
            controls.
        salt: string that distinguishes layers of equal seed: the name of the layer.
        **kwargs: of `keras.random.SeedGenerator`.
    """

    def __init__(self, seed: int | None = None, salt: str = "", **kwargs) -> None:
        if seed is None:
            key = python_random.getrandbits(31)
        else:
            key = zlib.crc32(f"{seed}/{salt}".encode()) >> 1
        super().__init__(seed=key, **kwargs)

    def next(self, ordered: bool = True) -> Tensor:
        """Returns the next seed: two words of 32 bits, as an integer tensor `(2,)`."""
        scope = SamplingScope.current()
        if scope is not None:
            place = scope.places.get(id(self))
            words = _hash(self.state[0] if place is None else place, scope.seed)
            return _hash(_hash(words, scope.block), scope.count_draw(self))
        words = _hash(self.state[0], self.state[1])
        replica = _replica_id()
        if replica is not None:
            words = _hash(words, replica)
        if FrozenNoise.current() is None:
            step = ops.convert_to_tensor(np.array([0, 1]), dtype=self.state.dtype)
            self.state.assign(ops.add(self.state, step))
        return words


def fold_in(seed: Tensor, number: Tensor) -> Tensor:
    """Derives a seed for a number: two 32-bit words.

    Args:
        seed, number: integers or integer tensors.
    """
    return _hash(seed, number)


def _words(x):
    """Converts an integer to a tensor of 32-bit words in a dtype that holds them."""
    dtype = "uint32" if backend.backend() == "jax" else "int64"
    if isinstance(x, int):
        x = np.array(x & _MASK, dtype)
    x = ops.cast(x, dtype)
    return x if dtype == "uint32" else ops.bitwise_and(x, np.array(_MASK, dtype))


def _hash(a, b):
    """Mixes integers (or word pairs) a and b into a pair of 32-bit words.

    Linear forms of odd determinant keep distinct (a, b) distinct; each word is
    then scrambled by the `lowbias32` permutation (C. Wellons, "Prospecting for
    hash functions", 2018).
    """
    a, b = _words(a), _words(b)
    dtype = backend.standardize_dtype(a.dtype)

    def constant(*values):
        return ops.convert_to_tensor(np.array(values, dtype))

    x = a * constant(0x9E3779B1, 0x85EBCA76) + b * constant(0xC2B2AE3C, 0x27D4EB2F)
    x = _words(x + constant(0x165667B1))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ops.bitwise_xor(x, ops.right_shift(x, constant(shift)))
        x = _words(x * constant(factor))
    return ops.bitwise_xor(x, ops.right_shift(x, constant(16)))


def _replica_id():
    if backend.backend() == "tensorflow":
        from keras_bdl.interop import tensorflow as interop
    elif backend.backend() == "torch":
        from keras_bdl.interop import torch as interop
    else:
        return None  # JAX runs one program and splits its noise over the devices
    return interop.replica_id()
