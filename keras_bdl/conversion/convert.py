"""From a Keras model to a Bayesian one, and back.

`to_bayesian` puts our layers in place of a trained model's, with its weights as
posterior means; `to_keras` gives a plain Keras model of the mean or of one draw.
"""

import inspect
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_bdl import priors
from keras_bdl.conversion.choice import ConversionReport, Found, choose, find, row
from keras_bdl.core import copies, finding, stochastic, validation
from keras_bdl.core.typing import Weights
from keras_bdl.graphs.copy import ModelCopier
from keras_bdl.layers.bayesian import bayesian_layers
from keras_bdl.prediction.export import mark_called
from keras_bdl.training.num_examples import set_num_examples


def to_bayesian(
    model: keras.Model,
    num_examples: int | None = None,
    layers: str | Callable | Sequence = "all",
    *,
    method: str = "variational",
    estimator: str | None = None,
    prior: priors.Prior | str | None = None,
    moped: float | None = None,
    return_report: bool = False,
    **options: Any,
) -> Any:
    """A Bayesian copy of a built Keras model, with its weights as posterior means.

    Sequential and functional models (nested, with shared layers and branches,
    `keras.applications`) are called anew, and stay what they are; of a subclassed
    model or layer the attributes are replaced, in a copy of a subclass of its class.
    Layers that are not replaced are copied with their weights. Regularizers of a
    replaced layer are dropped: its prior takes their place. The copy is not compiled.

    A layer of your own is copied by its config, or by its constructor's arguments
    where it keeps them under their names. One that cannot be copied is in both models
    and in the report; if it has weights, a warning says so. Layers are left whose
    weights are read or assigned by the layer that holds them, as masked convolutions
    and tied weights are.

    Copies are saved, loaded and cloned as any model. Classes of your own must be
    registered or given as `custom_objects`, and have a config: `save` says where not.

    Args:
        model: built Keras model of plain layers.
        num_examples: number of training examples, or None to give it later.
        layers: which layers to replace of those that can be: "all" or "last" of those
            that are not frozen, a list of names, or a function from a layer to a bool.
            A frozen layer (`trainable=False`) that is asked for by name or function
            stays frozen: it is sampled with its first standard deviations.
        method: "variational" (`VariationalDense`, `VariationalConv*D`), "sparse_vd"
            (`SparseVDDense`, `SparseVDConv*D`), "concrete_dropout" (around Dense and
            convolutions), "mc_dropout" (in place of Dropout), "drop_connect" or
            "variational_gaussian_dropout".
        estimator, prior: of the layers; None for their defaults.
        moped: positive float, for "variational": the prior of each weight becomes
            N(w, 1) with the trained weight w, its posterior N(w, (moped |w|)^2). About
            0.1 trains large pretrained networks that would forget under N(0, 1).
        return_report: whether to return a `ConversionReport` too.
        **options: further arguments of the layers, such as `initial_log_stddev`.

    Returns:
        The model, or with `return_report` the model and the report.

    Raises:
        TypeError, ValueError: on a wrong argument, and where nothing can be replaced.

    Example:

    >>> bayesian = keras_bdl.to_bayesian(pretrained, num_examples=60_000, moped=0.1)
    >>> bayesian.compile("adam", loss)
    >>> bayesian.fit(x, y, epochs=2)

    Reference: Krishnan, Subedar and Tickoo, "Specifying weight priors in Bayesian deep
    neural networks with empirical Bayes", 2020 (`moped`).
    """
    _check_model(model)
    classes = _classes_of(method)
    options |= {"estimator": estimator, "prior": prior}
    options = {name: value for name, value in options.items() if value is not None}
    if moped is not None:
        moped = validation.positive("moped", moped)
        if method != "variational" or prior is not None:
            raise ValueError(
                "`moped` sets priors of the method 'variational' itself. Received: "
                f"moped={moped}, method={method!r}, prior={prior!r}"
            )
        options["prior"] = priors.NormalPerWeight()
    _check_options(classes, options)

    found = find(model, classes)
    chosen = choose(found, layers)
    counterpart = {id(x.layer): x.cls for x in found if id(x.layer) in chosen}

    def convert(layer):
        bayesian = counterpart[id(layer)].from_keras(layer, **options)
        if moped is not None:
            bayesian.inform(moped)
        return bayesian

    targets = [x.layer for x in found if id(x.layer) in chosen]
    copier = ModelCopier(targets, convert)
    copy = copier.copy(model)
    found += _borrowed(copier)
    if num_examples is not None and bayesian_layers(copy):
        set_num_examples(copy, num_examples)
    if not return_report:
        return copy
    return copy, ConversionReport([row(entry, chosen) for entry in found])


