"""Sums over classes in the bound of a model with the class as a latent variable."""

from keras import ops

from keras_bdl.ops import estimators

# A finite log-probability of which the exponential is 0.
_IMPOSSIBLE = -1e4


def one_hot(labels, num_classes, dtype):
    """Returns one-hot labels; an unknown label counts as the first class."""
    return ops.one_hot(ops.maximum(labels, 0), num_classes, dtype=dtype)


def terms(log_q, labels, num_summed, seed):
    """Returns the classes that the bound sums and their weights.

    Args:
        log_q: log q(y | x), `(n, classes)`.
        labels: integers `(n,)`, -1 if unknown.
        num_summed: number of classes to sum of rows without a label; one more is drawn
            for all others. None sums all classes.
        seed: generator of the noise.

    Returns:
        One-hot classes `(n, m, classes)`, and weights `(n, m)`: q(y | x), or 1 for the
        label of a row that has one.
    """
    num_classes = log_q.shape[-1]
    log_label = _IMPOSSIBLE * (1.0 - one_hot(labels, num_classes, log_q.dtype))
    log_q = ops.where(ops.expand_dims(labels, -1) < 0, log_q, log_label)
    if num_summed is None:
        every = ops.eye(num_classes, dtype=log_q.dtype)
        return ops.ones_like(ops.expand_dims(log_q, -1)) * every, ops.exp(log_q)
    classes, weights = estimators.partial_enumeration(log_q, num_summed, seed)
    return one_hot(classes, num_classes, log_q.dtype), weights


def weighted_sum(bounds, weights):
    """Sums bounds `(n, m)` by weights that sum to 1, `(n,)`.

    The origin of the bounds is then free. That of a likely class gives the gradient
    through the weights less variance.
    """
    origin = ops.stop_gradient(bounds[:, :1])
    return ops.sum(weights * (bounds - origin), axis=-1) + origin[:, 0]
