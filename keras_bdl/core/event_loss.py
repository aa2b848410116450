"""The base of losses that are sums over the events of an example, and its shapes."""

import keras
from keras import ops

from keras_bdl.core import masking


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
        y_true, weights = (ops.convert_to_tensor(x) for x in (y_true, weights))
        if all(size == 1 for size in weights.shape[1:]):
            weights = ops.reshape(weights, (-1,))
            counted = ops.cast(ops.not_equal(weights, 0), self.dtype)
            return super().__call__((y_true, counted), y_pred, weights)
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
            y_true = self.fill(y_true, y_pred, weights)
        terms = self.terms(y_true, y_pred)
        if weights is not None:
            terms = terms * align_weights(weights, terms)
        return ops.sum(ops.reshape(terms, (ops.shape(terms)[0], -1)), axis=-1)

    def fill(self, y_true, y_pred, weights):
        """Targets with a number in place of NaN where the weight is 0."""
        missing = ops.logical_and(
            ops.isnan(y_true), ops.equal(align_weights(weights, y_true), 0.0)
        )
        return ops.where(missing, ops.zeros_like(y_true), y_true)

    def row_losses(self, y_true, y_pred, sample_weight=None):
        """The weighted loss of each example, `(n,)`: what `__call__` is the mean of."""
        y_true = ops.convert_to_tensor(y_true, dtype=self.dtype)
        y_pred, weights = unmask(y_pred, sample_weight)
        y_pred = ops.cast(y_pred, self.dtype)
        return self.call(y_true if weights is None else (y_true, weights), y_pred)


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
