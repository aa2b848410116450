"""Priors of weights: serialisable, each with its KL from a Gaussian posterior.

Closed forms where they exist (`Normal`, `LearnedNormal`, `Laplace`,
`LogUniform`); otherwise `-H(q) - log p(w)` at the prior's own draw w of q, which
is unbiased and needs nothing of the forward pass, so that every estimator
serves every prior.
"""

import math

import keras
from keras import backend, ops, random

from keras_bdl.core import validation
from keras_bdl.ops import divergences

PACKAGE = "keras_bdl"


class Prior:
    """Base class: one prior for all weights of a layer, each independent.

    Subclasses implement `log_prob`, and `kl` if it has a closed form. `kl_terms`
    is what layers call. `build` makes variables, kept by the layer.
    """

    closed_form = True
    proper = True

    def build(self, add_weight, shapes):
        """Makes the prior's own variables: a dict of name to variable.

        Args:
            add_weight: of the layer that keeps them.
            shapes: of the tensors of weights, by name ("kernel", "bias").
        """
        del add_weight, shapes
        return {}

    def of(self, name, variables):
        """Those variables that `kl` and `log_prob` of one tensor of weights take."""
        del name
        return variables

    def log_prob(self, weights, variables=None):
        """log p(w) in nats, one value per weight."""
        raise NotImplementedError

    def kl(self, mean, log_stddev, variables, seed):
        """KL(q || prior) in nats, one value per weight.

        Args:
            mean, log_stddev: of the Gaussian posterior, float32 or float64.
            variables: what `build` returned.
            seed: `keras.random.SeedGenerator`, used where there is no closed form.
        """
        noise = random.normal(ops.shape(mean), dtype=mean.dtype, seed=seed)
        weights = mean + ops.exp(log_stddev) * noise
        return divergences.kl_monte_carlo(log_stddev, self.log_prob(weights, variables))

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


@keras.saving.register_keras_serializable(PACKAGE)
class Normal(Prior):
    """N(mean, stddev^2) for every weight: the default, with stddev 1.

    Args:
        mean: float.
        stddev: positive float, a standard deviation.

    Example:

    >>> keras_bdl.VariationalDense(10, prior=keras_bdl.priors.Normal(stddev=0.1))
    """

    def __init__(self, mean=0.0, stddev=1.0):
        self.mean = validation.number("mean", mean)
        self.stddev = validation.positive("stddev", stddev)

    def log_prob(self, weights, variables=None):
        return divergences.normal_log_prob(weights, self.mean, math.log(self.stddev))

    def kl(self, mean, log_stddev, variables, seed):
        return divergences.kl_normal_normal_log(
            mean, log_stddev, self.mean, ops.cast(math.log(self.stddev), mean.dtype)
        )

    def get_config(self):
        return {"mean": self.mean, "stddev": self.stddev}


@keras.saving.register_keras_serializable(PACKAGE)
class NormalPerWeight(Prior):
    """N(mean_i, stddev_i^2), with numbers of its own for every weight.

    They are non-trainable variables of the layer, `prior_kernel_mean`,
    `prior_kernel_log_stddev` and so for the bias, and are saved with it. To begin with
    they are 0 and `stddev`; `to_bayesian(model, moped=delta)` sets the means, and
    `prior_from_posterior(model)` both.

    Args:
        stddev: positive float, where all standard deviations start.
    """

    def __init__(self, stddev=1.0):
        self.stddev = validation.positive("stddev", stddev)

    def build(self, add_weight, shapes):
        starts = {"mean": 0.0, "log_stddev": math.log(self.stddev)}
        return {
            f"prior_{name}_{part}": add_weight(
                name=f"prior_{name}_{part}",
                shape=shape,
                initializer=keras.initializers.Constant(start),
                trainable=False,
            )
            for name, shape in shapes.items()
            for part, start in starts.items()
        }

    def of(self, name, variables):
        return {p: variables[f"prior_{name}_{p}"] for p in ("mean", "log_stddev")}

    def _moments(self, variables, dtype):
        values = (variables["mean"], variables["log_stddev"])
        return [ops.cast(ops.convert_to_tensor(v), dtype) for v in values]

    def log_prob(self, weights, variables=None):
        moments = self._moments(variables, weights.dtype)
        return divergences.normal_log_prob(weights, *moments)

    def kl(self, mean, log_stddev, variables, seed):
        moments = self._moments(variables, mean.dtype)
        return divergences.kl_normal_normal_log(mean, log_stddev, *moments)

    def get_config(self):
        return {"stddev": self.stddev}


