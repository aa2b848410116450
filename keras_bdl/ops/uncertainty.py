"""Measures of predictive uncertainty and calibration. Logarithms are natural.

Probabilities have classes on their last axis, and are `(..., 1)` where a binary model
gives P(class 1); stacks of posterior samples lead with the sample axis:
`(num_samples, ..., classes)`. Labels are class indices, or rows of class probabilities
(one-hot or soft); with a binary model P(class 1). Everything is computed in float32
(float64 stays float64). Entropies are in nats.

Rows that are no distribution over classes, and labels that are no class, are refused
where values can be seen, and give NaN in traced code.
"""

import math

import numpy as np
from keras import ops

from keras_bdl.core import validation
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
    "mutual_information",
    "negative_log_likelihood",
    "predictive_entropy",
]

_TINY = 1e-30


def entropy(probabilities):
    """Entropy -sum_k p_k log p_k in nats, shape `probabilities.shape[:-1]`."""
    p = class_labels.class_probabilities(probabilities)
    return -ops.sum(p * ops.log(ops.maximum(p, _TINY)), axis=-1)


def predictive_entropy(sample_probabilities):
    """Entropy of the mean prediction: total uncertainty, in nats.

    Args:
        sample_probabilities: `(num_samples, ..., classes)`.
    """
    return entropy(ops.mean(wide(sample_probabilities), axis=0))


def expected_entropy(sample_probabilities):
    """Mean entropy of the samples, in nats: how unsure each of them is by itself.

    It estimates the aleatoric uncertainty, that of the label where the weights are
    known, as far as the model is right; more data changes it too.
    """
    return ops.mean(entropy(sample_probabilities), axis=0)


def mutual_information(sample_probabilities):
    """I(y; w | x) = predictive - expected entropy: epistemic uncertainty, in nats.

    Houlsby, Huszar, Ghahramani and Lengyel, "Bayesian active learning for
    classification and preference learning", 2011, eq. 1. Never negative
    (rounding is clipped).
    """
    total = predictive_entropy(sample_probabilities)
    return ops.maximum(total - expected_entropy(sample_probabilities), 0.0)


def negative_log_likelihood(labels, probabilities):
    """-log p(label) per row, in nats; of a soft label the cross-entropy.

    Args:
        labels: class indices, or rows of class probabilities: -sum_k y_k log p_k.
        probabilities: `(..., classes)`, or P(class 1) of a binary model.
    """
    labels, p = class_labels.as_classes(labels, probabilities)
    p = class_labels.class_probabilities(p)
    return -class_labels.mean_over_labels(labels, ops.log(ops.maximum(p, _TINY)))


def brier_score(labels, probabilities):
    """sum_k (p_k - [k = label])^2 per row, in [0, 2] (Brier, 1950).

    Of a soft label the expected score, sum_k (p_k - y_k)^2 + y_k (1 - y_k).

    Args:
        labels, probabilities: as in `negative_log_likelihood`.
    """
    labels, p = class_labels.as_classes(labels, probabilities)
    p = class_labels.class_probabilities(p)
    truth = class_labels.label_probabilities(labels, p.shape, p.dtype)
    return ops.sum(ops.square(p - truth) + truth * (1.0 - truth), axis=-1)


def calibration_bins(labels, probabilities, num_bins=15, weights=None):
    """Weight, correct weight and confidence summed in equal-width bins.

    A prediction is correct with the probability that the label has its class: 0 or 1,
    and of a soft label y_k.

    Args:
        labels, probabilities: as in `negative_log_likelihood`.
        num_bins: number of equal-width bins on [0, 1], closed on the right.
        weights: optional row weights, the shape of label indices. Rows of weight 0 do
            not count, whatever their label.

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


def calibration_error(bins):
    """Expected calibration error from `calibration_bins`.

    sum_b n_b / n |accuracy_b - confidence_b| (Guo, Pleiss, Sun and Weinberger,
    "On calibration of modern neural networks", 2017, eq. 3). Zero without data.

    Args:
        bins: `(3, num_bins)`; those of several batches add up.
    """
    if len(bins.shape) != 2 or bins.shape[0] != 3:
        raise ValueError(
            "Expected `bins` of shape (3, num_bins), as `calibration_bins` returns "
            f"them. Received: bins.shape={tuple(bins.shape)}"
        )
    count, correct, confidence = bins[0], bins[1], bins[2]
    gap = ops.sum(ops.abs(correct - confidence))
    return ops.divide_no_nan(gap, ops.sum(count))


def auroc(in_domain, out_of_domain):
    """Area under the ROC curve: P(a score outside > one inside), ties counting half.

    1 where the scores tell both apart, 1/2 where they say nothing.

    Args:
        in_domain, out_of_domain: scores `(n,)` and `(m,)`, higher outside.

    Returns:
        Float.

    Raises:
        ValueError: without a score of each, or on NaN, which no order has a place for.
    """
    inside, outside = (
        ops.convert_to_numpy(x).astype("float64").ravel()
        for x in (in_domain, out_of_domain)
    )
    if not (inside.size and outside.size):
        raise ValueError(
            "Expected at least one score of each. Received: "
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
