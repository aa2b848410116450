"""Likelihoods of a decoder's outputs: log p(x | z), its mean and its draws."""

import math

import keras
import numpy as np
from keras import ops, random

from keras_bdl import losses
from keras_bdl.graphs import heads
from keras_bdl.ops import likelihoods


class Observation:
    """The likelihood of a decoder's outputs, with one subclass for each loss.

    Args:
        loss: loss of `keras_bdl.losses`.
    """

    num_parameters = 1  # outputs of the decoder for each value
    is_categorical = False  # whether they are logits on an axis of their own
    parameters = "parameters of any sign"  # the decoder's outputs in words
    activations: tuple[str, ...] = (heads.LINEAR,)  # the decoder may end in these

    def __init__(self, loss):
        self.loss = loss
        self.activation = heads.LINEAR  # the activation that the decoder ends in

    def read_head(self, decoder):
        """Stores the activation that a built decoder ends in.

        Raises:
            ValueError: if it does not fit the likelihood.
        """
        head = heads.find(decoder)
        if head is None:
            return
        if head.activation not in self.activations:
            heads.refuse(decoder, head, "decoder", self.parameters)
        self.activation = head.activation

    def log_prob(self, x, outputs):
        """Returns log p(x | z) of each row in nats, `(n,)`."""
        return -self.loss.row_losses(x, outputs)

    def check(self, x):
        """Refuses NumPy data outside of the likelihood's range.

        Raises:
            ValueError: on such data.
        """
        self.check_finite(x)

    def mean(self, outputs):
        """Returns the mean of p(x | z) in the shape of x."""
        raise NotImplementedError

    def draw(self, outputs, seed):
        """Draws from p(x | z) in the shape of x."""
        raise NotImplementedError

    def bias(self, mean, variance):
        """Returns outputs with this mean and variance of each value, or None."""
        return None

    def check_finite(self, x):
        """Refuses NumPy data that are NaN or infinite.

        Raises:
            ValueError: on such data.
        """
        if not np.isfinite(x).all():
            raise ValueError(
                "Expected finite data. Received: "
                f"{np.count_nonzero(~np.isfinite(x))} values NaN or infinite"
            )

    def _check_range(self, x, low, high, fix):
        self.check_finite(x)
        if x.size and not (x.min() >= low and x.max() <= high):
            raise ValueError(
                f"Expected values from {low:g} to {high:g} for "
                f"{type(self.loss).__name__}; {fix}. "
                f"Received: values from {x.min():g} to {x.max():g}"
            )


class LogitsObservation(Observation):
    """Base of likelihoods of logits, to which an activation may have been applied."""

    def logits(self, outputs):
        """Returns the logits that the outputs stand for."""
        return heads.logits(outputs, self.activation)

    def log_prob(self, x, outputs):
        return super().log_prob(x, self.logits(outputs))

    def looks_like_probabilities(self, outputs):
        """Tells whether NumPy outputs `(n, ...)` of many codes are hardly logits."""
        raise NotImplementedError


class BernoulliObservation(LogitsObservation):
    """Bits, or values from 0 to 1."""

    parameters = "logits, or their sigmoid"
    activations = ("linear", "sigmoid")

    def looks_like_probabilities(self, outputs):
        # Logits of many codes hardly all lie between 0 and 1, unless all are equal.
        return bool(outputs.min() > 0.0 and outputs.max() < 1.0 and outputs.std() > 0.0)

    def check(self, x):
        self._check_range(x, 0.0, 1.0, "divide 8-bit pixels by 255")

    def mean(self, outputs):
        return ops.sigmoid(self.logits(outputs))

    def draw(self, outputs, seed):
        uniform = random.uniform(ops.shape(outputs), seed=seed, dtype=outputs.dtype)
        return ops.cast(uniform < self.mean(outputs), outputs.dtype)

    def bias(self, mean, variance):
        mean = np.clip(mean, 1e-3, 1.0 - 1e-3)
        return np.log(mean) - np.log1p(-mean)


class GaussianObservation(Observation):
    """Real values, with a learned or a given standard deviation."""

    def __init__(self, loss):
        super().__init__(loss)
        self.num_parameters = 2 if loss.stddev is None else 1
        if loss.stddev is not None:  # only means, and no link follows
            self.activations = (heads.LINEAR, *heads.OF_MEANS)
            self.parameters = f"means of any sign, or after one of {heads.OF_MEANS}"

    def _moments(self, outputs):
        if self.loss.stddev is None:
            return ops.split(outputs, 2, axis=-1)
        return outputs, ops.cast(math.log(self.loss.stddev), outputs.dtype)

    def mean(self, outputs):
        return self._moments(outputs)[0]

    def draw(self, outputs, seed):
        mean, log_stddev = self._moments(outputs)
        noise = random.normal(ops.shape(mean), seed=seed, dtype=mean.dtype)
        return mean + ops.exp(log_stddev) * noise

    def bias(self, mean, variance):
        if self.loss.stddev is not None:
            return mean if self.activation == heads.LINEAR else None
        # A value that is constant keeps some noise.
        log_stddev = 0.5 * np.log(np.maximum(variance, 1e-2 * variance.mean() + 1e-12))
        return np.concatenate([mean, log_stddev], axis=-1)


