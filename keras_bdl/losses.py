"""Negative log-likelihoods as Keras losses, in nats per example."""

import math

import keras
from keras import ops

from keras_bdl import masking, validation
from keras_bdl.ops import divergences, likelihoods, uncertainty

PACKAGE = "keras_bdl"


class EventLoss(keras.losses.Loss):
    """Summed over event axes (positions, outputs), mean over examples.

    Subclasses implement `terms(y_true, y_pred)`, one value per event: `(n, ...)`.
    Weights `(n,)` count examples, weights `(n, ...)` and Keras masks count events.
    `outputs_kind` is what `keras_bdl.predict` takes predictions for, see there.
    """

    outputs_kind = None

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_pred, weights = unmask(y_pred, sample_weight)
        if weights is None:
            return super().__call__(y_true, y_pred)
        weights = ops.convert_to_tensor(weights)
        if all(size == 1 for size in weights.shape[1:]):
            return super().__call__(y_true, y_pred, ops.reshape(weights, (-1,)))
        if self.reduction == "mean_with_sample_weight":
            raise ValueError(
                "Weights of events are no weights of examples, by which "
                "reduction='mean_with_sample_weight' divides. Received: "
                f"sample_weight (or a mask) of shape {tuple(weights.shape)}"
            )
        # Taken in `call`, before events are summed; Keras weights only rows.
        return super().__call__((y_true, weights), y_pred)

    def call(self, y_true, y_pred):
        weights = None
        if isinstance(y_true, tuple):
            y_true, weights = y_true
        terms = self.terms(y_true, y_pred)
        if weights is not None:
            terms = terms * align_weights(weights, terms)
        return ops.sum(ops.reshape(terms, (ops.shape(terms)[0], -1)), axis=-1)

    def row_losses(self, y_true, y_pred, sample_weight=None):
        """The weighted loss of each example, `(n,)`: what `__call__` is the mean of."""
        y_true = ops.convert_to_tensor(y_true, dtype=self.dtype)
        y_pred, weights = unmask(y_pred, sample_weight)
        y_pred = ops.cast(y_pred, self.dtype)
        if weights is not None and len(ops.shape(weights)) > 1:
            return self.call((y_true, weights), y_pred)
        values = self.call(y_true, y_pred)
        return values if weights is None else values * align_weights(weights, values)


def unmask(y_pred, sample_weight):
    """Predictions without their Keras mask, and weights that are 0 where it was."""
    if not hasattr(y_pred, "shape"):
        y_pred = ops.convert_to_tensor(y_pred)
    y_pred, mask = masking.take_mask(y_pred)
    if mask is None:
        return y_pred, sample_weight
    mask = ops.cast(mask, "float32")
    if sample_weight is not None:
        mask = mask * align_weights(sample_weight, mask)
    return y_pred, mask


