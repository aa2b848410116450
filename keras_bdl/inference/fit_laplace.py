"""Laplace's approximation of the posterior of a trained network."""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bdl.core import finding, validation
from keras_bdl.core.inputs import check_inputs
from keras_bdl.core.stochastic import whole_layers
from keras_bdl.exact.linear_regression import EVIDENCE
from keras_bdl.graphs.linearized import linear_layers
from keras_bdl.inference import trained
from keras_bdl.inference.laplace_fit import Fit
from keras_bdl.inference.last_layer import fit_last_layer
from keras_bdl.inference.linearized import LinearizedNetwork
from keras_bdl.inference.trained import CLASSES
from keras_bdl.layers.wrapper import BayesianWrapper
from keras_bdl.maps.wrapped import weights_inside
from keras_bdl.models.classifier import BayesianClassifier
from keras_bdl.models.regressor import BayesianRegressor
from keras_bdl.posteriors import Gaussian, JointGaussian, Kronecker
from keras_bdl.posteriors.gaussian import bias_of
from keras_bdl.training import data

_FORMS = {"kronecker": Kronecker, "diagonal": Gaussian, "full": JointGaussian}
STRUCTURES = (*_FORMS, "last_layer")
PREDICTIONS = ("linearized", "weights")
VALIDATION = "validation"
_MAX_GIGABYTES = 1.2


