"""What a Keras layer computes, with weights that the caller chooses."""

from typing import Any

import keras
from keras import ops

from keras_bdl.core.dtypes import as_floats
from keras_bdl.core.typing import Tensor


class WeightMap:
    """The arithmetic of one kind of Keras layer, without any state.

    It says which weights a layer has, and gives the layer's outputs with other weights.
    A subclass names the variables and implements `apply`.

    Attributes:
        kernel: name of the weight that reports show, or None if there is no such one.
        bias: name of the weight that `bias_posterior=False` leaves out, or None.
        attributes: attribute of the layer that holds the variable of each weight. It
            may have dots, as in "cell.kernel".
        is_linear: whether the map is a `LinearMap`.
        has_estimators: whether layers can train with noise of its own for every row.
            Otherwise they draw their weights once for a batch.
    """

    kernel: str | None = None
    bias: str | None = "bias"
    attributes: dict[str, str] = {}
    is_linear: bool = False
    has_estimators: bool = False

    def variables(self, layer: keras.layers.Layer) -> dict[str, keras.Variable]:
        """Returns the variables of a built layer's weights by name, kernel first."""
        found = {name: _attribute(layer, a) for name, a in self.attributes.items()}
        return {
            name: variable for name, variable in found.items() if variable is not None
        }

    def prepare(self, layer: keras.layers.Layer, inputs: Tensor) -> Tensor:
        """Casts inputs that are not floats to the layer's compute dtype."""
        return as_floats(inputs, layer.compute_dtype)

    def num_positions(
        self, layer: keras.layers.Layer, input_shape: tuple[int | None, ...]
    ) -> int:
        """Returns the number of axes of positions, whose outputs share all weights."""
        raise NotImplementedError

    def apply(
        self,
        layer: keras.layers.Layer,
        inputs: Tensor,
        weights: dict[str, Tensor],
        **arguments: Any,
    ) -> Any:
        """Returns the layer's outputs with other weights.

        Args:
            layer: Keras layer.
            inputs: tensor as `prepare` returns it.
            weights: dictionary by name, in the dtype of the inputs.
            **arguments: further arguments of the layer's `call`, if it has any.
        """
        raise NotImplementedError

    def apply_per_sample(
        self,
        layer: keras.layers.Layer,
        inputs: Tensor,
        weights: dict[str, Tensor],
        shared: bool = False,
        **arguments: Any,
    ) -> Any:
        """Calls `apply` with the s-th weights on the s-th of equal parts of the rows.

        Args:
            layer: Keras layer.
            inputs: `(samples * rows, ...)`, or `(rows, ...)` if `shared`.
            weights: dictionary by name, `(samples, ...)` each.
            shared: whether all samples have the same inputs.
            **arguments: as in `apply`; tensors have the rows of the inputs.

        Returns:
            Outputs `(samples * rows, ...)`.
        """
        num_samples = next(iter(weights.values())).shape[0]
        if num_samples == 1:
            only = {name: weight[0] for name, weight in weights.items()}
            return self.apply(layer, inputs, only, **arguments)
        given = keras.tree.flatten((inputs, arguments))
        tensors = [x for x in given if ops.is_tensor(x)]
        if not shared:
            tensors = [_by_sample(x, num_samples) for x in tensors]

        def of_one(parts):
            own, sample = (tensors, parts) if shared else parts
            own = iter(own)
            leaves = [next(own) if ops.is_tensor(x) else x for x in given]
            args, kwargs = keras.tree.pack_sequence_as((inputs, arguments), leaves)
            return self.apply(layer, args, sample, **kwargs)

        outputs = ops.map(of_one, weights if shared else (tensors, weights))
        return keras.tree.map_structure(
            lambda y: ops.reshape(y, (-1, *ops.shape(y)[2:])), outputs
        )

    def apply_to_parts(
        self,
        layer: keras.layers.Layer,
        inputs: Any,
        weights: dict[str, Tensor],
        **arguments: Any,
    ) -> Any:
        """Calls `apply` with each of several weights on its part of the rows.

        The parts are in order, and differ by one row at most.

        Args:
            layer, inputs, weights: as in `apply_per_sample`; the inputs have any number
                of rows.
            **arguments: as in `apply`; tensors have the rows of the inputs.
        """
        count = next(iter(weights.values())).shape[0]
        rows = ops.shape(keras.tree.flatten(inputs)[0])[0]
        if isinstance(rows, int) and rows % count == 0:
            return self.apply_to_equal_parts(layer, inputs, weights, **arguments)
        # Parts are filled up to the size of the largest by their own last rows.
        parts, size = ops.arange(count), (rows + count - 1) // count
        starts, ends = parts * rows // count, (parts + 1) * rows // count
        numbers = ops.expand_dims(starts, 1) + ops.arange(size)
        last = ops.maximum(ops.expand_dims(ends, 1) - 1, 0)
        numbers = ops.reshape(ops.minimum(numbers, last), (-1,))
        inputs, arguments = keras.tree.map_structure(
            lambda x: ops.take(x, numbers, axis=0) if ops.is_tensor(x) else x,
            (inputs, arguments),
        )
        outputs = self.apply_to_equal_parts(layer, inputs, weights, **arguments)
        row = ops.arange(rows)
        part = ((row + 1) * count - 1) // rows
        places = part * size + row - ops.take(starts, part, axis=0)
        return keras.tree.map_structure(lambda y: ops.take(y, places, axis=0), outputs)

    def apply_to_equal_parts(
        self,
        layer: keras.layers.Layer,
        inputs: Any,
        weights: dict[str, Tensor],
        **arguments: Any,
    ) -> Any:
        """Does what `apply_per_sample` does, in training.

        The parts take turns, because the state of a layer, such as that of the seed of
        its dropout, cannot leave a loop of the backend.
        """
        count = next(iter(weights.values())).shape[0]
        given = keras.tree.flatten((inputs, arguments))
        given = [_by_sample(x, count) if ops.is_tensor(x) else x for x in given]
        outputs = []
        for i in range(count):
            leaves = [x[i] if ops.is_tensor(x) else x for x in given]
            args, kwargs = keras.tree.pack_sequence_as((inputs, arguments), leaves)
            own = {name: weight[i] for name, weight in weights.items()}
            outputs.append(self.apply(layer, args, own, **kwargs))
        return keras.tree.map_structure(lambda *y: ops.concatenate(y), *outputs)


