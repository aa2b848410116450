"""What fits around a trained network share: its head, its labels, its predictive."""

from typing import Any

import keras
import numpy as np

from keras_bdl.core import finding, validation
from keras_bdl.core.inputs import check_inputs
from keras_bdl.exact.linear_regression import EVIDENCE
from keras_bdl.graphs import heads
from keras_bdl.graphs.copy import ModelCopier
from keras_bdl.models.classifier import BayesianClassifier
from keras_bdl.models.regressor import BayesianRegressor
from keras_bdl.prediction.predict import resolve_outputs
from keras_bdl.prediction.sampler import CLASSIFICATION

CLASSES = "classification"
VALUES = "regression"
KINDS = ("auto", VALUES, CLASSES)
_LINKS = {
    heads.LINEAR: None,
    heads.SOFTMAX: heads.SOFTMAX,
    heads.SIGMOID: heads.SIGMOID,
}
_RESHAPERS = ("Reshape", "Permute", "Transpose", "RepeatVector")


def head_of(model: keras.Model, x: Any, kind: str) -> tuple[Any, list[Any], str]:
    """Returns the last Dense of a model, the layers after it, and the kind of outputs.

    Raises:
        TypeError, ValueError: if `fit_last_layer` does not take these arguments.
    """
    dense, link, behind = _last_layer(model)
    check_inputs(model, x)
    kind = _resolve_kind(model, kind, link)
    if kind == CLASSES:
        _check_one_label(model, link, dense.units)
    elif link is not None:
        raise ValueError(
            "Expected a regression model without activation at its end. "
            f"Received: kind={kind!r}, activation={link!r}"
        )
    return dense, behind, kind


def check_noise_precision(kind: str, noise_precision: Any) -> None:
    """Refuses a noise precision for a classifier."""
    is_default = isinstance(noise_precision, str) and noise_precision == EVIDENCE
    if kind == CLASSES and not is_default:
        raise ValueError(
            "`noise_precision` is for regression. "
            f"Received: noise_precision={noise_precision!r}"
        )


def with_last(
    model: keras.Model, dense: Any, behind: list[Any], last: keras.layers.Layer
) -> tuple[keras.Model, dict[keras.layers.Layer, str]]:
    """Returns a copy of a model that ends in another layer, without activation.

    Args:
        model, dense, behind: the model, and its head as `head_of` returns it.
        last: layer in the place of `dense`.

    Returns:
        The copy, and the layers that it shares with the model with the reasons.
    """

    def convert(old):
        # `Logits` of linear outputs is an identity that takes a mask or none.
        return last if old is dense else heads.Logits("linear", name=old.name)

    copier = ModelCopier([dense, *behind], convert)
    return copier.copy(model), copier.borrowed


def predictive(
    network: keras.Model, kind: str, num_samples: int
) -> BayesianClassifier | BayesianRegressor:
    """Returns the compiled model around a network of logits or means."""
    if kind == CLASSES:
        bayesian = BayesianClassifier(network, num_samples=num_samples)
    else:
        bayesian = BayesianRegressor(
            network, "homoscedastic", num_samples, mc_dropout=False
        )
    bayesian.compile()
    return bayesian


def check_labels(y, rows, units):
    if len(y) != rows or y.size not in (rows, rows * units):
        raise ValueError(
            f"Expected labels `({rows},)` or one-hot `({rows}, {units})`. "
            f"Received: y of shape {y.shape}"
        )
    classes = max(units, 2)
    if y.size != rows and not (y.min() >= 0 and np.allclose(y.sum(-1), 1, atol=1e-3)):
        raise ValueError(
            "Expected labels one-hot, or rows of class probabilities; independent "
            "labels are not one categorical variable. "
            f"Received: y with row sums from {y.sum(-1).min()} to {y.sum(-1).max()}"
        )
    whole = np.array_equal(y, np.round(y))
    if y.size == rows and not (whole and y.min() >= 0 and y.max() < classes):
        raise ValueError(
            f"Expected labels from 0 to {classes - 1}. Received: y from {y.min()} to "
            f"{y.max()}"
        )


def _last_layer(model):
    """Returns the last Dense, its activation or None, and the layers after it."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected `model` to be a Keras model. Received: model={model!r}"
        )
    if not (finding.is_graph(model) and model.built and len(model.outputs) == 1):
        raise ValueError(
            "Expected a built Sequential or functional model of one output. "
            f"Received: model={model.name!r}"
        )
    head = heads.find(model)
    dense = head.layer
    fits = type(dense) is keras.layers.Dense and len(dense.kernel.shape) == 2
    fits = fits and len(model.outputs[0].shape) == 2
    fits = fits and all(type(x).__name__ not in _RESHAPERS for x in head.behind)
    if not fits:
        raise ValueError(
            "Expected a model that ends in a Dense layer, `(batch, units)`, with at "
            f"most a softmax or sigmoid after it. Received: model={model.name!r}, "
            f"whose last layer is {dense!r}"
        )
    if head.activation not in _LINKS:
        raise ValueError(
            "Expected the last layer to have no activation, softmax or sigmoid. "
            f"Received: activation={head.activation!r}"
        )
    return dense, _LINKS[head.activation], head.behind


def _check_one_label(model, link, units):
    """Refuses several labels that hold independently of each other."""
    of_loss = link is None and (resolve_outputs(model, "auto") or "").startswith("bin")
    if units > 1 and (link == heads.SIGMOID or of_loss):
        raise ValueError(
            "Expected one label of several classes, or of two classes with one unit; "
            "several units with a sigmoid are labels that hold independently. Make a "
            "model of each label, `Dense(1, activation='sigmoid')` with its column of "
            "the weights on the same features, and fit the last layer of each. "
            f"Received: model={model.name!r}, of {units} units"
        )
    if units == 1 and link == heads.SOFTMAX:
        raise ValueError(
            "Expected a sigmoid: the softmax of one unit is always 1. "
            f"Received: model={model.name!r}, of one unit"
        )


def _resolve_kind(model, kind, link):
    validation.choice("kind", kind, KINDS)
    if kind != "auto":
        return kind
    found = resolve_outputs(model, "auto")
    if link is not None or found in CLASSIFICATION:
        return CLASSES
    if found != "mean":
        raise ValueError(
            "Cannot tell whether the model is a classifier or a regressor of means: it "
            "has no activation at its end, and its loss does not say. Give `kind`. "
            f"Received: kind='auto', loss={getattr(model, 'loss', None)!r}"
        )
    return VALUES
