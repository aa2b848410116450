"""Compiled models for Keras's own `predict` that take the seed with the data.

They are made once and kept with the model that they run. A few of each kind are kept.
"""

import random as python_random
import zlib

import keras
from keras import ops

from keras_bdl.core import finding, validation
from keras_bdl.core.inputs import check_inputs
from keras_bdl.core.recovery import weights_kept
from keras_bdl.prediction.seeded_data import with_seed


class SeededModel(keras.Model):
    """A model for Keras's own `predict` that takes a seed in each call.

    Calls of several threads share the compiled function and nothing else. Subclasses
    implement `answer(inputs, seed, number)`. The seed is an int32 scalar. The number
    differs between the batches of a call.
    """

    def __init__(self, name):
        super().__init__(name=name, autocast=False)  # the inner model casts
        self.built = True

    def call(self, data):
        # A batch may be empty, so this is a sum over at most one row.
        first = ops.sum(data["seed"][:1], axis=0)
        return self.answer(data["x"], first[0], first[1])

    def input_network(self):
        """Returns the network that takes the data, or None for data of another form."""
        return None

    def run(self, x, seed, batch_size, steps, verbose, callbacks):
        """Returns the result of `predict` on the data `x` with the noise of `seed`.

        The seed is an integer, or None for a fresh one from Python's `random`.
        """
        if seed is None:
            seed = python_random.getrandbits(31)
        steps = validation.optional_integer("steps", steps, least=1)
        batch_size = validation.optional_integer("batch_size", batch_size, least=1)
        check_inputs(finding.described(self.input_network()), x)
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
    """Maps an integer of any size to an integer of 31 bits."""
    return zlib.crc32(str(validation.integer("seed", seed)).encode()) >> 1