def fit_laplace(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    structure: str = "kronecker",
    layers: Sequence[str] | None = None,
    kind: str = "auto",
    prior_precision: float | str | None = None,
    noise_precision: float | str = EVIDENCE,
    prediction: str = "linearized",
    probit: bool = False,
    validation_data: tuple[Any, Any] | None = None,
    num_samples: int = 100,
    batch_size: int = 64,
    verbose: int | str = "auto",
) -> BayesianClassifier | BayesianRegressor:
    """Fits a Gaussian posterior around the weights of a trained Keras model.

    Laplace's approximation is N(w, (H + alpha I)^-1), with the trained weights w, the
    generalised Gauss-Newton matrix H of the negative log likelihood of all training
    examples, and the precision alpha of a prior N(0, 1 / alpha). It holds at the mode
    of the posterior: train to the end, with weight decay for data that can be
    separated.

    H is of the weights of Dense layers and convolutions. Other weights keep their
    values, which a warning says.

    Args:
        model: trained Sequential or functional model with one output `(batch, units)`,
            which ends as `fit_last_layer` describes. It is copied and not changed.
        x, y, kind: as in `fit_last_layer`.
        structure: of H: "kronecker" for a Kronecker product for each layer; "diagonal";
            "full" for all pairs of weights, some 12,000 at most; or "last_layer" for
            `fit_last_layer`.
        layers: names of the layers whose weights have a posterior, or None for all.
        prior_precision: alpha, a positive float; "validation" for the highest
            likelihood of `validation_data`; or "evidence" for the highest marginal
            likelihood, with a separate alpha for each layer unless `structure` is
            "full". None means "validation" if there are such data, and "evidence"
            otherwise. The evidence is wrong for networks that fit their training data
            to the end; a warning says so where it shows.
        noise_precision: regression only: one over the noise variance of every target,
            or "evidence".
        prediction: "linearized" for outputs that are linear in the weights, which fits
            this posterior best, or "weights" for the network itself with drawn weights.
        probit: as in `fit_last_layer`, for a linearised classifier.
        validation_data: pair of arrays, inputs and targets that were not trained on,
            for `prior_precision="validation"`.
        num_samples, verbose: as in `fit_last_layer`.
        batch_size: number of rows of arrays that are taken at a time.

    Returns:
        Compiled `BayesianClassifier` or `BayesianRegressor`, as of `fit_last_layer`.

    Raises:
        TypeError: if the model is not a Keras model.
        ValueError: on a wrong argument, data or a model that do not fit, a layer
            that has no copy, or a constraint on a weight.

    Example:

    >>> bayesian = keras_bdl.fit_laplace(model, x_train, y_train)
    >>> bayesian.predict_uncertainty(x_test).mutual_information  # nats

    References: MacKay, "A practical Bayesian framework for backpropagation networks",
    1992; Ritter, Botev and Barber, "A scalable Laplace approximation for neural
    networks", 2018 (Kronecker products); Immer, Korzepa and Bauer, "Improving
    predictions of Bayesian neural nets via local linearization", 2021.
    """
    validation.choice("structure", structure, STRUCTURES)
    validation.choice("prediction", prediction, PREDICTIONS)
    if prior_precision is None:
        prior_precision = EVIDENCE if validation_data is None else VALIDATION
    elif not isinstance(prior_precision, str):
        prior_precision = validation.positive("prior_precision", prior_precision)
    else:
        validation.choice("prior_precision", prior_precision, (EVIDENCE, VALIDATION))
    if structure == "last_layer":
        _refuse_for_last_layer(layers, prediction, validation_data)
        return fit_last_layer(
            model,
            x,
            y,
            kind=kind,
            prior_precision=prior_precision,
            noise_precision=noise_precision,
            probit=probit,
            num_samples=num_samples,
            batch_size=batch_size,
            verbose=verbose,
        )
    if (prior_precision == VALIDATION) != (validation_data is not None):
        raise ValueError(
            "Expected `validation_data`, rows that the model was not trained on, "
            "beside `prior_precision='validation'` alone. Received: prior_precision="
            f"{prior_precision!r}, validation_data={type(validation_data).__name__}"
        )
    dense, behind, kind = trained.head_of(model, x, kind)
    if whole_layers(model):
        raise ValueError(
            "Expected a plain Keras model; `to_keras` takes a posterior off. "
            f"Received: model={model.name!r}, which holds "
            f"{whole_layers(model)[0].name!r}"
        )
    linearizes = prediction == "linearized"
    if validation.boolean("probit", probit) and (
        kind != CLASSES or not linearizes or dense.units == 1
    ):
        raise ValueError(
            "`probit` is for a linearised classifier of two outputs or more. "
            f"Received: probit={probit}, kind={kind!r}, prediction={prediction!r}"
        )
    trained.check_noise_precision(kind, noise_precision)
    num_samples = validation.integer("num_samples", num_samples, least=1)
    network = _linear_outputs(model, dense, behind)
    names = _chosen(model, network, layers)
    _check_memory(network, names, structure)
    held_out = _held_out(model, validation_data, kind, dense.units)
    posterior = _FORMS[structure]()
    if linearizes:
        layer: BayesianWrapper = LinearizedNetwork(
            network, names, probit, posterior=posterior, kl_weight=0.0
        )
    else:
        layer = BayesianWrapper(network, names, posterior=posterior, kl_weight=0.0)
    layer.set_num_examples(1)

    if kind != CLASSES and hasattr(x, "__next__"):
        raise TypeError(
            "Expected data that can be read twice, for the noise and for the matrix: "
            f"arrays or a data set. Received: x of type {type(x).__name__}"
        )
    batches = data.TrainingPairs(x, y, batch_size, verbose)
    fit = Fit(layer, structure, kind, noise_precision)
    fit.collect(batches)
    bayesian = trained.predictive(_around(layer, kind), kind, num_samples)
    if held_out is not None:
        x_val, y_val = held_out
        fit.by_validation(bayesian, x_val, y_val, verbose)
    elif prior_precision == EVIDENCE:
        fit.by_evidence()
        fit.check(bayesian)
    else:
        fit.by_prior(prior_precision)
    if kind != CLASSES:
        bayesian.observation_noise.log_scale.assign(np.log(fit.noise_stddevs()))
    return bayesian


def _refuse_for_last_layer(layers, prediction, validation_data):
    for name, value, default in (
        ("layers", layers, None),
        ("prediction", prediction, "linearized"),
        ("validation_data", validation_data, None),
    ):
        if value is not default and value != default:
            raise ValueError(
                f"`{name}` is for the other structures. "
                f"Received: structure='last_layer', {name}={type(value).__name__}"
            )


