"""IVON: a Gaussian posterior over all weights, found by a plain optimizer."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.stochastic import PACKAGE
from keras_bdl.core.typing import Tensor
from keras_bdl.maps.wrapped import check_no_constraint
from keras_bdl.optimizers.base import PosteriorOptimizer, kept_share


@keras.saving.register_keras_serializable(PACKAGE)
class IVON(PosteriorOptimizer):
    """Improved variational online Newton: variational inference at the cost of Adam.

    Trains the mean m and the variances of a Gaussian posterior N(m, diag(s^2)) over the
    weights of a plain network, with s^2 = T / (N (h + d)). Here d = 1 / (N
    prior_stddev^2), and h is a moving average of an estimate of the Hessian's diagonal,
    which needs no second derivatives. While `fit` runs, the weights hold m plus noise,
    a new draw in each step; afterwards they hold m. With
    `callbacks.GaussianPosterior` they hold m in validation and at the end of epochs
    too, for callbacks behind it, and its `bayesian_model()` returns a model with the
    posterior. A loop of one's own and a `fit` that is interrupted leave the noise on
    the weights: `finalize_variable_values(model.trainable_variables)` takes it off,
    before the weights are used or set.

    The step of the mean is `learning_rate * (initial_hessian + d) / (h + d)` times the
    gradient's average: where h has kept its initial value, a step of gradient descent
    with momentum of that rate.

    Args:
        learning_rate: float or schedule. 0.1 suits many networks, a schedule to 0 most.
        num_examples: N, number of training examples. The loss is the mean negative log
            likelihood of an example.
        prior_stddev: standard deviation of the prior N(0, prior_stddev^2) of every
            weight, or None for a flat prior, beside a model that has regularizers.
        initial_hessian: positive float, h at the start. The initial standard deviation
            of the weights is near 1 / sqrt(N initial_hessian).
        beta_1: share of the average gradient that a step keeps, in [0, 1).
        beta_2: share of h that a step keeps, in [0, 1). h needs some 1 / (1 - beta_2)
            steps to forget its initial value.
        temperature: positive float T. Posteriors of T < 1 are cold: narrower.
        clip_radius: positive float, largest value of gradient / (h + d) for each
            weight, or None.
        seed: integer for repeatable noise, or None.
        **kwargs: further arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: on a wrong argument, or in `fit` if a weight has a constraint.

    Example:

    >>> optimizer = keras_bdl.optimizers.IVON(0.1, num_examples=len(x))
    >>> network.compile(optimizer, loss)
    >>> posterior = keras_bdl.callbacks.GaussianPosterior()
    >>> network.fit(x, y, epochs=30, callbacks=[posterior])
    >>> keras_bdl.predict_uncertainty(posterior.bayesian_model(), x_test)

    Reference: Shen, Daheim, Cong, Nickl, Marconi, Bazan, Yokota, Gurevych, Cremers,
    Khan and Moellenhoff, "Variational learning is effective for large deep networks",
    2024, algorithm 1, with one draw of the weights in each step.
    """

    def __init__(
        self,
        learning_rate: Any,
        num_examples: int,
        prior_stddev: float | None = 1.0,
        initial_hessian: float = 1.0,
        beta_1: float = 0.9,
        beta_2: float = 0.9999,
        temperature: float = 1.0,
        clip_radius: float | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        validation.positive("temperature", temperature)
        super().__init__(
            learning_rate, num_examples, prior_stddev, temperature, seed, **kwargs
        )
        self.initial_hessian = validation.positive("initial_hessian", initial_hessian)
        self.beta_1 = kept_share("beta_1", beta_1)
        self.beta_2 = kept_share("beta_2", beta_2)
        self.clip_radius = (
            None
            if clip_radius is None
            else validation.positive("clip_radius", clip_radius)
        )

    def add_state(self, variables: list[keras.Variable]) -> None:
        check_no_constraint(variables)
        initial = keras.initializers.Constant(self.initial_hessian)
        self._momenta = self.add_optimizer_variables(variables, "momentum")
        self._hessians = self.add_optimizer_variables(variables, "hessian", initial)
        # What the weights hold beside the mean: so they may be set between two fits.
        self._offsets = self.add_optimizer_variables(variables, "offset")

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        scale = self.initial_hessian + self.prior_precision
        super().update_step(gradient, variable, learning_rate * scale)

    def move(
        self, variable: keras.Variable, gradient: Tensor, rate: Tensor, index: int
    ) -> None:
        momentum, hessian, offset = (
            ops.convert_to_tensor(variables[index])
            for variables in (self._momenta, self._hessians, self._offsets)
        )
        mean = ops.convert_to_tensor(variable) - offset
        precision = hessian + self.prior_precision
        # By Stein's identity: the mean of gradient times (w - m) / s^2 is the Hessian.
        estimate = gradient * offset * precision / self._scale
        error = (1.0 - self.beta_2) * (estimate - hessian)
        change = error + 0.5 * ops.square(error) / precision
        # Without noise, as in a first step, there is no estimate.
        hessian = hessian + ops.where(offset == 0, 0.0, change)
        momentum = self.beta_1 * momentum + (1.0 - self.beta_1) * gradient
        self.assign(self._momenta[index], momentum)
        self.assign(self._hessians[index], hessian)

        step = ops.cast(self.iterations + 1, momentum.dtype)
        average = momentum / (1.0 - ops.power(self.beta_1, step))
        precision = hessian + self.prior_precision
        direction = (average + self.prior_precision * mean) / precision
        if self.clip_radius is not None:
            direction = ops.clip(direction, -self.clip_radius, self.clip_radius)
        mean = mean - rate * direction
        offset = self._draw(variable, hessian, self.iterations + 1, index)
        self.assign(self._offsets[index], offset)
        self.assign(variable, mean + offset)

    @property
    def _scale(self):
        """The variance of a weight of precision 1."""
        return self.temperature / self.num_examples

    def _stddev(self, hessian):
        return ops.sqrt(self._scale / (hessian + self.prior_precision))

    def _draw(self, variable, hessian, step, index):
        return self.normal(variable, step, index) * self._stddev(hessian)

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """Takes the noise off the weights, so that they hold the mean."""
        for variable in var_list:
            index = self._get_variable_index(variable)
            variable.assign(variable - self._offsets[index])
            self._offsets[index].assign(ops.zeros(variable.shape, variable.dtype))

    def add_noise(self, var_list: list[keras.Variable]) -> None:
        """Draws the noise of the next step, unless the weights have it."""
        for variable in var_list:
            index = self._get_variable_index(variable)
            if np.any(ops.convert_to_numpy(self._offsets[index])):
                continue
            hessian = ops.convert_to_tensor(self._hessians[index])
            offset = self._draw(variable, hessian, self.iterations, index)
            self._offsets[index].assign(offset)
            variable.assign(variable + offset)

    def stddev(self, variable: keras.Variable) -> Tensor:
        """Returns the standard deviations of a weight, of its shape.

        Args:
            variable: weight that the optimizer trains.
        """
        hessian = self._hessians[self._get_variable_index(variable)]
        return self._stddev(ops.convert_to_tensor(hessian))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "initial_hessian": self.initial_hessian,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "clip_radius": self.clip_radius,
        }
