"""Labels of which many are unknown, and the loss that is a mean over labelled rows."""

import keras
import numpy as np
from keras import ops

# The weight of the classifier's own loss is this times examples per labelled example.
_CLASSIFIER_WEIGHT = 0.1


def classifier_loss(weight, cross_entropy, labeled, known):
    """Returns a weight times the mean cross-entropy over labelled rows.

    Args:
        weight: number, or None for .1 examples / labelled examples.
        cross_entropy: mean over all rows, where rows without a label count as 0.
        labeled: share of labelled rows among them.
        known: share of labelled rows in the training data, or 0 if it is unknown.
    """
    some = ops.where(labeled > 0.0, labeled, 1.0)
    if weight is None:
        weight = _CLASSIFIER_WEIGHT / ops.where(known > 0.0, known, some)
    return weight * cross_entropy / some


class ClassifierLoss(keras.metrics.Metric):
    """Computes `classifier_loss` of all rows so far, independent of their batches.

    Args:
        weight: as in `classifier_loss`.
    """

    def __init__(self, weight, name="classifier_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self._weight = weight
        # Sums over rows of the cross-entropy, of labelled rows and of ones.
        self._sums = self.add_variable((3,), "zeros", name="sums")
        self._known = self.add_variable((), "zeros", aggregation="mean", name="known")

    def update_state(self, cross_entropy, labeled, known):
        """Adds rows `(n,)`; `labeled` is 1 for those with a label, and 0 for others."""
        parts = (cross_entropy, labeled, ops.ones_like(labeled))
        sums = ops.stack([ops.sum(part) for part in parts])
        self._sums.assign_add(ops.cast(sums, self._sums.dtype))
        self._known.assign(ops.cast(known, self._known.dtype))

    def result(self):
        cross_entropy, labeled, rows = ops.unstack(ops.convert_to_tensor(self._sums), 3)
        rows = ops.maximum(rows, 1.0)
        known = ops.convert_to_tensor(self._known)
        return classifier_loss(
            self._weight, cross_entropy / rows, labeled / rows, known
        )


def check_labels(x, y, num_classes):
    """Returns labels as integers `(n,)`.

    Raises:
        ValueError: if they do not fit the rows and classes.
    """
    if y is None:
        raise ValueError(
            f"Expected labels `({len(x)},)`, integers from -1 (unknown) to "
            f"{num_classes - 1}. Received: y=None"
        )
    labels = ops.convert_to_numpy(y)
    numbers = labels.dtype.kind in "biuf" and labels.size > 0
    fits = numbers and labels.size == len(x) == len(labels)
    fits = fits and np.array_equal(labels, labels.round())
    if not fits or labels.min() < -1 or labels.max() >= num_classes:
        span = f"from {labels.min()} to {labels.max()}" if numbers else labels.dtype
        raise ValueError(
            f"Expected labels `({len(x)},)`, integers from -1 (unknown) to "
            f"{num_classes - 1}. Received: y of shape {np.shape(y)}, {span}"
        )
    return labels.reshape(-1).astype("int32")


def check_some(labels):
    """Refuses labels that are all unknown.

    Raises:
        ValueError: if all are unknown.
    """
    if not (labels >= 0).any():
        raise ValueError(
            "Expected a label for some examples, from 0; -1 marks those without. "
            "Received: y without labels"
        )


def check_options(options):
    """Refuses arguments of `fit` that mixed batches do not use.

    Raises:
        ValueError: on such an argument.
    """
    for name in ("validation_split", "sample_weight", "class_weight"):
        value = options.get(name)
        if value is not None and not (np.isscalar(value) and value == 0.0):
            raise ValueError(
                f"`SemiSupervisedVAE.fit` takes no `{name}`. Received: {name}"
            )


def labeled_fraction(dataset):
    """Returns the share of labelled rows in a finite `tf.data.Dataset`, or else 0."""
    if not hasattr(dataset, "cardinality") or int(dataset.cardinality()) < 0:
        return 0.0
    counts = np.zeros(2)
    for batch in dataset:
        _, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        if y is None:
            return 0.0
        labels = ops.convert_to_numpy(y)
        counts += [np.count_nonzero(labels >= 0), labels.size]
    return counts[0] / counts[1] if counts[1] else 0.0