@keras.saving.register_keras_serializable(PACKAGE)
class LearnedNormal(Prior):
    """N(0, s^2) with s learned beside the posterior (empirical Bayes).

    Each layer learns its own log s, shared by its weights and biases, by
    maximising the evidence lower bound.

    Args:
        initial_stddev: positive float, where s starts.
    """

    def __init__(self, initial_stddev=0.1):
        self.initial_stddev = validation.positive("initial_stddev", initial_stddev)

    def build(self, add_weight, shapes):
        log_stddev = add_weight(
            name="prior_log_stddev",
            shape=(),
            initializer=keras.initializers.Constant(math.log(self.initial_stddev)),
        )
        return {"prior_log_stddev": log_stddev}

    def _log_stddev(self, variables, dtype):
        return ops.cast(ops.convert_to_tensor(variables["prior_log_stddev"]), dtype)

    def log_prob(self, weights, variables=None):
        log_stddev = self._log_stddev(variables, weights.dtype)
        return divergences.normal_log_prob(weights, 0.0, log_stddev)

    def kl(self, mean, log_stddev, variables, seed):
        return divergences.kl_normal_normal_log(
            mean, log_stddev, 0.0, self._log_stddev(variables, mean.dtype)
        )

    def get_config(self):
        return {"initial_stddev": self.initial_stddev}