class CategoricalObservation(LogitsObservation):
    """Levels 0 ... k - 1."""

    is_categorical = True
    parameters = "logits, or their softmax"
    activations = ("linear", "log_softmax", "softmax")

    def looks_like_probabilities(self, outputs):
        sums = outputs.sum(axis=-1)
        return bool(outputs.min() >= 0.0 and np.abs(sums - 1.0).max() < 1e-3)

    def check(self, x):
        self.check_finite(x)
        if x.size and not (x.min() >= 0 and np.array_equal(x, np.round(x))):
            raise ValueError(
                "Expected levels, integers from 0, for a categorical likelihood. "
                f"Received: values from {x.min():g} to {x.max():g}"
            )

    def check_levels(self, x, num_levels):
        """Refuses NumPy data with levels that have no logit.

        Raises:
            ValueError: on such data.
        """
        self._check_range(x, 0, num_levels - 1, "the decoder has a logit for each")

    def mean(self, outputs):
        levels = ops.cast(ops.arange(outputs.shape[-1]), outputs.dtype)
        probabilities = ops.softmax(self.logits(outputs), axis=-1)
        return ops.sum(probabilities * levels, axis=-1)

    def draw(self, outputs, seed):
        flat = ops.reshape(self.logits(outputs), (-1, outputs.shape[-1]))
        drawn = random.categorical(flat, 1, dtype="int32", seed=seed)
        return ops.cast(ops.reshape(drawn, ops.shape(outputs)[:-1]), outputs.dtype)


class DiscretizedLogisticObservation(Observation):
    """Equally spaced levels, such as those of images."""

    num_parameters = 2

    def check(self, x):
        self._check_range(
            x, self.loss.low, self.loss.high, "they are the first and the last level"
        )

    def mean(self, outputs):
        location, log_scale = ops.split(outputs, 2, axis=-1)
        loss = self.loss
        return likelihoods.discretized_logistic_mean(
            location, log_scale, loss.levels, loss.low, loss.high
        )

    def draw(self, outputs, seed):
        location, log_scale = ops.split(outputs, 2, axis=-1)
        uniform = random.uniform(
            ops.shape(location), 1e-6, 1.0 - 1e-6, seed=seed, dtype=location.dtype
        )
        logistic = ops.log(uniform) - ops.log1p(-uniform)
        values = location + ops.exp(log_scale) * logistic
        width = (self.loss.high - self.loss.low) / (self.loss.levels - 1)
        level = ops.round((values - self.loss.low) / width)
        return self.loss.low + width * ops.clip(level, 0, self.loss.levels - 1)

    def bias(self, mean, variance):
        # A logistic's variance is (pi scale)^2 / 3.
        variance = np.maximum(variance, 1e-2 * variance.mean() + 1e-12)
        scale = np.sqrt(3.0 * variance) / np.pi
        # The mean of a logistic variable that is clipped to low and high is
        # low + scale log((1 + e^((location - low) / scale))
        #                 / (1 + e^((location - high) / scale))), solved for location.
        low, high = self.loss.low, self.loss.high
        margin = 1e-3 * (high - low)
        mean = np.clip(mean, low + margin, high - margin).astype("float64")
        from_low, to_high = (mean - low) / scale, (high - mean) / scale
        shift = np.log(-np.expm1(-from_low)) - np.log(-np.expm1(-to_high))
        return np.concatenate([mean + scale * shift, np.log(scale)], axis=-1)


class TFPObservation(Observation):
    """Values of a TensorFlow Probability distribution.

    The mean is NaN or infinite for parameters without a mean.
    """

    def __init__(self, loss):
        super().__init__(loss)
        self.num_parameters = len(loss.parameters)
        self._has_mean = self._find_mean()

    def _find_mean(self):
        """Tells whether the distribution has a mean for a choice of outputs."""
        outputs = np.full((1, self.num_parameters), 5.0, "float32")
        try:
            mean = self.loss.make(ops.convert_to_tensor(outputs)).mean()
        except NotImplementedError:
            return False
        return bool(np.isfinite(ops.convert_to_numpy(mean)).all())

    def mean(self, outputs):
        if not self._has_mean:
            raise ValueError(
                "TensorFlow Probability knows no mean of this distribution, which "
                "`predict`, `decode` and `reconstruct` return; draw by "
                "`sample(num_samples, with_noise=True)`. "
                f"Received: distribution={self.loss.distribution!r}"
            )
        return self.loss.make(outputs).mean()

    def draw(self, outputs, seed):
        from keras_bdl.interop import tfp
        from keras_bdl.priors.codes import random_seed

        return ops.cast(
            tfp.sample(self.loss.make(outputs), (), random_seed(seed)), outputs.dtype
        )


_BY_NAME = {
    "bernoulli": losses.BernoulliNLL,
    "gaussian": losses.GaussianNLL,
    "categorical": losses.CategoricalNLL,
    "discretized_logistic": losses.DiscretizedLogisticNLL,
}
_BY_LOSS = {
    losses.BernoulliNLL: BernoulliObservation,
    losses.GaussianNLL: GaussianObservation,
    losses.CategoricalNLL: CategoricalObservation,
    losses.DiscretizedLogisticNLL: DiscretizedLogisticObservation,
    losses.TFPNLL: TFPObservation,
}


def get(likelihood):
    """Returns the `Observation` of a name or a loss.

    Raises:
        ValueError: if `likelihood` is neither.
    """
    if isinstance(likelihood, str) and likelihood in _BY_NAME:
        likelihood = _BY_NAME[likelihood]()
    if isinstance(likelihood, dict):
        likelihood = keras.saving.deserialize_keras_object(likelihood)
    if type(likelihood) in _BY_LOSS:
        return _BY_LOSS[type(likelihood)](likelihood)
    raise ValueError(
        f"Expected `likelihood` to be one of {sorted(_BY_NAME)} or a loss of "
        f"{sorted(cls.__name__ for cls in _BY_LOSS)}. "
        f"Received: likelihood={likelihood!r}"
    )
