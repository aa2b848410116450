"""Transposed convolutions, whose kernels have their filters before their channels."""

import keras
from keras import ops

from keras_bdl.core.typing import Tensor
from keras_bdl.maps.linear import Conv


class Transposed(Conv):
    """Computes `keras.layers.Conv1DTranspose`, `Conv2DTranspose`, `Conv3DTranspose`."""

    attributes = {"kernel": "kernel", "bias": "bias"}
    filters_axis = -2

    def linear(
        self, layer: keras.layers.Layer, inputs: Tensor, kernel: Tensor
    ) -> Tensor:
        return ops.conv_transpose(
            inputs,
            kernel,
            strides=list(layer.strides),
            padding=layer.padding,
            output_padding=layer.output_padding,
            dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )
