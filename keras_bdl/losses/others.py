"""Negative log-likelihoods of pixels, and of any distribution."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.event_loss import EventLoss, blocks
from keras_bdl.core.stochastic import PACKAGE
from keras_bdl.core.typing import DType, Tensor
from keras_bdl.ops import likelihoods


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
