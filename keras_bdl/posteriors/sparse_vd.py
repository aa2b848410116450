"""The posterior of sparse variational dropout.

q(w) = N(theta, sigma^2) under a log-uniform prior, where weights of large
alpha = sigma^2 / theta^2 are noise and are removed: Molchanov, Ashukha and Vetrov,
"Variational dropout sparsifies deep neural networks", 2017.
"""

from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.dtypes import wide
from keras_bdl.ops import divergences
from keras_bdl.posteriors.base import register
from keras_bdl.posteriors.gaussian import Gaussian

DIVERGENCES = {
    "exact": divergences.kl_normal_log_uniform,
    "approximate": divergences.kl_normal_log_uniform_approximate,
}


@register()
class SparseVD(Gaussian):
    """Gaussian weights that are 0 at inference where their noise is too large.

    Args:
        kl: "exact" or "approximate", the fit of Molchanov et al. (2017), eq. 14. It
            is of the log-uniform prior, whatever prior the layer has.
        threshold: log alpha from which a weight is pruned.
        prune_in_training: whether the means of weights beyond the threshold are 0 in
            training too (their noise stays).
        initial_log_stddev: where the log standard deviations start.
    """

    of_biases = False
    can_be_prior = False
    takes_prior = False
    own_layers = "`SparseVDDense` and `SparseVDConv*D`"

    def __init__(
        self,
        kl="exact",
        threshold=3.0,
        prune_in_training=False,
        initial_log_stddev=-5.0,
    ):
        super().__init__(initial_log_stddev)
        self.kl_form = validation.choice("kl", kl, tuple(DIVERGENCES))
        self.threshold = validation.number("threshold", threshold)
        self.prune_in_training = validation.boolean(
            "prune_in_training", prune_in_training
        )

    def log_alphas(self):
        """log(sigma^2 / theta^2) of every weight, by name, float32.

        That of a mean of 0 is finite, above 90 for every stddev from exp(-40) on.
        """
        return {
            name: divergences.log_alpha(mean, wide(self._log_stddevs[name]))
            for name, mean in super().centre().items()
        }

    def mean(self):
        """Means of the weights, 0 where log alpha has reached the threshold."""
        means = super().mean()
        return {
            name: ops.where(log_alpha >= self.threshold, 0.0, means[name])
            for name, log_alpha in self.log_alphas().items()
        }

    def centre(self):
        return self.mean() if self.prune_in_training else super().centre()

    def kl(self, prior, prior_variables, seed):
        terms = map(DIVERGENCES[self.kl_form], self.log_alphas().values())
        return sum(map(ops.sum, terms))

    def get_config(self):
        return {
            "kl": self.kl_form,
            "threshold": self.threshold,
            "prune_in_training": self.prune_in_training,
            **super().get_config(),
        }
