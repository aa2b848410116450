"""Streaming Keras metrics of calibration and uncertainty."""

import keras
from keras import ops

from keras_bdl import validation
from keras_bdl.losses import align_weights, check_logits, unmask
from keras_bdl.ops import uncertainty

PACKAGE = "keras_bdl"


def _probabilities(y_pred, from_logits):
    y_pred = ops.cast(ops.convert_to_tensor(y_pred), "float32")
    check_logits(y_pred.shape[-1])
    return ops.softmax(y_pred, axis=-1) if from_logits else y_pred


class _MeanOverRows(keras.metrics.Mean):
    """Weighted mean of one value per row; subclasses implement `row_values`."""

    def __init__(self, from_logits=False, name=None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.from_logits = validation.boolean("from_logits", from_logits)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch: labels `(n,)`, `(n, 1)` or one-hot, predictions `(n, k)`."""
        y_pred, weights = unmask(y_pred, sample_weight)
        values = self.row_values(y_true, ops.convert_to_tensor(y_pred))
        if weights is not None:
            weights = align_weights(weights, values)
        super().update_state(values, sample_weight=weights)

    def get_config(self):
        return {
            "from_logits": self.from_logits,
            "name": self.name,
            "dtype": self.dtype,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class NegativeLogLikelihood(_MeanOverRows):
    """Mean of -log p(label) in nats.

    Args:
        from_logits: whether predictions are logits; else probabilities.
        name, dtype: as in `keras.metrics.Metric`.

    Example:

    >>> metric = keras_bdl.metrics.NegativeLogLikelihood()
    >>> metric.update_state([0, 1], [[0.5, 0.5], [0.25, 0.75]])
    >>> float(metric.result())  # 0.4904
    """

    def __init__(self, from_logits=False, name="nll", dtype=None):
        super().__init__(from_logits, name, dtype)

    def row_values(self, y_true, y_pred):
        check_logits(y_pred.shape[-1])
        labels = uncertainty.class_indices(y_true, y_pred.shape)
        if self.from_logits:  # stable where a softmax would round to 0
            return ops.sparse_categorical_crossentropy(
                labels, ops.cast(y_pred, "float32"), from_logits=True
            )
        return uncertainty.negative_log_likelihood(labels, y_pred)


@keras.saving.register_keras_serializable(PACKAGE)
class BrierScore(_MeanOverRows):
    """Mean of sum_k (p_k - [k = label])^2, from 0 (best) to 2 (Brier, 1950).

    Args:
        from_logits: whether predictions are logits; else probabilities.
        name, dtype: as in `keras.metrics.Metric`.
    """

    def __init__(self, from_logits=False, name="brier_score", dtype=None):
        super().__init__(from_logits, name, dtype)

    def row_values(self, y_true, y_pred):
        probabilities = _probabilities(y_pred, self.from_logits)
        labels = uncertainty.class_indices(y_true, probabilities.shape)
        return uncertainty.brier_score(labels, probabilities)


@keras.saving.register_keras_serializable(PACKAGE)
class PredictiveEntropy(_MeanOverRows):
    """Mean entropy of the predictions in nats; labels are ignored.

    Args:
        from_logits: whether predictions are logits; else probabilities.
        name, dtype: as in `keras.metrics.Metric`.
    """

    def __init__(self, from_logits=False, name="predictive_entropy", dtype=None):
        super().__init__(from_logits, name, dtype)

    def row_values(self, y_true, y_pred):
        return uncertainty.entropy(_probabilities(y_pred, self.from_logits))


@keras.saving.register_keras_serializable(PACKAGE)
class ExpectedCalibrationError(keras.metrics.Metric):
    """Expected calibration error over equal-width bins of confidence, in [0, 1].

    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks",
    2017, eq. 3.

    Args:
        num_bins: positive integer, default 15.
        from_logits: whether predictions are logits; else probabilities.
        name, dtype: as in `keras.metrics.Metric`.
    """

    def __init__(self, num_bins=15, from_logits=False, name="ece", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.num_bins = validation.integer("num_bins", num_bins, 1, 100_000)
        self.from_logits = validation.boolean("from_logits", from_logits)
        self.bins = self.add_variable((3, self.num_bins), "zeros", name="bins")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch: labels `(n,)`, `(n, 1)` or one-hot, predictions `(n, k)`."""
        y_pred, weights = unmask(y_pred, sample_weight)
        probabilities = _probabilities(y_pred, self.from_logits)
        labels = uncertainty.class_indices(y_true, probabilities.shape)
        if weights is not None:
            weights = align_weights(weights, probabilities[..., 0])
        self.bins.assign_add(
            ops.cast(
                uncertainty.calibration_bins(
                    labels,
                    probabilities,
                    self.num_bins,
                    weights,
                ),
                self.bins.dtype,
            )
        )

    def result(self):
        return uncertainty.calibration_error(ops.convert_to_tensor(self.bins))

    def get_config(self):
        return {
            "num_bins": self.num_bins,
            "from_logits": self.from_logits,
            "name": self.name,
            "dtype": self.dtype,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class ExpectedDepth(keras.metrics.Mean):
    """Mean number of units that an example runs, over all early-exit blocks.

    The models of `keras_bdl.models` report it as `depth`: in training the expectation
    under q, in `evaluate` the units that inference runs. For other models see
    `callbacks.DepthLogger` and `keras_bdl.depth`.

    Example:

    >>> metric = keras_bdl.metrics.ExpectedDepth()
    >>> metric.update_state(keras_bdl.depth(model, x).sum(axis=1))
    """

    def __init__(self, name="depth", dtype=None):
        super().__init__(name=name, dtype=dtype)


@keras.saving.register_keras_serializable(PACKAGE)
class ActiveUnits(keras.metrics.Metric):
    """Number of a code's units whose mean varies over the data by more than .01.

    A unit is active if Var_x E_q(z | x) z > threshold; the others say nothing of x.

    Args:
        num_units: d, numbers of a code.
        threshold: positive float, a variance.
        name, dtype: as in `keras.metrics.Metric`.

    Example:

    >>> metric = keras_bdl.metrics.ActiveUnits(num_units=20)
    >>> metric.update_state(vae.encode(x))

    Reference: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders",
    2015, section 5.2.
    """

    def __init__(self, num_units, threshold=0.01, name="active_units", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.num_units = validation.integer("num_units", num_units, least=1)
        self.threshold = validation.positive("threshold", threshold)
        self.count = self.add_variable((), "zeros", name="count")
        self.centre = self.add_variable((self.num_units,), "zeros", name="centre")
        self.squares = self.add_variable((self.num_units,), "zeros", name="squares")

    def update_state(self, means):
        """Adds mean codes `(n, ..., d)`."""
        means = ops.reshape(ops.cast(means, self.dtype), (-1, self.num_units))
        count = ops.cast(ops.shape(means)[0], self.dtype)
        centre = ops.sum(means, axis=0) / ops.maximum(count, 1.0)
        squares = ops.sum(ops.square(means - centre), axis=0)
        # Two sets of means and squared deviations, merged (Chan, Golub and LeVeque,
        # "Updating formulae and a pairwise algorithm", 1979).
        before, total = self.count, ops.maximum(self.count + count, 1.0)
        offset = centre - self.centre
        self.squares.assign_add(squares + ops.square(offset) * (before * count / total))
        self.centre.assign_add(offset * (count / total))
        self.count.assign_add(count)

    def result(self):
        variance = self.squares / ops.maximum(self.count, 1.0)
        return ops.sum(ops.cast(variance > self.threshold, self.dtype))

    def get_config(self):
        return {
            "num_units": self.num_units,
            "threshold": self.threshold,
            "name": self.name,
            "dtype": self.dtype,
        }