def _held_out(model, validation_data, kind, units):
    """Returns the checked inputs and targets of `validation_data`, or None."""
    if validation_data is None:
        return None
    if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
        raise TypeError(
            "Expected `validation_data` to be a pair of arrays, inputs and targets. "
            f"Received: validation_data={type(validation_data).__name__}"
        )
    x, y = validation_data
    check_inputs(model, x)
    y = np.asarray(y)
    rows = len(keras.tree.flatten(x)[0])
    if kind == CLASSES:
        trained.check_labels(y, rows, units)
    elif y.size != rows * units or not np.isfinite(y).all():
        raise ValueError(
            f"Expected finite targets `({rows}, {units})` in `validation_data`. "
            f"Received: y of shape {y.shape}"
        )
    return x, y


def _linear_outputs(model, dense, behind):
    """Returns a copy of the model that ends in its last Dense, without activation."""
    last = type(dense).from_config({**dense.get_config(), "activation": "linear"})
    last.build((None, dense.kernel.shape[0]))
    last.set_weights(dense.get_weights())
    copy, borrowed = trained.with_last(model, dense, behind, last)
    for layer, reason in borrowed.items():
        if layer.weights:
            raise ValueError(reason)
    return copy


def _chosen(model, network, layers):
    """Returns the names of the weights that get a posterior."""
    found = linear_layers(network)
    if layers is not None:
        if isinstance(layers, str) or not isinstance(layers, Iterable):
            raise TypeError(
                "Expected `layers` to be a list of names of layers. "
                f"Received: layers={layers!r}"
            )
        layers = list(layers)
        known = {layer.name for layer in found}
        unknown = [name for name in layers if name not in known]
        if unknown or not layers:
            raise ValueError(
                "Expected `layers` to be names of Dense layers or convolutions of the "
                f"model, of {sorted(known)}. Received: layers={layers!r}"
            )
        found = [layer for layer in found if layer.name in layers]
    own = {id(v) for layer in found for v in layer.trainable_variables}
    weights = weights_inside(network, "all")
    # Variables that were frozen one by one are so in the model alone.
    trained = weights_inside(model, "all")
    weights = {name: weight for name, weight in weights.items() if name in trained}
    names = [name for name, variable in weights.items() if id(variable) in own]
    kernels = [name for name in names if name.startswith("kernel")]
    biases = [bias_of(kernel) for kernel in kernels]
    names = [name for name in names if name in (*kernels, *biases)]  # no bias alone
    if not names:
        raise ValueError(
            "Expected a model with trained Dense layers or convolutions in its graph. "
            f"Received: model={network.name!r}"
        )
    sizes = {name: int(np.prod(weights[name].shape)) for name in weights}
    left = sum(sizes.values()) - sum(sizes[name] for name in names)
    if left and layers is None:
        warnings.warn(
            f"{left} of {sum(sizes.values())} trained weights are not of Dense layers "
            "or convolutions of the graph, and keep their values.",
            stacklevel=3,
        )
    return names


def _check_memory(network, names, structure):
    """Refuses matrices that would not fit into memory."""
    shapes = {n: v.shape for n, v in weights_inside(network, names).items()}
    count = sum(math.prod(shape) for shape in shapes.values())
    sizes = {"full": [count], "diagonal": []}.get(structure)
    if sizes is None:  # of each kernel, for its inputs and its outputs
        kernels = [shape for shape in shapes.values() if len(shape) > 1]
        sizes = [n for s in kernels for n in (math.prod(s[:-1]) + 1, s[-1])]
    gigabytes = 8e-9 * sum(size**2 for size in sizes)
    if gigabytes > _MAX_GIGABYTES:
        raise ValueError(
            f"The matrices for {count} weights would take {gigabytes:.1f} GB in "
            f"float64; {_MAX_GIGABYTES} GB at most. Use another structure, or name "
            "fewer `layers`. "
            f"Received: structure={structure!r}, {count} weights"
        )


def _around(layer, kind):
    """Returns a frozen model of the layer, with two logits for two classes."""
    network = layer.layer
    inputs = finding.fresh_inputs(network)
    outputs = layer(inputs)
    if kind == CLASSES and outputs.shape[-1] == 1:
        outputs = ops.concatenate([ops.zeros_like(outputs), outputs], axis=-1)
    model = keras.Model(inputs, outputs, name=network.name)
    model.trainable = False
    return model
