"""Measures of predictive uncertainty and calibration. Logarithms are natural.

Probabilities have classes on their last axis; stacks of posterior samples lead
with the sample axis: `(num_samples, ..., classes)`. Everything is computed in
float32 (float64 stays float64). Entropies are in nats.
"""

import numpy as np
from keras import backend, ops

_TINY = 1e-30


def _wide(x):
    x = ops.convert_to_tensor(x)
    if backend.standardize_dtype(x.dtype) == "float64":
        return x
    return ops.cast(x, "float32")


def entropy(probabilities):
    """Entropy -sum_k p_k log p_k in nats, shape `probabilities.shape[:-1]`."""
    p = _wide(probabilities)
    return -ops.sum(p * ops.log(ops.maximum(p, _TINY)), axis=-1)


def predictive_entropy(sample_probabilities):
    """Entropy of the mean prediction: total uncertainty, in nats.

    Args:
        sample_probabilities: `(num_samples, ..., classes)`.
    """
    return entropy(ops.mean(_wide(sample_probabilities), axis=0))


def expected_entropy(sample_probabilities):
    """Mean entropy of the samples: aleatoric uncertainty, in nats."""
    return ops.mean(entropy(sample_probabilities), axis=0)


def mutual_information(sample_probabilities):
    """I(y; w | x) = predictive - expected entropy: epistemic uncertainty, in nats.

    Houlsby, Huszar, Ghahramani and Lengyel, "Bayesian active learning for
    classification and preference learning", 2011, eq. 1. Never negative
    (rounding is clipped).
    """
    total = predictive_entropy(sample_probabilities)
    return ops.maximum(total - expected_entropy(sample_probabilities), 0.0)


def class_indices(labels, prediction_shape):
    """Labels as int32 class indices of shape `prediction_shape[:-1]`.

    Args:
        labels: indices of that shape, or with a last axis of 1, or one-hot.
        prediction_shape: shape of the predictions, classes last.
    """
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == len(prediction_shape):
        if labels.shape[-1] == 1:
            labels = ops.squeeze(labels, axis=-1)
        elif labels.shape[-1] in (prediction_shape[-1], None):
            labels = ops.argmax(labels, axis=-1)
        else:
            raise ValueError(
                f"Expected labels as indices, or one-hot over {prediction_shape[-1]} "
                f"classes. Received: labels of shape {tuple(labels.shape)}"
            )
    return ops.cast(labels, "int32")


def negative_log_likelihood(labels, probabilities):
    """-log p(label) per row, in nats.

    Args:
        labels: class indices, shape `probabilities.shape[:-1]`.
        probabilities: `(..., classes)`.
    """
    p = _wide(probabilities)
    chosen = ops.take_along_axis(p, ops.expand_dims(labels, -1), axis=-1)
    return -ops.log(ops.maximum(ops.squeeze(chosen, axis=-1), _TINY))


def brier_score(labels, probabilities):
    """sum_k (p_k - [k = label])^2 per row, in [0, 2] (Brier, 1950)."""
    p = _wide(probabilities)
    truth = ops.one_hot(labels, p.shape[-1], dtype=p.dtype)
    return ops.sum(ops.square(p - truth), axis=-1)


def calibration_bins(labels, probabilities, num_bins=15, weights=None):
    """Weight, correct weight and confidence summed in equal-width bins.

    Args:
        labels: class indices, any shape.
        probabilities: labels' shape plus a class axis.
        num_bins: number of equal-width bins on [0, 1], closed on the right.
        weights: optional row weights, labels' shape.

    Returns:
        Tensor `(3, num_bins)`: count, correct, confidence.
    """
    p = _wide(probabilities)
    confidence = ops.reshape(ops.max(p, axis=-1), (-1,))
    hit = ops.equal(ops.cast(ops.argmax(p, axis=-1), "int32"), labels)
    hit = ops.cast(ops.reshape(hit, (-1,)), p.dtype)
    if weights is None:
        weights = ops.ones_like(confidence)
    else:
        weights = ops.reshape(ops.cast(weights, p.dtype), (-1,))
    index = ops.cast(ops.ceil(confidence * num_bins), "int32") - 1
    member = ops.one_hot(ops.clip(index, 0, num_bins - 1), num_bins, dtype=p.dtype)
    rows = ops.stack([weights, weights * hit, weights * confidence])
    return ops.matmul(rows, member)


def calibration_error(bins):
    """Expected calibration error from `calibration_bins`.

    sum_b n_b / n |accuracy_b - confidence_b| (Guo, Pleiss, Sun and Weinberger,
    "On calibration of modern neural networks", 2017, eq. 3). Zero without data.
    """
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
    """
    inside = np.sort(np.asarray(in_domain, "float64").ravel())
    outside = np.asarray(out_of_domain, "float64").ravel()
    if not (inside.size and outside.size):
        raise ValueError(
            "Expected at least one score of each. Received: "
            f"{inside.size} in domain, {outside.size} out of domain"
        )
    below, up_to = (
        np.searchsorted(inside, outside, side) for side in ("left", "right")
    )
    return float(np.mean(below + up_to) / (2 * inside.size))