def _attribute(layer, path):
    """Returns an attribute by a path with dots, or None."""
    for name in path.split("."):
        layer = getattr(layer, name, None)
    return layer


def _by_sample(tensor, num_samples):
    return ops.reshape(tensor, (num_samples, -1, *ops.shape(tensor)[1:]))


class LinearMap(WeightMap):
    """The arithmetic of a layer that is linear in its kernel.

    Outputs are `activation(linear(inputs, kernel) + bias)`, with `linear` linear in the
    kernel. This form gives the outputs with other weights, one set of weights per
    sample, the moments of the outputs, and flipout, for every posterior and every kind
    of layer.

    A subclass names the variables and implements `linear`. It overrides the other
    methods where it differs from a layer whose inputs and outputs are
    `(batch, *positions, channels)`.

    Attributes:
        kernel: name of the weight that `linear` takes.
        bias: name of the weight that is added, or None.
        attributes: attribute of the layer that holds the variable of each weight.
    """

    kernel: str = "kernel"
    attributes: dict[str, str] = {"kernel": "_kernel", "bias": "bias"}
    is_linear = True
    has_estimators = True

    def input_axes(self, layer: keras.layers.Layer) -> tuple[int, ...] | None:
        """Returns the axes of the inputs along which the weights differ.

        Returns None if the inputs take part in no arithmetic, such as indices.
        """
        raise NotImplementedError

    def output_axes(self, layer: keras.layers.Layer) -> tuple[int, ...]:
        """Returns the axes of the outputs along which the weights differ."""
        # A map whose inputs have no such axes overrides this method.
        return self.input_axes(layer)  # type: ignore[return-value]

    def linear(
        self, layer: keras.layers.Layer, inputs: Tensor, kernel: Tensor
    ) -> Tensor:
        """Returns the outputs before the bias and the activation."""
        raise NotImplementedError

    def square(self, layer: keras.layers.Layer, inputs: Tensor) -> Tensor:
        """Squares the inputs, for `linear` to take with variances of the kernel."""
        return ops.square(inputs)

    def linear_per_sample(
        self,
        layer: keras.layers.Layer,
        inputs: Tensor,
        kernels: Tensor,
        shared: bool,
    ) -> Tensor:
        """Applies `linear` with the s-th kernel to the s-th of equal parts of the rows.

        Args:
            layer: Keras layer.
            inputs: `(samples * rows, ...)`, or `(rows, ...)` if `shared`.
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

    def bias_is_own(self, layer: keras.layers.Layer) -> bool:
        """Whether outputs with different weights also have different biases."""
        return True

    def bias_shape(
        self, layer: keras.layers.Layer, shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Returns the shape in which the bias broadcasts to the outputs of one row."""
        return shape

    def expand_bias(self, layer: keras.layers.Layer, bias: Tensor) -> Tensor:
        """Reshapes a bias so that it broadcasts to the outputs."""
        shape = tuple(bias.shape)
        expanded = self.bias_shape(layer, shape)
        return bias if expanded == shape else ops.reshape(bias, expanded)

    def activate(self, layer: keras.layers.Layer, outputs: Tensor) -> Tensor:
        """Applies the layer's activation to its linear outputs."""
        activation = getattr(layer, "activation", None)
        return outputs if activation is None else activation(outputs)

    def finish(
        self, layer: keras.layers.Layer, outputs: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Adds a bias to linear outputs and applies the layer's activation."""
        return self.activate(layer, self._with_bias(layer, outputs, bias))

    def _with_bias(self, layer, outputs, bias):
        return outputs if bias is None else outputs + self.expand_bias(layer, bias)

    def affine(
        self, layer: keras.layers.Layer, inputs: Tensor, weights: dict[str, Tensor]
    ) -> Tensor:
        """Returns the outputs of `apply` before the activation."""
        outputs = self.linear(layer, inputs, weights[self.kernel])
        bias = weights.get(self.bias) if self.bias else None
        return self._with_bias(layer, outputs, bias)

    def apply(
        self,
        layer: keras.layers.Layer,
        inputs: Tensor,
        weights: dict[str, Tensor],
        **arguments: Any,
    ) -> Tensor:
        return self.activate(layer, self.affine(layer, inputs, weights))

    def apply_to_equal_parts(
        self,
        layer: keras.layers.Layer,
        inputs: Any,
        weights: dict[str, Tensor],
        **arguments: Any,
    ) -> Any:
        return self.apply_per_sample(layer, inputs, weights, **arguments)

    def apply_per_sample(
        self,
        layer: keras.layers.Layer,
        inputs: Tensor,
        weights: dict[str, Tensor],
        shared: bool = False,
        **arguments: Any,
    ) -> Tensor:
        outputs = self.affine_per_sample(layer, inputs, weights, shared)
        return self.activate(layer, outputs)

    def affine_per_sample(
        self,
        layer: keras.layers.Layer,
        inputs: Tensor,
        weights: dict[str, Tensor],
        shared: bool = False,
    ) -> Tensor:
        """Returns the outputs of `apply_per_sample` before the activation."""
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
