"""Targets of which TensorFlow no longer knows the rank.

It traces a step anew for data of another rank, and takes the rank for unknown then:
labels `(n,)` of one call and `(n, 1)` of the next go through one function.
"""

from keras import ops


def is_unknown(tensor):
    """Whether a tensor has a rank that is not known while it is traced."""
    return getattr(getattr(tensor, "shape", None), "rank", 0) is None


def of_values(y, sample_weight, num_targets):
    """Targets `(n, d)` and weights `(n,)`, of any rank."""
    if is_unknown(y):
        y = ops.reshape(y, (-1, num_targets))
    if is_unknown(sample_weight):
        sample_weight = ops.reshape(sample_weight, (-1,))
    return y, sample_weight


def of_classes(y, sample_weight, logits_shape):
    """Rows of class probabilities, one-hot of indices; weights of rows or labels."""
    if not (is_unknown(y) or is_unknown(sample_weight)):
        return y, sample_weight
    from keras_bdl.interop import tensorflow

    rank = len(logits_shape)
    if is_unknown(y):
        y = tensorflow.class_probabilities(y, rank, logits_shape[-1])
    if is_unknown(sample_weight):
        sample_weight = tensorflow.with_rank(sample_weight, rank - 1)
    return y, sample_weight
