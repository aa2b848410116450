"""Measures of predictive uncertainty and calibration. Logarithms are natural.

Probabilities have classes on their last axis; those of a binary model are P(class 1),
`(..., 1)`. Posterior samples have a first axis of samples: `(num_samples, ...,
classes)`. Labels are class indices, or rows of class probabilities (one-hot or soft);
with a binary model they are P(class 1). Everything is computed in float32 (float64
stays float64). Entropies are in nats.

Rows that are not a distribution over classes, and labels that are not a class, raise an
error where values are known, and give NaN in traced code.
"""

import math

import numpy as np
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.typing import ArrayLike, Tensor
from keras_bdl.ops import class_labels
from keras_bdl.ops.class_labels import class_indices, wide

__all__ = [
    "auroc",
    "brier_score",
    "calibration_bins",
    "calibration_error",
    "class_indices",
    "entropy",
    "expected_entropy",
    "mean_outputs",
    "mutual_information",
    "negative_log_likelihood",
    "predictive_entropy",
]

_TINY = 1e-30


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy -sum_k p_k log p_k in nats, shape `probabilities.shape[:-1]`."""
    p = class_labels.class_probabilities(probabilities)
    return -ops.sum(p * ops.log(ops.maximum(p, _TINY)), axis=-1)


def mean_outputs(outputs: Tensor, kind: str | None) -> Tensor:
    """Returns the outputs that predict what several outputs predict on average.

    Logits are those of the mean probabilities. For "mean_and_log_stddev" it is the mean
    and the standard deviation of the mixture. Others are averaged as they are.

    Args:
        outputs: `(num_samples, n, ...)`.
        kind: kind of the outputs, as in `keras_bdl.predict`, or None.

    Returns:
        Outputs of the same kind, `(n, ...)`.
    """
    if kind == "logits" and outputs.shape[-1] > 1:
        return _log_mean_exp(ops.log_softmax(wide(outputs), axis=-1))
    if kind in ("logits", "binary_logits"):
        outputs = wide(outputs)
        zero = ops.zeros_like(outputs)
        yes, no = -ops.logaddexp(zero, -outputs), -ops.logaddexp(zero, outputs)
        return _log_mean_exp(yes) - _log_mean_exp(no)
    if kind == "mean_and_log_stddev":
        means, log_stddevs = ops.split(wide(outputs), 2, axis=-1)
        mean = ops.mean(means, axis=0)
        variance = ops.mean(ops.exp(2.0 * log_stddevs), axis=0)
        variance = variance + ops.mean(ops.square(means - mean), axis=0)
        return ops.concatenate([mean, 0.5 * ops.log(variance)], axis=-1)
    return ops.mean(outputs, axis=0)


def _log_mean_exp(x):
    return ops.logsumexp(x, axis=0) - math.log(x.shape[0])


def predictive_entropy(sample_probabilities: Tensor) -> Tensor:
    """Entropy of the mean prediction in nats, a measure of total uncertainty.

    Args:
        sample_probabilities: `(num_samples, ..., classes)`.
    """
    return entropy(ops.mean(wide(sample_probabilities), axis=0))


def expected_entropy(sample_probabilities: Tensor) -> Tensor:
    """Mean entropy of the samples, in nats.

    It estimates the aleatoric uncertainty, that of the label given the weights, as far
    as the model is right. More data changes it too.

    Args:
        sample_probabilities: `(num_samples, ..., classes)`.
    """
    return ops.mean(entropy(sample_probabilities), axis=0)


def mutual_information(sample_probabilities: Tensor) -> Tensor:
    """Epistemic uncertainty in nats: I(y; w | x) = predictive - expected entropy.

    Houlsby, Huszar, Ghahramani and Lengyel, "Bayesian active learning for
    classification and preference learning", 2011, eq. 1. The result is never negative,
    because rounding errors are clipped.

    Args:
        sample_probabilities: `(num_samples, ..., classes)`.
    """
    total = predictive_entropy(sample_probabilities)
    return ops.maximum(total - expected_entropy(sample_probabilities), 0.0)


def negative_log_likelihood(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Computes -log p(label) per row, in nats.

    For a soft label it is the cross-entropy, -sum_k y_k log p_k.

    Args:
        labels: class indices, or rows of class probabilities.
        probabilities: `(..., classes)`, or P(class 1) of a binary model.
    """
    labels, p = class_labels.as_classes(labels, probabilities)
    p = class_labels.class_probabilities(p)
    return -class_labels.mean_over_labels(labels, ops.log(ops.maximum(p, _TINY)))


