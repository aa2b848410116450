"""The base class of posteriors over the weights of a layer."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, Self

import keras
from keras import ops

from keras_bdl.core.dtypes import wide
from keras_bdl.core.stochastic import PACKAGE
from keras_bdl.core.typing import Tensor
from keras_bdl.priors import Prior


class Posterior:
    """Base class of posteriors over the weights of a layer, a group of tensors.

    Weights have the names that they have in the layer, "kernel" and "bias". Their
    means are the layer's own variables. `build` makes all other variables, and the
    layer keeps and saves these under the names that `build` gives them.

    A subclass implements `add_variables`, `draw` and `kl`. If the weights are
    Gaussians, `moments` and `directions` let layers train with separate noise for every
    row of a batch, by local reparameterisation or flipout. If there are also no
    directions, layers can predict by the moments of their outputs. `mean` returns the
    values of the mean variables unless a subclass overrides it.

    Every layer has a separate object: `get` copies the posterior that it receives.

    Attributes:
        has_moments: whether the weights are Gaussians, which `moments` and
            `directions` describe.
        of_biases: whether biases, and other weights of one axis, may have this
            posterior.
        trains_means: whether the variables of the means are trained. If not, the
            layer freezes all variables of its weights.
        can_be_prior: whether `prior_from_posterior` can make it the prior.
        takes_prior: whether it works with every prior and every layer. If not, it
            belongs to the layers that `own_layers` names.
        own_layers: names of those layers for error messages, or None.
        has_kl: whether there is a KL divergence from a prior. If not, layers train
            without one and need no number of examples.
        has_mean: whether there is a network of mean weights. If not, the mean of the
            predictions takes its place.
        of_state: whether it is over running statistics of a layer too.
        splits_rows: whether it has members that take parts of the rows in training,
            in order, so that all layers agree who takes which where they see the rows
            of the batch. `members` draws the weights of all.
    """

    has_moments: bool = False
    of_biases: bool = True
    trains_means: bool = True
    can_be_prior: bool = False
    takes_prior: bool = True
    own_layers: str | None = None
    has_kl: bool = True
    has_mean: bool = True
    of_state: bool = False
    splits_rows: bool = False

    def __init__(self) -> None:
        self._means: dict[str, keras.Variable] = {}
        self._variables: dict[str, keras.Variable] = {}

    # Methods that a subclass implements

    def add_variables(
        self, add_weight: Callable, means: dict[str, keras.Variable]
    ) -> dict[str, keras.Variable]:
        """Makes the posterior's variables and returns them by name.

        Args:
            add_weight: method of the layer that keeps the variables.
            means: variables of the weights, by name.
        """
        del add_weight, means
        return {}

    def draw(
        self, seed: keras.random.SeedGenerator, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        """Draws weights by name, in float32 (or float64).

        Args:
            seed: `keras.random.SeedGenerator`.
            num_samples: integer for samples `(num_samples, ...)`, or None for one set
                of weights in their own shapes.
        """
        raise NotImplementedError

    def kl(
        self,
        prior: Prior,
        prior_variables: dict[str, keras.Variable],
        seed: keras.random.SeedGenerator,
    ) -> Tensor:
        """Returns KL(posterior || prior) in nats over all weights, a float32 scalar.

        Args:
            prior: `keras_bdl.priors.Prior`.
            prior_variables: variables that `prior.build` made.
            seed: `keras.random.SeedGenerator` for a KL without a closed form.
        """
        raise NotImplementedError

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns mean and log standard deviation of each weight's own noise by name.

        This noise is independent for every weight.
        """
        raise NotImplementedError

    @property
    def has_rows(self) -> bool:
        """Whether rows of a table can be drawn without the others, by `rows`."""
        return self.has_moments

    def rows(
        self,
        name: str,
        take: Callable[[Tensor], Tensor],
        noise: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        """Returns rows of a table `(rows, size)`, in float32 (or float64).

        Noise along directions is not in them.

        Args:
            name: name of the weight.
            take: function from a table to its rows `(..., size)` that are wanted.
            noise: function from a size to standard normal vectors `(..., size)`, which
                broadcast to these rows. None for the rows at inference.
        """
        if noise is None:
            return take(self.mean()[name])
        mean, log_stddev = map(take, self.moments()[name])
        return mean + ops.exp(log_stddev) * noise(mean.shape[-1])

    def directions(self) -> dict[str, Tensor]:
        """Returns the directions in which weights vary together, by name.

        Each tensor is `(directions, ...)`. Each direction has one standard normal
        factor, which all tensors share. The dictionary is empty if there are none.
        """
        return {}

    def output_factors(
        self, jacobians: dict[str, tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        """Returns square roots of the covariance of outputs that are linear in weights.

        The covariance of the outputs of a row is the sum of F F' over the factors F.

        Args:
            jacobians: as `graphs.linearized.jacobians` returns them.

        Returns:
            Tensors `(rows, outputs, any)`.
        """
        raise NotImplementedError

    def distribution(self) -> Any:
        """Returns the posterior as a TensorFlow Probability distribution."""
        raise NotImplementedError(
            f"The posterior `{type(self).__name__}` is no distribution of TensorFlow "
            f"Probability. Received: posterior={self!r}"
        )

    def inform(self, delta: float) -> None:
        """Sets the posterior from its means, which count as trained (MOPED).

        Args:
            delta: positive float, relative standard deviation.
        """
        raise ValueError(
            f"The posterior `{type(self).__name__}` cannot be set by trained weights. "
            f"Received: moped={delta!r}"
        )

    def members(self, seed: keras.random.SeedGenerator) -> dict[str, Tensor]:
        """Draws the weights of all members in order, `(members, ...)`, by name."""
        raise NotImplementedError

    def regularize(self, regularizers: dict[str, Any]) -> None:
        """Takes the regularizers of the means, which the layer has dropped.

        A prior takes their place, so that they are dropped here too.

        Args:
            regularizers: regularizer or None of each weight by name.
        """

    def particle(self, index: int) -> dict[str, Tensor]:
        """Returns the weights of one of `num_draws` draws by name.

        Raises:
            ValueError: if the draws have no numbers.
        """
        raise ValueError(
            f"The posterior `{type(self).__name__}` has any number of draws, which "
            f"have no numbers: use `seed`. Received: index={index!r}"
        )

    # Methods that all posteriors share

    def build(
        self, add_weight: Callable, means: dict[str, keras.Variable]
    ) -> dict[str, keras.Variable]:
        """Keeps the means, and makes and returns the variables of `add_variables`."""
        self._means = dict(means)
        self._variables = self.add_variables(add_weight, self._means)
        return self._variables

    @property
    def num_draws(self) -> int | None:
        """Number of different draws if there are only so many, else None."""
        return None

    @property
    def cycle(self) -> int | None:
        """Number of samples after which the members begin again, or None."""
        return self.num_draws

    @property
    def built(self) -> bool:
        """Whether `build` has been called."""
        return bool(self._means)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights that have this posterior, by name."""
        return {name: tuple(mean.shape) for name, mean in self._means.items()}

    @property
    def prior_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what the prior is over, by the names of the weights."""
        return self.shapes

    def variables(self) -> dict[str, keras.Variable]:
        """Returns the posterior's own variables by the names in saved files."""
        return dict(self._variables)

    def mean(self) -> dict[str, Tensor]:
        """Returns the weights at inference by name, in float32 (or float64)."""
        return {name: wide(mean) for name, mean in self._means.items()}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Makes a posterior from its config."""
        return cls(**config)

    def __call__(self) -> Any:
        warnings.warn(
            "`layer.posterior()` is `layer.posterior_distribution()` now; "
            "`layer.posterior` is the object that describes the posterior.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.distribution()

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


NAMES: dict[str, type[Posterior]] = {}


def register(name=None):
    """Registers a posterior class, and the name by which layers take it if given."""

    def registered(cls):
        if name is not None:
            NAMES[name] = cls
        return keras.saving.register_keras_serializable(PACKAGE)(cls)

    return registered


def get(identifier: str | Posterior | dict[str, Any], **options: Any) -> Posterior:
    """Returns a new posterior for a layer.

    Args:
        identifier: name of a posterior, a `Posterior`, which is copied, or its
            serialised config.
        **options: arguments of a posterior that is given by its name.

    Raises:
        ValueError: if no posterior has that name, or it does not take one of the
            options.
        TypeError: if `identifier` is none of these.
    """
    if isinstance(identifier, dict):
        try:
            found = keras.saving.deserialize_keras_object(identifier)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"Cannot read `posterior` from this config: {error} "
                f"Received: posterior={identifier!r}"
            ) from error
        if isinstance(found, Posterior):
            return found
    if isinstance(identifier, Posterior):
        return type(identifier).from_config(identifier.get_config())
    if not isinstance(identifier, str):
        raise TypeError(
            "Expected `posterior` to be a `keras_bdl.posteriors.Posterior` or one of "
            f"{sorted(NAMES)}. Received: posterior={identifier!r}"
        )
    if identifier not in NAMES:
        raise ValueError(
            f"Expected `posterior` to be one of {sorted(NAMES)}. "
            f"Received: posterior={identifier!r}"
        )
    cls = NAMES[identifier]
    unknown = set(options) - set(inspect.signature(cls).parameters)
    if unknown:
        received = ", ".join(f"{name}={options[name]!r}" for name in sorted(unknown))
        raise ValueError(
            f"The posterior {identifier!r} takes no such argument. "
            f"Received: {received}, posterior={identifier!r}"
        )
    return cls(**options)
