"""Streaming Keras metrics of calibration and uncertainty."""

from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.event_loss import align_weights, unmask
from keras_bdl.core.typing import DType, Tensor
from keras_bdl.ops import class_labels, uncertainty

__all__ = [
    "ActiveUnits",
    "BrierScore",
    "ExpectedCalibrationError",
    "ExpectedDepth",
    "NegativeLogLikelihood",
    "PredictiveEntropy",
]

PACKAGE = "keras_bdl"

# The base of the mixin: for type checkers, the Keras metric that follows it.
_Base: Any = object


class _ClassMetric(_Base):
    """Mixin of metrics of class predictions: their options and the reading of a batch.

    With `scores_labels=False` labels only determine the rows that `ignore_class`
    excludes.
    """

    scores_labels = True

    def _set_options(self, from_logits, ignore_class):
        self.from_logits = validation.boolean("from_logits", from_logits)
        self.ignore_class = (
            None
            if ignore_class is None
            else validation.integer("ignore_class", ignore_class)
        )

    def _read(self, y_true, y_pred, sample_weight):
        """Returns labels (indices or rows), predictions `(..., k)`, weights or None.

        Rows that do not count get weight 0, and valid predictions and labels.
        """
        y_pred, weights = unmask(y_pred, sample_weight)
        labels = None
        if self.scores_labels:
            labels, y_pred = class_labels.as_classes(y_true, y_pred, self.from_logits)
        else:
            y_pred = ops.convert_to_tensor(y_pred)
            if len(y_pred.shape) == 1:
                y_pred = ops.expand_dims(y_pred, -1)
            y_pred = class_labels.of_all_classes(y_pred, self.from_logits)
        if weights is not None:
            weights = align_weights(weights, y_pred[..., 0])
        if self.ignore_class is not None:
            kept = class_labels.are_kept(y_true, self.ignore_class, y_pred.shape)
            kept = ops.cast(kept, y_pred.dtype)
            weights = kept if weights is None else weights * kept
        if weights is not None:
            uniform = 0.0 if self.from_logits else 1 / y_pred.shape[-1]
            labels, y_pred = class_labels.fill(labels, y_pred, uniform, weights)
        return labels, y_pred, weights

    def _probabilities(self, y_pred):
        return ops.softmax(y_pred, axis=-1) if self.from_logits else y_pred

    def get_config(self) -> dict[str, Any]:
        return {
            "from_logits": self.from_logits,
            "ignore_class": self.ignore_class,
            "name": self.name,
            "dtype": self.dtype,
        }


