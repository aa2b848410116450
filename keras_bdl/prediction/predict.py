"""Posterior predictive of any Keras model, and its uncertainty by source."""

import collections
from collections.abc import Sequence
from typing import Any

import keras

from keras_bdl.core import finding, validation
from keras_bdl.prediction.sampler import CLASSIFICATION, make_sampler

OUTPUTS = ("auto", *CLASSIFICATION, "mean", "mean_and_log_stddev")

ClassificationUncertainty = collections.namedtuple(
    "ClassificationUncertainty",
    ["probabilities", "predictive_entropy", "expected_entropy", "mutual_information"],
)
ClassificationUncertainty.__doc__ = """Posterior predictive of a classifier.

All attributes are NumPy arrays.

Attributes:
    probabilities: `(n, classes)`, mean of the samples' probabilities.
    predictive_entropy: `(n,)` in nats, the total uncertainty.
    expected_entropy: `(n,)` in nats, mean entropy of the samples' probabilities. It is
        the aleatoric part, which more data would not remove. This holds as far as the
        samples know the true probabilities: for a network that underfits, it is too
        large.
    mutual_information: `(n,)` in nats, the epistemic part. It measures how much the
        samples disagree.
"""


class RegressionUncertainty(
    collections.namedtuple(
        "RegressionUncertainty", ["mean", "aleatoric_stddev", "epistemic_stddev"]
    )
):
    """Posterior predictive of a regressor.

    All attributes are NumPy arrays.

    Attributes:
        mean: `(n, d)`, mean of the samples.
        aleatoric_stddev: `(n, d)`, root of the mean noise variance that the model
            predicts, or None for a model that predicts only the mean.
        epistemic_stddev: `(n, d)`, standard deviation of the samples' means.
    """

    __slots__ = ()

    @property
    def aleatoric_variance(self) -> Any:
        """Square of `aleatoric_stddev`, or None."""
        return None if self.aleatoric_stddev is None else self.aleatoric_stddev**2

    @property
    def epistemic_variance(self) -> Any:
        """Square of `epistemic_stddev`."""
        return self.epistemic_stddev**2


def predict(
    model: keras.Model,
    x: Any,
    num_samples: int | None = None,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    verbose: int | str = "auto",
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    seed: int | None = None,
    outputs: Any = "auto",
    return_samples: bool = False,
    mc_dropout: bool = False,
) -> Any:
    """Returns the posterior predictive mean of a model, or draws from the predictive.

    Works for Sequential, functional, subclassed and nested models with
    keras_bdl layers. With `mc_dropout=True` it works for models with
    `keras.layers.Dropout`.

    The mean is exact in expectation for every row. Rows share the noise of a
    sample, so they are correlated: an average over a data set carries more
    Monte Carlo noise than independent rows would.

    On JAX it cannot be called from a callback in the middle of an epoch. The same is
    true of `model.predict`.

    Args:
        model: a Keras model with at least one sampled layer.
        x: whatever `model.predict` takes: NumPy arrays, a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or a generator.
        num_samples: positive integer S, number of posterior samples, or None for 32,
            or for all members of an ensemble.
        batch_size, steps, verbose, callbacks: as in `keras.Model.predict`.
        seed: integer for repeatable results, or None for a fresh seed. A fresh seed
            is drawn from Python's `random`, so `keras.utils.set_random_seed` repeats
            it.
        outputs: kind of the model's outputs. For "logits" the softmax of each sample
            is averaged, for "binary_logits" (independent labels) the sigmoid.
            "probabilities", "binary_probabilities", "mean" and "mean_and_log_stddev"
            are averaged as they are. "auto" takes "logits" for a keras_bdl classifier
            and for a model compiled with a cross-entropy with `from_logits=True`. It
            takes the kind that a loss of `keras_bdl.losses` declares, and otherwise
            averages the outputs as they are. For several outputs it may be a list or
            a dict of kinds, nested like them.
        return_samples: whether to return the draws. Each draw is one function: one
            weight draw for all rows and batches, the same for the same seed.
        mc_dropout: whether plain Dropout layers sample too (Gal and Ghahramani,
            "Dropout as a Bayesian approximation", 2016), and the dropout inside
            `SimpleRNN`, `GRU` and `LSTM`, with one mask for all steps (the same, "A
            theoretically grounded application of dropout in recurrent neural
            networks", 2016). Batch normalisation stays in inference mode.

    Returns:
        NumPy array `(n, ...)`, or `(S, n, ...)` with `return_samples`, nested like
        the model's outputs.

    Raises:
        ValueError: if nothing in the model is sampled, an argument is wrong, or
            a layer keeps state or noise of its own from one call to the next.

    Example:

    >>> probabilities = keras_bdl.predict(model, x_test, num_samples=100)
    >>> lines = keras_bdl.predict(model, x_grid, return_samples=True, seed=0)
    """
    kind = resolve_outputs(model, outputs)
    return_samples = validation.boolean("return_samples", return_samples)
    sampler = make_sampler(
        model,
        num_samples,
        "samples" if return_samples else "mean",
        kind,
        mc_dropout,
        joint=return_samples,
    )
    return sampler.run(x, seed, batch_size, steps, verbose, callbacks)


