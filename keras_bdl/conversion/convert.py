"""Converts a Keras model to a Bayesian model and back.

`to_bayesian` replaces the layers of a trained model by keras_bdl layers, whose
posterior means are the trained weights. `to_keras` returns a plain Keras model of the
posterior mean or of one draw.
"""

import inspect
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_bdl import priors
from keras_bdl.conversion.choice import (
    ConversionReport,
    choose,
    num_uncertain,
    num_weights,
    row,
)
from keras_bdl.conversion.draws import number_of_draw
from keras_bdl.conversion.search import Found, find
from keras_bdl.conversion.whole import BayesianModel
from keras_bdl.core import copies, finding, scopes, stochastic, validation
from keras_bdl.core.typing import Weights
from keras_bdl.graphs.copy import ModelCopier, copied, own_copy
from keras_bdl.layers.bayesian import bayesian_layers
from keras_bdl.layers.wrapper import BayesianWrapper
from keras_bdl.posteriors import LowRankAdaptation, Posterior
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
    """Returns a Bayesian copy of a Keras model with its weights as posterior means.

    The layers of Sequential and functional models (nested, with shared layers and
    branches, `keras.applications`) are called again, and the copy is a model of the
    same kind. A subclassed model or layer is copied to a subclass of its class, and
    the layers in its attributes are replaced. Layers that are not replaced are copied
    with their weights. The regularizers of a replaced layer are dropped, because its
    prior takes their place. The copy is not compiled.

    Your own layer is copied from its config, or from its constructor's arguments if it
    keeps them under their names. A layer that cannot be copied is in both models, and
    a warning names it if it has weights.

    The method "variational" wraps what it cannot replace: a layer without a
    counterpart, and a layer of your own, or the whole model, that uses the weights of a
    layer inside in a way of its own (tied weights). The result is then a
    `models.BayesianModel`. Normalisation and layers whose weights are assigned in
    `call` (masked convolutions) keep single values. The report says so for each layer,
    with its share of the trained weights.

    Copies are saved, loaded and cloned like any model. Your own classes must be
    registered or given as `custom_objects`, and must have a config. If a class has no
    config, the error of `save` names it.

    Args:
        model: built Keras model of plain layers.
        num_examples: number of training examples, or None to give it later.
        layers: which of the replaceable layers to replace: "all" or "last" of those
            that are not frozen, a list of names, or a function from a layer to a bool.
            These may also choose layers inside of one that is wrapped. A list may name
            layers of scales and offsets alone, such as normalisation.
            A frozen layer (`trainable=False`) that is chosen by name or function
            stays frozen. It is sampled with its initial standard deviations.
        method: "variational" (`VariationalDense`, `VariationalLSTM` and the like, and
            `layers.BayesianWrapper` around other layers), "sparse_vd" (`SparseVDDense`,
            `SparseVDConv*D`), "concrete_dropout" (around Dense and convolutions),
            "mc_dropout" (in place of Dropout), "drop_connect",
            "variational_gaussian_dropout", or "lora": the layers of "variational" with
            `posteriors.LowRankAdaptation`. Adapters of low rank, and nothing else, are
            trained and have a posterior; `rank=8`, `alpha` and `initial_log_stddev` are
            its arguments. `to_keras` adds them to the weights.
        estimator, prior: arguments of the layers, or None for their defaults.
        moped: positive float, only for "variational". The prior of each weight becomes
            N(w, 1) with the trained weight w, and its posterior starts at
            N(w, (moped |w|)^2). About 0.1 trains large pretrained networks that would
            forget under N(0, 1).
        return_report: whether to return a `ConversionReport` too.
        **options: further arguments of the layers, such as `initial_log_stddev`.

    Returns:
        The model, or the model and the report if `return_report` is True.

    Raises:
        TypeError, ValueError: if an argument is wrong or nothing can be replaced.

    Example:

    >>> bayesian = keras_bdl.to_bayesian(pretrained, num_examples=60_000, moped=0.1)
    >>> bayesian.compile("adam", loss)
    >>> bayesian.fit(x, y, epochs=2)

    Reference: Krishnan, Subedar and Tickoo, "Specifying weight priors in Bayesian deep
    neural networks with empirical Bayes", 2020 (`moped`); Wang, Shi, Han, Metaxas and
    Wang, "BLoB: Bayesian low-rank adaptation by backpropagation for large language
    models", 2024 (`method="lora"`).
    """
    _check_model(model)
    classes = _classes_of(method)
    options |= {"estimator": estimator, "prior": prior}
    options = {name: value for name, value in options.items() if value is not None}
    is_adapted = method == "lora"
    if is_adapted:
        options = _with_adapters(options)
    if moped is not None:
        moped = validation.positive("moped", moped)
        if method != "variational" or prior is not None:
            raise ValueError(
                "`moped` sets priors of the method 'variational' itself. Received: "
                f"moped={moped}, method={method!r}, prior={prior!r}"
            )
        options["prior"] = priors.NormalPerWeight()
    _check_options(classes, options)

    wrapper = BayesianWrapper if method in ("variational", "lora") else None
    # Names and functions choose layers, which have to be there one by one.
    found = find(model, classes, wrapper, whole=isinstance(layers, str))
    chosen = choose(found, layers)
    counterpart = {id(x.layer): x.cls for x in found if id(x.layer) in chosen}
    asked_for = {id(x.layer): x.weights_of_copy() for x in found}
    made, borrowed = {}, {}

    def convert(layer):
        cls = counterpart[id(layer)]
        own = {name: options[name] for name in _accepted(cls) & set(options)}
        weight_map = getattr(cls, "weight_map", None)
        if weight_map is not None and not weight_map.has_estimators:
            own.pop("estimator", None)  # it draws its weights once for a batch
        if cls is BayesianWrapper:
            inner, kept = copied(layer)
            borrowed.update(kept)
            bayesian = cls(inner, asked_for[id(layer)], **own)
        else:
            bayesian = cls.from_keras(layer, **own)
        if moped is not None:
            bayesian.inform(moped)
        made[id(layer)] = bayesian
        return bayesian

    if id(model) in counterpart:
        copy = _called(BayesianModel(convert(model), name=model.name))
    else:
        copier = ModelCopier([x.layer for x in found if id(x.layer) in chosen], convert)
        copy = copier.copy(model)
        borrowed.update(copier.borrowed)
    found += [x for x in _borrowed(borrowed) if id(x.layer) not in chosen]
    if is_adapted:
        _freeze_others(copy, made.values(), borrowed)
    if num_examples is not None and bayesian_layers(copy):
        set_num_examples(copy, num_examples)
    if not return_report:
        return copy
    count = max(1, num_weights(model.trainable_weights))
    shares = {key: num_uncertain(layer) / count for key, layer in made.items()}
    return copy, ConversionReport(
        [row(entry, chosen, shares.get(id(entry.layer), 0.0)) for entry in found]
    )


