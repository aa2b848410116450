"""Dense layers and convolutions."""

import keras
from keras import ops

from keras_bdl.core.typing import Tensor
from keras_bdl.maps.base import LinearMap

# With at least this many filters, one convolution for all samples loses more time to
# its transposition than it saves (measured in benchmarks/README.md).
_MANY_FILTERS = 16


class Dense(LinearMap):
    """Computes `keras.layers.Dense`, a matrix product over the last axis."""

    def num_positions(
        self, layer: keras.layers.Layer, input_shape: tuple[int | None, ...]
    ) -> int:
        return len(input_shape) - 2

    def input_axes(self, layer: keras.layers.Layer) -> tuple[int, ...] | None:
        return (-1,)

    def linear(
        self, layer: keras.layers.Layer, inputs: Tensor, kernel: Tensor
    ) -> Tensor:
        # Keras on PyTorch returns products of float64 tensors in float32.
        return ops.cast(ops.matmul(inputs, kernel), inputs.dtype)

    def linear_per_sample(
        self, layer: keras.layers.Layer, inputs: Tensor, kernels: Tensor, shared: bool
    ) -> Tensor:
        num_samples, input_dim, units = kernels.shape
        positions = ops.shape(inputs)[1:-1]
        parts = 1 if shared else num_samples
        inputs = ops.reshape(inputs, (parts, -1, input_dim))
        outputs = ops.matmul(inputs, kernels)  # (samples, rows * positions, units)
        return ops.reshape(outputs, (-1, *positions, units))


class Conv(LinearMap):
    """Computes `keras.layers.Conv1D`, `Conv2D` and `Conv3D`.

    Attributes:
        filters_axis: axis of the filters in a kernel, from the end.
    """

    filters_axis = -1

    def num_positions(
        self, layer: keras.layers.Layer, input_shape: tuple[int | None, ...]
    ) -> int:
        return len(input_shape) - 2

    def input_axes(self, layer: keras.layers.Layer) -> tuple[int, ...] | None:
        return (-1,) if layer.data_format == "channels_last" else (1,)

    def linear(
        self, layer: keras.layers.Layer, inputs: Tensor, kernel: Tensor
    ) -> Tensor:
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

    def linear_per_sample(
        self, layer: keras.layers.Layer, inputs: Tensor, kernels: Tensor, shared: bool
    ) -> Tensor:
        groups = getattr(layer, "groups", 1)  # transposed convolutions have none
        if shared and groups == 1 and layer.filters < _MANY_FILTERS:
            return self._samples_as_channels(layer, inputs, kernels)
        return super().linear_per_sample(layer, inputs, kernels, shared)

    def _samples_as_channels(self, layer, inputs, kernels):
        """Runs one convolution with the filters of all samples side by side."""
        num_samples, *kernel_shape = kernels.shape
        filters = kernel_shape[self.filters_axis]
        kernel_shape[self.filters_axis] = num_samples * filters
        # The samples come before the filters: (..., channels, samples, filters).
        kernels = ops.moveaxis(kernels, 0, self.filters_axis - 1)
        kernel = ops.reshape(kernels, kernel_shape)
        outputs = self.linear(layer, inputs, kernel)
        axis = self.output_axes(layer)[0] % len(outputs.shape)
        shape = list(ops.shape(outputs))
        by_sample = [*shape[:axis], num_samples, filters, *shape[axis + 1 :]]
        outputs = ops.moveaxis(ops.reshape(outputs, by_sample), axis, 0)
        shape[0], shape[axis] = -1, filters
        return ops.reshape(outputs, shape)

    def bias_shape(
        self, layer: keras.layers.Layer, shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        if layer.data_format == "channels_last":
            return shape
        return (*shape, *(1,) * layer.rank)


def of(layer: keras.layers.Layer) -> LinearMap:
    """Returns the map of a plain Dense or convolution layer."""
    return Dense() if isinstance(layer, keras.layers.Dense) else Conv()
