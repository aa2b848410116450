"""What an estimator has by scikit-learn's conventions, without scikit-learn."""

import inspect
import math
import sys

import numpy as np

from keras_bdl.exact import arrays


class NotFittedError(ValueError, AttributeError):
    """What an estimator raises that has not been fitted.

    It derives from both as scikit-learn's of that name does, which is raised in its
    place by programs that have imported scikit-learn.
    """


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
    """A regressor from rows `(n, d)` to targets `(n,)` or `(n, t)`.

    The first fit says how many columns there are, and their names if they have some.
    Later tables are put in that order.

    Attributes:
        n_features_in_: d.
        feature_names_in_: where the columns have texts for names.
    """

    def __sklearn_tags__(self):
        """What scikit-learn asks of a regressor."""
        from sklearn.utils import RegressorTags, Tags, TargetTags

        target = TargetTags(required=True, multi_output=True)
        return Tags("regressor", target, regressor_tags=RegressorTags())

    def score(self, X, y, sample_weight=None):
        """Coefficient of determination R^2 of the mean prediction, as in scikit-learn.

        One minus the squared residuals over the squares around the mean of `y`; of
        several targets the mean. Targets that are all the same have 1 if they are
        predicted exactly, else 0. NaN of fewer than two rows.

        Raises:
            TypeError, ValueError: on data that `fit` refuses, or before it.
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
        """`(n,)` or `(n, t)`."""
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
        """Keeps what later data must be like, by data as given and as checked."""
        names = arrays.column_names(X), arrays.column_names(y)
        if self._is_fitted():  # those that came first stay
            old = self._feature_names, self._target_names
            names = [first or new for first, new in zip(old, names)]
        self._feature_names, self._target_names = names
        self._target_shape = targets.shape[1:]
        self.n_features_in_ = rows.shape[1]
        texts = [name for name in self._feature_names or [] if isinstance(name, str)]
        if len(texts) == self.n_features_in_:
            self.feature_names_in_ = np.array(texts, dtype=object)
