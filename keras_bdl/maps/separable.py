"""Separable convolutions: a depthwise convolution, and a product of its channels."""

from typing import Any

import keras
from keras import ops

from keras_bdl.core.typing import Tensor
from keras_bdl.maps.base import LinearMap, WeightMap
from keras_bdl.maps.depthwise import Depthwise
from keras_bdl.maps.linear import Conv, Dense


class DepthwiseStep(Depthwise):
    """The first step of a separable convolution."""

    kernel = "depthwise_kernel"
    bias = None
    attributes = {"depthwise_kernel": "depthwise_kernel"}

    def activate(self, layer: keras.layers.Layer, outputs: Tensor) -> Tensor:
        return outputs


class PointwiseStep(Conv):
    """The second step of a separable convolution, at each position by itself."""

    kernel = "pointwise_kernel"
    attributes = {"pointwise_kernel": "pointwise_kernel", "bias": "bias"}

    def linear(
        self, layer: keras.layers.Layer, inputs: Tensor, kernel: Tensor
    ) -> Tensor:
        kernels = ops.expand_dims(kernel, 0)
        return self.linear_per_sample(layer, inputs, kernels, shared=True)

    def linear_per_sample(
        self, layer: keras.layers.Layer, inputs: Tensor, kernels: Tensor, shared: bool
    ) -> Tensor:
        (axis,) = self.output_axes(layer)
        kernels = ops.reshape(kernels, (kernels.shape[0], *kernels.shape[-2:]))
        inputs = ops.moveaxis(inputs, axis, -1)
        outputs = Dense().linear_per_sample(layer, inputs, kernels, shared)
        # Keras on PyTorch returns products of float64 tensors in float32.
        return ops.moveaxis(ops.cast(outputs, inputs.dtype), -1, axis)


class Separable(WeightMap):
    """Computes `keras.layers.SeparableConv1D` and `SeparableConv2D`.

    Outputs are linear in each of the two kernels, and not in both together.

    Attributes:
        steps: the two linear maps, of which the second takes the outputs of the first.
    """

    kernel = "pointwise_kernel"
    has_estimators = True
    steps: tuple[LinearMap, ...] = (DepthwiseStep(), PointwiseStep())
    attributes = {**steps[0].attributes, **steps[1].attributes}

    def num_positions(
        self, layer: keras.layers.Layer, input_shape: tuple[int | None, ...]
    ) -> int:
        return len(input_shape) - 2

    def apply(
        self,
        layer: keras.layers.Layer,
        inputs: Tensor,
        weights: dict[str, Tensor],
        **arguments: Any,
    ) -> Tensor:
        outputs = ops.separable_conv(
            inputs,
            weights["depthwise_kernel"],
            weights["pointwise_kernel"],
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )
        return self.steps[-1].finish(layer, outputs, weights.get("bias"))

    def apply_per_sample(
        self,
        layer: keras.layers.Layer,
        inputs: Tensor,
        weights: dict[str, Tensor],
        shared: bool = False,
        **arguments: Any,
    ) -> Tensor:
        first, last = self.steps
        inputs = first.apply_per_sample(layer, inputs, weights, shared)
        return last.apply_per_sample(layer, inputs, weights)
