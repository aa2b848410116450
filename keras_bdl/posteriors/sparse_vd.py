"""The posterior of sparse variational dropout.

q(w) = N(theta, sigma^2) under a log-uniform prior. Weights of large
alpha = sigma^2 / theta^2 are noise and are removed: Molchanov, Ashukha and Vetrov,
"Variational dropout sparsifies deep neural networks", 2017.
"""

from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.dtypes import wide
from keras_bdl.core.renamed import renamed
from keras_bdl.core.typing import Tensor
from keras_bdl.ops import divergences
from keras_bdl.posteriors.base import register
from keras_bdl.posteriors.gaussian import Gaussian
from keras_bdl.priors import Prior

DIVERGENCES = {
    "exact": divergences.kl_normal_log_uniform,
    "approximate": divergences.kl_normal_log_uniform_approximate,
}


@register()
class SparseVD(Gaussian):
    """Gaussian weights, which are 0 at inference if their noise is too large.

    Args:
        kl_form: "exact" or "approximate", the fit of Molchanov et al. (2017), eq. 14.
            The KL is to the log-uniform prior, whatever prior the layer has.
        threshold: smallest log alpha at which a weight is pruned.
        prune_in_training: whether the means of pruned weights are also 0 in training.
            Their noise stays.
        initial_log_stddev: start of the log standard deviations, from -40 to 10.
    """

    of_biases = False
    can_be_prior = False
    takes_prior = False
    own_layers = "`SparseVDDense` and `SparseVDConv*D`"

    @renamed(kl="kl_form")
    def __init__(
        self,
        kl_form: str = "exact",
        threshold: float = 3.0,
        prune_in_training: bool = False,
        initial_log_stddev: float = -5.0,
    ) -> None:
        super().__init__(initial_log_stddev)
        self.kl_form = validation.choice("kl_form", kl_form, tuple(DIVERGENCES))
        self.threshold = validation.number("threshold", threshold)
        self.prune_in_training = validation.boolean(
            "prune_in_training", prune_in_training
        )

    def log_alphas(self) -> dict[str, Tensor]:
        """Returns log(sigma^2 / theta^2) of every weight by name, in float32.

        For a mean of 0 it is finite, and above 90 if stddev >= exp(-40).
        """
        return {
            name: divergences.log_alpha(mean, wide(self._log_stddevs[name]))
            for name, mean in super().centre().items()
        }

    def mean(self) -> dict[str, Tensor]:
        """Returns the means by name, 0 if log alpha has reached the threshold."""
        means = super().mean()
        return {
            name: ops.where(log_alpha >= self.threshold, 0.0, means[name])
            for name, log_alpha in self.log_alphas().items()
        }

    def centre(self) -> dict[str, Tensor]:
        return self.mean() if self.prune_in_training else super().centre()

    def kl(
        self,
        prior: Prior,
        prior_variables: dict[str, keras.Variable],
        seed: keras.random.SeedGenerator,
    ) -> Tensor:
        terms = map(DIVERGENCES[self.kl_form], self.log_alphas().values())
        return sum(map(ops.sum, terms))

    def get_config(self) -> dict[str, Any]:
        return {
            "kl_form": self.kl_form,
            "threshold": self.threshold,
            "prune_in_training": self.prune_in_training,
            **super().get_config(),
        }