def to_keras(
    model: keras.Model,
    weights: Weights = "mean",
    seed: int | None = None,
) -> keras.Model:
    """The plain Keras model of the posterior mean, or of one draw of the weights.

    It has no keras_bdl in its config, so that it saves, exports and runs where
    keras_bdl is not installed, and is not compiled. A keras_bdl model gives its
    network, a regressor with scales and noise as plain layers behind it.

    Args:
        model: built Keras model of plain and keras_bdl layers, or a keras_bdl model.
        weights: "mean", whose outputs are those of `model(x)`, or "sample".
        seed: integer for a repeatable sample, or None.

    Returns:
        Keras model, or layer where a layer is given.

    Raises:
        ValueError: if a layer has no plain counterpart (`EarlyExitResBlock`, codes of
            a VAE), or on unknown `weights`.

    Example:

    >>> plain = keras_bdl.to_keras(bayesian)
    >>> plain.export("model.tflite", format="litert")
    """
    if hasattr(type(model), "to_keras"):
        return model.to_keras(weights, seed)
    check_is_built_model(model)
    copies.check_weights(weights)
    if seed is not None:
        seed = validation.integer("seed", seed)
    layers = stochastic.stochastic_layers(model)
    inside = {
        id(inner)
        for layer in layers
        for inner in finding.flatten_layers(layer)
        if inner is not layer
    }
    order = {id(layer): index for index, layer in enumerate(layers)}

    def convert(layer):
        _check_has_counterpart(layer)
        # Layers of one seed and shape must not draw alike.
        word = f"{seed}/{order[id(layer)]}".encode()
        own = None if seed is None else zlib.crc32(word) >> 1
        return layer.to_keras(weights, own)

    targets = [layer for layer in layers if id(layer) not in inside]
    copier = ModelCopier(targets, convert, plain=True)
    copy = copier.copy(model)
    _borrowed(copier)
    return _called(copy)


def _check_has_counterpart(layer):
    """Refuses a subclass of the user's, which may compute something else."""
    owner = next(cls for cls in type(layer).__mro__ if "to_keras" in vars(cls))
    known = type(layer) in stochastic.REGISTRY.values()
    if not known and owner.__module__.startswith(f"{stochastic.PACKAGE}."):
        raise ValueError(
            f"Layer '{layer.name}' of class {type(layer).__name__} has no plain "
            "counterpart; give the class a `to_keras(weights, seed)` of its own. "
            f"Received: layer={layer.name!r}"
        )


def between(layers, network, name):
    """A functional model of a network with some layers before and after it.

    Args:
        layers: pair of lists of layers.
        network: functional or Sequential model.
        name: of the new model.
    """
    inputs = outputs = finding.fresh_inputs(network)
    before, after = layers
    for layer in (*before, network, *after):
        outputs = layer(outputs)
    return _called(keras.Model(inputs, outputs, name=name))


def _called(model):
    """The model, called once if it is a graph: Keras writes to ONNX only such."""
    if isinstance(model, keras.Model) and finding.is_graph(model):
        mark_called(model)
    return model


def check_is_built_model(model):
    """Refuses what is no Keras model, or has no weights yet."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected `model` to be a Keras model. Received: model={model!r}"
        )
    if not model.built:
        raise ValueError(
            "Expected a built model; call it on a batch first. "
            f"Received: model={model.name!r}"
        )


def _check_model(model):
    if type(model).__module__.startswith(f"{stochastic.PACKAGE}."):
        raise ValueError(
            "Expected a plain Keras model; convert the network, and make a keras_bdl "
            f"model of the result. Received: model={model!r}"
        )
    check_is_built_model(model)


def _classes_of(method):
    """Registered layers of a method."""
    methods = sorted(
        {c.method for c in stochastic.REGISTRY.values() if hasattr(c, "method")}
    )
    if not isinstance(method, str) or method not in methods:
        raise ValueError(
            f"Expected `method` to be one of {methods}. Received: method={method!r}"
        )
    classes = stochastic.REGISTRY.values()
    return [cls for cls in classes if getattr(cls, "method", None) == method]


def _check_options(classes, options):
    accepted = {
        name
        for cls in classes
        for part in cls.__mro__
        if part.__module__.startswith(f"{stochastic.PACKAGE}.")
        and "__init__" in vars(part)
        for name in inspect.signature(part.__init__).parameters
    }
    for cls in classes:  # what they have of the layer that they replace is its own
        if getattr(cls, "keras_class", None) is not None:
            accepted -= set(inspect.signature(cls.keras_class.__init__).parameters)
    unknown = sorted(set(options) - accepted)
    if unknown:
        names = sorted(cls.__name__ for cls in classes)
        raise ValueError(
            f"{', '.join(unknown)}: no argument of {', '.join(names)}. "
            f"Received: {unknown[0]}={options[unknown[0]]!r}"
        )


def _borrowed(copier):
    """Entries of the layers that the copy has from the model; warns of weights."""
    for layer, reason in copier.borrowed.items():
        if layer.weights:
            warnings.warn(
                f"{reason}. The copy has the layer itself, so that training one model "
                "trains the other too.",
                stacklevel=4,
            )
    return [
        Found(layer, None, f"is in both models, because it cannot be copied: {reason}")
        for layer, reason in copier.borrowed.items()
    ]
