"""Estimators that follow scikit-learn's conventions without importing it."""

import inspect
import math
import sys
from typing import Any, Self

import numpy as np

from keras_bdl.exact import arrays


class NotFittedError(ValueError, AttributeError):
    """Error of an estimator that has not been fitted.

    It has both bases because scikit-learn's error of that name has them. In programs
    that have imported scikit-learn, that error is raised instead.
    """


class Estimator:
    """Base of estimators, with parameters by name.

    The constructor of a subclass only stores its arguments, each under its own name.
    `partial_fit` checks them and sets the learned state, whose names end in `_`. So
    `sklearn.base.clone` and pickling work as for scikit-learn's own estimators. `fit`
    forgets the learned state and calls `partial_fit`.
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the constructor's arguments by name. `deep` has no effect here."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}

    def set_params(self, **params: Any) -> Self:
        """Stores constructor arguments, which the next fit uses.

        Raises:
            ValueError: on a name that is not an argument of the constructor.
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

    def __repr__(self) -> str:
        params = ", ".join(f"{k}={v!r}" for k, v in self.get_params().items())
        return f"{type(self).__name__}({params})"

    def _forget(self):
        for name in self._learned():
            delattr(self, name)

    def _learned(self):
        return [name for name in vars(self) if name.endswith("_")]

    def _is_fitted(self):
        return bool(self._learned())

    def _check_fitted(self):
        if not self._is_fitted():
            sklearn = sys.modules.get("sklearn.exceptions")
            error = NotFittedError if sklearn is None else sklearn.NotFittedError
            raise error(
                f"Expected a fitted `{type(self).__name__}`: call `fit` or "
                "`partial_fit` first (no rows will do). Received: nothing learned"
            )


class RegressorEstimator(Estimator):
    """Base of regressors from rows `(n, d)` to targets `(n,)` or `(n, t)`.

    The first fit sets the number of columns, and their names if they have names. The
    columns of later tables are put in that order.

    Attributes:
        n_features_in_: d.
        feature_names_in_: names of the columns, only if all of them are strings.
    """

    _feature_names: list | None
    _target_names: list | None
    _target_shape: tuple[int, ...]

    def predict(self, X: Any) -> Any:
        """Returns the mean prediction for each row."""
        raise NotImplementedError

    def __sklearn_tags__(self):
        """Returns the tags that scikit-learn asks a regressor for."""
        from sklearn.utils import RegressorTags, Tags, TargetTags

        target = TargetTags(required=True, multi_output=True)
        return Tags("regressor", target, regressor_tags=RegressorTags())

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Returns R^2 of the mean prediction, as in scikit-learn.

        The coefficient of determination R^2 is one minus the squared residuals over the
        squares around the mean of `y`. Several targets give the mean of theirs. A
        constant target gives 1 if it is predicted exactly, and 0 otherwise. Fewer than
        two rows give NaN.

        Raises:
            TypeError, ValueError: on data that `fit` refuses, or before `fit`.
        """
        self._check_fitted()
        predicted = self.predict(X)
        y = self._check_targets(y, len(predicted)).astype("float64")
        weights = arrays.sample_weights(sample_weight, len(y))
        if not np.isfinite(y).all():
            raise ValueError("Expected `y` without NaN or infinity. Received: such a y")
        if len(y) < 2:
            return math.nan
        around_mean = np.square(y - np.average(y, axis=0, weights=weights))
        squares = np.average(around_mean, axis=0, weights=weights)
        errors = np.average(np.square(y - predicted), axis=0, weights=weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            constant = np.where(errors == 0.0, 1.0, 0.0)
            values = np.where(squares == 0.0, constant, 1.0 - errors / squares)
        return float(np.mean(values))

    def _check_inputs(self, X):
        if self._is_fitted():
            X = arrays.in_order("X", X, self._feature_names)
        X = arrays.numeric_array("X", X, "(n, d)")
        if X.shape[1] == 0:
            raise ValueError(
                f"Expected `X` to have at least one column: 0 feature(s) (shape="
                f"{X.shape}) while a minimum of 1 is required. "
                f"Received: X.shape={X.shape}"
            )
        if self._is_fitted() and X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"Expected `X` of {self.n_features_in_} columns, as in the first fit: "
                f"X has {X.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input. Received: X.shape={X.shape}"
            )
        return X

    def _check_targets(self, y, num_rows):
        """Returns checked targets, `(n,)` or `(n, t)`."""
        if y is None:
            raise ValueError(
                f"Expected targets: {type(self).__name__} requires y to be passed, but "
                "the target y is None. Received: y=None"
            )
        if self._is_fitted():
            y = arrays.in_order("y", y, self._target_names)
        y = arrays.numeric_array("y", y, "(n,)", "(n, t)")
        if len(y) != num_rows:
            raise ValueError(
                "Expected as many targets as rows. "
                f"Received: {num_rows} rows in X, y.shape={y.shape}"
            )
        if y.ndim == 2 and y.shape[1] == 0:
            raise ValueError(
                f"Expected `y` to have at least one column. Received: y.shape={y.shape}"
            )
        if self._is_fitted() and y.shape[1:] != self._target_shape:
            raise ValueError(
                f"Expected `y` of shape {('n', *self._target_shape)}, as in the first "
                f"fit. Received: y.shape={y.shape}"
            )
        return y

    def _remember(self, X, y, rows, targets):
        """Stores the names and shapes that later data must have.

        Args:
            X, y: data as they were given.
            rows, targets: data as they were checked.
        """
        names = arrays.column_names(X), arrays.column_names(y)
        if self._is_fitted():  # the first names stay
            old = self._feature_names, self._target_names
            names = [first or new for first, new in zip(old, names)]
        self._feature_names, self._target_names = names
        self._target_shape = targets.shape[1:]
        self.n_features_in_ = rows.shape[1]
        texts = [name for name in self._feature_names or [] if isinstance(name, str)]
        if len(texts) == self.n_features_in_:
            self.feature_names_in_ = np.array(texts, dtype=object)
