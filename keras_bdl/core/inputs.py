"""Refusing arrays that a network cannot take, before a backend meets them."""

import keras
import numpy as np

from keras_bdl.core import finding

_NUMBERS = "biuf"


def check_inputs(network, x):
    """Refuses arrays of another kind, number or shape than a network's inputs.

    Looks at arrays and tensors alone: what comes in batches shows itself later. Of a
    network that is no graph nothing is known but that rows are needed.

    Args:
        network: Keras model, or None.
        x: what `fit`, `evaluate` or `predict` was given.

    Raises:
        TypeError: if values are no real numbers where the network takes numbers.
        ValueError: if there are no rows, or shapes do not fit.
    """
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
        return
    for leaf in leaves:
        if not leaf.shape or leaf.shape[0] == 0:
            raise ValueError(
                "Expected arrays with rows, `(n, ...)`, n at least 1. "
                f"Received: x of shape {tuple(leaf.shape)}"
            )
    if network is None or not (network.built and finding.is_graph(network)):
        return
    for leaf, expected in _pairs(network, x):
        if leaf is None:  # of an optional input
            continue
        _check_dtype(leaf, expected)
        _check_shape(leaf, expected)


def _pairs(network, x):
    """Each array with the symbolic input that it is for, where that can be told."""
    inputs = finding.graph_input(network)
    if isinstance(x, dict):
        if not all(hasattr(leaf, "shape") or leaf is None for leaf in x.values()):
            return []  # a nest, of which Keras compares the structure
        by_name = inputs if isinstance(inputs, dict) else {}
        by_name = {**{t.name: t for t in keras.tree.flatten(inputs)}, **by_name}
        return [(leaf, by_name[name]) for name, leaf in x.items() if name in by_name]
    expected, leaves = keras.tree.flatten(inputs), keras.tree.flatten(x)
    if len(leaves) != len(expected):
        raise ValueError(
            f"Expected {len(expected)} arrays, one for each input of the network. "
            f"Received: x of {len(leaves)} arrays"
        )
    return list(zip(leaves, expected))


def _check_dtype(leaf, expected):
    if any(kind in expected.dtype for kind in ("string", "complex")):
        return
    if hasattr(leaf, "to_numpy") and hasattr(leaf, "columns"):
        found = list(leaf.dtypes)  # of a table
    else:
        found = [leaf.dtype] if hasattr(leaf, "dtype") else []
    odd = [dtype for dtype in found if not _is_number(dtype)]
    if odd:
        raise TypeError(
            "Expected x to be real numbers, of dtypes of NumPy or a backend. Make "
            "indices of words by a `StringLookup`, numbers of dates, two columns of "
            "complex numbers, and `astype('float32')` of a table's own numbers. "
            f"Received: x of dtype {odd[0]}"
        )


def _is_number(dtype):
    if isinstance(dtype, np.dtype):
        return dtype.kind in _NUMBERS or "float" in str(dtype)
    try:
        name = keras.backend.standardize_dtype(dtype)
    except ValueError:  # such as the nullable integers of a table
        return False
    return "string" not in name and "complex" not in name


def _check_shape(leaf, expected):
    sizes, known = tuple(leaf.shape[1:]), tuple(expected.shape[1:])
    # Keras adds or drops a last axis of one.
    for candidate in (sizes, (*sizes, 1), sizes[:-1] if sizes[-1:] == (1,) else sizes):
        if len(candidate) == len(known) and all(
            None in pair or pair[0] == pair[1] for pair in zip(candidate, known)
        ):
            return
    raise ValueError(
        f"Expected x of shape {('n', *known)}, as the network was built. "
        f"Received: x of shape {tuple(leaf.shape)}"
    )
