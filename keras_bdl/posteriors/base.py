"""What is believed of the weights of a layer."""

import inspect
import warnings

import keras

from keras_bdl.core.dtypes import wide
from keras_bdl.core.stochastic import PACKAGE


class Posterior:
    """Base class of posteriors over the weights of a layer, a group of tensors.

    Weights go by their names in the layer, "kernel" and "bias". Their means are the
    layer's own variables; what else is believed of them are variables that `build`
    makes, which the layer keeps and saves under the names that `build` gives them.

    A subclass implements `add_variables`, `draw` and `kl`. Where weights are Gaussians,
    `moments` and `directions` allow layers to train with noise of their own for every
    row of a batch, by local reparameterisation or flipout; where there are no
    directions, also to predict by moments of outputs. `mean` is that of the variables
    unless overridden.

    Every layer has an object of its own: `get` copies the one that it is given.

    Attributes:
        has_moments: whether weights are Gaussians, of `moments` and `directions`.
        of_biases: whether biases may have this posterior.
        can_be_prior: whether it is the prior of `prior_from_posterior`.
        takes_prior: whether it serves every prior and every layer. One that does not is
            part of the layers that `own_layers` names.
    """

    has_moments = False
    of_biases = True
    can_be_prior = False
    takes_prior = True
    own_layers = None

    def __init__(self):
        self._means, self._variables = {}, {}

    # What a subclass says

    def add_variables(self, add_weight, means):
        """Makes the posterior's variables: a dict of name to variable.

        Args:
            add_weight: of the layer that keeps them.
            means: variables of the weights, by name.
        """
        del add_weight, means
        return {}

    def draw(self, seed, num_samples=None):
        """Weights by name, float32 (or float64): one set, or `(num_samples, ...)`.

        Args:
            seed: `keras.random.SeedGenerator`.
            num_samples: integer, or None.
        """
        raise NotImplementedError

    def kl(self, prior, prior_variables, seed):
        """KL(posterior || prior) in nats, summed over all weights: a float32 scalar.

        Args:
            prior: `keras_bdl.priors.Prior`.
            prior_variables: what `prior.build` made.
            seed: `keras.random.SeedGenerator`, where there is no closed form.
        """
        raise NotImplementedError

    def moments(self):
        """Pairs of mean and log standard deviation of independent noise, by name."""
        raise NotImplementedError

    def directions(self):
        """Directions in which weights vary together, by name, `(directions, ...)`.

        Each has a standard normal factor, which is one for all tensors. Empty if none.
        """
        return {}

    def distribution(self):
        """The posterior as a TensorFlow Probability distribution."""
        raise NotImplementedError

    def inform(self, delta):
        """Sets what is believed by the means, taken for trained (MOPED).

        Args:
            delta: positive float, relative standard deviation.
        """
        raise ValueError(
            f"The posterior `{type(self).__name__}` cannot be set by trained weights. "
            f"Received: moped={delta!r}"
        )

    # What all have in common

    def build(self, add_weight, means):
        """Makes the variables; see `add_variables`."""
        self._means = dict(means)
        self._variables = self.add_variables(add_weight, self._means)
        return self._variables

    @property
    def built(self):
        return bool(self._means)

    @property
    def shapes(self):
        """Shapes of the weights that have this posterior, by name."""
        return {name: tuple(mean.shape) for name, mean in self._means.items()}

    def variables(self):
        """The posterior's own variables by the names that they are saved under."""
        return dict(self._variables)

    def mean(self):
        """Weights at inference, by name, float32 (or float64)."""
        return {name: wide(mean) for name, mean in self._means.items()}

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __call__(self):
        warnings.warn(
            "`layer.posterior()` is `layer.posterior_distribution()` now; "
            "`layer.posterior` is the object that says what is believed.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.distribution()

    def __repr__(self):
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


NAMES = {}


def register(name=None):
    """Registers a posterior, under a name by which layers take it if it has one."""

    def registered(cls):
        if name is not None:
            NAMES[name] = cls
        return keras.saving.register_keras_serializable(PACKAGE)(cls)

    return registered


def get(identifier, **options):
    """A posterior of its own for a layer.

    Args:
        identifier: name of a posterior, a `Posterior`, which is copied, or its
            serialised config.
        **options: arguments of a posterior that is given by its name.

    Raises:
        ValueError: if there is none of that name, or it takes no such argument.
        TypeError: if it is nothing of these.
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
