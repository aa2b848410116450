"""Products of any axes: `keras.layers.EinsumDense`."""

import string

import keras
from keras import ops

from keras_bdl.core.typing import Tensor
from keras_bdl.maps.base import LinearMap


class Einsum(LinearMap):
    """Computes `keras.layers.EinsumDense`, whose first axis is that of the rows.

    Labels that are in the inputs and not in the kernel are positions if the outputs
    have them. Otherwise the product sums over them.
    """

    def _labels(self, layer, rank):
        """Returns the labels of inputs, kernel and outputs, with ellipses expanded."""
        equation = layer.equation.replace(" ", "")
        inputs, others = equation.split(",")
        free = [letter for letter in string.ascii_letters if letter not in equation]
        elided = "".join(free[: rank - len(inputs.replace("...", ""))])
        inputs = inputs.replace("...", elided)
        kernel, outputs = others.split("->")
        return inputs, kernel, outputs.replace("...", elided)

    def _labels_of_built(self, layer):
        return self._labels(layer, layer.input_spec.ndim)

    def num_positions(
        self, layer: keras.layers.Layer, input_shape: tuple[int | None, ...]
    ) -> int:
        inputs, kernel, outputs = self._labels(layer, len(input_shape))
        if inputs[0] != outputs[0] or inputs[0] in kernel:
            raise ValueError(
                "Expected an equation whose inputs and outputs start with the axis of "
                "the rows, which the kernel does not have: rows share weights. "
                f"Received: equation={layer.equation!r}"
            )
        return sum(x in inputs and x not in kernel for x in outputs[1:])

    def input_axes(self, layer: keras.layers.Layer) -> tuple[int, ...] | None:
        inputs, kernel, _ = self._labels_of_built(layer)
        return tuple(axis for axis, x in enumerate(inputs) if x in kernel)

    def output_axes(self, layer: keras.layers.Layer) -> tuple[int, ...]:
        _, kernel, outputs = self._labels_of_built(layer)
        return tuple(axis for axis, x in enumerate(outputs) if x in kernel)

    def bias_is_own(self, layer: keras.layers.Layer) -> bool:
        if layer.bias_axes is None:
            return True
        _, kernel, outputs = self._labels_of_built(layer)
        return set(kernel) & set(outputs) <= set(layer.bias_axes)

    def linear(
        self, layer: keras.layers.Layer, inputs: Tensor, kernel: Tensor
    ) -> Tensor:
        return ops.cast(ops.einsum(layer.equation, inputs, kernel), inputs.dtype)

    def square(self, layer: keras.layers.Layer, inputs: Tensor) -> Tensor:
        labels, kernel, outputs = self._labels_of_built(layer)
        summed = [i for i, x in enumerate(labels) if x not in kernel + outputs]
        if summed:  # one weight multiplies their sum
            inputs = ops.sum(inputs, axis=tuple(summed), keepdims=True)
        return ops.square(inputs)

    def linear_per_sample(
        self, layer: keras.layers.Layer, inputs: Tensor, kernels: Tensor, shared: bool
    ) -> Tensor:
        labels, kernel, outputs = self._labels_of_built(layer)
        sample = next(x for x in string.ascii_letters if x not in labels + kernel)
        if not shared:
            shape = ops.shape(inputs)[1:]
            inputs = ops.reshape(inputs, (kernels.shape[0], -1, *shape))
            labels = sample + labels
        equation = f"{labels},{sample}{kernel}->{sample}{outputs}"
        result = ops.cast(ops.einsum(equation, inputs, kernels), inputs.dtype)
        return ops.reshape(result, (-1, *ops.shape(result)[2:]))
