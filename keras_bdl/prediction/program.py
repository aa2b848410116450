"""Compiled models for Keras's own `predict`: their seed travels with the call.

They are made once and kept with the model that they run, a few of each kind.
"""

import random as python_random
import zlib

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.inputs import check_inputs
from keras_bdl.core.recovery import weights_kept
from keras_bdl.prediction.seeded_data import with_seed


class SeededModel(keras.Model):
    """A model for Keras's own `predict`, to which each call brings its seed.

    Calls of several threads share the compiled function and nothing else. Subclasses
    implement `answer(inputs, seed, number)`, with the seed an int32 scalar and the
    number one that tells the batches of a call apart.
    """

    def __init__(self, name):
        super().__init__(name=name, autocast=False)  # what it runs casts itself
        self.built = True

    def call(self, data):
        # The sum of at most one row: a batch may be empty.
        first = ops.sum(data["seed"][:1], axis=0)
        return self.answer(data["x"], first[0], first[1])

    def input_network(self):
        """The network that takes the data, or None where another form is taken."""
        return None

    def run(self, x, seed, batch_size, steps, verbose, callbacks):
        """What `predict` gives for the data `x` and the noise of an integer seed."""
        if seed is None:
            seed = python_random.getrandbits(31)
        if steps is not None:
            steps = validation.integer("steps", steps, least=1)
        if batch_size is not None:
            batch_size = validation.integer("batch_size", batch_size, least=1)
        check_inputs(self.input_network(), x)
        data, known_steps = with_seed(x, word(seed))
        with weights_kept(self):
            return self.predict(
                data,
                batch_size=batch_size,
                verbose=verbose,
                steps=known_steps if steps is None else steps,
                callbacks=callbacks,
            )


def word(seed):
    """An integer of any size as one of 31 bits."""
    return zlib.crc32(str(validation.integer("seed", seed)).encode()) >> 1
