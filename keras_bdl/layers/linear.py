"""The linear map of a Dense or convolution layer, with a kernel of one's choice."""

import keras
from keras import ops

# From so many filters on, one convolution for all samples costs more by its
# transposition than it saves (measured: benchmarks/README.md).
_MANY_FILTERS = 16


def is_dense(layer):
    return isinstance(layer, keras.layers.Dense)


def channel_axis(layer):
    """Axis of the channels in the layer's inputs and outputs."""
    if is_dense(layer) or layer.data_format == "channels_last":
        return -1
    return 1


def apply_kernel(layer, inputs, kernel):
    """The outputs of a layer before bias and activation."""
    if is_dense(layer):
        # Keras on PyTorch gives a product of float64 in float32.
        return ops.cast(ops.matmul(inputs, kernel), inputs.dtype)
    padding = layer.padding
    if padding == "causal":
        left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        pad = [[0, 0], [0, 0], [0, 0]]
        pad[1 if layer.data_format == "channels_last" else 2] = [left, 0]
        inputs, padding = ops.pad(inputs, pad), "valid"
    return ops.conv(
        inputs,
        kernel,
        strides=list(layer.strides),
        padding=padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def expand_bias(layer, bias):
    """A bias in a shape that joins the outputs."""
    if is_dense(layer):
        return bias
    shape = [1] * (layer.rank + 2)
    shape[channel_axis(layer)] = -1
    return ops.reshape(bias, shape)


def finish(layer, outputs):
    """Adds the layer's own bias and applies its activation."""
    if layer.bias is not None:
        outputs = outputs + ops.cast(expand_bias(layer, layer.bias), outputs.dtype)
    return outputs if layer.activation is None else layer.activation(outputs)


def apply_kernel_per_sample(layer, inputs, kernels, biases=None, shared=False):
    """Applies kernel and bias s to the s-th of equal parts of the rows.

    Args:
        layer: Dense or convolution layer.
        inputs: `(samples * rows, ...)`, or `(rows, ...)` where `shared`.
        kernels: `(samples, *kernel_shape)`.
        biases: `(samples, units)` or None.
        shared: whether all samples have the same inputs.

    Returns:
        Outputs `(samples * rows, ...)` before the activation.
    """
    num_samples = kernels.shape[0]
    if is_dense(layer):
        input_dim, units = kernels.shape[1:]
        positions = ops.shape(inputs)[1:-1]
        parts = 1 if shared else num_samples
        inputs = ops.reshape(inputs, (parts, -1, input_dim))
        outputs = ops.matmul(inputs, kernels)  # (samples, rows * positions, units)
        if biases is not None:
            outputs = outputs + ops.expand_dims(biases, 1)
        return ops.reshape(outputs, (-1, *positions, units))
    if shared and layer.groups == 1 and layer.filters < _MANY_FILTERS:
        return _samples_as_channels(layer, inputs, kernels, biases)
    if shared or num_samples == 1:
        parts = [inputs] * num_samples
    else:
        parts = ops.split(inputs, num_samples)
    outputs = []
    for index, part in enumerate(parts):
        output = apply_kernel(layer, part, kernels[index])
        if biases is not None:
            output = output + expand_bias(layer, biases[index])
        outputs.append(output)
    return outputs[0] if num_samples == 1 else ops.concatenate(outputs)


def _samples_as_channels(layer, inputs, kernels, biases):
    """One convolution with the filters of all samples side by side."""
    kernels = ops.moveaxis(kernels, 0, -2)  # (..., channels, samples, filters)
    num_samples, filters = kernels.shape[-2:]
    kernel = ops.reshape(kernels, (*kernels.shape[:-2], num_samples * filters))
    outputs = apply_kernel(layer, inputs, kernel)
    if biases is not None:
        outputs = outputs + expand_bias(layer, ops.reshape(biases, (-1,)))
    axis = channel_axis(layer) % len(outputs.shape)
    shape = list(ops.shape(outputs))
    by_sample = [*shape[:axis], num_samples, filters, *shape[axis + 1 :]]
    outputs = ops.moveaxis(ops.reshape(outputs, by_sample), axis, 0)
    shape[0], shape[axis] = -1, filters
    return ops.reshape(outputs, shape)
