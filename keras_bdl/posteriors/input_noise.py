"""Posteriors of layers whose inputs are multiplied by noise.

x -> x * noise before a linear map is noise on what the map does with each input: the
kernel of a draw is diag(noise) W, with one factor for each input channel. The noise may
also stand alone, without a layer behind it.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.dtypes import wide
from keras_bdl.core.typing import Tensor
from keras_bdl.ops import divergences, estimators
from keras_bdl.posteriors.base import Posterior, register
from keras_bdl.priors import Prior

# The temperatures of the source: masks of features, and of channels of a convolution.
_TEMPERATURE, _SPATIAL_TEMPERATURE = 0.1, 2.0 / 3.0


class InputNoise(Posterior):
    """Base class of noise that multiplies the channels of a layer's inputs.

    A subclass implements `add_variables`, `factors`, `kl` and `rate`.

    Args:
        initial_rate: dropout rate at the start, between 0 and 1.

    Attributes:
        num_channels: number of input channels; 0 before `build`.
    """

    of_biases = False
    takes_prior = False

    def __init__(self, initial_rate: float) -> None:
        super().__init__()
        self.initial_rate = validation.share("initial_rate", initial_rate)
        self.num_channels: int = 0

    def build(  # type: ignore[override]  # the noise needs no weights, but channels
        self,
        add_weight: Callable[..., keras.Variable],
        means: dict[str, keras.Variable],
        num_channels: int,
    ) -> dict[str, keras.Variable]:
        """Makes the variables.

        Args:
            add_weight: of the layer that keeps them.
            means: `{"kernel": variable}` of the layer behind, or empty.
            num_channels: number of input channels.
        """
        self.num_channels = num_channels
        return super().build(add_weight, means)

    @property
    def built(self) -> bool:
        return bool(self._variables)

    def factors(
        self,
        shape: tuple[Any, ...],
        seed: keras.random.SeedGenerator,
        channel_axis: int = -1,
    ) -> Tensor:
        """Returns factors of mean about 1, `shape`, in float32 (or float64).

        Args:
            shape: shape of the factors, with `num_channels` on one axis.
            seed: `keras.random.SeedGenerator`.
            channel_axis: that axis.
        """
        raise NotImplementedError

    @property
    def rate(self) -> float:
        """The dropout rate that is learned, a float; the mean over several."""
        if not self.built:
            return self.initial_rate
        return float(ops.convert_to_numpy(ops.mean(self.rates())))

    def rates(self) -> Tensor:
        """Returns the dropout rates, float32 (or float64)."""
        (logit,) = self._variables.values()
        return ops.sigmoid(wide(logit))

    def draw(
        self, seed: keras.random.SeedGenerator, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        samples = () if num_samples is None else (num_samples,)
        factors = self.factors((*samples, self.num_channels), seed)
        return {
            name: mean * self._along_rows(factors, mean)
            for name, mean in self.mean().items()
        }

    @staticmethod
    def _along_rows(factors, kernel):
        """Returns factors `(..., channels)` shaped for the rows of a kernel."""
        positions = (1,) * (len(kernel.shape) - 2)
        *samples, channels = factors.shape
        return ops.reshape(factors, (*samples, *positions, channels, 1))

    def _add_logit(self, add_weight, name, shape=()):
        """Makes a variable that starts at the logit of `initial_rate`."""
        logit = math.log(self.initial_rate) - math.log1p(-self.initial_rate)
        initializer = keras.initializers.Constant(logit)
        return {name: add_weight(name=name, shape=shape, initializer=initializer)}


@register()
class ConcreteNoise(InputNoise):
    """Factors (1 - z) / (1 - p), z a relaxed Bernoulli(p) of learned p.

    Under the prior N(0, 1 / l^2) of the kernel W, whatever prior the layer has, and up
    to a constant, with d input channels and the entropy H,

        kl() = l^2 / 2 * sum(W^2) / (1 - p) - d H(p)    nats,

    of which the first part is missing where no layer stands behind.

    Args:
        length_scale: positive float, l; 1 / l is the prior standard deviation of a
            weight.
        initial_rate: p at the start, between 0 and 1.
        temperature: positive float, or None for the choice of the source: 2/3 before a
            convolution, 0.1 otherwise.

    Reference: Gal, Hron and Kendall, "Concrete dropout", 2017, eqs. 3 to 5.
    """

    own_layers = "`ConcreteDropout`"

    def __init__(
        self,
        length_scale: float = 0.01,
        initial_rate: float = 0.1,
        temperature: float | None = None,
    ) -> None:
        super().__init__(initial_rate)
        self.length_scale = validation.positive("length_scale", length_scale)
        if temperature is not None:
            temperature = validation.positive("temperature", temperature)
        self.temperature = temperature

    def add_variables(
        self,
        add_weight: Callable[..., keras.Variable],
        means: dict[str, keras.Variable],
    ) -> dict[str, keras.Variable]:
        return self._add_logit(add_weight, "rate_logit")

    def resolved_temperature(self) -> float:
        """Returns the temperature in use: the given one or the default."""
        if self.temperature is not None:
            return self.temperature
        spatial = any(len(shape) > 2 for shape in self.shapes.values())
        return _SPATIAL_TEMPERATURE if spatial else _TEMPERATURE

    def factors(
        self,
        shape: tuple[Any, ...],
        seed: keras.random.SeedGenerator,
        channel_axis: int = -1,
    ) -> Tensor:
        logit = wide(self._variables["rate_logit"])
        return estimators.concrete_keep_mask(
            logit, shape, self.resolved_temperature(), seed
        )

    def kl(
        self,
        prior: Prior,
        prior_variables: dict[str, keras.Variable],
        seed: keras.random.SeedGenerator,
    ) -> Tensor:
        logit = wide(self._variables["rate_logit"])
        kl = -self.num_channels * divergences.bernoulli_entropy(logit)
        for mean in self.mean().values():
            squares = ops.sum(ops.square(mean))
            kl = kl + 0.5 * self.length_scale**2 * squares / ops.sigmoid(-logit)
        return kl

    def distribution(self) -> Any:
        """Returns the bits `keep` of the input channels, not relaxed."""
        from keras_bdl.interop import tfp

        return tfp.bernoulli_masks(self.rate, (self.num_channels,))

    def get_config(self) -> dict[str, Any]:
        return {
            "length_scale": self.length_scale,
            "initial_rate": self.initial_rate,
            "temperature": self.temperature,
        }


@register()
class GaussianNoise(InputNoise):
    """Factors N(1, alpha) with learned alpha, under the log-uniform prior.

    The exact KL of Hron, Matthews and Ghahramani (2018) holds whatever prior the layer
    has. With `alpha_per="weight"` the noise is of the weights, w ~ N(W, alpha W^2).

    Args:
        initial_rate: dropout rate at the start, alpha / (1 + alpha), between 0 and 1.
        alpha_per: "layer", "unit" (of the inputs) or "weight": what has an alpha of its
            own.

    Reference: Kingma, Salimans and Welling, "Variational dropout and the local
    reparameterization trick", 2015, section 3; Hron, Matthews and Ghahramani,
    "Variational Bayesian dropout: pitfalls and fixes", 2018.
    """

    own_layers = "`VariationalGaussianDropout`"

    def __init__(self, initial_rate: float = 0.5, alpha_per: str = "layer") -> None:
        super().__init__(initial_rate)
        self.alpha_per = validation.choice(
            "alpha_per", alpha_per, ("layer", "unit", "weight")
        )

    @property
    def has_moments(self) -> bool:  # type: ignore[override]
        """Whether the noise is of the weights."""
        return self.alpha_per == "weight"

    def add_variables(
        self,
        add_weight: Callable[..., keras.Variable],
        means: dict[str, keras.Variable],
    ) -> dict[str, keras.Variable]:
        shape = {"layer": (), "unit": (self.num_channels,)}.get(self.alpha_per)
        if shape is None:
            (shape,) = (tuple(mean.shape) for mean in means.values())
        return self._add_logit(add_weight, "log_alpha", shape)

    def factors(
        self,
        shape: tuple[Any, ...],
        seed: keras.random.SeedGenerator,
        channel_axis: int = -1,
    ) -> Tensor:
        log_alpha = wide(self._variables["log_alpha"])
        if self.alpha_per == "unit":
            axes = [1] * len(shape)
            axes[channel_axis] = self.num_channels
            log_alpha = ops.reshape(log_alpha, axes)
        normal = keras.random.normal(shape, dtype=log_alpha.dtype, seed=seed)
        return 1.0 + ops.exp(0.5 * log_alpha) * normal

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        half = 0.5 * wide(self._variables["log_alpha"])
        return {
            name: (mean, half + divergences.log_abs(mean))
            for name, mean in self.mean().items()
        }

    def draw(
        self, seed: keras.random.SeedGenerator, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        if not self.has_moments:
            return super().draw(seed, num_samples)
        return {
            name: mean
            + estimators.gaussian_noise(log_stddev, mean.dtype, seed, num_samples)
            for name, (mean, log_stddev) in self.moments().items()
        }

    def kl(
        self,
        prior: Prior,
        prior_variables: dict[str, keras.Variable],
        seed: keras.random.SeedGenerator,
    ) -> Tensor:
        log_alpha = wide(self._variables["log_alpha"])
        terms = divergences.kl_normal_log_uniform(log_alpha)
        if self.alpha_per == "layer":
            return self.num_channels * terms
        return ops.sum(terms)

    def distribution(self) -> Any:
        """Returns normals, of `kernel` or of the `noise` that multiplies the inputs."""
        from keras_bdl.interop import tfp

        if self.has_moments:
            return tfp.independent_normals(self.moments())
        ones = ops.ones((self.num_channels,))
        half = 0.5 * wide(self._variables["log_alpha"])
        return tfp.independent_normals({"noise": (ones, half * ones)})

    def get_config(self) -> dict[str, Any]:
        return {"initial_rate": self.initial_rate, "alpha_per": self.alpha_per}
