"""Weights that are dropped: DropConnect read as a posterior.

Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of neural networks using
DropConnect", 2013; Gal and Ghahramani, "Dropout as a Bayesian approximation", 2016.
"""

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.dtypes import wide
from keras_bdl.posteriors.base import Posterior, register


@register()
class WeightMask(Posterior):
    """W m / (1 - p) with m of independent Bernoulli(1 - p), and W itself in the mean.

    Under the prior N(0, 1 / l^2), whatever prior the layer has, and up to a constant of
    the fixed rate, kl() = l^2 / 2 * sum(W^2) / (1 - p) nats: weight decay.

    Args:
        rate: p, share of the weights to drop, between 0 and 1.
        length_scale: positive float, l; 1 / l is the prior standard deviation of a
            weight.
    """

    of_biases = False
    takes_prior = False
    own_layers = "`DropConnectDense`"

    def __init__(self, rate=0.5, length_scale=0.01):
        super().__init__()
        self.rate = validation.share("rate", rate)
        self.length_scale = validation.positive("length_scale", length_scale)

    def draw(self, seed, num_samples=None):
        weights = {}
        for name, mean in self.mean().items():
            samples = () if num_samples is None else (num_samples,)
            ones = ops.ones((*samples, *mean.shape), dtype=mean.dtype)
            weights[name] = mean * keras.random.dropout(ones, self.rate, seed=seed)
        return weights

    def kl(self, prior, prior_variables, seed):
        squares = sum(ops.sum(ops.square(wide(w))) for w in self._means.values())
        return 0.5 * self.length_scale**2 * squares / (1.0 - self.rate)

    def distribution(self):
        """The bits `keep` of the kernel."""
        from keras_bdl.interop import tfp

        (shape,) = self.shapes.values()
        return tfp.bernoulli_masks(self.rate, shape)

    def get_config(self):
        return {"rate": self.rate, "length_scale": self.length_scale}
