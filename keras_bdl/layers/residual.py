"""Functions that run residual units on the rows that need them."""

import inspect

import keras
from keras import ops

from keras_bdl.core.dtypes import wide
from keras_bdl.core.finding import flatten_layers
from keras_bdl.layers.latent import LatentLayer


def mean_pool(x, mask=None):
    """Averages `(n, ..., channels)` over positions to `(n, channels)`, in float32."""
    channel = channel_axis(len(x.shape))
    axes = [axis for axis in range(1, len(x.shape)) if axis != channel]
    if not axes:
        return x
    x = wide(x)
    if mask is None:
        return ops.mean(x, axis=axes)
    weights = ops.cast(mask, x.dtype)
    weights = ops.reshape(
        weights, (*ops.shape(weights), *[1] * (len(x.shape) - len(weights.shape)))
    )
    count = ops.maximum(ops.sum(weights, axis=axes), 1.0)
    return ops.sum(x * weights, axis=axes) / count


def channel_axis(rank):
    """Returns the axis of the channels of a tensor of this rank."""
    # Sequences have their channels last in both data formats.
    first = keras.config.image_data_format() == "channels_first" and rank > 3
    return 1 if first else rank - 1


def gated_sum(inputs, increments, survival):
    """Returns x + sum_l [z >= l] F_l, with `survival` for [z >= l] if l > 1."""
    outputs = inputs + increments[0]
    for index, increment in enumerate(increments[1:]):
        gate = ops.cast(survival[:, index], increment.dtype)
        shape = (-1,) + (1,) * (len(increment.shape) - 1)
        outputs = outputs + ops.reshape(gate, shape) * increment
    return outputs


def run_until_stopped(step, num_steps, state, about, skip):
    """Runs steps on rows until each row stops.

    Args:
        step: function of the number of the step, from 0, of `state` and of `about`. It
            returns the new state and booleans `(n,)`, which say whether a row stops.
        num_steps: number of steps. The first step runs on every row.
        state: dictionary of tensors `(n, ...)`.
        about: dictionary of tensors `(n, ...)` that do not change.
        skip: whether to skip the computation of rows that have stopped. On TensorFlow a
            step receives only live rows. On other backends a step is skipped once no
            row is live.

    Returns:
        The state of each row when it stopped.
    """
    if skip and keras.backend.backend() == "tensorflow":
        from keras_bdl.interop import tensorflow

        return tensorflow.run_until_stopped(step, num_steps, state, about)
    state, stops = step(0, state, about)
    live = ops.logical_not(stops)
    for number in range(1, num_steps):

        def run(number=number, state=state, live=live):
            new, stops = step(number, state, about)
            new = {name: where_rows(live, new[name], state[name]) for name in new}
            return new, ops.logical_and(live, ops.logical_not(stops))

        def leave(state=state, live=live):
            return dict(state), live

        state, live = ops.cond(ops.any(live), run, leave) if skip else run()
    return state


def where_rows(rows, new, old):
    """Returns `new` in the rows where the booleans `(n,)` are true, or else `old`."""
    return ops.where(ops.reshape(rows, (-1,) + (1,) * (len(new.shape) - 1)), new, old)


def call_with_mask(layer, x, mask):
    """Calls a layer, and passes the mask if the layer takes one."""
    if mask is not None and "mask" in inspect.signature(layer.call).parameters:
        return layer(x, mask=mask)
    return layer(x)


def check_layers(name, layers, least=1):
    """Returns a valid list of layers and raises an error for any other value."""
    if not isinstance(layers, (list, tuple)) or len(layers) < least:
        raise TypeError(
            f"Expected `{name}` to be a list of Keras layers. "
            f"Received: {name}={layers!r}"
        )
    for layer in layers:
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                f"Expected `{name}` to be a list of Keras layers. Received: {layer!r}"
            )
        if any(isinstance(inner, LatentLayer) for inner in flatten_layers(layer)):
            raise ValueError(
                f"Expected `{name}` without latent variables inside, which could not "
                f"be skipped. Received: '{layer.name}'"
            )
    if len({id(layer) for layer in layers}) < len(layers):
        raise ValueError(
            f"Expected different layers in `{name}`. Received: one of them twice"
        )
    return list(layers)
