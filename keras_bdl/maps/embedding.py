"""Embeddings: rows of a table, which is a linear map of one-hot indices."""

from keras import backend, ops

from keras_bdl.maps.base import WeightMap


class Embedding(WeightMap):
    """`keras.layers.Embedding`. Positions with one index share its row."""

    kernel = "embeddings"
    bias = None
    attributes = {"embeddings": "_embeddings"}

    def prepare(self, layer, inputs):
        if backend.standardize_dtype(inputs.dtype) in ("int32", "int64"):
            return inputs
        return ops.cast(inputs, "int32")

    def num_positions(self, layer, input_shape):
        return 1 if input_shape is None else len(input_shape) - 1

    def input_axes(self, layer):
        return None  # inputs are indices

    def output_axes(self, layer):
        return (-1,)

    def linear(self, layer, inputs, kernel):
        return ops.take(kernel, inputs, axis=0)

    def square(self, layer, inputs):
        return inputs  # the square of one-hot rows are they themselves

    def linear_per_sample(self, layer, inputs, kernels, shared):
        if not shared:
            return super().linear_per_sample(layer, inputs, kernels, shared)
        outputs = ops.take(kernels, inputs, axis=1)  # (samples, rows, ...)
        return ops.reshape(outputs, (-1, *ops.shape(outputs)[2:]))