class _MeanOverRows(_ClassMetric, keras.metrics.Mean):
    """Weighted mean of one value per row, which `row_values` of a subclass computes."""

    def __init__(
        self,
        from_logits: bool = False,
        name: str | None = None,
        dtype: DType = None,
        ignore_class: int | None = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._set_options(from_logits, ignore_class)

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> None:
        """Adds a batch.

        Args:
            y_true: labels `(n,)` or `(n, 1)`, or rows of class probabilities `(n, k)`,
                one-hot or soft. There may be more axes after n.
            y_pred: predictions `(n, k)`. Those of a binary model are `(n,)` or
                `(n, 1)`, and its labels are P(class 1).
            sample_weight: weights `(n,)`, or one for each label. Rows of weight 0 do
                not count, and may have an invalid label.

        Raises:
            ValueError: if values are known, and a label is not a class or a
                distribution over classes, or probabilities are not a distribution. In
                traced code (in `fit` and `evaluate`) the metric is NaN then.
        """
        labels, y_pred, weights = self._read(y_true, y_pred, sample_weight)
        values = self.row_values(labels, y_pred)
        super().update_state(values, sample_weight=weights)


@keras.saving.register_keras_serializable(PACKAGE)
class NegativeLogLikelihood(_MeanOverRows):
    """Mean of -log p(label) in nats; for soft labels it is the cross-entropy.

    Args:
        from_logits: whether predictions are logits; otherwise they are probabilities.
        name, dtype: as in `keras.metrics.Metric`.
        ignore_class: label of rows that do not count, such as -1 or 255, or None.

    Example:

    >>> metric = keras_bdl.metrics.NegativeLogLikelihood()
    >>> metric.update_state([0, 1], [[0.5, 0.5], [0.25, 0.75]])
    >>> float(metric.result())  # 0.4904
    """

    def __init__(
        self,
        from_logits: bool = False,
        name: str = "nll",
        dtype: DType = None,
        ignore_class: int | None = None,
    ) -> None:
        super().__init__(from_logits, name, dtype, ignore_class)

    def row_values(self, labels: Tensor, y_pred: Tensor) -> Tensor:
        if self.from_logits:  # stable if a softmax rounds to 0
            return -class_labels.mean_over_labels(labels, ops.log_softmax(y_pred))
        return uncertainty.negative_log_likelihood(labels, y_pred)


@keras.saving.register_keras_serializable(PACKAGE)
class BrierScore(_MeanOverRows):
    """Mean of sum_k (p_k - [k = label])^2, from 0 (best) to 2 (Brier, 1950).

    For a soft label it is the expected score of labels drawn from it.

    Args:
        from_logits: whether predictions are logits; otherwise they are probabilities.
        name, dtype: as in `keras.metrics.Metric`.
        ignore_class: label of rows that do not count, such as -1 or 255, or None.
    """

    def __init__(
        self,
        from_logits: bool = False,
        name: str = "brier_score",
        dtype: DType = None,
        ignore_class: int | None = None,
    ) -> None:
        super().__init__(from_logits, name, dtype, ignore_class)

    def row_values(self, labels: Tensor, y_pred: Tensor) -> Tensor:
        return uncertainty.brier_score(labels, self._probabilities(y_pred))


@keras.saving.register_keras_serializable(PACKAGE)
class PredictiveEntropy(_MeanOverRows):
    """Mean entropy of the predictions in nats; labels are ignored.

    Args:
        from_logits: whether predictions are logits; otherwise they are probabilities.
        name, dtype: as in `keras.metrics.Metric`.
        ignore_class: label of rows that do not count, such as -1 or 255, or None.
    """

    def __init__(
        self,
        from_logits: bool = False,
        name: str = "predictive_entropy",
        dtype: DType = None,
        ignore_class: int | None = None,
    ) -> None:
        super().__init__(from_logits, name, dtype, ignore_class)

    scores_labels = False

    def row_values(self, labels: Tensor, y_pred: Tensor) -> Tensor:
        return uncertainty.entropy(self._probabilities(y_pred))


@keras.saving.register_keras_serializable(PACKAGE)
class ExpectedCalibrationError(_ClassMetric, keras.metrics.Metric):
    """Expected calibration error over equal-width bins of confidence, in [0, 1].

    A prediction of class k counts as right by the probability that the label is k: 0 or
    1, and a value between them for soft labels.

    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks",
    2017, eq. 3.

    Args:
        num_bins: positive integer, default 15.
        from_logits: whether predictions are logits; otherwise they are probabilities.
        name, dtype: as in `keras.metrics.Metric`.
        ignore_class: label of rows that do not count, such as -1 or 255, or None.
    """

    def __init__(
        self,
        num_bins: int = 15,
        from_logits: bool = False,
        name: str = "ece",
        dtype: DType = None,
        ignore_class: int | None = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.num_bins = validation.integer("num_bins", num_bins, 1, 100_000)
        self._set_options(from_logits, ignore_class)
        self.bins = self.add_variable((3, self.num_bins), "zeros", name="bins")

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> None:
        """Adds a batch; see `NegativeLogLikelihood.update_state`."""
        labels, y_pred, weights = self._read(y_true, y_pred, sample_weight)
        bins = uncertainty.calibration_bins(
            labels, self._probabilities(y_pred), self.num_bins, weights
        )
        self.bins.assign_add(ops.cast(bins, self.bins.dtype))

    def result(self) -> Tensor:
        return uncertainty.calibration_error(ops.convert_to_tensor(self.bins))

    def get_config(self) -> dict[str, Any]:
        return {"num_bins": self.num_bins, **super().get_config()}


@keras.saving.register_keras_serializable(PACKAGE)
class ExpectedDepth(keras.metrics.Mean):
    """Mean number of units that an example runs, over all early-exit blocks.

    The models of `keras_bdl.models` report it as `depth`. In training it is the
    expectation under q, in `evaluate` the number of units that inference runs. For
    other models see `callbacks.DepthLogger` and `keras_bdl.depth`.

    Args:
        name, dtype: as in `keras.metrics.Metric`.

    Example:

    >>> metric = keras_bdl.metrics.ExpectedDepth()
    >>> metric.update_state(keras_bdl.depth(model, x).sum(axis=1))
    """

    def __init__(self, name: str = "depth", dtype: DType = None) -> None:
        super().__init__(name=name, dtype=dtype)


@keras.saving.register_keras_serializable(PACKAGE)
class ActiveUnits(keras.metrics.Metric):
    """Number of units of a code whose mean has a variance above .01 over the data.

    A unit is active if Var_x E_q(z | x) z > threshold; the others carry no information
    about x.

    Args:
        num_units: d, the number of units of a code.
        threshold: positive float, a variance.
        name, dtype: as in `keras.metrics.Metric`.

    Example:

    >>> metric = keras_bdl.metrics.ActiveUnits(num_units=20)
    >>> metric.update_state(vae.encode(x))

    Reference: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders",
    2015, section 5.2.
    """

    def __init__(
        self,
        num_units: int,
        threshold: float = 0.01,
        name: str = "active_units",
        dtype: DType = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.num_units = validation.integer("num_units", num_units, least=1)
        self.threshold = validation.positive("threshold", threshold)
        self.count = self.add_variable((), "zeros", name="count")
        self.centre = self.add_variable((self.num_units,), "zeros", name="centre")
        self.squares = self.add_variable((self.num_units,), "zeros", name="squares")

    def update_state(self, means: Tensor) -> None:
        """Adds mean codes `(n, ..., d)`.

        Raises:
            ValueError: if codes do not have `num_units` units.
        """
        means = ops.convert_to_tensor(means)
        if means.shape[-1] != self.num_units:
            raise ValueError(
                f"Expected codes of {self.num_units} units, the value of `num_units`. "
                f"Received: means of shape {tuple(means.shape)}"
            )
        means = ops.reshape(ops.cast(means, self.dtype), (-1, self.num_units))
        count = ops.cast(ops.shape(means)[0], self.dtype)
        centre = ops.sum(means, axis=0) / ops.maximum(count, 1.0)
        squares = ops.sum(ops.square(means - centre), axis=0)
        # This merges two sets of means and squared deviations (Chan, Golub and LeVeque,
        # "Updating formulae and a pairwise algorithm", 1979).
        before, total = self.count, ops.maximum(self.count + count, 1.0)
        offset = centre - self.centre
        self.squares.assign_add(squares + ops.square(offset) * (before * count / total))
        self.centre.assign_add(offset * (count / total))
        self.count.assign_add(count)

    def result(self) -> Tensor:
        variance = self.squares / ops.maximum(self.count, 1.0)
        active = ops.cast(variance > self.threshold, self.dtype)
        return ops.sum(ops.where(ops.isnan(variance), variance, active))

    def get_config(self) -> dict[str, Any]:
        return {
            "num_units": self.num_units,
            "threshold": self.threshold,
            "name": self.name,
            "dtype": self.dtype,
        }
