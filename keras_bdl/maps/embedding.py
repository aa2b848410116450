"""Embeddings, which look up rows of a table: a linear map of one-hot indices."""

import keras
from keras import backend, ops

from keras_bdl.core.typing import Tensor
from keras_bdl.maps.base import LinearMap


class Embedding(LinearMap):
    """Computes `keras.layers.Embedding`. Positions of equal index share one row."""

    kernel = "embeddings"
    bias = None
    attributes = {"embeddings": "_embeddings"}

    def prepare(self, layer: keras.layers.Layer, inputs: Tensor) -> Tensor:
        if backend.standardize_dtype(inputs.dtype) in ("int32", "int64"):
            return inputs
        return ops.cast(inputs, "int32")

    def num_positions(
        self, layer: keras.layers.Layer, input_shape: tuple[int | None, ...] | None
    ) -> int:
        return 1 if input_shape is None else len(input_shape) - 1

    def input_axes(self, layer: keras.layers.Layer) -> tuple[int, ...] | None:
        return None  # inputs are indices

    def output_axes(self, layer: keras.layers.Layer) -> tuple[int, ...]:
        return (-1,)

    def linear(
        self, layer: keras.layers.Layer, inputs: Tensor, kernel: Tensor
    ) -> Tensor:
        return ops.take(kernel, inputs, axis=0)

    def square(self, layer: keras.layers.Layer, inputs: Tensor) -> Tensor:
        return inputs  # one-hot rows equal their squares

    def linear_per_sample(
        self, layer: keras.layers.Layer, inputs: Tensor, kernels: Tensor, shared: bool
    ) -> Tensor:
        if not shared:
            return super().linear_per_sample(layer, inputs, kernels, shared)
        outputs = ops.take(kernels, inputs, axis=1)  # (samples, rows, ...)
        return ops.reshape(outputs, (-1, *ops.shape(outputs)[2:]))
