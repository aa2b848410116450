"""Grey images as bits, drawn anew for every batch."""

import keras
from keras import ops, random

from keras_bdl.core import validation
from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.core.stochastic import PACKAGE


@keras.saving.register_keras_serializable(PACKAGE)
class DynamicBinarization(keras.layers.Layer):
    """Bits with the grey values as their probabilities.

    In training every call draws new bits, so that a network never sees an image
    twice; at inference a value is rounded at one half, and what is 0 or 1 stays.
    For the published protocol, which draws the test images once, use `binarize`.

    Args:
        seed: integer for the noise, or None for a random one.
        **kwargs: of `keras.layers.Layer`.

    Input and output shape: equal. Values from 0 to 1.

    Example:

    >>> vae = keras_bdl.VAE.dense(
    ...     (28, 28, 1), 20, preprocessing=keras_bdl.layers.DynamicBinarization()
    ... )

    Reference: Salakhutdinov and Murray, "On the quantitative analysis of deep belief
    networks", 2008, section 4.
    """

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = None if seed is None else validation.integer("seed", seed)
        self.noise = NoiseGenerator(seed, salt=self.name)

    def call(self, inputs, training=None):
        if not training:
            return ops.cast(inputs > 0.5, inputs.dtype)
        uniform = random.uniform(ops.shape(inputs), dtype=inputs.dtype, seed=self.noise)
        return ops.cast(inputs > uniform, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def binarize(self, x, seed):
        """One draw of the bits of a data set, as a NumPy array.

        Args:
            x: array of values from 0 to 1.
            seed: integer.
        """
        seed = validation.integer("seed", seed)
        uniform = random.uniform(ops.shape(x), dtype="float32", seed=seed)
        return ops.convert_to_numpy(ops.cast(x, "float32") > uniform).astype("float32")

    def save_own_variables(self, store):
        # Training that is resumed draws the bits that would have come next.
        store["seed_state"] = ops.convert_to_numpy(self.noise.state).astype("int64")

    def load_own_variables(self, store):
        if "seed_state" in store.keys():
            state = store["seed_state"][()]
            self.noise.state.assign(state.astype(self.noise.state.dtype))

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}
