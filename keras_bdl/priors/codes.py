"""Priors of latent codes. They are layers, so that the model trains their variables."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import backend, ops, random

from keras_bdl.core import validation
from keras_bdl.core.dtypes import wide
from keras_bdl.core.stochastic import PACKAGE
from keras_bdl.core.typing import Tensor
from keras_bdl.ops import divergences

__all__ = [
    "GaussianMixture",
    "LatentPrior",
    "StandardNormal",
    "TFPLatentPrior",
    "VampPrior",
    "get",
    "random_seed",
]

_Shape: TypeAlias = tuple[int | None, ...]
_Seed: TypeAlias = int | random.SeedGenerator
_Encode: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


class LatentPrior(keras.layers.Layer):
    """Base class of priors p(z) of a code z of d numbers.

    Subclasses implement `log_prob` and `draw`, and `kl` if it has a closed form.
    `build` takes the shape of codes, `(n, ..., d)`. Priors are float32.

    Args:
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(autocast=False, **{"dtype": "float32", **kwargs})

    def build(self, codes_shape: _Shape) -> None:
        self.latent_dim = codes_shape[-1]
        self.built = True

    def log_prob(self, codes: Tensor) -> Tensor:
        """Computes log p(z) in nats, from `(..., d)` to `(...)`."""
        raise NotImplementedError

    def draw(self, num_samples: int, seed: _Seed) -> Tensor:
        """Draws codes `(num_samples, d)`; `seed` is as in `keras.random`."""
        raise NotImplementedError

    def kl(self, mean: Tensor, log_stddev: Tensor) -> Tensor:
        """Computes KL(N(mean, stddev^2) || p) in nats, from `(..., d)` to `(...)`.

        It returns None if there is no closed form.
        """
        return None

    def connect(self, encode: _Encode, input_shape: tuple[int, ...]) -> None:
        """Takes the encoder of a model, if the prior needs one; see `VampPrior`."""

    def start(self, rows: np.ndarray) -> None:
        """Initialises learned variables from rows of the training data."""

    def inference_weights(self) -> list[Tensor]:
        """Returns an empty list, because inference does not use the prior."""
        return []

    def compute_output_shape(self, codes_shape: _Shape) -> _Shape:
        return codes_shape[:-1]

    def call(self, codes: Tensor) -> Tensor:
        return self.log_prob(codes)


@keras.saving.register_keras_serializable(PACKAGE)
class StandardNormal(LatentPrior):
    """The standard normal distribution N(0, I), the default."""

    def log_prob(self, codes: Tensor) -> Tensor:
        return ops.sum(divergences.normal_log_prob(codes, 0.0, 0.0), axis=-1)

    def draw(self, num_samples: int, seed: _Seed) -> Tensor:
        return random.normal((num_samples, self.latent_dim), seed=seed, dtype="float32")

    def kl(self, mean: Tensor, log_stddev: Tensor) -> Tensor:
        zero = ops.zeros((), dtype=mean.dtype)
        values = divergences.kl_normal_normal_log(mean, log_stddev, 0.0, zero)
        return ops.sum(values, axis=-1)


class _Mixture(LatentPrior):
    """A mixture of K diagonal Gaussians, which subclasses define."""

    def components(self) -> tuple[Tensor, ...]:
        """Returns log weights `(K,)`, means `(K, d)` and log standard deviations."""
        raise NotImplementedError

    def log_prob(self, codes: Tensor) -> Tensor:
        log_weights, means, log_stddevs = (
            ops.cast(part, codes.dtype) for part in self.components()
        )
        values = divergences.normal_log_prob(
            ops.expand_dims(codes, -2), means, log_stddevs
        )
        return ops.logsumexp(ops.sum(values, axis=-1) + log_weights, axis=-1)

    def draw(self, num_samples: int, seed: _Seed) -> Tensor:
        log_weights, means, log_stddevs = self.components()
        logits = ops.expand_dims(log_weights, 0)
        chosen = random.categorical(logits, num_samples, dtype="int32", seed=seed)[0]
        noise = random.normal(
            (num_samples, self.latent_dim), seed=seed, dtype="float32"
        )
        stddevs = ops.exp(ops.take(log_stddevs, chosen, axis=0))
        return ops.take(means, chosen, axis=0) + stddevs * noise