def _with_adapters(options):
    """Returns the options of layers with adapters of low rank."""
    if "posterior" in options:
        raise ValueError(
            "The method 'lora' brings a posterior of its own. "
            f"Received: posterior={options['posterior']!r}"
        )
    names = set(inspect.signature(LowRankAdaptation).parameters)
    own = {name: value for name, value in options.items() if name in names}
    others = {name: value for name, value in options.items() if name not in names}
    return {**others, "posterior": LowRankAdaptation(**own)}


def _freeze_others(model, adapted, borrowed):
    """Freezes the layers that have no adapters.

    Raises:
        ValueError: if a layer with weights is in the plain model too.
    """
    for layer, reason in borrowed.items():
        if layer.weights:
            raise ValueError(
                "The method 'lora' freezes the other layers, and one is shared with "
                f"the plain model: {reason} Received: method='lora'"
            )
    adapted = {
        id(inner) for layer in adapted for inner in finding.flatten_layers(layer)
    }
    for layer in finding.flatten_layers(model):
        inside = set(map(id, finding.flatten_layers(layer)))
        if id(layer) not in adapted and adapted.isdisjoint(inside):
            layer.trainable = False
        elif id(layer) not in adapted:
            for variable in finding.own_variables(layer):
                variable.trainable = False


def with_posterior(network, posterior):
    """Returns `to_bayesian` of a plain network.

    Raises:
        ValueError: if the network samples already, or as in `to_bayesian`.
    """
    if stochastic.whole_layers(network):
        raise ValueError(
            "Expected `posterior` beside a plain network; this one has keras_bdl "
            f"layers. Received: posterior={posterior!r}, network={network.name!r}"
        )
    return to_bayesian(network, posterior=posterior)


