"""Targets whose rank TensorFlow no longer knows.

For data of another rank TensorFlow traces a step again, with an unknown rank. Labels
`(n,)` of one call and `(n, 1)` of the next then go through the same function.
"""

from keras import ops


def is_unknown(tensor):
    """Tells whether the rank of a tensor is unknown during tracing."""
    return getattr(getattr(tensor, "shape", None), "rank", 0) is None


def of_values(y, sample_weight, num_targets):
    """Reshapes targets to `(n, d)` and weights to `(n,)` if their rank is unknown."""
    if is_unknown(y):
        y = ops.reshape(y, (-1, num_targets))
    if is_unknown(sample_weight):
        sample_weight = ops.reshape(sample_weight, (-1,))
    return y, sample_weight


def of_classes(y, sample_weight, logits_shape):
    """Gives labels and weights of unknown rank the rank that the logits need.

    Labels become rows of class probabilities, one-hot for indices.
    """
    if not (is_unknown(y) or is_unknown(sample_weight)):
        return y, sample_weight
    from keras_bdl.interop import tensorflow

    rank = len(logits_shape)
    if is_unknown(y):
        y = tensorflow.class_probabilities(y, rank, logits_shape[-1])
    if is_unknown(sample_weight):
        sample_weight = tensorflow.with_rank(sample_weight, rank - 1)
    return y, sample_weight