def predict_uncertainty(
    model: keras.Model,
    x: Any,
    num_samples: int | None = None,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    verbose: int | str = "auto",
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    seed: int | None = None,
    outputs: Any = "auto",
    mc_dropout: bool = False,
) -> Any:
    """Returns the posterior predictive with its uncertainty split by source.

    Args:
        model, x, num_samples, batch_size, steps, verbose, callbacks, seed,
            mc_dropout: as in `predict`.
        outputs: kind of the model's outputs. "logits" and "probabilities" mean
            classification with the classes along the last axis; a single class stands
            for a binary problem. "binary_logits" and "binary_probabilities"
            `(n, labels)` mean classification with independent labels, and each label
            has its own entropies, `(n, labels)`. "mean" `(n, d)` and
            "mean_and_log_stddev" `(n, 2d)`, means first, mean regression. "auto" takes
            the kind from the compiled loss or from the keras_bdl model class. For
            several outputs it may be a list or a dict of kinds, nested like them.

    Returns:
        `ClassificationUncertainty` or `RegressionUncertainty`, named tuples of
        NumPy arrays. For several outputs, a list or a dict of them, nested like the
        model's outputs.

    Raises:
        ValueError: as in `predict`, or if the kind of an output is unknown.

    Example:

    >>> result = keras_bdl.predict_uncertainty(model, x_test, num_samples=100)
    >>> result.mutual_information.argsort()[-10:]  # the ten most novel inputs
    """
    kind = resolve_outputs(model, outputs)
    if kind is None or (isinstance(kind, tuple) and None in kind):
        raise ValueError(
            "Cannot tell what the model's outputs are: compile it with a "
            "cross-entropy or a regression loss, or give "
            f"`outputs`, one of {OUTPUTS[1:]}. Received: outputs={outputs!r}"
        )
    sampler = make_sampler(model, num_samples, "uncertainty", kind, mc_dropout)
    result = sampler.run(x, seed, batch_size, steps, verbose, callbacks)
    if isinstance(result, dict):
        return _named(result)
    return keras.tree.pack_sequence_as(sampler.structure, list(map(_named, result)))


def _named(result):
    """Returns the named tuple of the statistics of one output."""
    if "probabilities" in result:
        return ClassificationUncertainty(**result)
    return RegressionUncertainty(**{"aleatoric_stddev": None, **result})


def resolve_outputs(model, outputs):
    """Returns the kind of a model's outputs, or None if "auto" cannot tell.

    For several outputs of different kinds it is a tuple, in the order of
    `keras.tree.flatten`.
    """
    if isinstance(outputs, (dict, list, tuple)):
        kinds = keras.tree.flatten(outputs)
        return tuple(validation.choice("outputs", kind, OUTPUTS[1:]) for kind in kinds)
    validation.choice("outputs", outputs, OUTPUTS)
    if outputs != "auto":
        return outputs
    declared = getattr(model, "outputs_kind", None)
    if declared is not None:
        return declared
    losses = getattr(model, "loss", None)
    if not isinstance(losses, (dict, list, tuple)):
        return _kind_of_loss(losses)
    if isinstance(losses, dict):
        # Losses may have the names of outputs that are in a list.
        nest = getattr(finding.described(model), "output", None)
        names = sorted(nest) if isinstance(nest, dict) else model.output_names
        losses = [losses.get(name) for name in names or sorted(losses)]
    kinds = tuple(map(_kind_of_loss, keras.tree.flatten(losses)))
    return kinds[0] if len(kinds) == 1 else kinds


def _kind_of_loss(loss):
    """Returns the kind of the outputs that a loss takes, or None if it is unknown."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if hasattr(loss, "outputs_kind"):
        return loss.outputs_kind
    name = finding.name_of_keras_loss(loss)
    if name is None:
        return None  # the user's own loss: of logits, probabilities or means
    if "crossentropy" not in name:
        return "mean"
    kind = "logits" if getattr(loss, "from_logits", False) else "probabilities"
    return f"binary_{kind}" if "binary" in name else kind
