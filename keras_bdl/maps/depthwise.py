"""Depthwise convolutions, which have separate kernels for every channel."""

import keras
from keras import ops

from keras_bdl.core.typing import Tensor
from keras_bdl.maps.base import LinearMap
from keras_bdl.maps.linear import Conv


class Depthwise(Conv):
    """Computes `keras.layers.DepthwiseConv1D` and `DepthwiseConv2D`."""

    attributes = {"kernel": "kernel", "bias": "bias"}

    def linear(
        self, layer: keras.layers.Layer, inputs: Tensor, kernel: Tensor
    ) -> Tensor:
        return ops.depthwise_conv(
            inputs,
            kernel,
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )

    def linear_per_sample(
        self, layer: keras.layers.Layer, inputs: Tensor, kernels: Tensor, shared: bool
    ) -> Tensor:
        if not shared:
            return LinearMap.linear_per_sample(self, layer, inputs, kernels, shared)
        # One convolution gives each channel the kernels of all samples.
        num_samples, multiplier = kernels.shape[0], kernels.shape[-1]
        kernels = ops.moveaxis(kernels, 0, -2)  # (..., channels, samples, multiplier)
        kernel = ops.reshape(kernels, (*kernels.shape[:-2], num_samples * multiplier))
        outputs = self.linear(layer, inputs, kernel)
        axis = self.output_axes(layer)[0] % len(outputs.shape)
        shape = list(ops.shape(outputs))
        by_sample = [*shape[:axis], -1, num_samples, multiplier, *shape[axis + 1 :]]
        outputs = ops.moveaxis(ops.reshape(outputs, by_sample), axis + 1, 0)
        shape[0], shape[axis] = -1, shape[axis] // num_samples
        return ops.reshape(outputs, shape)