@keras.saving.register_keras_serializable(PACKAGE)
class GaussianMixture(_Mixture):
    """The mixture sum_k weight_k N(mean_k, stddev_k^2), in which all is learned.

    Args:
        num_components: K, a positive integer.
        spread: positive float, the standard deviation of the initial means.
        seed: integer for the initial means, or None.
        **kwargs: of `keras.layers.Layer`.

    Example:

    >>> prior = keras_bdl.layers.GaussianMixture(num_components=10)
    >>> vae = keras_bdl.VAE.dense((784,), latent_dim=20, prior=prior)
    """

    def __init__(
        self,
        num_components: int = 10,
        spread: float = 1.0,
        seed: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.num_components = validation.integer(
            "num_components", num_components, 1, 10**6
        )
        self.spread = validation.positive("spread", spread)
        self.seed = validation.optional_integer("seed", seed)

    def build(self, codes_shape: _Shape) -> None:
        super().build(codes_shape)
        shape = (self.num_components, self.latent_dim)
        start = keras.initializers.RandomNormal(stddev=self.spread, seed=self.seed)
        self.logits = self.add_weight(
            name="logits", shape=shape[:1], initializer="zeros"
        )
        self.means = self.add_weight(name="means", shape=shape, initializer=start)
        self.log_stddevs = self.add_weight(
            name="log_stddevs", shape=shape, initializer="zeros"
        )

    def components(self) -> tuple[Tensor, ...]:
        weights = ops.log_softmax(ops.convert_to_tensor(self.logits))
        return weights, *map(ops.convert_to_tensor, (self.means, self.log_stddevs))

    def get_config(self) -> dict[str, Any]:
        config = {"num_components": self.num_components, "spread": self.spread}
        return {**super().get_config(), **config, "seed": self.seed}


@keras.saving.register_keras_serializable(PACKAGE)
class VampPrior(_Mixture):
    """The mixture 1/K sum_k q(z | u_k) of posteriors of K learned pseudo-inputs u_k.

    It needs an encoder. `keras_bdl.VAE` connects its own, and `fit` initialises the
    pseudo-inputs with random training rows. For another model call `connect`.

    Args:
        num_components: K, number of pseudo-inputs.
        **kwargs: of `keras.layers.Layer`.

    Example:

    >>> prior = keras_bdl.layers.VampPrior(num_components=100)
    >>> vae = keras_bdl.VAE.dense((784,), latent_dim=20, prior=prior)

    Reference: Tomczak and Welling, "VAE with a VampPrior", 2018, eq. 9.
    """

    def __init__(self, num_components: int = 500, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_components = validation.integer(
            "num_components", num_components, 1, 10**6
        )
        self._encode: Any = None

    def connect(self, encode: _Encode, input_shape: tuple[int, ...]) -> None:
        """Takes the encoder. A second call changes nothing.

        Args:
            encode: function from inputs `(K, ...)` to mean and log standard deviation
                of their codes, `(K, d)` each.
            input_shape: shape of one input, without the batch.
        """
        if self.is_connected:
            return
        self._encode = encode
        self.pseudo_inputs = self.add_weight(
            name="pseudo_inputs",
            shape=(self.num_components, *input_shape),
            initializer=keras.initializers.RandomUniform(0.0, 1.0),
        )

    def start(self, rows: np.ndarray) -> None:
        few = len(rows) < self.num_components
        chosen = np.random.default_rng(0).choice(len(rows), self.num_components, few)
        self.pseudo_inputs.assign(rows[chosen])

    @property
    def is_connected(self) -> bool:
        """Whether the prior has an encoder."""
        return self._encode is not None

    def get_build_config(self) -> None:
        return None  # a loaded prior waits for its encoder

    def components(self) -> tuple[Tensor, ...]:
        if not self.is_connected:
            raise ValueError(
                "`VampPrior` has no encoder: use it in a `keras_bdl.VAE`, or call "
                f"`prior.connect(encode, input_shape)`. Received: prior={self.name!r}"
            )
        mean, log_stddev = self._encode(ops.convert_to_tensor(self.pseudo_inputs))
        log_weights = ops.full((self.num_components,), -math.log(self.num_components))
        return ops.cast(log_weights, mean.dtype), wide(mean), wide(log_stddev)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_components": self.num_components}


@keras.saving.register_keras_serializable(PACKAGE)
class TFPLatentPrior(LatentPrior):
    """Any distribution of TensorFlow Probability, by name.

    The distribution is of one number, for each of the d independent numbers of a code,
    or of d numbers. It needs the TensorFlow backend. The KL is estimated by one draw.

    Args:
        distribution: name of a class of `tfp.distributions`, such as "Laplace".
        parameters: dict of the arguments of the distribution, numbers or lists of
            numbers.
        **kwargs: of `keras.layers.Layer`.

    Example:

    >>> prior = keras_bdl.layers.TFPLatentPrior("Laplace", {"loc": 0.0, "scale": 1.0})
    """

    def __init__(self, distribution: str, parameters: dict[str, Any], **kwargs) -> None:
        super().__init__(**kwargs)
        if backend.backend() != "tensorflow":
            raise ValueError(
                "`TFPLatentPrior` works on the TensorFlow backend only; take another "
                "prior, or set KERAS_BACKEND=tensorflow. Received: "
                f"backend={backend.backend()!r}"
            )
        if not isinstance(parameters, dict):
            raise TypeError(
                "Expected `parameters` to be a dict of the distribution's arguments. "
                f"Received: parameters={parameters!r}"
            )
        self.distribution = distribution
        self.parameters = parameters
        self._shape = self._make(validate_args=True).event_shape

    def _make(self, validate_args=False):
        from keras_bdl.interop import tfp

        return tfp.code_distribution(self.distribution, self.parameters, validate_args)

    def build(self, codes_shape: _Shape) -> None:
        super().build(codes_shape)
        if len(self._shape) and self._shape[0] != self.latent_dim:
            raise ValueError(
                f"Expected a distribution of {self.latent_dim} numbers, the size of "
                f"the code. Received: distribution={self.distribution!r} of "
                f"{self._shape[0]} numbers"
            )

    def log_prob(self, codes: Tensor) -> Tensor:
        values = self._make().log_prob(codes)
        return values if len(self._shape) else ops.sum(values, axis=-1)

    def draw(self, num_samples: int, seed: _Seed) -> Tensor:
        from keras_bdl.interop import tfp

        shape = () if len(self._shape) else (self.latent_dim,)
        return tfp.sample(self._make(), (num_samples, *shape), random_seed(seed))

    def get_config(self) -> dict[str, Any]:
        config = {"distribution": self.distribution, "parameters": self.parameters}
        return {**super().get_config(), **config}


def random_seed(seed: _Seed) -> Tensor:
    """Returns two words of a seed generator or an integer, as a tensor `(2,)`."""
    if isinstance(seed, random.SeedGenerator):
        return seed.next()
    return ops.stack([ops.cast(seed, "int32"), ops.zeros((), "int32")])


_BY_NAME = {"standard_normal": StandardNormal}


def get(identifier: Any) -> LatentPrior:
    """Returns a prior of codes for a prior, a name, or a serialised config.

    Raises:
        ValueError: if the identifier is none of these.
    """
    if isinstance(identifier, str) and identifier in _BY_NAME:
        return _BY_NAME[identifier]()
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, LatentPrior):
        return identifier
    raise ValueError(
        "Expected `prior` to be 'standard_normal' or a `keras_bdl.layers.LatentPrior`, "
        f"such as `GaussianMixture()`. Received: prior={identifier!r}"
    )
