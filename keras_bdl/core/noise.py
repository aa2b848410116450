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

from keras_bdl.core import validation
from keras_bdl.core.scopes import FrozenNoise, SamplingScope
from keras_bdl.core.typing import Tensor
from keras_bdl.ops.hashing import mixed


def seed_or_new(seed: int | None) -> int:
    """Returns a valid argument `seed`, or for None one of Python's `random`."""
    seed = validation.optional_integer("seed", seed)
    return python_random.getrandbits(31) if seed is None else seed


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
            words = mixed(self.state[0] if place is None else place, scope.seed)
            return mixed(mixed(words, scope.block), scope.count_draw(self))
        words = mixed(self.state[0], self.state[1])
        replica = _replica_id()
        if replica is not None:
            words = mixed(words, replica)
        if FrozenNoise.current() is None:
            step = ops.convert_to_tensor(np.array([0, 1]), dtype=self.state.dtype)
            self.state.assign(ops.add(self.state, step))
        return words


class GivenSeed(random.SeedGenerator):
    """A generator of one seed, which needs no variable.

    Args:
        words: two words of 32 bits, an integer tensor `(2,)`.
    """

    def __init__(self, words: Tensor) -> None:
        self.words = words

    def next(self, ordered: bool = True) -> Tensor:
        """Returns the seed."""
        return self.words


def fold_in(seed: Tensor, number: Tensor) -> Tensor:
    """Derives a seed for a number: two 32-bit words.

    Args:
        seed, number: integers or integer tensors.
    """
    return mixed(seed, number)


def _replica_id():
    if backend.backend() == "tensorflow":
        from keras_bdl.interop import tensorflow as interop
    elif backend.backend() == "torch":
        from keras_bdl.interop import torch as interop
    else:
        return None  # JAX runs one program and splits its noise over the devices
    return interop.replica_id()
