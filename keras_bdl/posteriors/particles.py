"""A posterior of finitely many sets of weights."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bdl.core import scopes, validation
from keras_bdl.core.dtypes import wide
from keras_bdl.core.typing import Tensor
from keras_bdl.posteriors.base import Posterior, register
from keras_bdl.priors import Prior


@register()
class Particles(Posterior):
    """Finitely many sets of weights, the particles, each as probable as the others.

    They are the members of an ensemble, or samples of a Markov chain. A particle has
    running statistics of its own too, such as those of batch normalisation. There is
    no density, so there is no KL, and no mean network: the average of the weights of
    two good networks may be a bad one.

    Sample number i of `keras_bdl.predict` is particle i modulo `size`, in every layer.

    Args:
        size: number of particles, a positive integer.

    Example:

    >>> posterior = keras_bdl.posteriors.Particles(3)
    >>> model = keras_bdl.Bayesian(network, "all", posterior=posterior)
    >>> model.bayesian.posterior.assign(0, first)  # and 1 and 2

    Reference: Lakshminarayanan, Pritzel and Blundell, "Simple and scalable predictive
    uncertainty estimation using deep ensembles", 2017, section 2.4.
    """

    trains_means = False
    has_kl = False
    has_mean = False
    of_state = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = validation.integer("size", size, least=1, most=10**4)

    @property
    def num_draws(self) -> int:
        return self.size

    @property
    def prior_shapes(self) -> dict[str, tuple[int, ...]]:
        """No shapes, because there is no prior."""
        return {}

    def add_variables(
        self, add_weight: Callable, means: dict[str, keras.Variable]
    ) -> dict[str, keras.Variable]:
        variables = {}
        for name, mean in means.items():
            variables[f"{name}_particles"] = add_weight(
                name=f"{name}_particles",
                shape=(self.size, *mean.shape),
                initializer=_repeated(mean),
                dtype=mean.dtype,
                trainable=mean.trainable,
            )
        return variables

    def stacks(self) -> dict[str, keras.Variable]:
        """Returns the variables of the weights of all particles, `(size, ...)`."""
        return dict(zip(self.shapes, self._variables.values()))

    def regularize(self, regularizers: dict[str, Any]) -> None:
        for name, stack in self.stacks().items():
            if regularizers[name] is not None:
                stack.regularizer = _OfEach(regularizers[name])

    def assign(self, index: int, weights: dict[str, Any]) -> None:
        """Sets one particle.

        Args:
            index: number of the particle, from 0 to `size - 1`.
            weights: arrays by the names of the weights.
        """
        index = validation.integer("index", index, 0, self.size - 1)
        for name, stack in self.stacks().items():
            values = ops.convert_to_numpy(stack).copy()
            values[index] = ops.convert_to_numpy(weights[name])
            stack.assign(values)

    def assign_all(self, particles: Sequence[dict[str, Any]]) -> None:
        """Sets all particles.

        Args:
            particles: of each one, arrays by the names of the weights.
        """
        for name, stack in self.stacks().items():
            values = [ops.convert_to_numpy(weights[name]) for weights in particles]
            stack.assign(np.stack(values))

    def particle(self, index: int) -> dict[str, Tensor]:
        """Returns the weights of one particle by name, in float32 (or float64)."""
        index = validation.integer("index", index, 0, self.size - 1)
        return {name: wide(stack)[index] for name, stack in self.stacks().items()}

    def draw(
        self, seed: keras.random.SeedGenerator, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        count = 1 if num_samples is None else num_samples
        scope = scopes.SamplingScope.current()
        if scope is None:
            numbers = keras.random.randint((count,), 0, self.size, seed=seed)
        else:
            numbers = ops.mod(scope.numbers(), self.size)
        if num_samples is None:
            numbers = numbers[0]
        return {
            name: ops.take(wide(stack), numbers, axis=0)
            for name, stack in self.stacks().items()
        }

    def mean(self) -> dict[str, Tensor]:
        raise ValueError(
            "Particles have no mean network: the average of the weights of several "
            "networks is not one of them. `model(x)` and `model.predict` average their "
            "predictions; `to_keras(weights='sample', index=i)` returns one of them. "
            f"Received: posterior={self!r}"
        )

    def kl(
        self,
        prior: Prior,
        prior_variables: dict[str, keras.Variable],
        seed: keras.random.SeedGenerator,
    ) -> Tensor:
        raise ValueError(
            "Particles have no density, and no KL divergence from a prior. "
            f"Received: posterior={self!r}"
        )

    def get_config(self) -> dict[str, Any]:
        return {"size": self.size}


def _repeated(variable):
    """Returns an initializer of copies of a variable along a first axis."""

    def initialize(shape, dtype=None):
        value = ops.cast(ops.convert_to_tensor(variable), dtype)
        return ops.tile(ops.expand_dims(value, 0), (shape[0], *[1] * len(value.shape)))

    return initialize


class _OfEach(keras.regularizers.Regularizer):
    """The sum of a regularizer over particles."""

    def __init__(self, regularizer):
        self.regularizer = regularizer

    def __call__(self, x):
        return sum(
            self.regularizer(particle)
            for particle in ops.unstack(ops.convert_to_tensor(x))
        )
