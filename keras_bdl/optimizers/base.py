"""What optimizers of a posterior share: its prior, its temperature and their noise.

They run under the standard `fit`, with any model whose loss is the mean negative log
likelihood of an example. With N = `num_examples`, the negative log posterior is
U(w) = N loss(w) + |w|^2 / (2 prior_stddev^2), of the law exp(-U(w) / temperature).
"""

import zlib
from typing import Any

import keras
from keras import ops

from keras_bdl.core import noise, validation
from keras_bdl.core.typing import Tensor

_REFUSED = ("weight_decay", "use_ema", "global_clipnorm", "clipnorm", "clipvalue")


class PosteriorOptimizer(keras.optimizers.Optimizer):
    """Base class of optimizers whose weights are noisy. A subclass implements `move`.

    Args:
        learning_rate: float or schedule, of the mean loss.
        num_examples: N, number of training examples.
        prior_stddev: standard deviation of the prior N(0, prior_stddev^2) of every
            weight, or None for a flat prior.
        temperature: float >= 0.
        seed: integer for repeatable noise, or None.
        **kwargs: further arguments of `keras.optimizers.Optimizer`.
    """

    def __init__(
        self,
        learning_rate: Any,
        num_examples: int,
        prior_stddev: float | None = 1.0,
        temperature: float = 1.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        for name in _REFUSED:
            if kwargs.get(name):
                raise ValueError(
                    f"`{type(self).__name__}` takes no `{name}`, which would change "
                    "the law of the weights; the prior is `prior_stddev`. "
                    f"Received: {name}={kwargs[name]!r}"
                )
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.num_examples = validation.integer("num_examples", num_examples, least=1)
        self.prior_stddev = (
            None
            if prior_stddev is None
            else validation.positive("prior_stddev", prior_stddev)
        )
        self.temperature = validation.number("temperature", temperature, least=0.0)
        self.seed = noise.seed_or_new(seed)

    def build(self, variables: list[keras.Variable]) -> None:
        """Makes the variables of the optimizer."""
        if self.built:
            return
        for variable in variables:
            if variable.dtype in ("float16", "bfloat16"):
                raise ValueError(
                    f"`{type(self).__name__}` expected weights in float32, which half "
                    "precision is too coarse for; the policies 'mixed_float16' and "
                    "'mixed_bfloat16' have these. "
                    f"Received: weight '{variable.path}' in {variable.dtype}"
                )
        super().build(variables)
        self.trained_ids = frozenset(map(id, variables))
        self._keys = [
            zlib.crc32(f"{self.seed}/{index}".encode()) >> 1
            for index in range(len(variables))
        ]
        self.add_state(variables)

    def add_state(self, variables: list[keras.Variable]) -> None:
        """Makes the variables of a subclass."""

    @property
    def prior_precision(self) -> float:
        """The precision of the prior for each example, 1 / (N prior_stddev^2)."""
        if self.prior_stddev is None:
            return 0.0
        return 1.0 / (self.num_examples * self.prior_stddev**2)

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        rate = ops.cast(learning_rate, variable.dtype)
        # A sum is dense; the gradient of a table has its rows alone on TensorFlow.
        zeros = ops.zeros(variable.shape, variable.dtype)
        gradient = zeros + ops.cast(gradient, variable.dtype)
        # As in Keras's guide to optimizers: on TensorFlow `variable` is its value.
        self.move(variable, gradient, rate, self._get_variable_index(variable))

    def move(
        self, variable: keras.Variable, gradient: Tensor, rate: Tensor, index: int
    ) -> None:
        """Moves a variable by one step.

        Args:
            variable: trained variable.
            gradient: gradient of the mean loss, in its dtype.
            rate: learning rate, in its dtype.
            index: number of the variable.
        """
        raise NotImplementedError

    def normal(self, variable: keras.Variable, step: Tensor, index: int) -> Tensor:
        """Draws standard normal noise of the shape of a variable.

        Args:
            variable: trained variable.
            step: number of a step, of which the noise is a function.
            index: number of the variable.
        """
        # Seeds that follow from the number of the step need no state of their own.
        seed = noise.GivenSeed(noise.fold_in(self._keys[index], step))
        return keras.random.normal(variable.shape, dtype=variable.dtype, seed=seed)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_examples": self.num_examples,
            "prior_stddev": self.prior_stddev,
            "temperature": self.temperature,
            "seed": self.seed,
        }


def kept_share(name: str, value: Any) -> float:
    """Returns a valid share of a moving average, in [0, 1), or raises an error."""
    share = validation.number(name, value)
    if not 0.0 <= share < 1.0:
        raise ValueError(f"Expected `{name}` in [0, 1). Received: {name}={value!r}")
    return share