@keras.saving.register_keras_serializable(PACKAGE)
class ScaleMixture(Prior):
    """weight N(0, stddev1^2) + (1 - weight) N(0, stddev2^2).

    Blundell, Cornebise, Kavukcuoglu and Wierstra, "Weight uncertainty in neural
    networks", 2015, eq. 7.

    Args:
        weight: float in (0, 1), the share of the first component.
        stddev1: positive float, the wide component.
        stddev2: positive float, the narrow component.
    """

    closed_form = False

    def __init__(self, weight=0.5, stddev1=1.0, stddev2=0.0025):
        self.weight = validation.positive("weight", weight)
        if self.weight >= 1.0:
            raise ValueError(
                f"Expected `weight` between 0 and 1. Received: weight={weight}"
            )
        self.stddev1 = validation.positive("stddev1", stddev1)
        self.stddev2 = validation.positive("stddev2", stddev2)

    def log_prob(self, weights, variables=None):
        wide = divergences.normal_log_prob(weights, 0.0, math.log(self.stddev1))
        narrow = divergences.normal_log_prob(weights, 0.0, math.log(self.stddev2))
        terms = [wide + math.log(self.weight), narrow + math.log(1.0 - self.weight)]
        return ops.logsumexp(ops.stack(terms), axis=0)

    def get_config(self):
        return {
            "weight": self.weight,
            "stddev1": self.stddev1,
            "stddev2": self.stddev2,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class Laplace(Prior):
    """exp(-|w - mean| / scale) / (2 scale).

    Args:
        mean: float.
        scale: positive float; the standard deviation is scale sqrt(2).
    """

    def __init__(self, mean=0.0, scale=1.0):
        self.mean = validation.number("mean", mean)
        self.scale = validation.positive("scale", scale)

    def log_prob(self, weights, variables=None):
        return -ops.abs(weights - self.mean) / self.scale - math.log(2.0 * self.scale)

    def kl(self, mean, log_stddev, variables, seed):
        return divergences.kl_normal_laplace(mean, log_stddev, self.mean, self.scale)

    def get_config(self):
        return {"mean": self.mean, "scale": self.scale}


@keras.saving.register_keras_serializable(PACKAGE)
class StudentT(Prior):
    """Student's t with `df` degrees of freedom, times `scale`, plus `mean`.

    Args:
        df: positive float, degrees of freedom.
        mean: float.
        scale: positive float.
    """

    closed_form = False

    def __init__(self, df=4.0, mean=0.0, scale=1.0):
        self.df = validation.positive("df", df)
        self.mean = validation.number("mean", mean)
        self.scale = validation.positive("scale", scale)

    def log_prob(self, weights, variables=None):
        half = 0.5 * (self.df + 1.0)
        constant = (
            math.lgamma(half)
            - math.lgamma(0.5 * self.df)
            - 0.5 * math.log(self.df * math.pi)
            - math.log(self.scale)
        )
        scale = self.scale * math.sqrt(self.df)
        z = (weights - self.mean) / scale
        return constant - half * divergences.log1p_square(z)

    def get_config(self):
        return {"df": self.df, "mean": self.mean, "scale": self.scale}


@keras.saving.register_keras_serializable(PACKAGE)
class LogUniform(Prior):
    """p(|w|) proportional to 1 / |w|: improper, the prior of variational dropout.

    Its KL is defined up to an infinite constant and depends on
    alpha = stddev^2 / mean^2 alone; it is exact (see
    `ops.divergences.kl_normal_log_uniform`) and falls to 0 as alpha grows.
    """

    proper = False

    def log_prob(self, weights, variables=None):
        """log p(w) up to a constant: -log |w|."""
        return -divergences.log_abs(weights)

    def kl(self, mean, log_stddev, variables, seed):
        log_alpha = divergences.log_alpha(mean, log_stddev)
        return divergences.kl_normal_log_uniform(log_alpha)


@keras.saving.register_keras_serializable(PACKAGE)
class TFPPrior(Prior):
    """Any scalar distribution of TensorFlow Probability, by name.

    Needs the TensorFlow backend. Its KL is estimated by one draw per weight.

    Args:
        distribution: name of a class of `tfp.distributions`, like "Horseshoe".
        **parameters: the distribution's arguments, as numbers.

    Example:

    >>> prior = keras_bdl.priors.TFPPrior("Horseshoe", scale=1.0)
    >>> layer = keras_bdl.VariationalDense(10, prior=prior)
    """

    closed_form = False

    def __init__(self, distribution, **parameters):
        if backend.backend() != "tensorflow":
            raise ValueError(
                "`TFPPrior` works on the TensorFlow backend only; take one of the "
                "other priors, or set KERAS_BACKEND=tensorflow. Received: "
                f"backend={backend.backend()!r}"
            )
        self.distribution = distribution
        self.parameters = parameters
        self._make(validate_args=True)  # refuses here, not in training

    def _make(self, validate_args=False):
        from keras_bdl.interop import tfp

        return tfp.make_distribution(self.distribution, self.parameters, validate_args)

    def log_prob(self, weights, variables=None):
        # Made anew in every trace: its constants belong to that graph.
        return self._make().log_prob(weights)

    def get_config(self):
        return {"distribution": self.distribution, **self.parameters}


_BY_NAME = {
    "normal": Normal,
    "learned_normal": LearnedNormal,
    "scale_mixture": ScaleMixture,
    "laplace": Laplace,
    "student_t": StudentT,
    "log_uniform": LogUniform,
}


def get(identifier):
    """A prior from a prior, a name like "normal", or a serialised config.

    Raises:
        ValueError: if the identifier is none of these.
    """
    if isinstance(identifier, Prior):
        return identifier
    if isinstance(identifier, str) and identifier in _BY_NAME:
        return _BY_NAME[identifier]()
    if isinstance(identifier, dict):
        try:
            prior = keras.saving.deserialize_keras_object(identifier)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"Cannot read `prior` from this config: {error} "
                f"Received: prior={identifier!r}"
            ) from error
        if isinstance(prior, Prior):
            return prior
    raise ValueError(
        f"Expected `prior` to be a `keras_bdl.priors.Prior` or one of "
        f"{sorted(_BY_NAME)}. Received: prior={identifier!r}"
    )
