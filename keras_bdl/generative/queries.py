"""Queries of a trained VAE: codes, samples, bounds and export."""

import os
from typing import Any

import numpy as np
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.dtypes import to_numpy
from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.core.renamed import renamed
from keras_bdl.core.typing import ArrayLike
from keras_bdl.generative import export, initialization, programs
from keras_bdl.generative.out_of_domain import OutOfDomainScores


class VAEUse(OutOfDomainScores):
    """Base of `VAE` with its codes, samples, bounds and export."""

    @property
    def latent_dim(self) -> int | None:
        """Size d of a code, or None before the model is built."""
        return getattr(self.latent.prior, "latent_dim", None)

    def encode(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: int | str = 0,
        return_stddev: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Returns the mean codes `(n, d)`, NumPy.

        Encoding and decoding use the means of posteriors over weights.

        Args:
            x, batch_size, verbose: as in `keras.Model.predict`.
            return_stddev: whether to return the standard deviations of q(z | x),
                `(n, d)`, too.
        """
        self._check(x)
        runner = programs.get(self, programs.Encoding)
        result = runner.run(x, 0, batch_size, verbose)
        if return_stddev:
            return result["mean"], result["stddev"]
        return result["mean"]

    def decode(
        self, z: ArrayLike, batch_size: int | None = None, verbose: int | str = 0
    ) -> np.ndarray:
        """Returns the mean of p(x | z), `(n, ...)`, NumPy.

        Args:
            z: codes `(n, d)`.
            batch_size, verbose: as in `keras.Model.predict`.
        """
        return self._decode(self._codes(z), False, 0, batch_size, verbose)

    def reconstruct(
        self, x: Any, batch_size: int | None = None, verbose: int | str = 0
    ) -> np.ndarray:
        """Returns `decode(encode(x))`, `(n, ...)`, the mean at the mean code."""
        return self.decode(self.encode(x, batch_size, verbose), batch_size, verbose)

    @renamed(num="num_samples", noise="with_noise")
    def sample(
        self, num_samples: int, seed: int | None = None, with_noise: bool = False
    ) -> np.ndarray:
        """Samples new data `(num_samples, ...)`, NumPy, by decoding codes of the prior.

        Args:
            num_samples: integer.
            seed: integer for repeatable results.
            with_noise: whether to draw from p(x | z), as the model does. Otherwise the
                result is its mean, which most people look at.
        """
        num_samples = validation.integer("num_samples", num_samples, least=1)
        self._check_built()
        if seed is None:
            seed = int(np.random.default_rng().integers(2**31))
        generator = NoiseGenerator(validation.integer("seed", seed), "sample")
        codes = ops.convert_to_numpy(self.latent.prior.draw(num_samples, generator))
        return self._decode(codes, validation.boolean("with_noise", with_noise), seed)

    def interpolate(self, a: Any, b: Any, steps: int = 10) -> np.ndarray:
        """Returns means of p(x | z) on the line between two codes, `(n, steps, ...)`.

        Args:
            a, b: data `(n, ...)`.
            steps: integer >= 2, the number of points with both ends.
        """
        steps = validation.integer("steps", steps, least=2)
        first, last = np.asarray(self.encode(a)), np.asarray(self.encode(b))
        if first.shape != last.shape:
            raise ValueError(
                "Expected `a` and `b` of as many rows. Received: shapes "
                f"{np.shape(a)}, {np.shape(b)}"
            )
        share = np.linspace(0.0, 1.0, steps, dtype="float32")[:, None]
        codes = first[:, None] * (1.0 - share) + last[:, None] * share
        outputs = self.decode(codes.reshape(-1, codes.shape[-1]))
        return outputs.reshape(len(first), steps, *outputs.shape[1:])

    def elbo(
        self,
        x: Any,
        num_samples: int = 1,
        batch_size: int = 32,
        verbose: int | str = "auto",
        seed: int | None = None,
    ) -> np.ndarray:
        """Returns the evidence lower bound of each row, `(n,)`, in nats, NumPy.

        It is a lower bound on `log_prob`.

        Args:
            x, batch_size, verbose: as in `keras.Model.predict`.
            num_samples: number of codes to average over.
            seed: integer for repeatable results.
        """
        return self._evidence(x, num_samples, batch_size, verbose, seed)["elbo"]

    def log_prob(
        self,
        x: Any,
        num_samples: int = 5000,
        batch_size: int = 32,
        verbose: int | str = "auto",
        seed: int | None = None,
    ) -> np.ndarray:
        """Estimates log p(x) of each row, `(n,)`, in nats, NumPy.

        The estimate is log 1/k sum_i p(x, z_i) / q(z_i | x) over k codes of the
        encoder. In expectation it is a lower bound, which more codes make tighter.
        Memory does not grow with k.

        If the decoder has a posterior over weights w, each code has a draw of them.
        The estimate is then of log E p(x | w), the posterior predictive of a row.
        `evaluate` gives the bound on the log evidence of all data.

        Args:
            x, batch_size, verbose: as in `keras.Model.predict`.
            num_samples: number k of codes.
            seed: integer for repeatable results.

        Example:

        >>> -vae.log_prob(x_test).mean()  # the figure that papers report

        Reference: Burda, Grosse and Salakhutdinov, "Importance weighted
        autoencoders", 2015, eq. 8.
        """
        return self._evidence(x, num_samples, batch_size, verbose, seed)["log_prob"]

    def _evidence(self, x, num_samples, batch_size, verbose, seed):
        num_samples = validation.integer("num_samples", num_samples, 1, 10**8)
        batch_size = validation.integer("batch_size", batch_size, 1, 10**8)
        self._check(x)
        block = programs.codes_at_a_time(self, num_samples, batch_size)
        runner = programs.get(self, programs.Evidence, num_samples, block)
        return runner.run(x, seed, batch_size, verbose)

    def _decode(self, codes, draw, seed, batch_size=None, verbose=0):
        runner = programs.get(self, programs.Decoding, draw)
        return runner.run(codes, seed, batch_size, verbose)

    def _check(self, x):
        self._check_built()
        initialization.check(self, x)

    def _check_built(self):
        if not self.built:
            raise ValueError(
                "Expected a built model: `vae.fit(x)` or `vae.build(shape)` first. "
                f"Received: model={self.name!r}"
            )

    def _codes(self, z):
        self._check_built()
        z = to_numpy(z)
        if z.dtype.kind not in "biuf":
            raise TypeError(
                f"Expected z to be an array of numbers. Received: z of dtype {z.dtype}"
            )
        z = z.astype("float32")
        if z.ndim != 2 or z.shape[1] != self.latent_dim or not np.isfinite(z).all():
            raise ValueError(
                f"Expected finite codes `(n, {self.latent_dim})`. "
                f"Received: z of shape {z.shape}"
            )
        return z

    def export(
        self,
        filepath: str | os.PathLike,
        format: str = "tf_saved_model",
        **kwargs: Any,
    ) -> None:
        """Exports as `keras.Model.export` does; a SavedModel has more endpoints.

        `serve(x)` returns the reconstruction, `encode(x)` `mean` and `stddev`,
        `decode(z)` the mean of p(x | z), `sample(num, seed)` new data, and
        `log_prob(x, num_samples, seed)` log p(x) in nats. Seeds and counts are
        integers.

        Args:
            filepath: folder or file to write.
            format, **kwargs: as in `keras.Model.export`.
        """
        self._check_built()
        if format != "tf_saved_model" or kwargs.get("input_signature") is not None:
            return super().export(filepath, format=format, **kwargs)
        return export.export(self, filepath, **kwargs)
