"""The base class of losses that sum over the events of an example."""

import keras
from keras import ops

from keras_bdl.core import masking
from keras_bdl.core.typing import Tensor


class EventLoss(keras.losses.Loss):
    """Sums over event axes (positions, outputs) and takes the mean over examples.

    Subclasses implement `terms(y_true, y_pred)`, which returns one value per event,
    `(n, ...)`. Weights `(n,)` count examples; weights `(n, ...)` and Keras masks count
    events. `outputs_kind` tells `keras_bdl.predict` what the predictions are.
    """

    outputs_kind: str | None = None

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> Tensor:
        y_pred, weights = unmask(y_pred, sample_weight)
        if weights is None:
            return super().__call__(y_true, y_pred)
        y_true, weights = (ops.convert_to_tensor(x) for x in (y_true, weights))
        if all(size == 1 for size in weights.shape[1:]):
            weights = ops.reshape(weights, (-1,))
            counted = ops.cast(ops.not_equal(weights, 0), self.dtype)
            return super().__call__((y_true, counted), y_pred, weights)
        if self.reduction == "mean_with_sample_weight":
            raise ValueError(
                "Expected one weight per example, because "
                "reduction='mean_with_sample_weight' divides by these; weights of "
                "events do not work with it. Received: "
                f"sample_weight (or a mask) of shape {tuple(weights.shape)}"
            )
        # `call` applies the weights before it sums events; Keras weights only rows.
        return super().__call__((y_true, weights), y_pred)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        weights = None
        if isinstance(y_true, tuple):
            y_true, weights = y_true
            y_true = self.fill(y_true, y_pred, weights)
        terms = self.terms(y_true, y_pred)
        if weights is not None:
            terms = terms * align_weights(weights, terms)
        return ops.sum(ops.reshape(terms, (ops.shape(terms)[0], -1)), axis=-1)

    def terms(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Returns one value per event, `(n, ...)`, in nats."""
        raise NotImplementedError

    def fill(self, y_true: Tensor, y_pred: Tensor, weights: Tensor) -> Tensor:
        """Returns the targets with 0 in place of NaN where the weight is 0."""
        missing = ops.logical_and(
            ops.isnan(y_true), ops.equal(align_weights(weights, y_true), 0.0)
        )
        return ops.where(missing, ops.zeros_like(y_true), y_true)

    def row_losses(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None
    ) -> Tensor:
        """Returns the weighted loss of each example, `(n,)`.

        `__call__` returns the mean of these.
        """
        y_true = ops.convert_to_tensor(y_true, dtype=self.dtype)
        y_pred, weights = unmask(y_pred, sample_weight)
        y_pred = ops.cast(y_pred, self.dtype)
        return self.call(y_true if weights is None else (y_true, weights), y_pred)


def unmask(y_pred, sample_weight):
    """Returns predictions without their Keras mask, and weights.

    The weights are 0 where the mask is False.
    """
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
    """Broadcasts weights to the shape of `values`.

    The weight of a row holds for all events of the row.

    Raises:
        ValueError: if the shapes do not fit.
    """
    weights = ops.cast(ops.convert_to_tensor(sample_weight), values.dtype)
    num_axes = len(values.shape)
    if len(weights.shape) == num_axes + 1 and weights.shape[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    while len(weights.shape) < num_axes:
        weights = ops.expand_dims(weights, -1)
    fits = len(weights.shape) == num_axes and all(
        None in pair or pair[0] in (1, pair[1])
        for pair in zip(weights.shape, values.shape)
    )
    if not fits:
        raise ValueError(
            "Expected one weight per example, or one for each of its "
            f"{tuple(values.shape)} events. Received: sample_weight (or a mask) of "
            f"shape {tuple(ops.shape(sample_weight))}"
        )
    return ops.broadcast_to(weights, ops.shape(values))


def blocks(y_true, y_pred, count):
    """Returns targets `(n, ..., d)`, then the `count` blocks of d predictions each.

    Raises:
        ValueError: if the predictions are not `(n, ..., count * d)`.
    """
    y = ops.cast(y_true, y_pred.dtype)
    if len(y_pred.shape) == 1:  # Keras squeezes the axis of a single unit
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
