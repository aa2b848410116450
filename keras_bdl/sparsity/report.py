"""Reports how many weights of each layer survive."""

import keras
import numpy as np
from keras import ops

from keras_bdl.core import finding, stochastic
from keras_bdl.sparsity.channels import ChannelGraph
from keras_bdl.sparsity.rules import LINEAR, effective_weights, is_linear

_COLUMNS = ("layer", "weights", "non-zero", "dead inputs", "dead outputs", "factor")


class SparsityReport:
    """Reports the weights that survive in each layer. `print` shows a table.

    A weight counts as non-zero if it is non-zero at inference and both its input and
    its output unit are alive. An input is dead if no weight reads it. An output is
    dead if it is constant or unused. Biases are excluded, as in Molchanov et al.
    (2017). For other layers than Dense and Conv (recurrent, depthwise, embeddings)
    all non-zero entries of their matrices count.

    Attributes:
        rows: one dict per layer, with keys layer, weights, non_zero,
            dead_inputs, dead_outputs and factor (weights / non_zero).
        weights, non_zero: totals of the model.
        factor: compression, weights / non_zero.
    """

    def __init__(self, rows):
        self.rows = rows
        self.weights = sum(row["weights"] for row in rows)
        self.non_zero = sum(row["non_zero"] for row in rows)
        self.factor = _factor(self.weights, self.non_zero)

    def to_dict(self):
        """Returns rows and totals as JSON types.

        A factor is None if no weight is left.
        """
        totals = {"weights": self.weights, "non_zero": self.non_zero}
        rows = [*self.rows, {**totals, "factor": self.factor}]
        *rows, totals = (
            {k: None if v == float("inf") else v for k, v in row.items()}
            for row in rows
        )
        return {"layers": rows, **totals}

    def __str__(self):
        table = [_COLUMNS]
        for row in self.rows:
            name, *counts, factor = row.values()
            table.append((name, *(f"{c:,}" for c in counts), _times(factor)))
        totals = (f"{self.weights:,}", f"{self.non_zero:,}", "", "")
        table.append(("total", *totals, _times(self.factor)))
        widths = [max(map(len, column)) for column in zip(*table)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths))
            )
            for line in table
        )

    __repr__ = __str__


def _times(factor):
    return "all dead" if factor == float("inf") else f"{factor:.1f}x"


def _factor(weights, non_zero):
    return weights / non_zero if non_zero else float("inf")


def sparsity_report(model: keras.Model) -> SparsityReport:
    """Returns how many weights of each layer survive at inference.

    Args:
        model: built functional or Sequential Keras model (or a keras_bdl model
            around one) of plain and keras_bdl layers.

    Returns:
        `SparsityReport`.

    Raises:
        TypeError: if the model is of another kind.

    Example:

    >>> print(keras_bdl.sparsity_report(model))
    """
    return SparsityReport(list(_report_rows(ChannelGraph(network_of(model)), set())))


def _report_rows(graph, seen):
    for node in graph.nodes:
        layer = node.layer
        if id(layer) in seen or not isinstance(layer, keras.layers.Layer):
            continue
        if is_linear(layer):
            seen |= set(map(id, finding.flatten_layers(layer)))  # and its activation
            kernel, _ = graph.weights(node)
            yield _kernel_row(layer, live_weights(graph, node, kernel))
        elif isinstance(layer, keras.Model) and finding.is_graph(layer):
            seen.add(id(layer))
            yield from _report_rows(ChannelGraph(layer), seen)
        else:
            yield from _inner_rows(layer, seen)


def _inner_rows(layer, seen):
    """Yields rows for the layers inside a wrapper or a user's layer.

    Also yields the row of a layer of a kind that is never pruned.
    """
    others = []
    for inner in finding.flatten_layers(layer):
        if id(inner) in seen or not inner.built:
            continue
        seen.add(id(inner))
        if is_linear(inner):
            seen |= set(map(id, finding.flatten_layers(inner)))
            kernel, _ = effective_weights(inner)
            yield _kernel_row(inner, kernel != 0)
        elif hasattr(inner, "inference_weights"):
            arrays = list(map(ops.convert_to_numpy, stochastic.own_weights(inner)))
            if len(arrays) == 1 and isinstance(inner, LINEAR):
                yield _kernel_row(inner, arrays[0] != 0)
            elif arrays:
                yield _row(inner, arrays)
        else:
            others += [w for w in stochastic.own_weights(inner) if id(w) not in seen]
            seen |= set(map(id, others))
    if others:
        yield _row(layer, list(map(ops.convert_to_numpy, others)))


def _kernel_row(layer, live):
    positions = tuple(range(live.ndim - 2))
    inputs, outputs = live.any(axis=(*positions, -1)), live.any(axis=(*positions, -2))
    return _row(layer, [live], int((~inputs).sum()), int((~outputs).sum()))


def _row(layer, arrays, dead_inputs=0, dead_outputs=0):
    weights = sum(array.size for array in arrays)
    non_zero = sum(int(np.count_nonzero(array)) for array in arrays)
    group, _ = getattr(layer, "group_name", None) or (None, None)
    return {
        "layer": layer.name if group is None else f"{group}/{layer.name}",
        "weights": weights,
        "non_zero": non_zero,
        "dead_inputs": dead_inputs,
        "dead_outputs": dead_outputs,
        "factor": _factor(weights, non_zero),
    }


def live_weights(graph, node, kernel):
    """Returns which weights are non-zero, with an input that varies and a read output.

    In a layer that stays whole, all non-zero weights are live.
    """
    if graph.is_whole(node):
        return kernel != 0
    alive = graph.alive(node.inputs[0])[:, None] & graph.alive(node.outputs)
    return (kernel != 0) & alive


def network_of(model):
    """Returns the functional or Sequential network that a model is or contains.

    Raises:
        TypeError: if there is no such network.
    """
    network = getattr(model, "sampled_network", model)
    if not (isinstance(network, keras.Model) and finding.is_graph(network)):
        raise TypeError(
            "Expected a built functional or Sequential Keras model (or a keras_bdl "
            f"model around one). Received: model={model!r}"
        )
    return network
