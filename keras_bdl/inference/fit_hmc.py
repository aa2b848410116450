"""Hamiltonian Monte Carlo over the weights of a small network."""

import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bdl.conversion.whole import BayesianModel
from keras_bdl.core import finding, noise, validation
from keras_bdl.core.inputs import check_inputs
from keras_bdl.graphs.copy import trainable_copy
from keras_bdl.inference.fitted import around, compiled_like
from keras_bdl.losses import BetaNLL
from keras_bdl.maps.wrapped import check_no_constraint, weights_inside
from keras_bdl.posteriors import Particles

_CHUNK = 20  # steps between two updates of the progress bar
_START = 0.1  # spread of the chains' first weights, in deviations of the prior
# Of Keras's losses those that are, up to a constant, a negative log likelihood.
_LIKELIHOODS = (
    "binarycrossentropy",
    "categoricalcrossentropy",
    "sparsecategoricalcrossentropy",
    "poisson",
    "kldivergence",
)


def fit_hmc(
    network: keras.Model,
    x: Any,
    y: Any,
    *,
    num_samples: int = 100,
    num_chains: int = 2,
    num_warmup_steps: int = 500,
    thinning: int = 5,
    prior_stddev: float | None = 1.0,
    max_tree_depth: int = 8,
    seed: int | None = None,
    verbose: int | str = "auto",
) -> BayesianModel:
    """Samples the posterior of the weights of a small network by Hamiltonian dynamics.

    The no-U-turn sampler draws from exp(-N loss(w) - |w|^2 / (2 prior_stddev^2)), with
    the compiled loss of the network, regularizers included, as the mean negative log
    likelihood of an example. Every step computes the loss of all rows many times, up to
    2^max_tree_depth: it is for some hundred rows and some thousand weights, and a
    standard by which quicker methods are measured. Frozen weights keep their values,
    and Dropout and batch normalisation are as at inference.

    Args:
        network: built and compiled Keras model, whose weights are in float32. It is
            copied. Its weights are where the chains start: training it before saves
            warm-up.
        x: array of all inputs, or several as the model takes them.
        y: targets, as the loss takes them.
        num_samples: number of weights to keep, of all chains together.
        num_chains: number of chains.
        num_warmup_steps: number of steps that tune the size of a step, >= 10. Their
            weights are not kept.
        thinning: steps from one kept sample of a chain to the next.
        prior_stddev: standard deviation of the prior N(0, prior_stddev^2) of every
            weight, or None for a flat prior, beside a network with regularizers.
        max_tree_depth: logarithm to base 2 of the most gradients of a step, 1 to 12.
        seed: integer for a repeatable sample, or None.
        verbose: 0 for no progress bar.

    Returns:
        Model with the posterior `posteriors.Particles`, compiled with the loss. Its
        attribute `diagnostics` is a dictionary of floats: "acceptance", the mean
        probability of acceptance; "r_hat" of the log density, which is near 1 where
        the chains agree; and "divergences", the share of steps that left the energy. It
        is not saved. A warning says if they are bad.

    Raises:
        TypeError: if the network is not a Keras model, or the data are not arrays.
        ValueError: on another backend than TensorFlow, a wrong argument, a network that
            is not built or compiled, a loss that is no likelihood, weights of another
            dtype or with a constraint, or data of which the loss is not finite.

    Example:

    >>> network.compile(loss=keras.losses.SparseCategoricalCrossentropy(True))
    >>> model = keras_bdl.fit_hmc(network, x, y)
    >>> keras_bdl.predict_uncertainty(model, x_test)

    References: Hoffman and Gelman, "The no-U-turn sampler: adaptively setting path
    lengths in Hamiltonian Monte Carlo", 2014; Neal, "Bayesian learning for neural
    networks", 1996.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "`fit_hmc` runs on the TensorFlow backend, by TensorFlow Probability; set "
            "KERAS_BACKEND=tensorflow, or use `optimizers.SGHMC`. "
            f"Received: backend={keras.backend.backend()!r}"
        )
    num_samples = validation.integer("num_samples", num_samples, least=1)
    num_chains = validation.integer("num_chains", num_chains, least=1, most=num_samples)
    warmup = validation.integer("num_warmup_steps", num_warmup_steps, least=10)
    thinning = validation.integer("thinning", thinning, least=1)
    depth = validation.integer("max_tree_depth", max_tree_depth, least=1, most=12)
    if prior_stddev is not None:
        prior_stddev = validation.positive("prior_stddev", prior_stddev)
    seed = noise.seed_or_new(seed)
    _check(network)
    for name, nest in (("x", x), ("y", y)):
        if not all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(nest)):
            raise TypeError(
                "Expected arrays, all rows of which each step takes. "
                f"Received: {name} of type {type(nest).__name__}"
            )
    check_inputs(network, x)

    target = _LogDensity(network, x, y, prior_stddev)
    starts = target.starts(num_chains, seed)
    from keras_bdl.interop import tensorflow

    sampler = tensorflow.NoUTurn(target, starts, warmup, depth, seed)
    steps = -(-num_samples // num_chains) * thinning
    bar = keras.utils.Progbar(warmup + steps, verbose=1 if verbose else 0)
    chunks = []  # by name, (steps, chains, ...)
    for start in range(0, warmup + steps, _CHUNK):
        count = min(_CHUNK, warmup + steps - start)
        chunks.append(sampler.run(count))
        bar.update(start + count)
    kept = slice(warmup + thinning - 1, None, thinning)
    chains = [np.concatenate(parts)[kept] for parts in zip(*chunks)]
    flat = [part.reshape(-1, *part.shape[2:])[:num_samples] for part in chains]
    model = around(network, Particles(num_samples))
    state = model.bayesian.weights_of(network)  # with that of normalisation
    model.bayesian.posterior.assign_all(  # type: ignore[attr-defined]
        [state | dict(zip(target.names, each)) for each in zip(*flat)]
    )
    model.diagnostics = sampler.diagnostics(warmup)
    _warn(model.diagnostics, num_chains)
    return model


class _LogDensity:
    """The log density of the weights of one network, up to a constant.

    Attributes:
        names: names of the weights, as a wrapper of the network has them.
    """

    def __init__(self, network, x, y, prior_stddev):
        self.prior_stddev = prior_stddev
        self.network = compiled_like(network, trainable_copy(network))
        self.rows = len(keras.tree.flatten(x)[0])
        self.x, self.y = (
            keras.tree.map_structure(ops.convert_to_tensor, nest) for nest in (x, y)
        )
        chosen = weights_inside(self.network, "all")
        self.names, self.variables = list(chosen), list(chosen.values())
        first = float(ops.convert_to_numpy(self(*map(ops.copy, self.variables))))
        if not np.isfinite(first):
            raise ValueError(
                "Expected finite data, of which the network has a finite loss. "
                f"Received: a log density of {first}"
            )

    def __call__(self, *weights):
        pairs = list(zip(self.variables, weights))
        with keras.StatelessScope(state_mapping=pairs):
            outputs = self.network(self.x, training=False)
            loss = self.network.compute_loss(self.x, self.y, outputs, training=False)
        log_density = -self.rows * ops.cast(loss, "float32")
        if self.prior_stddev is not None:
            squares = sum(ops.sum(ops.square(w)) for w in weights)
            log_density -= squares / (2.0 * self.prior_stddev**2)
        return log_density

    def starts(self, num_chains, seed):
        """Returns the first weights of all chains, each `(chains, ...)`."""
        rng = np.random.default_rng(seed)
        scale = _START * (self.prior_stddev or 1.0)
        found = []
        for variable in self.variables:
            value = ops.convert_to_numpy(variable)
            noise = rng.normal(size=(num_chains, *value.shape)) * scale
            noise[0] = 0.0
            found.append((value + noise).astype(value.dtype))
        return found


def _check(network):
    if not isinstance(network, keras.Model):
        raise TypeError(
            f"Expected `network` to be a Keras model. Received: network={network!r}"
        )
    if not (network.built and getattr(network, "loss", None) is not None):
        raise ValueError(
            "Expected `network` to be built, and compiled with the loss whose mean is "
            "the negative log likelihood of an example. "
            f"Received: network={network.name!r}, built={network.built}, "
            f"compiled={network.compiled}"
        )
    for loss in keras.tree.flatten(network.loss):
        if not _is_likelihood(loss):
            raise ValueError(
                "Expected a loss that is a negative log likelihood, such as a "
                "crossentropy, or `losses.GaussianNLL(stddev=s)` for targets with "
                f"noise of standard deviation s. Received: loss={loss!r}"
            )
    check_no_constraint(network.trainable_variables)
    if not network.trainable_variables:
        raise ValueError(
            "Expected a network with trainable weights. "
            f"Received: network={network.name!r}"
        )
    for variable in network.trainable_variables:
        if variable.dtype != "float32":
            raise ValueError(
                "Expected weights in float32, as the policies 'mixed_float16' and "
                "'mixed_bfloat16' have them too. "
                f"Received: weight '{variable.path}' in {variable.dtype}"
            )


def _is_likelihood(loss):
    """Whether a loss may be a likelihood; of a user's own it is taken for granted."""
    name = finding.name_of_keras_loss(loss)
    return not isinstance(loss, BetaNLL) if name is None else name in _LIKELIHOODS


def _warn(diagnostics, num_chains):
    bad = []
    if num_chains > 1 and not diagnostics["r_hat"] < 1.1:
        bad.append(f"the chains disagree (r_hat {diagnostics['r_hat']:.2f})")
    if diagnostics["divergences"] > 0.01:
        bad.append(f"{diagnostics['divergences']:.0%} of the steps diverged")
    if bad:
        warnings.warn(
            f"The sample may not be of the posterior: {' and '.join(bad)}. Train the "
            "network before, give more `num_warmup_steps` or more `thinning`, or a "
            "narrower prior.",
            stacklevel=3,
        )
