"""Products of any axes: `keras.layers.EinsumDense`."""

import string

from keras import ops

from keras_bdl.maps.base import WeightMap


class Einsum(WeightMap):
    """`keras.layers.EinsumDense`, of which the first axis is the rows'.

    Labels of the inputs that the kernel does not have are positions where the outputs
    have them, and are summed where not.
    """

    def _labels(self, layer, rank):
        """Labels of inputs, kernel and outputs, of an ellipsis too."""
        equation = layer.equation.replace(" ", "")
        inputs, others = equation.split(",")
        free = [letter for letter in string.ascii_letters if letter not in equation]
        elided = "".join(free[: rank - len(inputs.replace("...", ""))])
        inputs = inputs.replace("...", elided)
        kernel, outputs = others.split("->")
        return inputs, kernel, outputs.replace("...", elided)

    def _labels_of_built(self, layer):
        return self._labels(layer, layer.input_spec.ndim)

    def num_positions(self, layer, input_shape):
        inputs, kernel, outputs = self._labels(layer, len(input_shape))
        if inputs[0] != outputs[0] or inputs[0] in kernel:
            raise ValueError(
                "Expected an equation whose inputs and outputs start with the axis of "
                "the rows, which the kernel has not: rows of a batch share weights. "
                f"Received: equation={layer.equation!r}"
            )
        return sum(x in inputs and x not in kernel for x in outputs[1:])

    def input_axes(self, layer):
        inputs, kernel, _ = self._labels_of_built(layer)
        return tuple(axis for axis, x in enumerate(inputs) if x in kernel)

    def output_axes(self, layer):
        _, kernel, outputs = self._labels_of_built(layer)
        return tuple(axis for axis, x in enumerate(outputs) if x in kernel)

    def bias_is_own(self, layer):
        if layer.bias_axes is None:
            return True
        _, kernel, outputs = self._labels_of_built(layer)
        return set(kernel) & set(outputs) <= set(layer.bias_axes)

    def linear(self, layer, inputs, kernel):
        return ops.cast(ops.einsum(layer.equation, inputs, kernel), inputs.dtype)

    def square(self, layer, inputs):
        labels, kernel, outputs = self._labels_of_built(layer)
        summed = [i for i, x in enumerate(labels) if x not in kernel + outputs]
        if summed:  # one weight meets their sum
            inputs = ops.sum(inputs, axis=tuple(summed), keepdims=True)
        return ops.square(inputs)

    def linear_per_sample(self, layer, inputs, kernels, shared):
        labels, kernel, outputs = self._labels_of_built(layer)
        sample = next(x for x in string.ascii_letters if x not in labels + kernel)
        if not shared:
            shape = ops.shape(inputs)[1:]
            inputs = ops.reshape(inputs, (kernels.shape[0], -1, *shape))
            labels = sample + labels
        equation = f"{labels},{sample}{kernel}->{sample}{outputs}"
        result = ops.cast(ops.einsum(equation, inputs, kernels), inputs.dtype)
        return ops.reshape(result, (-1, *ops.shape(result)[2:]))
