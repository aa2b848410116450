"""Conversion of the arrays and tables that users pass to NumPy arrays."""

import numpy as np


def numeric_array(name, value, *axes):
    """Returns a NumPy array of real numbers. An array of them is not copied.

    Booleans count as numbers. So do pandas columns of nullable integers, floats and
    booleans, and columns of objects that are numbers.

    Args:
        name: name of the argument.
        value: array-like, or a table of pandas or polars.
        *axes: the shapes that are allowed, such as "(n, d)".

    Raises:
        TypeError: if the value does not hold real numbers.
        ValueError: if it has another number of axes, or if a mask hides values.
    """
    if hasattr(value, "toarray"):
        raise TypeError(
            f"Expected `{name}` to be dense: sparse data are not supported; call "
            f"`toarray`. Received: {name} of {type(value).__name__}"
        )
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(
            f"Expected `{name}` without masked values: drop those rows or fill them "
            f"in. Received: {np.ma.count_masked(value)} masked values in {name}"
        )
    if is_table(value):
        array = _of_table(name, value, axes)
    else:
        array = _of_values(name, value, axes)
    if array.ndim not in [_num_axes(text) for text in axes]:
        raise ValueError(
            f"Expected `{name}` of shape {_either(axes)}. Reshape your data. "
            f"Received: {name}.shape={array.shape}"
        )
    return array


def sample_weights(sample_weight, num_rows):
    """Returns the weights of rows, float64 `(n,)`, or None if there are none.

    Raises:
        TypeError: if the weights are not real numbers.
        ValueError: on another shape, negative weights, NaN, or if all weights are 0.
    """
    if sample_weight is None:
        return None
    weights = numeric_array("sample_weight", sample_weight, "(n,)").astype("float64")
    if len(weights) != num_rows:
        raise ValueError(
            "Expected as many weights as rows. "
            f"Received: {len(weights)} weights, {num_rows} rows"
        )
    wrong = ~(np.isfinite(weights) & (weights >= 0.0))
    if wrong.any():
        raise ValueError(
            "Expected `sample_weight` to be finite, 0 or more. "
            f"Received: sample_weight={weights[wrong][0]}"
        )
    if num_rows and not weights.any():
        raise ValueError(
            "Expected a weight above zero: rows of weight 0 do not count. "
            f"Received: {num_rows} weights of 0"
        )
    return weights


# --- Tables ------------------------------------------------------------------------


def is_table(value):
    """Tells whether a value has named columns, like a pandas or polars data frame."""
    return hasattr(value, "columns") and hasattr(value, "to_numpy")


def column_names(value):
    """Returns the names of a table's columns as a list, or None without names.

    Columns that are numbered 0, 1, ... have no names, and neither has an array.
    """
    if not is_table(value):
        return None
    names = list(value.columns)
    return None if names == list(range(len(names))) else names


def in_order(name, value, known):
    """Returns a table with its columns in the order of the first fit.

    Arrays are returned unchanged.

    Args:
        name: name of the argument.
        value: array-like, or a table.
        known: list of names, or None if the first columns had no names.

    Raises:
        ValueError: if columns are missing or unknown, or if a name occurs twice.
    """
    if not is_table(value):
        return value
    names = list(value.columns)
    expected = list(range(len(names))) if known is None else known
    if names == expected or column_names(value) is None:
        return value
    distinct = len(set(names)) == len(names) == len(expected)
    if distinct and set(names) == set(expected):
        return value[expected]
    if known is None:  # the first columns had no names, so order decides
        return value
    missing = [column for column in known if column not in names]
    unknown = [column for column in names if column not in known]
    raise ValueError(
        f"Expected `{name}` with the columns of the first fit, each once, in any "
        f"order. Received: missing columns {missing}, unknown columns {unknown}, "
        f"{len(names)} columns in all"
    )


def _of_table(name, table, axes):
    kinds = {getattr(dtype, "kind", "") for dtype in table.dtypes}
    plain = all(isinstance(dtype, np.dtype) for dtype in table.dtypes)
    if plain and (kinds <= set("iuf") or kinds == {"b"}):
        return table.to_numpy()
    columns = (
        table.iloc[:, i] if hasattr(table, "iloc") else table[:, i]
        for i in range(len(table.columns))
    )
    parts = [
        _of_values(f"{name}[{label!r}]", column, axes).astype("float64")
        for label, column in zip(table.columns, columns)
    ]
    return np.stack(parts, axis=1)


def _of_values(name, value, axes):
    expected = f"Expected `{name.partition('[')[0]}` to be an array {_either(axes)} of"
    if (
        str(getattr(value, "dtype", "")) == "category"
    ):  # even if its categories are numbers
        raise TypeError(
            f"{expected} real numbers. Encode categories, or leave the column out. "
            f"Received: {name} of dtype category"
        )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # such as ragged rows
        raise TypeError(
            f"{expected} real numbers: {error}. "
            f"Received: {name} of {type(value).__name__}"
        ) from error
    if array.dtype.kind == "c":
        raise ValueError(
            f"Complex data not supported. {expected} real numbers; use real and "
            f"imaginary parts as columns. Received: {name} of {array.dtype}"
        )
    if array.dtype.kind == "O":
        return _of_objects(name, array, expected)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{expected} real numbers. Encode other values, or leave the column out. "
            f"Received: {name} of {array.dtype}"
        )
    return array


def _of_objects(name, array, expected):
    """Converts objects that are numbers, such as fractions and nullable booleans."""
    values = np.empty(array.size)
    for index, value in enumerate(array.flat):
        try:
            if isinstance(value, (str, bytes)):
                raise TypeError(f"{value!r} is text")
            values[index] = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(
                f"{expected} real numbers: {error}. Encode or fill in other values, or "
                f"leave the column out. Received: {name} with {value!r}"
            ) from error
    return values.reshape(array.shape)


def _num_axes(axes):
    return axes.count(",") + (not axes.endswith(",)"))


def _either(axes):
    return " or ".join(axes)
