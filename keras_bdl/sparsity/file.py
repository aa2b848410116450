"""Saves a sparse network in a compact file: the architecture and non-zero weights.

The file is a NumPy `.npz` archive of five arrays and a digest:

- `header`: JSON with the plain Keras model's configuration and the layout of its
  weights.
- `vectors`: the values of weights with at most one axis (biases, statistics), float32.
- `values`: the values of all other weights. A sparse weight stores only its non-zero
  values, a dense one stores all. Each value is divided by the `scale` of the weight,
  which is its largest absolute value.
- `columns` and `counts`: the compressed sparse rows (CSR) of the sparse weights, seen
  as matrices with their last axis as columns. `columns` has the column indices and
  `counts` the number of values in each row.
- `sha256`: the digest of all other arrays. Files of format 2 have no digest.

Layers that save state in files of their own (vocabularies) add these files as
`asset/<number of the layer>/<file>`.

The size of the archive's contents is limited before they are unpacked, and their digest
is checked before the model is made. The shape of each weight in the header is compared
with the model's before the weight is made.
"""

import copy
import hashlib
import io
import json
import math
import os
import pathlib
import tempfile
import zipfile
from typing import Any

import keras
import numpy as np

from keras_bdl.core import copies, files, finding, validation
from keras_bdl.sparsity.compress import compress

FORMAT, OLD_FORMAT = "keras_bdl sparse 3", "keras_bdl sparse 2"
ARRAYS = ("header", "vectors", "values", "columns", "counts")

# Limits of the unpacked size: per byte of the file, and in addition in bytes. Zeros are
# compressed by a factor of a thousand, but other numbers are not.
_MOST_PER_BYTE, _MOST = 100, 2**26
DTYPES = ("float16", "float32")


def save_sparse(
    model: keras.Model, path: str | os.PathLike, dtype: str = "float16"
) -> int:
    """Writes the compressed model (see `compress`) to one small file.

    A file of this name is replaced after the new file is written completely.

    Args:
        model: any model that `compress` takes or returns.
        path: file name, which by convention ends in ".npz".
        dtype: dtype of the kernels, "float16" (relative rounding of 5e-4, coarser
            below 6e-5 of the largest weight) or "float32".

    Returns:
        The size of the file in bytes.

    Raises:
        TypeError: as in `compress`, or if `path` is not a file name.
        ValueError: as in `compress`, or if `dtype` is another one, a weight is not
            finite, or the model cannot be rebuilt from its config, such as a model
            with a lambda.

    Example:

    >>> keras_bdl.save_sparse(model, "small.npz")
    >>> small = keras_bdl.load_sparse("small.npz")
    """
    dtype = validation.choice("dtype", dtype, DTYPES)
    file_path = _as_path(path)
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
        entry: dict[str, Any] = {"shape": list(array.shape)}
        layout.append(entry)
        if array.ndim < 2:
            vectors.append(array.ravel())
            continue
        scale = float(np.abs(array).max(initial=0.0)) or 1.0
        rows = array.reshape(-1, array.shape[-1]) / scale
        sparse = bool(2 * np.count_nonzero(rows) < rows.size)
        entry |= {"scale": scale, "sparse": sparse}
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
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), "uint8"),
        "vectors": np.concatenate([*vectors, np.zeros(0)]).astype("float32"),
        "values": np.concatenate([*values, np.zeros(0)]).astype(dtype),
        "columns": _smallest(columns),
        "counts": _smallest(counts),
        **_assets(model),
    }
    with files.replaced(file_path) as file:
        np.savez_compressed(file, **arrays, sha256=_digest(arrays))
    return file_path.stat().st_size


def _digest(arrays):
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return np.frombuffer(digest.digest(), "uint8")


def _as_path(path):
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"Expected `path` to be a file name. Received: path={path!r}")
    return pathlib.Path(path)


