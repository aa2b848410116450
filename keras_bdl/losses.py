"""Negative log-likelihoods as Keras losses, in nats per example."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.event_loss import EventLoss, align_weights, blocks
from keras_bdl.core.event_loss import unmask as unmask
from keras_bdl.core.typing import DType, Tensor
from keras_bdl.ops import class_labels, divergences, likelihoods

__all__ = [
    "BernoulliNLL",
    "CategoricalNLL",
    "DiscretizedLogisticNLL",
    "GaussianNLL",
    "StudentTNLL",
    "TFPNLL",
]

PACKAGE = "keras_bdl"
_ROUNDING = 1e-3  # tolerance for probabilities in half precision


@keras.saving.register_keras_serializable(PACKAGE)
class CategoricalNLL(EventLoss):
    """-log softmax(logits)[label], summed over event axes, mean over examples.

    For a soft label it is the cross-entropy, -sum_k y_k log softmax(logits)_k.

    Args:
        reduction, name, dtype: as in `keras.losses.Loss`.
        ignore_class: label of events without a class, such as -1 or 255, or None. As
            in Keras's losses they add nothing, and the mean is over the examples that
            have a class (`num_examples` of Bayesian layers counts these).

    Call arguments:
        y_true: labels `(n,)`, `(n, 1)`, or rows of class probabilities
            `(n, classes)`, one-hot or soft. There may be event axes after n, over
            which the loss is summed.
        y_pred: logits `(n, ..., classes)`.

    The `class_weight` of `keras.Model.fit` never reaches a loss. For labels `(n, T)`
    Keras makes weights of rows, by the argmax over the last axis. Weigh such labels by
    a `sample_weight` `(n, T)`; `BayesianClassifier` does this itself.

    Raises:
        ValueError: if the logits have a single class. Also if values are known and a
            label with a weight other than 0 is not a class or a distribution over
            classes; in traced code (in `fit`) the loss is NaN then.

    Example:

    >>> model.compile("adam", keras_bdl.losses.CategoricalNLL())
    """

    outputs_kind = "logits"

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_nll",
        dtype: DType = None,
        ignore_class: int | None = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.ignore_class = (
            None
            if ignore_class is None
            else validation.integer("ignore_class", ignore_class)
        )

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> Tensor:
        if self.ignore_class is not None:
            kept = self._are_kept(y_true, ops.convert_to_tensor(y_pred).shape)
            kept = ops.reshape(kept, (ops.shape(kept)[0], -1))
            rows = ops.cast(ops.any(kept, axis=-1), self.dtype)
            if self.reduction in ("sum_over_batch_size", "mean"):
                # Keras divides by all rows.
                rows = rows / ops.maximum(ops.mean(rows), 1e-12)
            if sample_weight is None:
                sample_weight = rows
            else:
                weights = ops.cast(sample_weight, self.dtype)
                shape = (-1,) + (1,) * (len(weights.shape) - 1)
                sample_weight = weights * ops.reshape(rows, shape)
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if self.ignore_class is not None:
            labels, *weights = y_true if isinstance(y_true, tuple) else (y_true,)
            kept = ops.cast(self._are_kept(labels, y_pred.shape), y_pred.dtype)
            for weight in weights:
                kept = kept * align_weights(weight, kept)
            y_true = (labels, kept)
        return super().call(y_true, y_pred)

    def _are_kept(self, labels, prediction_shape):
        return class_labels.are_kept(labels, self.ignore_class, prediction_shape)

    def terms(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        check_logits(y_pred.shape[-1])
        labels, logits = class_labels.as_classes(y_true, y_pred, from_logits=True)
        if class_labels.are_rows(labels, logits.shape):
            return -class_labels.mean_over_labels(labels, ops.log_softmax(logits))
        labels = class_labels.class_indices(labels, logits.shape)
        terms = ops.sparse_categorical_crossentropy(
            ops.maximum(labels, 0), logits, from_logits=True
        )
        return ops.where(labels < 0, float("nan"), terms)

    def fill(self, y_true: Tensor, y_pred: Tensor, weights: Tensor) -> Tensor:
        check_logits(y_pred.shape[-1])
        labels, logits = class_labels.as_classes(y_true, y_pred, from_logits=True)
        weights = align_weights(weights, logits[..., 0])
        return class_labels.fill(labels, logits, 0.0, weights)[0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ignore_class": self.ignore_class}


@keras.saving.register_keras_serializable(PACKAGE)
class GaussianNLL(EventLoss):
    """-log N(y | mean, stddev^2), summed over event axes, mean over examples.

    It is log s + log(2 pi) / 2 + (y - m)^2 / (2 s^2) per value. `loss="mse"` equals
    `GaussianNLL(stddev=0.5 ** 0.5)` up to a constant, with an average in place of the
    sum.

    Args:
        stddev: None if the network predicts it, or a positive float, the known
            standard deviation of the noise in the units of y.
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: targets `(n, ..., d)`; `(n,)` for d = 1.
        y_pred: with `stddev=None`, `(n, ..., 2 d)`: d means, then d log standard
            deviations. Otherwise the means, `(n, ..., d)`.

    Raises:
        ValueError: if predictions have another width.

    Example:

    >>> loss = keras_bdl.losses.GaussianNLL()
    >>> float(loss([[0.0]], [[1.0, 0.0]]))  # 0.5 log(2 pi) + 0.5
    1.4189385

    Reference: Kendall and Gal, "What uncertainties do we need in Bayesian deep
    learning for computer vision?", 2017, eq. 5.
    """

    def __init__(
        self,
        stddev: float | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "gaussian_nll",
        dtype: DType = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.stddev = None if stddev is None else validation.positive("stddev", stddev)

    @property
    def outputs_kind(self) -> str:  # type: ignore[override]  # read-only: see `stddev`
        """What predictions are: "mean_and_log_stddev", or "mean" with a `stddev`."""
        return "mean_and_log_stddev" if self.stddev is None else "mean"

    def terms(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if self.stddev is None:
            y, mean, log_stddev = blocks(y_true, y_pred, 2)
        else:
            y, mean = blocks(y_true, y_pred, 1)
            log_stddev = ops.cast(math.log(self.stddev), mean.dtype)
        return -divergences.normal_log_prob(y, mean, log_stddev)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stddev": self.stddev}


@keras.saving.register_keras_serializable(PACKAGE)
class StudentTNLL(EventLoss):
    """-log of a Student-t density, summed over event axes, mean over examples.

    Its tails are heavy, so outliers affect the fit less than under a Gaussian.

    Args:
        df: degrees of freedom, a positive float, or None if the network predicts
            them. The variance, scale^2 df / (df - 2), is finite above 2.
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: targets `(n, ..., d)`; `(n,)` for d = 1.
        y_pred: `(n, ..., 2 d)`: d locations, then d log scales. With `df=None` it is
            `(n, ..., 3 d)`, with d log degrees of freedom last.

    Raises:
        ValueError: if predictions have another width.

    Reference: Lange, Little and Taylor, "Robust statistical modeling using the t
    distribution", 1989, eq. 1.
    """

    def __init__(
        self,
        df: float | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "student_t_nll",
        dtype: DType = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.df = None if df is None else validation.positive("df", df)

    def terms(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if self.df is None:
            y, location, log_scale, log_df = blocks(y_true, y_pred, 3)
        else:
            y, location, log_scale = blocks(y_true, y_pred, 2)
            log_df = ops.cast(math.log(self.df), location.dtype)
        return -likelihoods.student_t_log_prob(y, location, log_scale, log_df)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "df": self.df}


@keras.saving.register_keras_serializable(PACKAGE)
class BernoulliNLL(EventLoss):
    """-log p(y) of independent bits, summed over event axes, mean over examples.

    Args:
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: 0 or 1, `(n, ...)`. A value between them is a probability, for which
            the loss is the cross-entropy.
        y_pred: logits, `(n, ...)`.

    Raises:
        ValueError: if predictions have another width. Also if values are known and a
            target is below 0 or above 1; in traced code the loss is NaN then.
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "bernoulli_nll",
        dtype: DType = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def terms(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y, logits = blocks(y_true, y_pred, 1)
        valid = ops.logical_and(y >= -_ROUNDING, y <= 1.0 + _ROUNDING)
        if validation.is_false(ops.all(valid)):
            raise ValueError(
                "Expected bits or probabilities, from 0 to 1; divide pixels by their "
                "largest value, or use another likelihood. Received: y_true from "
                f"{float(ops.min(y)):.4g} to {float(ops.max(y)):.4g}"
            )
        terms = -likelihoods.bernoulli_log_prob(y, logits)
        return ops.where(valid, terms, float("nan"))

    def fill(self, y_true: Tensor, y_pred: Tensor, weights: Tensor) -> Tensor:
        counted = ops.not_equal(align_weights(weights, y_true), 0.0)
        return ops.where(counted, y_true, ops.zeros_like(y_true))


@keras.saving.register_keras_serializable(PACKAGE)
class DiscretizedLogisticNLL(EventLoss):
    """-log mass of the bin around y under a logistic density, in nats.

    It is for pixels and other values of a fixed number of levels. It uses a
    probability, because a density of such values has no upper limit. It is summed over
    event axes, and is the mean over examples.

    Args:
        levels: integer >= 2, number of levels, equally spaced.
        low, high: the first and the last level.
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: levels, `(n, ..., d)`; `(n,)` for d = 1.
        y_pred: `(n, ..., 2 d)`: d means, then d log scales.

    Raises:
        ValueError: if predictions have another width, or `low` is not below `high`.

    Reference: Salimans, Karpathy, Chen and Kingma, "PixelCNN++", 2017, eq. 2.
    """

    def __init__(
        self,
        levels: int = 256,
        low: float = 0.0,
        high: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "discretized_logistic_nll",
        dtype: DType = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.levels = validation.integer("levels", levels, 2, 10**6)
        self.low = validation.number("low", low)
        self.high = validation.number("high", high)
        if self.low >= self.high:
            raise ValueError(
                f"Expected `low` below `high`. Received: low={low!r}, high={high!r}"
            )

    def terms(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        width = (self.high - self.low) / (self.levels - 1)
        y, mean, log_scale = blocks(y_true, y_pred, 2)
        return -likelihoods.discretized_logistic_log_prob(
            y, mean, log_scale, width, self.low, self.high
        )

    def get_config(self) -> dict[str, Any]:
        config = {"levels": self.levels, "low": self.low, "high": self.high}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(PACKAGE)
class TFPNLL(EventLoss):
    """-log p(y) of any scalar distribution of TensorFlow Probability.

    It is summed over event axes, and is the mean over examples. It needs the TensorFlow
    backend.

    Args:
        distribution: name of a class of `tfp.distributions`, such as "Gamma".
        parameters: names of the arguments that the network predicts. If an argument
            must be positive or is bounded, the bijector of the distribution maps real
            numbers to it.
        fixed: dict of the other arguments, numbers.
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: targets `(n, ..., d)`; `(n,)` for d = 1.
        y_pred: `(n, ..., k d)`: d real numbers for each of the k parameters.

    Raises:
        ValueError: if the backend is another one, a name is unknown, or predictions
            have another width.

    Example:

    >>> loss = keras_bdl.losses.TFPNLL("Beta", ["concentration1", "concentration0"])
    """

    def __init__(
        self,
        distribution: str,
        parameters: Sequence[str],
        fixed: dict[str, Any] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "tfp_nll",
        dtype: DType = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                "`TFPNLL` works on the TensorFlow backend only; take another loss, or "
                "set KERAS_BACKEND=tensorflow. Received: "
                f"backend={keras.backend.backend()!r}"
            )
        self.distribution = distribution
        self.parameters = list(parameters)
        self.fixed = dict(fixed or {})
        # This raises errors here, before training.
        self.make(ops.zeros((1, len(self.parameters))))

    def make(self, y_pred: Tensor) -> Any:
        """Returns the distribution of TensorFlow Probability for outputs."""
        from keras_bdl.interop import tfp

        values = ops.split(y_pred, len(self.parameters), axis=-1)
        return tfp.from_reals(
            self.distribution, dict(zip(self.parameters, values)), self.fixed
        )

    def terms(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y, *parameters = blocks(y_true, y_pred, len(self.parameters))
        return -self.make(ops.concatenate(parameters, axis=-1)).log_prob(y)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "distribution": self.distribution,
            "parameters": self.parameters,
            "fixed": self.fixed,
        }


def check_logits(num_classes: int | None) -> None:
    """Raises an error on a single logit, whose softmax is always 1.

    Raises:
        ValueError: if `num_classes` is 1.
    """
    if num_classes == 1:
        raise ValueError(
            "Expected one logit per class on the last axis; a binary problem has two "
            "classes, so end the network with a layer of 2 units. "
            f"Received: classes={num_classes}"
        )
