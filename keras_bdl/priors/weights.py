"""Priors of weights: serialisable, each with its KL from a Gaussian posterior.

`Normal`, `NormalPerWeight`, `LearnedNormal`, `Laplace` and `LogUniform` have closed
forms. The other priors draw their own w from q and compute `-H(q) - log p(w)`. This is
unbiased and uses nothing of the forward pass, so that every estimator works with every
prior.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeAlias

import keras
from keras import backend, ops, random

from keras_bdl.core import validation
from keras_bdl.core.renamed import renamed
from keras_bdl.core.typing import Tensor
from keras_bdl.ops import divergences

__all__ = [
    "Laplace",
    "LearnedNormal",
    "LogUniform",
    "Normal",
    "NormalPerWeight",
    "Prior",
    "ScaleMixture",
    "StudentT",
    "TFPPrior",
    "get",
]

PACKAGE = "keras_bdl"

# The variables of a prior, by name.
_Variables: TypeAlias = dict[str, Tensor]
_Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
_Seed: TypeAlias = random.SeedGenerator


class Prior:
    """Base class of priors: one for all weights of a layer, which are independent.

    Subclasses implement `log_prob`, and `kl` if it has a closed form. `build` makes the
    variables of the prior, which the layer keeps.
    """

    closed_form = True
    proper = True

    def build(self, add_weight: Callable[..., Any], shapes: _Shapes) -> _Variables:
        """Makes the variables of the prior.

        Args:
            add_weight: method of the layer that keeps the variables.
            shapes: dict of the name of a tensor of weights ("kernel", "bias") to its
                shape.

        Returns:
            Dict of name to variable.
        """
        del add_weight, shapes
        return {}

    def of(self, name: str, variables: _Variables) -> _Variables:
        """Returns the variables that `kl` and `log_prob` take for one tensor."""
        del name
        return variables

    def log_prob(self, weights: Tensor, variables: _Variables | None = None) -> Tensor:
        """Computes log p(w) in nats, one value per weight."""
        raise NotImplementedError

    def kl(
        self, mean: Tensor, log_stddev: Tensor, variables: _Variables, seed: _Seed
    ) -> Tensor:
        """Computes KL(q || prior) in nats, one value per weight.

        Args:
            mean, log_stddev: mean and log standard deviation of the Gaussian
                posterior, float32 or float64.
            variables: result of `of` for this tensor of weights.
            seed: `keras.random.SeedGenerator`, used if there is no closed form.
        """
        noise = random.normal(ops.shape(mean), dtype=mean.dtype, seed=seed)
        weights = mean + ops.exp(log_stddev) * noise
        return divergences.kl_monte_carlo(log_stddev, self.log_prob(weights, variables))

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)

    def __repr__(self):
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


@keras.saving.register_keras_serializable(PACKAGE)
class Normal(Prior):
    """N(mean, stddev^2) for every weight: the default, with stddev 1.

    Args:
        mean: float.
        stddev: positive float, a standard deviation.

    Example:

    >>> keras_bdl.VariationalDense(10, prior=keras_bdl.priors.Normal(stddev=0.1))
    """

    def __init__(self, mean: float = 0.0, stddev: float = 1.0) -> None:
        self.mean = validation.number("mean", mean)
        self.stddev = validation.positive("stddev", stddev)

    def log_prob(self, weights: Tensor, variables: _Variables | None = None) -> Tensor:
        return divergences.normal_log_prob(weights, self.mean, math.log(self.stddev))

    def kl(
        self, mean: Tensor, log_stddev: Tensor, variables: _Variables, seed: _Seed
    ) -> Tensor:
        return divergences.kl_normal_normal_log(
            mean, log_stddev, self.mean, ops.cast(math.log(self.stddev), mean.dtype)
        )

    def get_config(self) -> dict[str, Any]:
        return {"mean": self.mean, "stddev": self.stddev}


@keras.saving.register_keras_serializable(PACKAGE)
class NormalPerWeight(Prior):
    """N(mean_i, stddev_i^2), with a separate mean and deviation for every weight.

    These are non-trainable variables of the layer and are saved with it:
    `prior_kernel_mean`, `prior_kernel_log_stddev`, and the same for the bias. Means
    start at 0 and standard deviations at `initial_stddev`. The means are set by
    `to_bayesian(model, moped=delta)`, and both by `prior_from_posterior(model)`.

    Args:
        initial_stddev: positive float, the initial value of all standard deviations.
    """

    @renamed(stddev="initial_stddev")
    def __init__(self, initial_stddev: float = 1.0) -> None:
        self.initial_stddev = validation.positive("initial_stddev", initial_stddev)

    def build(self, add_weight: Callable[..., Any], shapes: _Shapes) -> _Variables:
        starts = {"mean": 0.0, "log_stddev": math.log(self.initial_stddev)}
        return {
            f"prior_{name}_{part}": add_weight(
                name=f"prior_{name}_{part}",
                shape=shape,
                initializer=keras.initializers.Constant(start),
                trainable=False,
            )
            for name, shape in shapes.items()
            for part, start in starts.items()
        }

    def of(self, name: str, variables: _Variables) -> _Variables:
        return {p: variables[f"prior_{name}_{p}"] for p in ("mean", "log_stddev")}

    def _moments(self, variables, dtype):
        values = (variables["mean"], variables["log_stddev"])
        return [ops.cast(ops.convert_to_tensor(v), dtype) for v in values]

    def log_prob(self, weights: Tensor, variables: _Variables | None = None) -> Tensor:
        moments = self._moments(variables, weights.dtype)
        return divergences.normal_log_prob(weights, *moments)

    def kl(
        self, mean: Tensor, log_stddev: Tensor, variables: _Variables, seed: _Seed
    ) -> Tensor:
        moments = self._moments(variables, mean.dtype)
        return divergences.kl_normal_normal_log(mean, log_stddev, *moments)

    def get_config(self) -> dict[str, Any]:
        return {"initial_stddev": self.initial_stddev}


@keras.saving.register_keras_serializable(PACKAGE)
class LearnedNormal(Prior):
    """N(0, s^2), where s is learned together with the posterior (empirical Bayes).

    Each layer learns its own log s, which its weights and biases share, by maximising
    the evidence lower bound.

    Args:
        initial_stddev: positive float, the initial value of s.
    """

    def __init__(self, initial_stddev: float = 0.1) -> None:
        self.initial_stddev = validation.positive("initial_stddev", initial_stddev)

    def build(self, add_weight: Callable[..., Any], shapes: _Shapes) -> _Variables:
        log_stddev = add_weight(
            name="prior_log_stddev",
            shape=(),
            initializer=keras.initializers.Constant(math.log(self.initial_stddev)),
        )
        return {"prior_log_stddev": log_stddev}

    def _log_stddev(self, variables, dtype):
        return ops.cast(ops.convert_to_tensor(variables["prior_log_stddev"]), dtype)

    def log_prob(self, weights: Tensor, variables: _Variables | None = None) -> Tensor:
        log_stddev = self._log_stddev(variables, weights.dtype)
        return divergences.normal_log_prob(weights, 0.0, log_stddev)

    def kl(
        self, mean: Tensor, log_stddev: Tensor, variables: _Variables, seed: _Seed
    ) -> Tensor:
        return divergences.kl_normal_normal_log(
            mean, log_stddev, 0.0, self._log_stddev(variables, mean.dtype)
        )

    def get_config(self) -> dict[str, Any]:
        return {"initial_stddev": self.initial_stddev}


@keras.saving.register_keras_serializable(PACKAGE)
class ScaleMixture(Prior):
    """weight N(0, stddev1^2) + (1 - weight) N(0, stddev2^2).

    Blundell, Cornebise, Kavukcuoglu and Wierstra, "Weight uncertainty in neural
    networks", 2015, eq. 7.

    Args:
        weight: float in (0, 1), the share of the first component.
        stddev1: positive float, the standard deviation of the wide component.
        stddev2: positive float, the standard deviation of the narrow component.
    """

    closed_form = False

    def __init__(
        self, weight: float = 0.5, stddev1: float = 1.0, stddev2: float = 0.0025
    ) -> None:
        self.weight = validation.positive("weight", weight)
        if self.weight >= 1.0:
            raise ValueError(
                f"Expected `weight` between 0 and 1. Received: weight={weight}"
            )
        self.stddev1 = validation.positive("stddev1", stddev1)
        self.stddev2 = validation.positive("stddev2", stddev2)

    def log_prob(self, weights: Tensor, variables: _Variables | None = None) -> Tensor:
        wide = divergences.normal_log_prob(weights, 0.0, math.log(self.stddev1))
        narrow = divergences.normal_log_prob(weights, 0.0, math.log(self.stddev2))
        terms = [wide + math.log(self.weight), narrow + math.log(1.0 - self.weight)]
        return ops.logsumexp(ops.stack(terms), axis=0)

    def get_config(self) -> dict[str, Any]:
        return {
            "weight": self.weight,
            "stddev1": self.stddev1,
            "stddev2": self.stddev2,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class Laplace(Prior):
    """exp(-|w - mean| / scale) / (2 scale).

    Args:
        mean: float.
        scale: positive float; the standard deviation is scale sqrt(2).
    """

    def __init__(self, mean: float = 0.0, scale: float = 1.0) -> None:
        self.mean = validation.number("mean", mean)
        self.scale = validation.positive("scale", scale)

    def log_prob(self, weights: Tensor, variables: _Variables | None = None) -> Tensor:
        return -ops.abs(weights - self.mean) / self.scale - math.log(2.0 * self.scale)

    def kl(
        self, mean: Tensor, log_stddev: Tensor, variables: _Variables, seed: _Seed
    ) -> Tensor:
        return divergences.kl_normal_laplace(mean, log_stddev, self.mean, self.scale)

    def get_config(self) -> dict[str, Any]:
        return {"mean": self.mean, "scale": self.scale}


@keras.saving.register_keras_serializable(PACKAGE)
class StudentT(Prior):
    """Student's t with `df` degrees of freedom, times `scale`, plus `mean`.

    Args:
        df: positive float, degrees of freedom.
        mean: float.
        scale: positive float.
    """

    closed_form = False

    def __init__(self, df: float = 4.0, mean: float = 0.0, scale: float = 1.0) -> None:
        self.df = validation.positive("df", df)
        self.mean = validation.number("mean", mean)
        self.scale = validation.positive("scale", scale)

    def log_prob(self, weights: Tensor, variables: _Variables | None = None) -> Tensor:
        half = 0.5 * (self.df + 1.0)
        constant = (
            math.lgamma(half)
            - math.lgamma(0.5 * self.df)
            - 0.5 * math.log(self.df * math.pi)
            - math.log(self.scale)
        )
        scale = self.scale * math.sqrt(self.df)
        z = (weights - self.mean) / scale
        return constant - half * divergences.log1p_square(z)

    def get_config(self) -> dict[str, Any]:
        return {"df": self.df, "mean": self.mean, "scale": self.scale}


@keras.saving.register_keras_serializable(PACKAGE)
class LogUniform(Prior):
    """The prior of variational dropout: p(|w|) is proportional to 1 / |w|, improper.

    Its KL is defined up to an infinite constant and depends on
    alpha = stddev^2 / mean^2 alone. It is exact (see
    `ops.divergences.kl_normal_log_uniform`) and falls to 0 as alpha grows.
    """

    proper = False

    def log_prob(self, weights: Tensor, variables: _Variables | None = None) -> Tensor:
        """Computes -log |w|, which is log p(w) up to a constant."""
        return -divergences.log_abs(weights)

    def kl(
        self, mean: Tensor, log_stddev: Tensor, variables: _Variables, seed: _Seed
    ) -> Tensor:
        log_alpha = divergences.log_alpha(mean, log_stddev)
        return divergences.kl_normal_log_uniform(log_alpha)


@keras.saving.register_keras_serializable(PACKAGE)
class TFPPrior(Prior):
    """Any scalar distribution of TensorFlow Probability, by name.

    It needs the TensorFlow backend. Its KL is estimated by one draw per weight.

    Args:
        distribution: name of a class of `tfp.distributions`, such as "Horseshoe".
        **parameters: arguments of the distribution, as numbers.

    Example:

    >>> prior = keras_bdl.priors.TFPPrior("Horseshoe", scale=1.0)
    >>> layer = keras_bdl.VariationalDense(10, prior=prior)
    """

    closed_form = False

    def __init__(self, distribution: str, **parameters) -> None:
        if backend.backend() != "tensorflow":
            raise ValueError(
                "`TFPPrior` works on the TensorFlow backend only; take one of the "
                "other priors, or set KERAS_BACKEND=tensorflow. Received: "
                f"backend={backend.backend()!r}"
            )
        self.distribution = distribution
        self.parameters = parameters
        self._make(validate_args=True)  # raises errors here, before training

    def _make(self, validate_args=False):
        from keras_bdl.interop import tfp

        return tfp.make_distribution(self.distribution, self.parameters, validate_args)

    def log_prob(self, weights: Tensor, variables: _Variables | None = None) -> Tensor:
        # Each trace makes the distribution again: its constants belong to that graph.
        return self._make().log_prob(weights)

    def get_config(self) -> dict[str, Any]:
        return {"distribution": self.distribution, **self.parameters}


_BY_NAME: dict[str, Callable[[], Prior]] = {
    "normal": Normal,
    "learned_normal": LearnedNormal,
    "scale_mixture": ScaleMixture,
    "laplace": Laplace,
    "student_t": StudentT,
    "log_uniform": LogUniform,
}


def get(identifier: Any) -> Prior:
    """Returns a prior for a prior, a name such as "normal", or a serialised config.

    Raises:
        ValueError: if the identifier is none of these.
    """
    if isinstance(identifier, Prior):
        return identifier
    if isinstance(identifier, str) and identifier in _BY_NAME:
        return _BY_NAME[identifier]()
    if isinstance(identifier, dict):
        try:
            prior = keras.saving.deserialize_keras_object(identifier)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"Cannot read `prior` from this config: {error} "
                f"Received: prior={identifier!r}"
            ) from error
        if isinstance(prior, Prior):
            return prior
    raise ValueError(
        f"Expected `prior` to be a `keras_bdl.priors.Prior` or one of "
        f"{sorted(_BY_NAME)}. Received: prior={identifier!r}"
    )
