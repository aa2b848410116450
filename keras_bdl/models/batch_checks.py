"""Checks of every batch for data that a likelihood cannot take.

Arrays are checked before training. The values of data sets and generators are known
only inside a compiled function, which cannot raise an error on every backend. A refused
batch therefore has the loss NaN and no gradient, so that the weights stay as they are,
and the model raises an error at the end of the epoch.
"""

import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bdl.core import inputs, scopes
from keras_bdl.core.recovery import weights_kept

# The problems that a batch may have, numbered from 1.
PROBLEMS = (
    "Expected finite inputs; fill in missing values before training, and give masks as "
    "booleans. Received: a batch with NaN or infinity in x",
    "Expected sample weights that are finite and at least 0. "
    "Received: a batch with other weights",
    "Expected whole labels from 0, below the number of the network's logits. "
    "Received: a batch with other labels",
    "Expected rows of class probabilities, at least 0 with the sum 1; independent "
    "labels are not one categorical variable. "
    "Received: a batch with other rows",
    "Expected finite targets. Received: a batch with NaN or infinity in y",
    "Expected `network` to give logits. Its outputs are probabilities (at least 0, "
    "with the sum 1); remove its last softmax. Received: a batch with such outputs",
)
INPUTS, WEIGHTS, LABELS, CLASS_PROBABILITIES, TARGETS, NO_LOGITS = range(
    1, len(PROBLEMS) + 1
)

_NOT_DENSE = ("SparseTensor", "RaggedTensor", "BCOO", "JAXSparse")


class Problem(keras.metrics.Metric):
    """Keeps the highest problem number of the batches so far, and reports nothing."""

    def __init__(self, name="problem"):
        super().__init__(name=name)
        self.number = self.add_weight(
            name="number", shape=(), initializer="zeros", dtype="int32"
        )

    def update_state(self, number):
        self.number.assign(ops.maximum(self.number, ops.cast(number, "int32")))

    def result(self):
        return {}

    def read(self):
        return int(ops.convert_to_numpy(self.number))


class CheckedBatches(keras.Model):
    """Base of models with a likelihood, whose steps check every batch.

    Besides `_targets(y)`, which checks arrays, a subclass sets `_problem`, a `Problem`,
    and implements

        _known_rank(y, sample_weight): returns both with the rank that the loss needs,
            if TensorFlow has traced data of different ranks together.
        _target_problems(y): returns pairs for `first_problem`.
        _output_problems(y_pred): returns such pairs, by default none.
        _label_weights(y, class_weight, sample_weight): returns weights of the labels
            in an array.
    """

    built: bool
    _problem: Problem

    def train_step(self, *args: Any) -> Any:
        return self._checked_step(super().train_step, *args)

    def test_step(self, *args: Any) -> Any:
        return self._checked_step(super().test_step, *args)

    def _checked_step(self, step, *args):
        *state, data = args  # on JAX the state comes first
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        require_targets(y)
        y, sample_weight = self._known_rank(y, sample_weight)
        problem = first_problem(
            (not_finite(x), INPUTS),
            (wrong_weights(sample_weight), WEIGHTS),
            *self._target_problems(y),
        )
        data = blank((x, y, sample_weight), problem)
        with scopes.BatchScope(problem):
            return step(*state, keras.utils.pack_x_y_sample_weight(*data))

    def refuse_batch(self, loss: Any, y_pred: Any) -> Any:
        """Returns the loss of a batch, or NaN if the batch has a problem.

        The problem is kept for `raise_refused`.
        """
        scope = scopes.BatchScope.current()
        if scope is None:
            return loss
        problem = first_problem(
            (scope.problem > 0, scope.problem),
            *self._output_problems(y_pred),
        )
        self._raise_in_eager(problem)
        self._problem.update_state(problem)
        return without_gradient(loss, problem)

    def _output_problems(self, y_pred):
        return ()

    def _check_ready(self):
        """Refuses to train on a batch before `fit` has prepared the model."""

    def _raise_in_eager(self, problem):
        """Raises at once if values are known, before the weights change."""
        if keras.backend.backend() == "torch" and not self.jit_compile:
            number = int(ops.convert_to_numpy(problem))
            if number:
                raise_problem(number)

    def raise_refused(self) -> None:
        """Raises an error if batches were refused since the metrics were reset.

        Raises:
            ValueError: if there were such batches.
        """
        number = self._problem.read()
        if number:
            super().reset_metrics()
            raise_problem(number)

    def check_trained(self, history: keras.callbacks.History) -> None:
        """Raises an error if batches were refused, and warns of a loss that diverged.

        Args:
            history: what `fit` returns.
        """
        self.raise_refused()
        losses = history.history.get("loss", [])
        if losses and not np.isfinite(losses[-1]):
            warnings.warn(
                "Training has diverged, and what the model predicts now means nothing. "
                "Train a new one with a smaller learning rate, or with `clipnorm` in "
                f"the optimizer. Received: loss={losses[-1]} in the last epoch",
                stacklevel=3,
            )

    def reset_metrics(self) -> None:
        self.raise_refused()  # in `fit` before the next epoch, and before validation
        super().reset_metrics()

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Trains as `keras.Model.train_on_batch` does, with targets as in `fit`."""
        self._check_ready()
        check_one_batch(x, y, sample_weight)
        y, sample_weight = self._checked_arrays(x, y, sample_weight, class_weight)
        logs = super().train_on_batch(x, y, sample_weight, return_dict=return_dict)
        self.raise_refused()
        return logs

    def test_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Evaluates as `keras.Model.test_on_batch` does, with targets as in `fit`."""
        check_one_batch(x, y, sample_weight)
        y, sample_weight = self._checked_arrays(x, y, sample_weight)
        with weights_kept(self):
            logs = super().test_on_batch(x, y, sample_weight, return_dict=return_dict)
        self.raise_refused()
        return logs

    def _checked_arrays(self, x, y, sample_weight, class_weight=None):
        """Returns checked targets and weights in the form that the steps take."""
        if hasattr(x, "shape") or y is not None:
            require_targets(y)
        inputs.check_inputs(self.network, x)
        check_arrays(x, sample_weight)
        if class_weight is not None:
            sample_weight = self._label_weights(y, class_weight, sample_weight)
        return self._targets(y), sample_weight


