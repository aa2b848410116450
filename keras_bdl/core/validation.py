"""Checks of arguments: what was expected, what was received."""

import numbers
import operator

from keras import ops

# Beyond these, float32 overflows when a value or its reciprocal is squared.
_LARGEST, _SMALLEST = 1e15, 1e-15


def boolean(name, value):
    """A bool as it is.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(value, bool):
        raise TypeError(f"Expected `{name}` to be a bool. Received: {name}={value!r}")
    return value


def integer(name, value, least=None, most=10**30):
    """An integer, of NumPy too, as a Python int.

    Raises:
        TypeError: if it is none.
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


def number(name, value, least=None):
    """A finite number that float32 holds, of NumPy too, as a Python float.

    Raises:
        TypeError: if it is none.
        ValueError: if it is below `least`, infinite, NaN or too large.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
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


def positive(name, value):
    """A positive number that float32 holds, as does its reciprocal.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not positive, or out of range.
    """
    if number(name, value) < _SMALLEST:
        raise ValueError(
            f"Expected `{name}` above 0 (at least {_SMALLEST:.0e}). "
            f"Received: {name}={value!r}"
        )
    return float(value)


def share(name, value):
    """A number strictly between 0 and 1, as a Python float.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is 0 or less, or 1 or more.
    """
    if not 1e-6 <= number(name, value) <= 1.0 - 1e-6:
        raise ValueError(
            f"Expected `{name}` between 0 and 1, neither of them. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def choice(name, value, choices):
    """One of several strings.

    Raises:
        TypeError: if it is no string.
        ValueError: if it is another one.
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
    """The values of a tensor as a NumPy array, or None where they cannot be seen.

    They cannot in traced code: of a symbolic tensor of TensorFlow, of a tracer of
    JAX. On an accelerator this waits for the device: reduce what is to be checked to
    one value first.
    """
    try:
        return ops.convert_to_numpy(tensor)
    except (TypeError, ValueError, RuntimeError):  # what the backends raise then
        return None


def is_false(condition):
    """Whether a scalar condition can be seen, and does not hold."""
    seen = eager_values(condition)
    return seen is not None and not seen
