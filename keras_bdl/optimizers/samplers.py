"""Optimizers whose steps draw weights from their posterior (stochastic gradient MCMC).

They run under the standard `fit`, with any model whose loss is the mean negative log
likelihood of an example. With N = `num_examples`, the negative log posterior is
U(w) = N loss(w) + |w|^2 / (2 prior_stddev^2), and the chain has the stationary law
exp(-U(w) / temperature) as the learning rate goes to 0. `callbacks.PosteriorSamples`
keeps weights of the chain. The learning rate is that of plain gradient descent on the
mean loss: in the sources' notation it is N times their step size.
"""

from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.stochastic import PACKAGE
from keras_bdl.core.typing import Tensor
from keras_bdl.optimizers.base import PosteriorOptimizer, kept_share


class _Sampler(PosteriorOptimizer):
    """Base class of chains. A subclass implements `step`."""

    def add_state(self, variables: list[keras.Variable]) -> None:
        # The share of the noise, which a callback sets for a part of a cycle.
        self.noise_share = self.add_variable(
            (), initializer="ones", name="noise_share", dtype="float32"
        )

    def move(
        self, variable: keras.Variable, gradient: Tensor, rate: Tensor, index: int
    ) -> None:
        weights = ops.convert_to_tensor(variable)
        self.step(variable, gradient + self.prior_precision * weights, rate, index)

    def step(
        self, variable: keras.Variable, gradient: Tensor, rate: Tensor, index: int
    ) -> None:
        """Moves a variable by one step of the chain.

        Args:
            variable: trained variable.
            gradient: gradient of U / N, in its dtype.
            rate: learning rate, in its dtype.
            index: number of the variable.
        """
        raise NotImplementedError

    def noise(self, variable: keras.Variable, variance: Any, index: int) -> Tensor:
        """Draws the noise of one step, of the shape of a variable.

        Args:
            variable: trained variable.
            variance: variance at temperature 1 and of one example.
            index: number of the variable.
        """
        noise = self.normal(variable, self.iterations, index)
        share = ops.cast(self.noise_share, variable.dtype)
        scale = self.temperature / self.num_examples
        return share * noise * ops.sqrt(variance * scale)


@keras.saving.register_keras_serializable(PACKAGE)
class SGLD(_Sampler):
    """Stochastic gradient Langevin dynamics.

    w <- w - h g + sqrt(2 h T / N) eps, where h is the learning rate, g the gradient of
    U / N (see the module), T the temperature and eps standard normal.

    Args:
        learning_rate: float or schedule, h. Its bias is of order h.
        num_examples: N, number of training examples.
        prior_stddev: standard deviation of the prior N(0, prior_stddev^2) of every
            weight, or None for a flat prior, beside a model that has regularizers.
        temperature: float >= 0; 0 is gradient descent.
        seed: integer for a repeatable chain, or None.
        **kwargs: further arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: on a wrong argument.

    Example:

    >>> optimizer = keras_bdl.optimizers.SGLD(1e-2, num_examples=len(x))
    >>> network.compile(optimizer, loss)
    >>> samples = keras_bdl.callbacks.PosteriorSamples(keep=20, start=50)
    >>> network.fit(x, y, epochs=100, callbacks=[samples])
    >>> keras_bdl.predict_uncertainty(samples.bayesian_model(), x_test)

    Reference: Welling and Teh, "Bayesian learning via stochastic gradient Langevin
    dynamics", 2011, eq. 4, with step size 2 h / N.
    """

    def step(
        self, variable: keras.Variable, gradient: Tensor, rate: Tensor, index: int
    ) -> None:
        noise = self.noise(variable, 2.0 * rate, index)
        self.assign_add(variable, noise - rate * gradient)


@keras.saving.register_keras_serializable(PACKAGE)
class SGHMC(_Sampler):
    """Stochastic gradient Hamiltonian Monte Carlo.

    v <- (1 - a) v - h g + sqrt(2 a h T / N) eps, and w <- w + v, with the friction a;
    see `SGLD` for the rest. It goes further in a step than `SGLD`: at equal noise of
    the gradient h may be as large as that of gradient descent with momentum 1 - a.

    Args:
        learning_rate, num_examples, prior_stddev, temperature, seed, **kwargs: as in
            `SGLD`.
        friction: a, in (0, 1]; 1 is `SGLD`.

    Raises:
        ValueError: on a wrong argument.

    Reference: Chen, Fox and Guestrin, "Stochastic gradient Hamiltonian Monte Carlo",
    2014, eq. 15, with step size h / N and no estimate of the gradient's own noise.
    """

    def __init__(
        self,
        learning_rate: Any,
        num_examples: int,
        prior_stddev: float | None = 1.0,
        friction: float = 0.1,
        temperature: float = 1.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate, num_examples, prior_stddev, temperature, seed, **kwargs
        )
        self.friction = validation.positive("friction", friction)
        if self.friction > 1.0:
            raise ValueError(
                f"Expected `friction` in (0, 1]. Received: friction={friction!r}"
            )

    def add_state(self, variables: list[keras.Variable]) -> None:
        super().add_state(variables)
        self._velocities = self.add_optimizer_variables(variables, "velocity")

    def step(
        self, variable: keras.Variable, gradient: Tensor, rate: Tensor, index: int
    ) -> None:
        velocity = self._velocities[index]
        noise = self.noise(variable, 2.0 * self.friction * rate, index)
        kept = (1.0 - self.friction) * ops.convert_to_tensor(velocity)
        self.assign(velocity, kept - rate * gradient + noise)
        self.assign_add(variable, ops.convert_to_tensor(velocity))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "friction": self.friction}


@keras.saving.register_keras_serializable(PACKAGE)
class PreconditionedSGLD(_Sampler):
    """Langevin dynamics with the scale of each weight's gradients, as RMSprop has it.

    s <- b s + (1 - b) g^2, G = 1 / (sqrt(s) + epsilon), and
    w <- w - h G g + sqrt(2 h G T / N) eps; see `SGLD` for the rest. The term of the
    derivative of G is left out, as the source does in practice.

    Args:
        learning_rate, num_examples, prior_stddev, temperature, seed, **kwargs: as in
            `SGLD`.
        rho: b, in [0, 1).
        epsilon: positive float.

    Raises:
        ValueError: on a wrong argument.

    Reference: Li, Chen, Carlson and Carin, "Preconditioned stochastic gradient Langevin
    dynamics for deep neural networks", 2016, algorithm 1.
    """

    def __init__(
        self,
        learning_rate: Any,
        num_examples: int,
        prior_stddev: float | None = 1.0,
        rho: float = 0.99,
        epsilon: float = 1e-5,
        temperature: float = 1.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate, num_examples, prior_stddev, temperature, seed, **kwargs
        )
        self.rho = kept_share("rho", rho)
        self.epsilon = validation.positive("epsilon", epsilon)

    def add_state(self, variables: list[keras.Variable]) -> None:
        super().add_state(variables)
        self._squares = self.add_optimizer_variables(variables, "square")

    def step(
        self, variable: keras.Variable, gradient: Tensor, rate: Tensor, index: int
    ) -> None:
        square = self._squares[index]
        mean = self.rho * ops.convert_to_tensor(square)
        self.assign(square, mean + (1.0 - self.rho) * ops.square(gradient))
        root = ops.sqrt(ops.convert_to_tensor(square))
        scaled = rate / (root + self.epsilon)
        noise = self.noise(variable, 2.0 * scaled, index)
        self.assign_add(variable, noise - scaled * gradient)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rho": self.rho, "epsilon": self.epsilon}
