"""Negative log-likelihoods of real targets."""

import math
from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.event_loss import EventLoss, blocks
from keras_bdl.core.stochastic import PACKAGE
from keras_bdl.core.typing import DType, Tensor
from keras_bdl.ops import divergences, likelihoods


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
class BetaNLL(GaussianNLL):
    """`GaussianNLL` of predicted deviations, with each term weighted by s^(2 beta).

    The gradient of the mean in `GaussianNLL` is divided by the variance. So a network
    gives up inputs that it first predicts badly, with a large deviation as its excuse.
    Here the weight s^(2 beta) of each term, through which no gradient flows, undoes a
    part of this: beta = 0 is `GaussianNLL`, and beta = 1 gives means the gradient of
    the squared error. The loss is no log likelihood, so it fits a network without a
    KL term, such as the members of an `Ensemble`; evaluate with `GaussianNLL`. The
    terms shrink with the deviations, so beside them regularizers of weights weigh more;
    the decoupled weight decay of `keras.optimizers.AdamW` does not.

    Args:
        beta: float from 0 to 1.
        reduction, name, dtype: as in `keras.losses.Loss`.

    Call arguments:
        y_true: targets `(n, ..., d)`; `(n,)` for d = 1.
        y_pred: `(n, ..., 2 d)`: d means, then d log standard deviations.

    Raises:
        ValueError: if `beta` is another number, or predictions have another width.

    Example:

    >>> model.compile("adam", keras_bdl.losses.BetaNLL(0.5))

    Reference: Seitzer, Tavakoli, Antic and Martius, "On the pitfalls of heteroscedastic
    uncertainty estimation with probabilistic neural networks", 2022, eq. 5.
    """

    def __init__(
        self,
        beta: float = 0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str = "beta_nll",
        dtype: DType = None,
    ) -> None:
        super().__init__(None, reduction, name, dtype)
        self.beta = validation.number("beta", beta, least=0.0)
        if self.beta > 1.0:
            raise ValueError(f"Expected `beta` from 0 to 1. Received: beta={beta!r}")

    def terms(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        log_stddev = blocks(y_true, y_pred, 2)[2]
        weight = ops.stop_gradient(ops.exp(2.0 * self.beta * log_stddev))
        return super().terms(y_true, y_pred) * weight

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["stddev"]
        return {**config, "beta": self.beta}


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
