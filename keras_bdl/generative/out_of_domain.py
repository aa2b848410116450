"""Scores of how unlike the training data of a generative model an input is."""

import io
import math
from typing import Any, Self

import numpy as np
from keras import ops

from keras_bdl import losses
from keras_bdl.core import validation
from keras_bdl.generative.base import GenerativeModel
from keras_bdl.layers.binarization import DynamicBinarization

METHODS = ("log_prob", "typicality", "complexity")


class OutOfDomainScores(GenerativeModel):
    """Base of `VAE` with scores that are higher for inputs unlike the training data.

    A subclass has `log_prob(x, ...)` and calls `build_scores` when it is built.
    """

    def build_scores(self) -> None:
        """Makes the weight that `fit_ood` sets."""
        # Mean of log p(x) over training data, and the number of rows, 0 at first.
        self.typical_log_prob = self.add_weight(
            name="typical_log_prob", shape=(2,), initializer="zeros", trainable=False
        )

    def fit_ood(
        self,
        x: Any,
        num_samples: int = 100,
        batch_size: int = 32,
        verbose: int | str = "auto",
        seed: int | None = None,
    ) -> Self:
        """Learns the mean of log p(x) over training data, for `ood_score`.

        The mean is saved with the model. The method "typicality" needs it. If
        `preprocessing` is a `DynamicBinarization`, it draws the bits of an array here
        and in `ood_score`, as in training. Bits stay as they are.

        Args:
            x: training data, or a few thousand rows of it.
            num_samples, batch_size, verbose, seed: as in `log_prob`.

        Returns:
            The model.
        """
        x = self._drawn(x, seed)
        values = self.log_prob(x, num_samples, batch_size, verbose, seed)
        self.typical_log_prob.assign([values.mean(), len(values)])
        return self

    def _drawn(self, x, seed):
        """Draws grey values as bits, because `preprocessing` rounds at inference."""
        is_drawn = isinstance(self.preprocessing, DynamicBinarization)
        if not (is_drawn and hasattr(x, "shape")):  # a data set stays as it is
            return x
        self._check(x)
        if seed is None:
            seed = int(np.random.default_rng().integers(2**31))
        return self.preprocessing.binarize(x, seed)

    def ood_score(
        self,
        x: Any,
        method: str = "typicality",
        num_samples: int = 100,
        batch_size: int = 32,
        verbose: int | str = "auto",
        seed: int | None = None,
    ) -> np.ndarray:
        """Returns a score of each row, higher for rows unlike the training data.

        "log_prob": -log p(x) in nats. It fails, with an AUROC below 1/2, if the other
        data are simpler than the training data, such as smoother images. Their density
        is higher than that of the training data itself (Nalisnick et al.).
        "typicality": |E log p(x_train) - log p(x)| in nats. It needs `fit_ood`. It also
        finds data that are too likely, and fails if log p(x) is as on training data.
        "complexity": -log2 p(x) minus the bits of x as a PNG file. Data that a general
        code makes short do not count as typical. It needs images of 256 levels.

        No score is best everywhere. Look at all of them, in both directions.

        Args:
            x: array `(n, ...)`.
            method: "log_prob", "typicality" or "complexity".
            num_samples, batch_size, verbose, seed: as in `log_prob`.

        Returns:
            NumPy array `(n,)`.

        Raises:
            ValueError: if "typicality" is used before `fit_ood`, or "complexity" with a
                likelihood that is not an 8-bit one or with data that are not images.

        Example:

        >>> vae.fit_ood(x_train)
        >>> inside, outside = vae.ood_score(x_test), vae.ood_score(letters)
        >>> keras_bdl.ops.uncertainty.auroc(inside, outside)

        Reference: Nalisnick, Matsukawa, Teh, Gorur and Lakshminarayanan, "Do deep
        generative models know what they don't know?", 2019, and "Detecting
        out-of-distribution inputs to deep generative models using typicality", 2019,
        eq. 6; Serra et al., "Input complexity and out-of-distribution detection with
        likelihood-based generative models", 2020, eq. 2.
        """
        validation.choice("method", method, METHODS)
        self._check_built()
        typical, count = ops.convert_to_numpy(self.typical_log_prob)
        if method == "typicality" and not count:
            raise ValueError(
                "`method='typicality'` needs the training data: call `vae.fit_ood(x)` "
                "first. Received: method='typicality'"
            )
        bits = None
        if method == "complexity":
            bits = png_bits(to_bytes(np.asarray(x), self.observation))
        x = self._drawn(x, seed)
        log_prob = self.log_prob(x, num_samples, batch_size, verbose, seed)
        if method == "log_prob":
            return -log_prob
        if method == "typicality":
            return np.abs(typical - log_prob)
        return -log_prob / math.log(2.0) - bits


def to_bytes(x, observation):
    """Converts images of 256 levels to `uint8`.

    Raises:
        ValueError: if the likelihood or the shape is not that of such images.
    """
    loss = observation.loss
    eight_bit = isinstance(loss, losses.DiscretizedLogisticNLL) and loss.levels == 256
    if not (eight_bit or observation.is_categorical):
        raise ValueError(
            "`method='complexity'` compares p(x) with the length of a file, and needs "
            "the probability of 256 levels: `likelihood='discretized_logistic'` or "
            f"'categorical'. Received: likelihood={type(loss).__name__}"
        )
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
        raise ValueError(
            "`method='complexity'` needs images `(n, height, width)` or "
            f"`(n, height, width, 1 or 3)`. Received: x of shape {x.shape}"
        )
    if eight_bit:
        x = 255.0 * (x - loss.low) / (loss.high - loss.low)
    return np.round(x).astype("uint8")


def png_bits(images):
    """Returns the length of each image as a PNG file in bits, `(n,)`."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "`method='complexity'` needs Pillow: `pip install pillow`."
        ) from error

    def bits(image):
        file = io.BytesIO()
        image = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(image).save(file, format="PNG", optimize=True)
        return 8 * file.tell()

    return np.array([bits(image) for image in images], "float64")
