"""DropConnect, which drops weights at random, as a posterior over the weights.

Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of neural networks using
DropConnect", 2013; Gal and Ghahramani, "Dropout as a Bayesian approximation", 2016.
"""

from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.dtypes import wide
from keras_bdl.core.typing import Tensor
from keras_bdl.posteriors.base import Posterior, register
from keras_bdl.priors import Prior


@register()
class WeightMask(Posterior):
    """Weights W m / (1 - p), with independent entries of m from Bernoulli(1 - p).

    The mean of the weights is W. The prior is N(0, 1 / l^2), whatever prior the layer
    has. `kl()` is weight decay: up to a constant that depends on the fixed rate only,
    it is l^2 / 2 * sum(W^2) / (1 - p) nats.

    Args:
        rate: p, share of the weights to drop, between 0 and 1.
        length_scale: positive float l. The prior standard deviation of a weight is
            1 / l.
    """

    of_biases = False
    takes_prior = False
    own_layers = "`DropConnectDense`"

    def __init__(self, rate: float = 0.5, length_scale: float = 0.01) -> None:
        super().__init__()
        self.rate = validation.share("rate", rate)
        self.length_scale = validation.positive("length_scale", length_scale)

    def draw(
        self, seed: keras.random.SeedGenerator, num_samples: int | None = None
    ) -> dict[str, Tensor]:
        weights = {}
        for name, mean in self.mean().items():
            samples = () if num_samples is None else (num_samples,)
            ones = ops.ones((*samples, *mean.shape), dtype=mean.dtype)
            weights[name] = mean * keras.random.dropout(ones, self.rate, seed=seed)
        return weights

    def kl(
        self,
        prior: Prior,
        prior_variables: dict[str, keras.Variable],
        seed: keras.random.SeedGenerator,
    ) -> Tensor:
        squares = sum(ops.sum(ops.square(wide(w))) for w in self._means.values())
        return 0.5 * self.length_scale**2 * squares / (1.0 - self.rate)

    def distribution(self) -> Any:
        """Returns the distribution of the bits `keep` of the kernel."""
        from keras_bdl.interop import tfp

        (shape,) = self.shapes.values()
        return tfp.bernoulli_masks(self.rate, shape)

    def get_config(self) -> dict[str, Any]:
        return {"rate": self.rate, "length_scale": self.length_scale}