def brier_score(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Computes sum_k (p_k - [k = label])^2 per row, in [0, 2] (Brier, 1950).

    For a soft label it is the expected score, sum_k (p_k - y_k)^2 + y_k (1 - y_k).

    Args:
        labels, probabilities: as in `negative_log_likelihood`.
    """
    labels, p = class_labels.as_classes(labels, probabilities)
    p = class_labels.class_probabilities(p)
    truth = class_labels.label_probabilities(labels, p.shape, p.dtype)
    return ops.sum(ops.square(p - truth) + truth * (1.0 - truth), axis=-1)


def calibration_bins(
    labels: Tensor, probabilities: Tensor, num_bins: int = 15, weights: Tensor = None
) -> Tensor:
    """Sums weight, correct weight and confidence in equal-width bins.

    A prediction of class k counts as correct by the probability that the label is k:
    0 or 1, and y_k for a soft label.

    Args:
        labels, probabilities: as in `negative_log_likelihood`.
        num_bins: number of equal-width bins on [0, 1], closed on the right.
        weights: optional row weights, in the shape of label indices. Rows of weight 0
            do not count, and may have an invalid label.

    Returns:
        Tensor `(3, num_bins)`: count, correct, confidence.
    """
    num_bins = validation.integer("num_bins", num_bins, 1, 100_000)
    labels, p = class_labels.as_classes(labels, probabilities)
    if weights is None:
        weights = ops.ones_like(p[..., 0])
    else:
        weights = _row_weights(weights, p)
        labels, p = class_labels.fill(labels, p, 1 / p.shape[-1], weights)
    p = class_labels.class_probabilities(p)
    hit = class_labels.probability_of(ops.argmax(p, axis=-1), labels, p.shape, p.dtype)
    confidence, hit, weights = (
        ops.reshape(x, (-1,)) for x in (ops.max(p, axis=-1), hit, weights)
    )
    index = ops.cast(ops.ceil(confidence * num_bins), "int32") - 1
    member = ops.one_hot(ops.clip(index, 0, num_bins - 1), num_bins, dtype=p.dtype)
    rows = ops.stack([weights, weights * hit, weights * confidence])
    return ops.matmul(rows, member)


def _row_weights(weights, p):
    weights = ops.cast(weights, p.dtype)
    sizes, expected = tuple(weights.shape), tuple(p.shape[:-1])
    if None not in sizes + expected and math.prod(sizes) != math.prod(expected):
        raise ValueError(
            f"Expected one weight per row, of shape {expected}. "
            f"Received: weights of shape {sizes}"
        )
    return ops.reshape(weights, ops.shape(p)[:-1])


def calibration_error(bins: Tensor) -> Tensor:
    """Expected calibration error from `calibration_bins`.

    It is sum_b n_b / n |accuracy_b - confidence_b| (Guo, Pleiss, Sun and Weinberger,
    "On calibration of modern neural networks", 2017, eq. 3), and 0 without data.

    Args:
        bins: `(3, num_bins)`; the bins of several batches can be added.
    """
    if len(bins.shape) != 2 or bins.shape[0] != 3:
        raise ValueError(
            "Expected `bins` of shape (3, num_bins), as `calibration_bins` returns "
            f"them. Received: bins.shape={tuple(bins.shape)}"
        )
    count, correct, confidence = bins[0], bins[1], bins[2]
    gap = ops.sum(ops.abs(correct - confidence))
    return ops.divide_no_nan(gap, ops.sum(count))


def auroc(in_domain: ArrayLike, out_of_domain: ArrayLike) -> float:
    """Area under the ROC curve: P(a score outside > one inside); ties count half.

    It is 1 if the scores separate both sets, and 1/2 if they do not help.

    Args:
        in_domain, out_of_domain: scores `(n,)` and `(m,)`, higher outside.

    Returns:
        Float.

    Raises:
        ValueError: if a set has no score, or a score is NaN.
    """
    inside, outside = (
        ops.convert_to_numpy(x).astype("float64").ravel()
        for x in (in_domain, out_of_domain)
    )
    if not (inside.size and outside.size):
        raise ValueError(
            "Expected at least one score in each set. Received: "
            f"{inside.size} in domain, {outside.size} out of domain"
        )
    missing = [int(np.isnan(x).sum()) for x in (inside, outside)]
    if any(missing):
        raise ValueError(
            "Expected scores that can be ordered. Received: NaN for "
            f"{missing[0]} of {inside.size} in domain, "
            f"{missing[1]} of {outside.size} out of domain"
        )
    inside.sort()
    below, up_to = (
        np.searchsorted(inside, outside, side) for side in ("left", "right")
    )
    return float(np.mean(below + up_to) / (2 * inside.size))
