"""The linear map of a Dense or convolution layer, with a kernel of one's choice."""

import keras
from keras import ops


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
    shape[channel_axis(layer)] = layer.filters
    return ops.reshape(bias, shape)


def finish(layer, outputs):
    """Adds the layer's own bias and applies its activation."""
    if layer.bias is not None:
        outputs = outputs + ops.cast(expand_bias(layer, layer.bias), outputs.dtype)
    return outputs if layer.activation is None else layer.activation(outputs)


def apply_kernel_per_sample(layer, inputs, kernels, biases=None):
    """Applies kernel and bias s to the s-th of equal parts of the rows."""
    num_samples = kernels.shape[0]
    if is_dense(layer):
        input_dim, units = kernels.shape[1:]
        positions = ops.shape(inputs)[1:-1]
        inputs = ops.reshape(inputs, (num_samples, -1, input_dim))
        outputs = ops.matmul(inputs, kernels)  # (samples, rows * positions, units)
        if biases is not None:
            outputs = outputs + ops.expand_dims(biases, 1)
        return ops.reshape(outputs, (-1, *positions, units))
    outputs = []
    parts = [inputs] if num_samples == 1 else ops.split(inputs, num_samples)
    for index, part in enumerate(parts):
        output = apply_kernel(layer, part, kernels[index])
        if biases is not None:
            output = output + expand_bias(layer, biases[index])
        outputs.append(output)
    return outputs[0] if num_samples == 1 else ops.concatenate(outputs)