def _assets(model):
    """Returns what layers save in addition to their weights, as bytes by name."""
    arrays = {}
    for index, layer in enumerate(finding.flatten_layers(model)):
        if hasattr(layer, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                layer.save_assets(folder)
                for file in pathlib.Path(folder).iterdir():
                    content = np.frombuffer(file.read_bytes(), "uint8")
                    arrays[f"asset/{index}/{file.name}"] = content
    return arrays


def _load_assets(model, arrays):
    layers = finding.flatten_layers(model)
    by_layer = {}
    for name in arrays:
        if name not in ARRAYS:
            _, index, file = name.split("/")
            by_layer.setdefault(int(index), {})[file] = arrays[name].tobytes()
    for index, contents in by_layer.items():
        with tempfile.TemporaryDirectory() as folder:
            for file, content in contents.items():
                pathlib.Path(folder, file).write_bytes(content)
            layers[index].load_assets(folder)


def _check_rebuilds(config):
    try:
        keras.saving.deserialize_keras_object(copy.deepcopy(config))  # it is emptied
    except (TypeError, ValueError) as error:
        raise ValueError(
            "Expected a model that Keras can rebuild from its config. Functions need "
            "a name: `keras.saving.register_keras_serializable` in place of a lambda. "
            f"Received: {error}"
        ) from error


def _smallest(parts):
    """Concatenates integers and returns them in the smallest dtype that fits."""
    joined = np.concatenate([*parts, np.zeros(0, int)])
    return joined.astype(np.min_scalar_type(int(joined.max(initial=0))))


def load_sparse(path: str | os.PathLike) -> keras.Model:
    """Loads the plain Keras model from a file of `save_sparse`.

    Args:
        path: file name.

    Returns:
        The plain Keras model.

    Raises:
        TypeError: if `path` is not a file name.
        OSError: if the file does not exist or cannot be read.
        ValueError: if the file is of another kind or damaged, or its model has a class
            that is not registered with Keras.

    Example:

    >>> small = keras_bdl.load_sparse("small.npz")
    """
    file_path = _as_path(path)
    content = file_path.read_bytes()
    try:
        arrays = _arrays_of(content)
        header = json.loads(arrays["header"].tobytes())
        _check(header["format"], arrays)
        config, layout = header["model"], header["layout"]
    except Exception as error:  # zipfile, zlib, NumPy and json may raise anything
        raise _refusal(path, error) from error
    try:
        model = keras.saving.deserialize_keras_object(config)
    except Exception as error:
        raise ValueError(
            "Expected a model whose classes and functions are registered with Keras "
            "(`keras.saving.register_keras_serializable`). "
            f"Received: path={str(path)!r}: {error}"
        ) from error
    try:
        shapes = [tuple(weight.shape) for weight in model.weights]
        copies.assign_weights(model, _weights(layout, arrays, shapes))
        _load_assets(model, arrays)
    except Exception as error:
        raise _refusal(path, error) from error
    return model


def _refusal(path, reason):
    return ValueError(
        f"Expected a whole file written by `save_sparse` ('{FORMAT}'). "
        f"Received: path={str(path)!r}: {reason}"
    )


def _expect(condition, otherwise):
    if not condition:
        raise ValueError(otherwise)


def _arrays_of(content):
    """Returns the arrays of an archive by name.

    Raises an error if they claim to unpack to an implausible number of bytes.
    """
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
        _expect(claimed <= _MOST_PER_BYTE * len(content) + _MOST, f"{claimed} bytes")
        for entry in archive.infolist():
            deflated = entry.compress_type in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED)
            _expect(deflated, "an unknown compression")
            file = io.BytesIO(archive.read(entry))  # checks the checksum
            _expect(np.lib.format.read_magic(file) == (1, 0), "an unknown array")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            data = file.read()
            size = math.prod(shape) * dtype.itemsize
            _expect(
                dtype.kind in "fu" and len(shape) == 1 and size == len(data),
                f"an array of shape {shape} and dtype {dtype} in {len(data)} bytes",
            )
            name = entry.filename.removesuffix(".npy")
            _expect(name not in arrays, f"'{name}' twice")
            arrays[name] = np.ndarray(shape, dtype, data)
    return arrays


def _check(format, arrays):
    """Checks the format, the names and the values of the arrays, and the digest.

    Removes the digest from the arrays.
    """
    _expect(format in (FORMAT, OLD_FORMAT), f"format {format!r}")
    others = {name for name in arrays if not name.startswith("asset/")}
    digest = ("sha256",) if format == FORMAT else ()
    _expect(others == {*ARRAYS, *digest}, f"arrays {sorted(others)}")
    if digest:
        found = arrays.pop("sha256")
        _expect(np.array_equal(found, _digest(arrays)), "another digest")
    _expect(np.isfinite(arrays["vectors"]).all(), "`vectors` with NaN or infinity")
    _expect((np.abs(arrays["values"]) <= 1).all(), "`values` beyond 1 or NaN")


def _weights(layout, arrays, shapes):
    """Returns the weights of a model, whose shapes must be those of the layout."""
    _expect(
        [tuple(entry["shape"]) for entry in layout] == shapes,
        "a layout of other weights than the model's",
    )
    left = {name: arrays[name] for name in ARRAYS if name != "header"}

    def take(name, count):
        part, left[name] = left[name][:count], left[name][count:]
        _expect(len(part) == count, f"`{name}` ends too early")
        return part

    weights = []
    for entry, shape in zip(layout, shapes):
        size = math.prod(shape)
        if len(shape) < 2:
            array = take("vectors", size)
        elif entry["sparse"]:
            array = _sparse_array(take, size // shape[-1], shape[-1])
        else:
            array = take("values", size).astype("float32")
        array = np.float32(entry.get("scale", 1.0)) * array.reshape(shape)
        _expect(np.isfinite(array).all(), "weights with NaN or infinity")
        weights.append(array)
    unread = [name for name, rest in left.items() if len(rest)]
    _expect(not unread, f"numbers that belong to no weight in {unread}")
    return weights


def _sparse_array(take, num_rows, num_columns):
    counts = take("counts", num_rows)
    _expect((counts <= num_columns).all(), "more numbers in a row than columns")
    counts = counts.astype("int64")
    columns = take("columns", int(counts.sum())).astype("int64")
    places = np.repeat(np.arange(num_rows) * num_columns, counts) + columns
    in_order = (columns < num_columns).all() and (np.diff(places) > 0).all()
    _expect(in_order, "columns out of order")
    array = np.zeros(num_rows * num_columns, "float32")
    array[places] = take("values", len(places))
    return array
