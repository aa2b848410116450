"""What one does with a trained `SemiSupervisedVAE`, beside predicting classes."""

import numpy as np
from keras import ops

from keras_bdl.core import dtypes, validation
from keras_bdl.core.noise import NoiseGenerator


class SemiSupervisedUse:
    """Mixin of `SemiSupervisedVAE`: samples of a class."""

    def sample(self, num, label=None, seed=None, noise=False):
        """New data of a class, `(num, ...)`, NumPy.

        Args:
            num: integer.
            label: class index, or integers `(num,)`; None draws classes.
            seed: integer for repeatable results.
            noise: whether to draw from p(x | y, z) in place of its mean; of the codes
                where there are `features`, of which then the mean is decoded.
        """
        num = validation.integer("num", num, least=1)
        if not self.built:
            raise ValueError(
                "Expected a built model: `fit` or `build` first. "
                f"Received: model={self.name!r}"
            )
        rng = np.random.default_rng(seed)
        if label is None:
            label = rng.integers(0, self.num_classes, num)
        labels = np.broadcast_to(np.asarray(label), (num,))
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(
                f"Expected `label` from 0 to {self.num_classes - 1}. "
                f"Received: label={label!r}"
            )
        generator = NoiseGenerator(int(rng.integers(2**31)), "sample")
        codes = self.latent.prior.draw(num, generator)
        one_hot = ops.one_hot(labels, self.num_classes, dtype=codes.dtype)
        outputs = dtypes.wide(self.decoder([codes, one_hot], training=False))
        if validation.boolean("noise", noise):
            values = self.observation.draw(outputs, generator)
        else:
            values = self.observation.mean(outputs)
        values = ops.convert_to_numpy(values)
        return values if self.features is None else self.features.decode(values)
