"""A compact file of a sparse network: the architecture and the weights that are left.

A NumPy `.npz` archive of four arrays: `header`, JSON with the plain Keras model's
configuration and the layout of its weights; `values`, the non-zero values of
sparse arrays and all of dense ones, one after another; `columns` and `counts`,
the compressed sparse rows (CSR) of the sparse arrays, seen as matrices with
their last axis as columns: column indices, and the number of values in each row.
"""

import json
import pathlib
import zipfile

import keras
import numpy as np

from keras_bdl.compression import assign_weights, compress

FORMAT = "keras_bdl sparse 1"
DTYPES = ("float16", "float32")


def save_sparse(model, path, dtype="float16"):
    """Writes the compressed model (see `compress`) to one small file.

    Args:
        model: what `compress` takes, or what it returned.
        path: file name; by custom it ends in ".npz".
        dtype: of the values, "float16" (relative rounding of 5e-4, coarser below
            6e-5) or "float32".

    Returns:
        The size of the file in bytes.

    Raises:
        TypeError, ValueError: as in `compress`; ValueError on another `dtype`, or
            on a weight that float16 cannot hold.

    Example:

    >>> keras_bdl.save_sparse(model, "small.npz")
    >>> small = keras_bdl.load_sparse("small.npz")
    """
    if dtype not in DTYPES:
        raise ValueError(f"Expected `dtype` in {DTYPES}. Received: dtype={dtype!r}")
    model = compress(model)
    layout, values, columns, counts = [], [], [], []
    for weight in model.weights:
        array = np.asarray(keras.ops.convert_to_numpy(weight), "float32")
        limit = np.finfo(dtype).max
        if not (np.abs(array) <= limit).all():  # False for NaN too
            raise ValueError(
                f"Expected finite weights up to {limit:g}, which '{weight.path}' "
                "exceeds; `dtype='float32'` holds larger ones. "
                f"Received: dtype={dtype!r}"
            )
        rows = array.reshape(-1, array.shape[-1] if array.ndim else 1)
        sparse = array.ndim > 0 and 2 * np.count_nonzero(rows) < rows.size
        layout.append({"shape": list(array.shape), "sparse": bool(sparse)})
        if sparse:
            where, column = np.nonzero(rows)
            counts.append(np.bincount(where, minlength=len(rows)))
            columns.append(column)
            values.append(rows[where, column])
        else:
            values.append(rows.ravel())
    header = {
        "format": FORMAT,
        "model": keras.saving.serialize_keras_object(model),
        "layout": layout,
    }
    path = pathlib.Path(path)
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            header=np.frombuffer(json.dumps(header).encode(), "uint8"),
            values=np.concatenate([*values, np.zeros(0)]).astype(dtype),
            columns=_smallest(columns),
            counts=_smallest(counts),
        )
    return path.stat().st_size


def _smallest(parts):
    """Integers, concatenated, in the smallest type that holds them."""
    joined = np.concatenate([*parts, np.zeros(0, int)])
    return joined.astype(np.min_scalar_type(int(joined.max(initial=0))))


def load_sparse(path):
    """The plain Keras model in a file of `save_sparse`.

    Args:
        path: file name.

    Raises:
        ValueError: if the file is of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            values = file["values"].astype("float32")
            columns, counts = file["columns"], file["counts"]
        known = header["format"] == FORMAT
    except (TypeError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
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
        if not entry["sparse"]:
            weights.append(values[:size].reshape(shape))
            values = values[size:]
            continue
        row_counts, counts = np.split(counts, [size // shape[-1]])
        total = int(row_counts.sum())
        array = np.zeros((len(row_counts), shape[-1]), "float32")
        rows = np.repeat(np.arange(len(row_counts)), row_counts)
        array[rows, columns[:total]] = values[:total]
        values, columns = values[total:], columns[total:]
        weights.append(array.reshape(shape))
    assign_weights(model, weights)
    return model
