"""Checks of arguments, with messages that say what was expected and received."""

import numbers
import operator
from collections.abc import Sequence
from typing import Any

from keras import ops

# Beyond these limits float32 overflows when a value or its reciprocal is squared.
_LARGEST, _SMALLEST = 1e15, 1e-15


def boolean(name: str, value: Any) -> bool:
    """Returns a bool unchanged.

    Raises:
        TypeError: if the value is not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"Expected `{name}` to be a bool. Received: {name}={value!r}")
    return value


def integer(name: str, value: Any, least: int | None = None, most: int = 10**30) -> int:
    """Converts an integer of Python or NumPy to a Python int.

    Raises:
        TypeError: if the value is not an integer.
        ValueError: if it is below `least` or above `most`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(
            f"Expected `{name}` to be an integer. Received: {name}={value!r}"
        )
    if least is not None and number < least:
        raise ValueError(
            f"Expected `{name}` to be at least {least}. Received: {name}={value!r}"
        )
    if number > most:
        raise ValueError(
            f"Expected `{name}` to be at most {most:.0e}. Received: {name}={value!r}"
        )
    return number


def optional_integer(
    name: str, value: Any, least: int | None = None, most: int = 10**30
) -> int | None:
    """Converts as `integer` does, and takes None as well."""
    return None if value is None else integer(name, value, least, most)


def number(name: str, value: Any, least: float | None = None) -> float:
    """Converts a finite number that float32 holds, also of NumPy, to a Python float.

    Raises:
        TypeError: if the value is not a number.
        ValueError: if it is below `least`, infinite, NaN or too large.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number:
        raise TypeError(f"Expected `{name}` to be a number. Received: {name}={value!r}")
    if not -_LARGEST <= value <= _LARGEST:  # False for NaN too
        raise ValueError(
            f"Expected `{name}` to be finite, at most {_LARGEST:.0e} in size. "
            f"Received: {name}={value!r}"
        )
    if least is not None and value < least:
        raise ValueError(
            f"Expected `{name}` to be at least {least}. Received: {name}={value!r}"
        )
    return float(value)


def positive(name: str, value: Any) -> float:
    """Converts a positive number to a Python float.

    Float32 must hold the number and its reciprocal.

    Raises:
        TypeError: if the value is not a number.
        ValueError: if it is not positive, or is out of range.
    """
    if number(name, value) < _SMALLEST:
        raise ValueError(
            f"Expected `{name}` above 0 (at least {_SMALLEST:.0e}). "
            f"Received: {name}={value!r}"
        )
    return float(value)


def share(name: str, value: Any) -> float:
    """Converts a number strictly between 0 and 1 to a Python float.

    Raises:
        TypeError: if the value is not a number.
        ValueError: if it is 0 or less, or 1 or more.
    """
    if not 1e-6 <= number(name, value) <= 1.0 - 1e-6:
        raise ValueError(
            f"Expected `{name}` between 0 and 1, both excluded. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Returns a string that is one of `choices`.

    Raises:
        TypeError: if the value is not a string.
        ValueError: if it is not one of `choices`.
    """
    if not isinstance(value, str):
        raise TypeError(
            f"Expected `{name}` to be one of {choices}. Received: {name}={value!r}"
        )
    if value not in choices:
        raise ValueError(
            f"Expected `{name}` to be one of {choices}. Received: {name}={value!r}"
        )
    return value


def eager_values(tensor):
    """Converts a tensor to a NumPy array, or returns None in traced code.

    The values of a symbolic tensor of TensorFlow and of a tracer of JAX are unknown. On
    an accelerator this waits for the device, so reduce the tensor to one value first.
    """
    try:
        return ops.convert_to_numpy(tensor)
    except (TypeError, ValueError, RuntimeError):  # the backends raise these
        return None


def is_false(condition):
    """Whether the value of a scalar condition is known and False."""
    seen = eager_values(condition)
    return seen is not None and not seen