def check_one_batch(x, y=None, sample_weight=None):
    """Refuses a batch unless it consists of arrays with equally many rows.

    Raises:
        TypeError: if a part is not an array.
        ValueError: if the numbers of rows differ.
    """
    rows = []
    for name, value in (("x", x), ("y", y), ("sample_weight", sample_weight)):
        leaves = [] if value is None else keras.tree.flatten(value)
        if name == "x" and not leaves:
            leaves = [value]
        for leaf in leaves:
            if leaf is None and name == "x" and len(leaves) > 1:
                continue  # an optional input
            if not getattr(leaf, "shape", None):
                raise TypeError(
                    f"Expected `{name}` to be an array with rows. "
                    f"Received: {name} of type {type(leaf).__name__}"
                )
            rows.append((name, leaf.shape[0]))
    if len({count for _, count in rows if count is not None}) > 1:
        received = ", ".join(f"{name} of {count} rows" for name, count in rows)
        raise ValueError(f"Expected equally many rows. Received: {received}")


def require_targets(y):
    """Refuses data without targets or with several.

    Raises:
        ValueError: on such data.
    """
    if y is None or isinstance(y, dict):
        raise ValueError(
            "Expected inputs and their targets, `(x, y)`; the likelihood needs the "
            f"targets. Received: y={'None' if y is None else type(y).__name__}"
        )


def raise_problem(number):
    """Raises the error of a problem.

    Raises:
        ValueError: always.
    """
    known = number <= len(PROBLEMS)  # replicas may have added their numbers
    raise ValueError(
        PROBLEMS[number - 1]
        if known
        else "Expected finite inputs, labels within the classes and weights of at "
        "least 0. Received: batches with other data"
    )


def first_problem(*problems):
    """Returns the number of the first pair (bool tensor, number) that is true, or 0."""
    found = ops.zeros((), "int32")
    for is_wrong, number in reversed(problems):
        found = ops.where(is_wrong, number, found)
    return ops.cast(found, "int32")


def not_finite(x):
    """Tells, as a bool tensor, whether a nest has a float that is NaN or infinite."""
    finite = ops.ones((), "bool")
    for leaf in keras.tree.flatten(x):
        if _is_dense(leaf) and keras.backend.is_float_dtype(_dtype(leaf)):
            finite = ops.logical_and(finite, ops.all(ops.isfinite(leaf)))
    return ops.logical_not(finite)


def wrong_weights(sample_weight):
    """Tells, as a bool tensor, whether a weight is negative, infinite or NaN."""
    if sample_weight is None:
        return ops.zeros((), "bool")
    weights = ops.cast(sample_weight, "float32")
    return ops.logical_not(
        ops.all(ops.logical_and(weights >= 0.0, ops.isfinite(weights)))
    )


def blank(data, problem):
    """Replaces the numbers in a nest of tensors by zeros if there is a problem."""

    def blanked(leaf):
        if not _is_dense(leaf) or _dtype(leaf) == "string":
            return leaf
        return ops.where(problem > 0, ops.zeros_like(leaf), leaf)

    return keras.tree.map_structure(blanked, data)


def without_gradient(loss, problem):
    """Returns the loss, or NaN without a gradient if there is a problem."""
    return ops.where(problem > 0, ops.cast(float("nan"), loss.dtype), loss)


def check_arrays(x, sample_weight):
    """Refuses arrays of inputs that are not finite, and wrong sample weights.

    Raises:
        TypeError, ValueError: on such arrays.
    """
    for leaf in keras.tree.flatten(x):
        if isinstance(leaf, np.ndarray):
            # If a number is NaN, so are these; no array of booleans is needed.
            ends = leaf.dtype.kind == "f" and leaf.size and (leaf.min(), leaf.max())
            wrong = bool(ends) and not np.isfinite(ends).all()
        else:
            wrong = ops.is_tensor(leaf) and bool(ops.convert_to_numpy(not_finite(leaf)))
        if wrong:
            raise ValueError(
                "Expected finite inputs; fill in missing values before training, and "
                "give masks as booleans. "
                f"Received: x of shape {tuple(leaf.shape)} with NaN or infinity"
            )
    check_weights(sample_weight)


def check_weights(sample_weight):
    """Refuses an array of weights that are not numbers, infinite or below 0.

    Raises:
        TypeError, ValueError: on such an array.
    """
    if hasattr(sample_weight, "shape"):
        weights = ops.convert_to_numpy(sample_weight)
        if weights.dtype.kind not in "biuf":
            raise TypeError(
                "Expected sample weights to be numbers. "
                f"Received: sample_weight of dtype {weights.dtype}"
            )
        if not (weights >= 0).all() or (weights == np.inf).any():
            raise ValueError(
                "Expected sample weights that are finite and at least 0. "
                f"Received: sample_weight from {weights.min()} to {weights.max()}"
            )


def _is_dense(leaf):
    return hasattr(leaf, "dtype") and type(leaf).__name__ not in _NOT_DENSE


def _dtype(leaf):
    return keras.backend.standardize_dtype(leaf.dtype)