def to_keras(
    model: keras.Model,
    weights: Weights = "mean",
    seed: int | None = None,
    index: int | None = None,
) -> keras.Model:
    """Returns a plain Keras model of the posterior mean or of one draw of the weights.

    The config of the result does not refer to keras_bdl, so that it can be saved,
    exported and run without keras_bdl. It is not compiled. A keras_bdl model is
    converted to its network. For a regressor, plain layers behind the network apply
    the scales and the noise.

    Args:
        model: built Keras model of plain and keras_bdl layers, or a keras_bdl model.
        weights: "mean" for the outputs of `model(x)`, or "sample" for one draw.
        seed: integer for a repeatable sample, or None.
        index: number of a member of an ensemble, beside weights="sample".

    Returns:
        Keras model, or a layer if `model` is a layer.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if the model is not built, a layer has no plain counterpart
            (`EarlyExitResBlock`, codes of a VAE), or `weights` is unknown.

    Example:

    >>> plain = keras_bdl.to_keras(bayesian)
    >>> plain.export("model.tflite", format="litert")
    """
    if isinstance(model, BayesianModel):
        return model.to_keras(weights, seed, index)
    number = number_of_draw(model, weights, seed, index)
    if hasattr(type(model), "to_keras"):
        with scopes.NumberOfDraw(number):
            return model.to_keras(weights, seed)
    check_is_built_model(model)
    copies.check_weights(weights)
    seed = validation.optional_integer("seed", seed)
    layers = stochastic.whole_layers(model)
    inside = {
        id(inner)
        for layer in layers
        for inner in finding.flatten_layers(layer)
        if inner is not layer
    }
    order = {id(layer): index for index, layer in enumerate(layers)}

    def own_seed(layer):
        # Layers of the same seed and shape must not draw the same values.
        word = f"{seed}/{order[id(layer)]}".encode()
        return None if seed is None else zlib.crc32(word) >> 1

    def convert(layer):
        _check_has_counterpart(layer)
        if isinstance(layer, BayesianWrapper):
            copy = own_copy(layer.layer, plain=True)
            return layer.assign_to(copy, weights, own_seed(layer))
        return layer.to_keras(weights, own_seed(layer))

    targets = [layer for layer in layers if id(layer) not in inside]
    copier = ModelCopier(targets, convert, plain=True)
    with scopes.NumberOfDraw(number):
        copy = copier.copy(model)
    _borrowed(copier.borrowed)
    if any(
        isinstance(posterior, Posterior) and not posterior.trains_means
        for posterior in (x.posterior for x in bayesian_layers(model))
    ):
        copies.make_trainable(copy)  # it was frozen for the posterior
    return _called(copy)


def _check_has_counterpart(layer):
    """Raises an error for a user's subclass, which may compute something else."""
    owner = next(cls for cls in type(layer).__mro__ if "to_keras" in vars(cls))
    known = type(layer) in stochastic.REGISTRY.values()
    if not known and owner.__module__.startswith(f"{stochastic.PACKAGE}."):
        raise ValueError(
            f"Layer '{layer.name}' of class {type(layer).__name__} has no plain "
            "counterpart; give the class a `to_keras(weights, seed)` of its own. "
            f"Received: layer={layer.name!r}"
        )


def between(layers, network, name):
    """Returns a functional model of a network with layers before and after it.

    Args:
        layers: pair of lists of layers, those before and those after the network.
        network: functional or Sequential model.
        name: name of the new model.
    """
    inputs = outputs = finding.fresh_inputs(network)
    before, after = layers
    for layer in (*before, network, *after):
        outputs = layer(outputs)
    return _called(keras.Model(inputs, outputs, name=name))


def _called(model):
    """Calls the model once if it is a graph, and returns it.

    Keras can write a model to ONNX only after it was called.
    """
    if isinstance(model, keras.Model) and finding.is_graph(model):
        mark_called(model)
    return model


def check_is_built_model(model):
    """Raises an error if `model` is not a Keras model or is not built."""
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
    """Returns the registered layers of a method."""
    methods = {getattr(cls, "method", None) for cls in stochastic.REGISTRY.values()}
    methods = sorted({*methods, "lora"} - {None})
    if not isinstance(method, str) or method not in methods:
        raise ValueError(
            f"Expected `method` to be one of {methods}. Received: method={method!r}"
        )
    if method == "lora":
        method = "variational"  # the same layers, with adapters
    classes = stochastic.REGISTRY.values()
    return [cls for cls in classes if getattr(cls, "method", None) == method]


def _accepted(cls):
    """Returns the names of a class's own arguments, which the Keras class lacks."""
    accepted = {
        name
        for part in cls.__mro__
        if part.__module__.startswith(f"{stochastic.PACKAGE}.")
        and "__init__" in vars(part)
        for name in inspect.signature(part.__init__).parameters
    }
    if getattr(cls, "keras_class", None) is None:
        return accepted
    replaced = set(inspect.signature(cls.keras_class.__init__).parameters)
    return accepted - (replaced - {"seed"})


def _check_options(classes, options):
    accepted = set().union(*map(_accepted, classes))
    unknown = sorted(set(options) - accepted)
    if unknown:
        names = sorted(cls.__name__ for cls in classes)
        raise ValueError(
            f"{', '.join(unknown)}: no argument of {', '.join(names)}. "
            f"Received: {unknown[0]}={options[unknown[0]]!r}"
        )


def _borrowed(borrowed):
    """Returns entries for the layers that both models share.

    Warns of shared layers that have weights.
    """
    for layer, reason in borrowed.items():
        if layer.weights:
            warnings.warn(
                f"{reason}. The copy has the layer itself, so that training one model "
                "trains the other too.",
                stacklevel=4,
            )
    return [
        Found(layer, None, f"is in both models, because it cannot be copied: {reason}")
        for layer, reason in borrowed.items()
    ]
