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
        num_samples, input_dim, output_dim = kernels.shape
        parts = 1 if shared else num_samples
        shape = ops.shape(inputs)[1:]
        inputs = ops.reshape(inputs, (parts, -1, *shape))
        # The tables stand one below the other.
        first = ops.arange(num_samples, dtype=inputs.dtype) * input_dim
        first = ops.reshape(first, (num_samples,) + (1,) * (len(shape) + 1))
        table = ops.reshape(kernels, (-1, output_dim))
        outputs = ops.take(table, inputs + first, axis=0)
        return ops.reshape(outputs, (-1, *shape, output_dim))
