"""A compact file of a sparse network: the architecture and the weights that are left.

A NumPy `.npz` archive of five arrays: `header`, JSON with the plain Keras model's
configuration and the layout of its weights; `vectors`, the values of arrays with at
most one axis (biases, statistics), in float32; `values`, of the others the non-zero
values of sparse ones and all of dense ones, each divided by the array's `scale`, its
largest absolute value; `columns` and `counts`, the compressed sparse rows (CSR) of
the sparse arrays, seen as matrices with their last axis as columns: column indices,
and the number of values in each row. Layers with state in files of its own
(vocabularies) add those, as `asset/<number of the layer>/<file>`.
"""

import copy
import json
import os
import pathlib
import tempfile

import keras
import numpy as np

from keras_bdl import validation
from keras_bdl.compression import compress
from keras_bdl.layers import base

FORMAT = "keras_bdl sparse 2"
DTYPES = ("float16", "float32")


def save_sparse(model, path, dtype="float16"):
    """Writes the compressed model (see `compress`) to one small file.

    Args:
        model: what `compress` takes, or what it returned.
        path: file name; by custom it ends in ".npz".
        dtype: of the kernels, "float16" (relative rounding of 5e-4, coarser below
            6e-5 of the largest weight) or "float32".

    Returns:
        The size of the file in bytes.

    Raises:
        TypeError, ValueError: as in `compress`; ValueError on another `dtype`, on
            a weight that is not finite, or on a model that its config cannot
            rebuild, such as one with a lambda.

    Example:

    >>> keras_bdl.save_sparse(model, "small.npz")
    >>> small = keras_bdl.load_sparse("small.npz")
    """
    dtype = validation.choice("dtype", dtype, DTYPES)
    path = _as_path(path)
    model = compress(model)
    config = keras.saving.serialize_keras_object(model)
    _check_rebuilds(config)
    layout, vectors, values, columns, counts = [], [], [], [], []
    for weight in model.weights:
        array = np.asarray(keras.ops.convert_to_numpy(weight), "float32")
        if not np.isfinite(array).all():
            raise ValueError(
                f"Expected finite weights. Received: {weight.path} with NaN or infinity"
            )
        layout.append({"shape": list(array.shape)})
        if array.ndim < 2:
            vectors.append(array.ravel())
            continue
        scale = float(np.abs(array).max(initial=0.0)) or 1.0
        rows = array.reshape(-1, array.shape[-1]) / scale
        sparse = bool(2 * np.count_nonzero(rows) < rows.size)
        layout[-1] |= {"scale": scale, "sparse": sparse}
        if sparse:
            where, column = np.nonzero(rows)
            counts.append(np.bincount(where, minlength=len(rows)))
            columns.append(column)
            values.append(rows[where, column])
        else:
            values.append(rows.ravel())
    header = {
        "format": FORMAT,
        "model": config,
        "layout": layout,
    }
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            header=np.frombuffer(json.dumps(header).encode(), "uint8"),
            vectors=np.concatenate([*vectors, np.zeros(0)]).astype("float32"),
            values=np.concatenate([*values, np.zeros(0)]).astype(dtype),
            columns=_smallest(columns),
            counts=_smallest(counts),
            **_assets(model),
        )
    return path.stat().st_size


def _as_path(path):
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"Expected `path` to be a file name. Received: path={path!r}")
    return pathlib.Path(path)


def _assets(model):
    """What layers save beside their weights: bytes by name."""
    files = {}
    for index, layer in enumerate(base.flatten_layers(model)):
        if hasattr(layer, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                layer.save_assets(folder)
                for file in pathlib.Path(folder).iterdir():
                    content = np.frombuffer(file.read_bytes(), "uint8")
                    files[f"asset/{index}/{file.name}"] = content
    return files


def _load_assets(model, files):
    for index, layer in enumerate(base.flatten_layers(model)):
        own = [name for name in files if name.startswith(f"asset/{index}/")]
        if own:
            with tempfile.TemporaryDirectory() as folder:
                for name in own:
                    file = pathlib.Path(folder, name.rpartition("/")[2])
                    file.write_bytes(files[name].tobytes())
                layer.load_assets(folder)


def _check_rebuilds(config):
    try:
        keras.saving.deserialize_keras_object(copy.deepcopy(config))  # empties it
    except (TypeError, ValueError) as error:
        raise ValueError(
            "Expected a model that Keras can rebuild from its config. Functions need "
            "a name: `keras.saving.register_keras_serializable` in place of a lambda. "
            f"Received: {error}"
        ) from error


def _smallest(parts):
    """Integers, concatenated, in the smallest type that holds them."""
    joined = np.concatenate([*parts, np.zeros(0, int)])
    return joined.astype(np.min_scalar_type(int(joined.max(initial=0))))


def load_sparse(path):
    """The plain Keras model in a file of `save_sparse`.

    Args:
        path: file name.

    Raises:
        TypeError: if `path` is no file name.
        ValueError: if the file is of another kind.
    """
    path = _as_path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            vectors, values = file["vectors"], file["values"].astype("float32")
            columns, counts = file["columns"], file["counts"]
            assets = {name: file[name] for name in file if name.startswith("asset/")}
        known = header["format"] == FORMAT
    except OSError:
        raise
    except Exception:  # whatever NumPy, zlib and json make of another file's bytes
        known = False
    if not known:
        raise ValueError(
            f"Expected a file written by `save_sparse` ('{FORMAT}'). "
            f"Received: path={str(path)!r}"
        )
    model = keras.saving.deserialize_keras_object(header["model"])
    weights = []
    for entry in header["layout"]:
        shape = tuple(entry["shape"])
        size = int(np.prod(shape))
        if len(shape) < 2:
            array, vectors = np.split(vectors, [size])
        elif not entry["sparse"]:
            array, values = np.split(values, [size])
        else:
            row_counts, counts = np.split(counts, [size // shape[-1]])
            total = int(row_counts.sum())
            array = np.zeros((len(row_counts), shape[-1]), "float32")
            rows = np.repeat(np.arange(len(row_counts)), row_counts)
            array[rows, columns[:total]] = values[:total]
            values, columns = values[total:], columns[total:]
        weights.append(entry.get("scale", 1.0) * array.reshape(shape))
    base.assign_weights(model, weights)
    _load_assets(model, assets)
    return model
