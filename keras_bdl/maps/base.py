"""What a Keras layer does with its weights, with weights of one's choice."""

from keras import ops

from keras_bdl.core.dtypes import as_floats


class WeightMap:
    """The arithmetic of one kind of Keras layer. It has no state.

    Outputs are `activation(linear(inputs, kernel) + bias)`, with `linear` linear in the
    kernel. What follows from that (outputs with other weights, one set of weights per
    sample, moments of outputs, flipout) serves every posterior and every kind of layer.

    A subclass says where the variables are and what `linear` is; the rest where it
    differs from a layer whose inputs and outputs are `(batch, *positions, channels)`.

    Attributes:
        kernel: name of the weight that `linear` takes.
        bias: name of the weight that is added, or None.
        attributes: attribute of the layer that holds the variable of each weight.
    """

    kernel = "kernel"
    bias = "bias"
    attributes = {"kernel": "_kernel", "bias": "bias"}

    def variables(self, layer):
        """The variables of a built layer's weights, by name; the kernel's first."""
        found = {name: getattr(layer, a, None) for name, a in self.attributes.items()}
        return {
            name: variable for name, variable in found.items() if variable is not None
        }

    def prepare(self, layer, inputs):
        """Inputs as the arithmetic takes them: floats in the layer's compute dtype."""
        return as_floats(inputs, layer.compute_dtype)

    def num_positions(self, layer, input_shape):
        """Number of axes of positions, at which outputs share all weights."""
        raise NotImplementedError

    def input_axes(self, layer):
        """Axes of the inputs that meet weights of their own; None: no arithmetic."""
        raise NotImplementedError

    def output_axes(self, layer):
        """Axes of the outputs that have weights of their own."""
        return self.input_axes(layer)

    def linear(self, layer, inputs, kernel):
        """Outputs before the bias and the activation."""
        raise NotImplementedError

    def square(self, layer, inputs):
        """What `linear` takes beside variances of the kernel: the inputs squared."""
        return ops.square(inputs)

    def linear_per_sample(self, layer, inputs, kernels, shared):
        """`linear` of the s-th kernel for the s-th of equal parts of the rows.

        Args:
            layer: Keras layer.
            inputs: `(samples * rows, ...)`, or `(rows, ...)` where `shared`.
            kernels: `(samples, *kernel_shape)`.
            shared: whether all samples have the same inputs.

        Returns:
            Outputs `(samples * rows, ...)`.
        """
        num_samples = kernels.shape[0]
        if shared or num_samples == 1:
            parts = [inputs] * num_samples
        else:
            parts = ops.split(inputs, num_samples)
        outputs = [self.linear(layer, x, kernels[i]) for i, x in enumerate(parts)]
        return outputs[0] if num_samples == 1 else ops.concatenate(outputs)

    def bias_is_own(self, layer):
        """Whether outputs that have weights of their own have a bias of their own."""
        return True

    def bias_shape(self, layer, shape):
        """The bias's shape beside the outputs of one row, which it is added to."""
        return shape

    def expand_bias(self, layer, bias):
        """A bias in a shape that joins the outputs."""
        shape = tuple(bias.shape)
        expanded = self.bias_shape(layer, shape)
        return bias if expanded == shape else ops.reshape(bias, expanded)

    def activate(self, layer, outputs):
        """The layer's activation of its linear outputs."""
        activation = getattr(layer, "activation", None)
        return outputs if activation is None else activation(outputs)

    def apply(self, layer, inputs, weights):
        """The layer's outputs with other weights.

        Args:
            layer: Keras layer.
            inputs: as `prepare` gives them.
            weights: by name, in the dtype of the inputs.
        """
        outputs = self.linear(layer, inputs, weights[self.kernel])
        if self.bias in weights:
            outputs = outputs + self.expand_bias(layer, weights[self.bias])
        return self.activate(layer, outputs)

    def apply_per_sample(self, layer, inputs, weights, shared=False):
        """`apply` of the s-th set of weights for the s-th of equal parts of the rows.

        Args:
            layer, inputs, shared: as in `linear_per_sample`.
            weights: by name, `(samples, ...)`.

        Returns:
            Outputs `(samples * rows, ...)`.
        """
        outputs = self.affine_per_sample(layer, inputs, weights, shared)
        return self.activate(layer, outputs)

    def affine_per_sample(self, layer, inputs, weights, shared=False):
        """`apply_per_sample` before the activation."""
        kernels = weights[self.kernel]
        outputs = self.linear_per_sample(layer, inputs, kernels, shared)
        if self.bias in weights:
            biases = weights[self.bias]
            num_samples, *shape = biases.shape
            expanded = self.bias_shape(layer, tuple(shape))
            row = ops.shape(outputs)[1:]
            outputs = ops.reshape(outputs, (num_samples, -1, *row))
            ones = (1,) * (1 + len(row) - len(expanded))
            outputs = outputs + ops.reshape(biases, (num_samples, *ones, *expanded))
            outputs = ops.reshape(outputs, (-1, *row))
        return outputs
