"""Counts the multiply-adds of a model with early-exit blocks: executed and all."""

import collections
import dataclasses
import functools
import math
from typing import Any

import keras
import numpy as np

from keras_bdl.core import latents, scopes, validation
from keras_bdl.core.finding import flatten_layers
from keras_bdl.core.stochastic import own_weights
from keras_bdl.early_exit.depth import depth
from keras_bdl.graphs.doubles import Doubles

_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_COUNTED = (
    *_SEPARABLE,
    *_TRANSPOSED,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
    keras.layers.EinsumDense,
)


@dataclasses.dataclass(frozen=True)
class FlopsReport:
    """Multiply-adds per row of a model.

    Attributes:
        rows: one dictionary for each unit with its halting head, and one for everything
            outside of blocks. The keys are `part`, `multiply_adds` and `executed`, the
            share of rows that run the part.
        full: multiply-adds of a row that runs everything.
        executed: multiply-adds that are executed, as a mean over rows.
        not_counted: names of layers with weights of a kind that is not counted, or
            whose calls could not be seen.
    """

    rows: list
    full: int
    executed: float
    not_counted: list

    @property
    def share(self):
        """Share of all multiply-adds that is executed."""
        return self.executed / self.full if self.full else 1.0

    def to_dict(self):
        """Returns the report as JSON types."""
        return {**dataclasses.asdict(self), "share": self.share}

    def __str__(self):
        lines = [f"{'part':<40}{'multiply-adds':>15}{'executed':>10}"]
        for row in self.rows:
            lines.append(
                f"{row['part']:<40}{row['multiply_adds']:>15,}{row['executed']:>10.1%}"
            )
        lines.append(f"{'total':<40}{self.full:>15,}{self.share:>10.1%}")
        if self.not_counted:
            lines.append("not counted: " + ", ".join(self.not_counted))
        return "\n".join(lines)


def flops_report(
    model: keras.Model,
    x: Any,
    batch_size: int | None = None,
    verbose: int | str = "auto",
) -> FlopsReport:
    """Compares the multiply-adds that inference executes with those of the full model.

    Counts every call of Dense, EinsumDense and (transposed, depthwise, separable)
    convolutions. Products of activations, as in attention, are not counted.

    Args:
        model: Keras model. A model without `EarlyExitResBlock` layers executes
            everything.
        x: array, or nest of arrays, of inputs.
        batch_size, verbose: as in `keras.Model.predict`.

    Returns:
        `FlopsReport`, which can be printed or converted by `to_dict()`.

    Raises:
        TypeError: if `model` is not a Keras model, or `x` is not made of arrays.
        ValueError: if `x` has no rows, or `batch_size` is below 1.

    Example:

    >>> print(keras_bdl.flops_report(model, x_test))
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"Expected a Keras model. Received: model={model!r}")
    leaves = keras.tree.flatten(x)
    if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
        raise TypeError(f"Expected `x` to be an array or arrays. Received: x={x!r}")
    shapes = [tuple(leaf.shape) for leaf in leaves]
    if any(shape[:1] in ((), (0,)) for shape in shapes):
        raise ValueError(f"Expected `x` to have rows. Received: x of shapes {shapes}")
    validation.optional_integer("batch_size", batch_size, least=1)
    row = keras.tree.map_structure(lambda v: v[:1], x)
    if not all(layer.built for layer in flatten_layers(model)):
        model(row, training=False)
    counter = _Counter(model)
    counter.run(model, row)
    rows = [
        {
            "part": "outside of blocks",
            "multiply_adds": counter.flops[None],
            "executed": 1.0,
        }
    ]
    if counter.calls:
        depths = depth(model, x, batch_size=batch_size, verbose=verbose)
    for block in dict.fromkeys(counter.calls):
        of_block = depths[:, [call is block for call in counter.calls]]
        rows += [
            {
                "part": f"{block.name}, unit {unit + 1}",
                "multiply_adds": counter.flops[id(block), unit],
                "executed": float(np.mean(of_block > unit)),
            }
            for unit in range(block.num_states)
        ]
    executed = sum(row["multiply_adds"] * row["executed"] for row in rows)
    return FlopsReport(
        rows, counter.flops.total(), executed, not_counted=counter.not_counted
    )


class _Counter(Doubles):
    """Counts multiply-adds in one forward pass of doubles, where every unit runs.

    Attributes:
        flops: multiply-adds by part of the model. A part is (block id, unit), or None
            outside of blocks.
        not_counted: names of layers with weights of a kind that is not counted, or
            whose calls were not seen: the model does not use them, or calls them by
            another way than its attributes (a function that closes over one, say).
        calls: early-exit blocks in the order of their calls.
    """

    def __init__(self, model):
        layers = flatten_layers(model)
        super().__init__([layer for layer in layers if isinstance(layer, _COUNTED)])
        self.flops = collections.Counter()
        self.not_counted = [
            layer.name
            for layer in layers
            if not isinstance(layer, (*_COUNTED, keras.layers.Embedding))
            and own_weights(layer)
        ]
        self.calls = []
        self._seen = set()  # ids of the targets that were called

    def make(self, layer):
        double = self.double_of_holder(layer)
        double.__class__ = _counting_class(type(layer))
        count = functools.partial(self._count, layer)
        object.__setattr__(double, "told_by", count)
        return double

    def unreachable(self, layer, holder):
        """Leaves the target as it is; `run` finds that it was not seen."""

    def run(self, model, row):
        double = self.replace(model)
        # The calls on symbols that made the double do not count.
        self.flops.clear()
        self._seen.clear()
        # Within the scope every unit runs once.
        with latents.LatentScope(1, "score_function", forced=True) as scope:
            double(row, training=False)
        self.calls = [block for block, _ in scope.depths]
        self.not_counted += [
            layer.name
            for key, layer in self.targets.items()
            if layer.built and key not in self._seen
        ]

    def _count(self, layer, inputs, outputs):
        unit = scopes.UnitOfBlock.current()
        part = None if unit is None else (id(unit.block), unit.index)
        self.flops[part] += _multiply_adds(layer, inputs.shape, outputs.shape)
        self._seen.add(id(layer))


@functools.cache
def _counting_class(cls):
    """Returns a class of layers that report their calls."""

    class Counting(cls):
        def call(self, inputs, *args, **kwargs):
            outputs = super().call(inputs, *args, **kwargs)
            self.told_by(inputs, outputs)
            return outputs

    return Counting


def _multiply_adds(layer, input_shape, output_shape):
    """Returns the multiply-adds of a call on one row."""

    def positions(shape):
        if getattr(layer, "data_format", "channels_last") == "channels_first":
            return math.prod(shape[2:])
        return math.prod(shape[1:-1])

    def size(variable):
        return math.prod(variable.shape)

    if isinstance(layer, _SEPARABLE):
        weights = size(layer.depthwise_kernel) + size(layer.pointwise_kernel)
        return positions(output_shape) * weights
    if isinstance(layer, _TRANSPOSED):
        return positions(input_shape) * size(layer.kernel)
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, kernel = layer.equation.split("->")[0].split(",")
        sizes = dict(zip(reversed(inputs.replace("...", "")), reversed(input_shape)))
        free = [n for letter, n in sizes.items() if letter not in kernel]
        return size(layer.kernel) * math.prod(free)
    return positions(output_shape) * size(layer.kernel)
