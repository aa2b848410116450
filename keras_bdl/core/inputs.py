"""Checks of arrays against the inputs of a network, before a backend sees them."""

import keras
import numpy as np

from keras_bdl.core import finding

_NUMBERS = "biuf"


def check_inputs(network, x):
    """Raises an error if arrays do not fit the inputs of a network.

    The check covers arrays and tensors only; errors in data sets show when a batch is
    read. If the network is not a graph, only the number of rows can be checked.

    Args:
        network: Keras model, or None.
        x: argument of `fit`, `evaluate` or `predict`.

    Raises:
        TypeError: if the network takes numbers and values are not real numbers.
        ValueError: if there are no rows, or shapes do not fit.
    """
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
        return
    for leaf in leaves:
        if not leaf.shape or leaf.shape[0] == 0:
            raise ValueError(
                "Expected arrays with rows, `(n, ...)` with n of at least 1. "
                f"Received: x of shape {tuple(leaf.shape)}"
            )
    if network is None or not (network.built and finding.is_graph(network)):
        return
    for leaf, expected in _pairs(network, x):
        if leaf is None:  # the input is optional
            continue
        _check_dtype(leaf, expected)
        _check_shape(leaf, expected)


def _pairs(network, x):
    """Returns pairs of an array and its symbolic input, as far as these are known."""
    inputs = finding.graph_input(network)
    if isinstance(x, dict):
        if not all(hasattr(leaf, "shape") or leaf is None for leaf in x.values()):
            return []  # a nest, whose structure Keras checks
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
        found = list(leaf.dtypes)  # the columns of a table
    else:
        found = [leaf.dtype] if hasattr(leaf, "dtype") else []
    odd = [dtype for dtype in found if not _is_number(dtype)]
    if odd:
        raise TypeError(
            "Expected x to be real numbers, of dtypes of NumPy or a backend. Convert "
            "words to indices with a `StringLookup`, dates to numbers, complex numbers "
            "to two columns, and dtypes of a table with `astype('float32')`. "
            f"Received: x of dtype {odd[0]}"
        )


def _is_number(dtype):
    if isinstance(dtype, np.dtype):
        return dtype.kind in _NUMBERS or "float" in str(dtype)
    try:
        name = keras.backend.standardize_dtype(dtype)
    except ValueError:  # for example the nullable integers of a table
        return False
    return "string" not in name and "complex" not in name


def _check_shape(leaf, expected):
    sizes, known = tuple(leaf.shape[1:]), tuple(expected.shape[1:])
    # Keras adds or drops a last axis of size 1.
    for candidate in (sizes, (*sizes, 1), sizes[:-1] if sizes[-1:] == (1,) else sizes):
        if len(candidate) == len(known) and all(
            None in pair or pair[0] == pair[1] for pair in zip(candidate, known)
        ):
            return
    raise ValueError(
        f"Expected x of shape {('n', *known)}, for which the network was built. "
        f"Received: x of shape {tuple(leaf.shape)}"
    )
