"""A Gaussian posterior over every weight, independent of the other weights.

q(w) = N(m, s^2) ("mean field"): Blundell, Cornebise, Kavukcuoglu and Wierstra,
"Weight uncertainty in neural networks", 2015.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.dtypes import wide
from keras_bdl.core.typing import Tensor
from keras_bdl.ops import estimators
from keras_bdl.ops.jacobians import scaled_jacobian
from keras_bdl.posteriors.base import Posterior, register
from keras_bdl.priors import Prior

# MOPED gives this standard deviation to weights whose mean is 0, such as biases. It
# keeps the KL of each below 10 nats.
_LEAST_STDDEV = 1e-4


def check_log_stddev(value):
    """Returns a valid `initial_log_stddev` and raises an error for any other."""
    value = validation.number("initial_log_stddev", value)
    if not -40.0 <= value <= 10.0:
        raise ValueError(
            "Expected `initial_log_stddev` between -40 and 10. "
            f"Received: initial_log_stddev={value!r}"
        )
    return value


def add_log_stddevs(add_weight, means, initial_log_stddev):
    """Adds a log standard deviation for every weight.

    Returns:
        Two dictionaries of the variables: by the names of the weights, and by the names
        of the variables themselves.
    """
    added = {
        name: add_weight(
            name=f"{name}_log_stddev",
            shape=tuple(mean.shape),
            initializer=keras.initializers.Constant(initial_log_stddev),
        )
        for name, mean in means.items()
    }
    return added, {f"{name}_log_stddev": weight for name, weight in added.items()}


def sum_of_kls(moments, prior, prior_variables, seed):
    """Returns KL(q || prior) in nats of independent Gaussians, over all of them.

    Args:
        moments: mean and log standard deviation by name.
        prior, prior_variables, seed: as in `Posterior.kl`.
    """
    total: Tensor = 0.0
    for name, (mean, log_stddev) in moments.items():
        variables = prior.of(name, prior_variables)
        total = total + ops.sum(prior.kl(mean, log_stddev, variables, seed))
    return total


def bias_of(kernel: str) -> str:
    """Returns the name of the bias beside a kernel."""
    return kernel.replace("kernel", "bias", 1)


@register("gaussian")
class Gaussian(Posterior):
    """N(mean, exp(log_stddev)^2) for every weight, independent of the others.

    Args:
        initial_log_stddev: start of the log standard deviations, from -40 to 10.

    Example:

    >>> posterior = keras_bdl.posteriors.Gaussian(initial_log_stddev=-3.0)
    >>> layer = keras_bdl.VariationalDense(10, posterior=posterior)
    """

    has_moments = True
    can_be_prior = True

    def __init__(self, initial_log_stddev: float = -5.0) -> None:
        super().__init__()
        self.initial_log_stddev = check_log_stddev(initial_log_stddev)

    def add_variables(
        self, add_weight: Callable, means: dict[str, keras.Variable]
    ) -> dict[str, keras.Variable]:
        self._log_stddevs, variables = add_log_stddevs(
            add_weight, means, self.initial_log_stddev
        )
        return variables

    def centre(self) -> dict[str, Tensor]:
        """Returns the means of the draws, by name."""
        return {name: wide(mean) for name, mean in self._means.items()}

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            name: (centre, wide(self._log_stddevs[name]))
            for name, centre in self.centre().items()
        }

    def draw(
        self, seed: keras.random.SeedGenerator, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        return {
            name: centre
            + estimators.gaussian_noise(log_stddev, centre.dtype, seed, num_samples)
            for name, (centre, log_stddev) in self.moments().items()
        }

    def output_factors(
        self, jacobians: dict[str, tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        found = []
        for name, (rows, gradients) in jacobians.items():
            stddev = ops.exp(wide(self._log_stddevs[name]))
            stddev = ops.reshape(stddev, (-1, stddev.shape[-1]))
            if stddev.shape[0] < rows.shape[-1]:  # the bias is the last row
                bias = ops.exp(wide(self._log_stddevs[bias_of(name)]))
                stddev = ops.concatenate([stddev, ops.expand_dims(bias, 0)])
            found.append(scaled_jacobian(rows, gradients, stddev))
        return found

    def kl(
        self,
        prior: Prior,
        prior_variables: dict[str, keras.Variable],
        seed: keras.random.SeedGenerator,
    ) -> Tensor:
        return sum_of_kls(self.moments(), prior, prior_variables, seed)

    def inform(self, delta: float) -> None:
        """Sets the standard deviations to delta |mean|, but not below 1e-4.

        Reference: Krishnan, Subedar and Tickoo, "Specifying weight priors in Bayesian
        deep neural networks with empirical Bayes", 2020, eq. 6.
        """
        for name, (mean, _) in self.moments().items():
            stddev = ops.maximum(delta * ops.abs(mean), _LEAST_STDDEV)
            self._log_stddevs[name].assign(ops.log(stddev))

    def distribution(self) -> Any:
        from keras_bdl.interop import tfp

        return tfp.independent_normals(self.moments())

    def get_config(self) -> dict[str, Any]:
        return {"initial_log_stddev": self.initial_log_stddev}
