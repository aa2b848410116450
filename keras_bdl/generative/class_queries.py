"""Samples from a trained `SemiSupervisedVAE`."""

import numpy as np
from keras import ops

from keras_bdl.core import dtypes, validation
from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.core.renamed import renamed
from keras_bdl.core.typing import ArrayLike
from keras_bdl.generative.base import GenerativeModel


class SemiSupervisedUse(GenerativeModel):
    """Base of `SemiSupervisedVAE` that samples data of a class."""

    @renamed(num="num_samples", noise="with_noise")
    def sample(
        self,
        num_samples: int,
        label: ArrayLike | int | None = None,
        seed: int | None = None,
        with_noise: bool = False,
    ) -> np.ndarray:
        """Samples new data of a class, `(num_samples, ...)`, NumPy.

        Args:
            num_samples: integer.
            label: class index, or integers `(num_samples,)`; None draws classes.
            seed: integer for repeatable results.
            with_noise: whether to draw from p(x | y, z) instead of taking its mean.
                With `features` it draws their code, and returns the decoded mean of it.
        """
        num_samples = validation.integer("num_samples", num_samples, least=1)
        if not self.built:
            raise ValueError(
                "Expected a built model: call `fit` or `build` first. "
                f"Received: model={self.name!r}"
            )
        rng = np.random.default_rng(seed)
        if label is None:
            label = rng.integers(0, self.num_classes, num_samples)
        labels = np.broadcast_to(np.asarray(label), (num_samples,))
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(
                f"Expected `label` from 0 to {self.num_classes - 1}. "
                f"Received: label={label!r}"
            )
        generator = NoiseGenerator(int(rng.integers(2**31)), "sample")
        codes = self.latent.prior.draw(num_samples, generator)
        one_hot = ops.one_hot(labels, self.num_classes, dtype=codes.dtype)
        outputs = dtypes.wide(self.decoder([codes, one_hot], training=False))
        if validation.boolean("with_noise", with_noise):
            values = self.observation.draw(outputs, generator)
        else:
            values = self.observation.mean(outputs)
        values = ops.convert_to_numpy(values)
        return values if self.features is None else self.features.decode(values)
