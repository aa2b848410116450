"""What an estimator has by scikit-learn's conventions, without scikit-learn."""

import inspect

import numpy as np


class Estimator:
    """Parameters by name, `fit` as a fresh start of `partial_fit`.

    The constructor of a subclass only stores its arguments, each under its own name.
    `partial_fit` checks them and sets the learned state, whose names end in `_`, so
    `sklearn.base.clone` and pickling work as for scikit-learn's own estimators.
    """

    def get_params(self, deep=True):
        """The constructor's arguments by name. `deep` changes nothing here."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}

    def set_params(self, **params):
        """Stores constructor arguments; the next fit goes by them.

        Raises:
            ValueError: on a name that the constructor does not have.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(
                    f"Expected parameters of `{type(self).__name__}`: {sorted(known)}. "
                    f"Received: {name}={value!r}"
                )
            setattr(self, name, value)
        return self

    def __repr__(self):
        params = ", ".join(f"{k}={v!r}" for k, v in self.get_params().items())
        return f"{type(self).__name__}({params})"

    def _learned(self):
        return [name for name in vars(self) if name.endswith("_")]

    def _forget(self):
        for name in self._learned():
            delattr(self, name)

    def _is_fitted(self):
        return bool(self._learned())

    def _check_fitted(self):
        if not self._is_fitted():
            raise ValueError(
                f"Expected a fitted `{type(self).__name__}`: call `fit` or "
                "`partial_fit` first (no rows will do). Received: nothing learned"
            )


def numeric_array(name, value, axes):
    """A NumPy array of real numbers, without a copy where it is one already.

    Args:
        name: of the argument.
        value: array-like.
        axes: names of its axes, like "(n, d)".

    Raises:
        TypeError: if it does not hold real numbers.
        ValueError: if it has another number of axes.
    """
    try:
        array = np.asarray(value)
        kind = array.dtype.kind
    except ValueError:  # rows of different lengths
        kind = "O"
    if kind not in "biuf":
        received = type(value).__name__ if kind == "O" else array.dtype
        raise TypeError(
            f"Expected `{name}` to be an array {axes} of real numbers. "
            f"Received: {name} of {received}"
        )
    if array.ndim != axes.count(",") + (not axes.endswith(",)")):
        raise ValueError(
            f"Expected `{name}` of shape {axes}; reshape it. "
            f"Received: {name}.shape={array.shape}"
        )
    return array