def align_weights(sample_weight, values):
    """Weights in the shape of `values`: those of rows hold for all their events."""
    weights = ops.cast(ops.convert_to_tensor(sample_weight), values.dtype)
    num_axes = len(values.shape)
    if len(weights.shape) == num_axes + 1 and weights.shape[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    while len(weights.shape) < num_axes:
        weights = ops.expand_dims(weights, -1)
    return ops.broadcast_to(weights, ops.shape(values))


@keras.saving.register_keras_serializable(PACKAGE)
class CategoricalNLL(EventLoss):
    """-log softmax(logits)[label], summed over event axes, mean over examples.

    Args:
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: labels `(n,)`, `(n, 1)` or one-hot `(n, classes)`; likewise with
            event axes after n, over which the loss is summed.
        y_pred: logits `(n, ..., classes)`.

    The `class_weight` of `keras.Model.fit` never reaches a loss: of labels `(n, T)`
    Keras makes weights of rows, by the argmax over the last axis. Weigh such labels by
    `sample_weight` of `(n, T)`; `BayesianClassifier` does so itself.

    Raises:
        ValueError: if the logits have a single class.

    Example:

    >>> model.compile("adam", keras_bdl.losses.CategoricalNLL())
    """

    outputs_kind = "logits"

    def __init__(
        self, reduction="sum_over_batch_size", name="categorical_nll", dtype=None
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def terms(self, y_true, y_pred):
        num_classes = y_pred.shape[-1]
        check_logits(num_classes)
        if len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == num_classes:
            return -ops.sum(y_true * ops.log_softmax(y_pred, axis=-1), axis=-1)
        labels = uncertainty.class_indices(y_true, y_pred.shape)
        return ops.sparse_categorical_crossentropy(labels, y_pred, from_logits=True)


@keras.saving.register_keras_serializable(PACKAGE)
class GaussianNLL(EventLoss):
    """-log N(y | mean, stddev^2), summed over event axes, mean over examples.

    log s + log(2 pi) / 2 + (y - m)^2 / (2 s^2) per value. `loss="mse"` is, up to a
    constant and an average in place of the sum, `GaussianNLL(stddev=0.5 ** 0.5)`.

    Args:
        stddev: None where the network predicts it, or a positive float: the known
            standard deviation of the noise, in the units of y.
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: targets `(n, ..., d)`; `(n,)` for d = 1.
        y_pred: with `stddev=None`, `(n, ..., 2 d)`: d means, then d log standard
            deviations. Otherwise the means, `(n, ..., d)`.

    Raises:
        ValueError: on predictions of another width.

    Example:

    >>> loss = keras_bdl.losses.GaussianNLL()
    >>> float(loss([[0.0]], [[1.0, 0.0]]))  # 0.5 log(2 pi) + 0.5
    1.4189385

    Reference: Kendall and Gal, "What uncertainties do we need in Bayesian deep
    learning for computer vision?", 2017, eq. 5.
    """

    def __init__(
        self,
        stddev=None,
        reduction="sum_over_batch_size",
        name="gaussian_nll",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.stddev = None if stddev is None else validation.positive("stddev", stddev)

    @property
    def outputs_kind(self):
        return "mean_and_log_stddev" if self.stddev is None else "mean"

    def terms(self, y_true, y_pred):
        if self.stddev is None:
            y, mean, log_stddev = blocks(y_true, y_pred, 2)
        else:
            y, mean = blocks(y_true, y_pred, 1)
            log_stddev = ops.cast(math.log(self.stddev), mean.dtype)
        return -divergences.normal_log_prob(y, mean, log_stddev)

    def get_config(self):
        return {**super().get_config(), "stddev": self.stddev}


@keras.saving.register_keras_serializable(PACKAGE)
class StudentTNLL(EventLoss):
    """-log of a Student-t density, summed over event axes, mean over examples.

    Its tails are heavy: outliers bend the fit less than under a Gaussian.

    Args:
        df: degrees of freedom, a positive float, or None where the network
            predicts them. The variance, scale^2 df / (df - 2), is finite above 2.
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: targets `(n, ..., d)`; `(n,)` for d = 1.
        y_pred: `(n, ..., 2 d)`: d locations, then d log scales; with `df=None`
            `(n, ..., 3 d)`, d log degrees of freedom last.

    Raises:
        ValueError: on predictions of another width.

    Reference: Lange, Little and Taylor, "Robust statistical modeling using the t
    distribution", 1989, eq. 1.
    """

    def __init__(
        self,
        df=None,
        reduction="sum_over_batch_size",
        name="student_t_nll",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.df = None if df is None else validation.positive("df", df)

    def terms(self, y_true, y_pred):
        if self.df is None:
            y, location, log_scale, log_df = blocks(y_true, y_pred, 3)
        else:
            y, location, log_scale = blocks(y_true, y_pred, 2)
            log_df = ops.cast(math.log(self.df), location.dtype)
        return -likelihoods.student_t_log_prob(y, location, log_scale, log_df)

    def get_config(self):
        return {**super().get_config(), "df": self.df}


@keras.saving.register_keras_serializable(PACKAGE)
class BernoulliNLL(EventLoss):
    """-log p(y) of independent bits, summed over event axes, mean over examples.

    Args:
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: 0 or 1, `(n, ...)`; a value between is a probability, for which
            the loss is the cross-entropy.
        y_pred: logits, `(n, ...)`.

    Raises:
        ValueError: on predictions of another width.
    """

    def __init__(
        self, reduction="sum_over_batch_size", name="bernoulli_nll", dtype=None
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def terms(self, y_true, y_pred):
        return -likelihoods.bernoulli_log_prob(*blocks(y_true, y_pred, 1))


@keras.saving.register_keras_serializable(PACKAGE)
class DiscretizedLogisticNLL(EventLoss):
    """-log mass of the bin around y under a logistic density, in nats.

    For pixels and other values of a fixed number of levels: a probability, where a
    density of such values can be made as large as one likes. Summed over event
    axes, mean over examples.

    Args:
        levels: integer >= 2, number of levels, equally spaced.
        low, high: the first and the last level.
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: levels, `(n, ..., d)`; `(n,)` for d = 1.
        y_pred: `(n, ..., 2 d)`: d means, then d log scales.

    Raises:
        ValueError: on predictions of another width, or `low` not below `high`.

    Reference: Salimans, Karpathy, Chen and Kingma, "PixelCNN++", 2017, eq. 2.
    """

    def __init__(
        self,
        levels=256,
        low=0.0,
        high=1.0,
        reduction="sum_over_batch_size",
        name="discretized_logistic_nll",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.levels = validation.integer("levels", levels, 2, 10**6)
        self.low = validation.number("low", low)
        self.high = validation.number("high", high)
        if self.low >= self.high:
            raise ValueError(
                f"Expected `low` below `high`. Received: low={low!r}, high={high!r}"
            )

    def terms(self, y_true, y_pred):
        width = (self.high - self.low) / (self.levels - 1)
        return -likelihoods.discretized_logistic_log_prob(
            *blocks(y_true, y_pred, 2), width, self.low, self.high
        )

    def get_config(self):
        config = {"levels": self.levels, "low": self.low, "high": self.high}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(PACKAGE)
class TFPNLL(EventLoss):
    """-log p(y) of any scalar distribution of TensorFlow Probability.

    Summed over event axes, mean over examples. Needs the TensorFlow backend.

    Args:
        distribution: name of a class of `tfp.distributions`, like "Gamma".
        parameters: names of those of its arguments that the network gives; what must
            be positive or otherwise bounded goes through the distribution's own
            bijector.
        fixed: dict of its other arguments, numbers.
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: targets `(n, ..., d)`; `(n,)` for d = 1.
        y_pred: `(n, ..., k d)`: for each of the k parameters d real numbers.

    Raises:
        ValueError: on another backend, an unknown name, or predictions of another
            width.

    Example:

    >>> loss = keras_bdl.losses.TFPNLL("Beta", ["concentration1", "concentration0"])
    """

    def __init__(
        self,
        distribution,
        parameters,
        fixed=None,
        reduction="sum_over_batch_size",
        name="tfp_nll",
        dtype=None,
    ):
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
        self.make(ops.zeros((1, len(self.parameters))))  # refuses here

    def make(self, y_pred):
        """The distribution that the network's outputs say."""
        from keras_bdl.interop import tfp

        values = ops.split(y_pred, len(self.parameters), axis=-1)
        return tfp.from_reals(
            self.distribution, dict(zip(self.parameters, values)), self.fixed
        )

    def terms(self, y_true, y_pred):
        y, *parameters = blocks(y_true, y_pred, len(self.parameters))
        return -self.make(ops.concatenate(parameters, axis=-1)).log_prob(y)

    def get_config(self):
        return {
            **super().get_config(),
            "distribution": self.distribution,
            "parameters": self.parameters,
            "fixed": self.fixed,
        }


def blocks(y_true, y_pred, count):
    """Targets `(n, ..., d)`, and the `count` blocks of d predictions each."""
    y = ops.cast(y_true, y_pred.dtype)
    if len(y_pred.shape) == 1:  # Keras squeezes a single unit
        y_pred = ops.expand_dims(y_pred, -1)
    if len(y.shape) == len(y_pred.shape) - 1:
        y = ops.expand_dims(y, -1)
    sizes = list(y.shape)
    if sizes and sizes[-1] is not None:
        sizes[-1] *= count
    fits = len(sizes) == len(y_pred.shape) and all(
        None in pair or pair[0] == pair[1] for pair in zip(sizes, y_pred.shape)
    )
    if not fits:
        raise ValueError(
            f"Expected predictions `(n, ..., {count} * d)` for targets `(n, ..., d)`. "
            f"Received: y_true.shape={tuple(y_true.shape)}, "
            f"y_pred.shape={tuple(y_pred.shape)}"
        )
    return y, *ops.split(y_pred, count, axis=-1)


def check_logits(num_classes):
    """Refuses a single logit, of which a softmax is always 1."""
    if num_classes == 1:
        raise ValueError(
            "Expected one logit per class on the last axis; a binary problem has two "
            "classes: end the network in a layer of 2 units. "
            f"Received: classes={num_classes}"
        )
