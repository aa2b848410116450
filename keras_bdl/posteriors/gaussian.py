"""A Gaussian posterior over every weight, independent per weight.

q(w) = N(m, s^2) ("mean field"): Blundell, Cornebise, Kavukcuoglu and Wierstra,
"Weight uncertainty in neural networks", 2015.
"""

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.dtypes import wide
from keras_bdl.ops import estimators
from keras_bdl.posteriors.base import Posterior, register

# Of weights that MOPED finds at 0, such as biases: their KL stays below 10 nats.
_LEAST_STDDEV = 1e-4


def check_log_stddev(value):
    """Returns an `initial_log_stddev`, or refuses it."""
    value = validation.number("initial_log_stddev", value)
    if not -40.0 <= value <= 10.0:
        raise ValueError(
            "Expected `initial_log_stddev` between -40 and 10. "
            f"Received: initial_log_stddev={value!r}"
        )
    return value


def add_log_stddevs(add_weight, means, initial_log_stddev):
    """Log standard deviations of all weights, by name, and by their own names."""
    added = {
        name: add_weight(
            name=f"{name}_log_stddev",
            shape=tuple(mean.shape),
            initializer=keras.initializers.Constant(initial_log_stddev),
        )
        for name, mean in means.items()
    }
    return added, {f"{name}_log_stddev": weight for name, weight in added.items()}


@register("gaussian")
class Gaussian(Posterior):
    """N(mean, exp(log_stddev)^2) for every weight, independent of the others.

    Args:
        initial_log_stddev: where the log standard deviations start, -40 to 10.

    Example:

    >>> posterior = keras_bdl.posteriors.Gaussian(initial_log_stddev=-3.0)
    >>> layer = keras_bdl.VariationalDense(10, posterior=posterior)
    """

    has_moments = True
    can_be_prior = True

    def __init__(self, initial_log_stddev=-5.0):
        super().__init__()
        self.initial_log_stddev = check_log_stddev(initial_log_stddev)

    def add_variables(self, add_weight, means):
        self._log_stddevs, variables = add_log_stddevs(
            add_weight, means, self.initial_log_stddev
        )
        return variables

    def centre(self):
        """Means about which draws are spread, by name."""
        return {name: wide(mean) for name, mean in self._means.items()}

    def moments(self):
        return {
            name: (centre, wide(self._log_stddevs[name]))
            for name, centre in self.centre().items()
        }

    def draw(self, seed, num_samples=None):
        return {
            name: centre
            + estimators.gaussian_noise(log_stddev, centre.dtype, seed, num_samples)
            for name, (centre, log_stddev) in self.moments().items()
        }

    def kl(self, prior, prior_variables, seed):
        total = 0.0
        for name, (mean, log_stddev) in self.moments().items():
            variables = prior.of(name, prior_variables)
            total = total + ops.sum(prior.kl(mean, log_stddev, variables, seed))
        return total

    def inform(self, delta):
        """Sets the standard deviations to delta |mean|, and at least 1e-4.

        Reference: Krishnan, Subedar and Tickoo, "Specifying weight priors in Bayesian
        deep neural networks with empirical Bayes", 2020, eq. 6.
        """
        for name, (mean, _) in self.moments().items():
            stddev = ops.maximum(delta * ops.abs(mean), _LEAST_STDDEV)
            self._log_stddevs[name].assign(ops.log(stddev))

    def distribution(self):
        from keras_bdl.interop import tfp

        return tfp.independent_normals(self.moments())

    def get_config(self):
        return {"initial_log_stddev": self.initial_log_stddev}
