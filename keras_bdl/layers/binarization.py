"""Binarization of grey images, with a new draw of the bits for every batch."""

from typing import Any

import keras
import numpy as np
from keras import ops, random

from keras_bdl.core import validation
from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.core.stochastic import PACKAGE
from keras_bdl.core.typing import ArrayLike, Tensor


@keras.saving.register_keras_serializable(PACKAGE)
class DynamicBinarization(keras.layers.Layer):
    """Draws bits whose probabilities are the grey values.

    In training every call draws new bits, so a network never sees an image twice. At
    inference values are rounded at one half, and values of 0 and 1 stay. The published
    protocol draws the test images once: use `binarize` for it.

    Args:
        seed: integer for the noise, or None for a random one.
        **kwargs: arguments of `keras.layers.Layer`.

    Input and output shape: equal. Values from 0 to 1.

    Example:

    >>> vae = keras_bdl.VAE.dense(
    ...     (28, 28, 1), 20, preprocessing=keras_bdl.layers.DynamicBinarization()
    ... )

    Reference: Salakhutdinov and Murray, "On the quantitative analysis of deep belief
    networks", 2008, section 4.
    """

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = validation.optional_integer("seed", seed)
        self.noise = NoiseGenerator(seed, salt=self.name)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if not training:
            return ops.cast(inputs > 0.5, inputs.dtype)
        uniform = random.uniform(ops.shape(inputs), dtype=inputs.dtype, seed=self.noise)
        return ops.cast(inputs > uniform, inputs.dtype)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape

    def binarize(self, x: ArrayLike, seed: int) -> np.ndarray:
        """Draws the bits of a data set once and returns them as float32.

        Args:
            x: array of values from 0 to 1.
            seed: integer.
        """
        seed = validation.integer("seed", seed)
        uniform = random.uniform(ops.shape(x), dtype="float32", seed=seed)
        return ops.convert_to_numpy(ops.cast(x, "float32") > uniform).astype("float32")

    def save_own_variables(self, store: Any) -> None:
        # Resumed training continues the sequence of draws.
        store["seed_state"] = ops.convert_to_numpy(self.noise.state).astype("int64")

    def load_own_variables(self, store: Any) -> None:
        if "seed_state" in store.keys():
            state = store["seed_state"][()]
            self.noise.state.assign(state.astype(self.noise.state.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}
