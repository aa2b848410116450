"""Copies a model and replaces some of its layers by others.

The layers of graphs (functional and Sequential models, also nested ones) are called
again, and a shared layer is copied once. The user's own layers and models are made
again from their configs. The layers in their attributes are replaced before they are
built.
"""

import contextlib
import itertools
import warnings

import keras
from keras import ops

from keras_bdl.core import copies, finding, stochastic
from keras_bdl.graphs import converted
from keras_bdl.graphs.converted import held_layers, leaves_of
from keras_bdl.graphs.layer_copy import Borrowed, copy_assets, made_anew


class Obstacle(ValueError):
    """Error for layers that cannot be replaced in their places.

    Args:
        layers: layers of the model.
        reason: the reason, worded to follow "it ", such as "is inside ...".
    """

    def __init__(self, layers, reason):
        self.layers, self.reason = layers, reason
        super().__init__(
            f"Layer '{layers[0].name}' cannot be replaced: it {reason}. "
            f"Received: layer={layers[0].name!r}"
        )


class ModelCopier:
    """Copies a model with all weights, and converts the `targets`.

    If a layer cannot be made again and holds no target, both models share it.

    Args:
        targets: layers of the model.
        convert: function that takes a target and returns the built layer in its place.
        plain: whether the copy must have only classes of Keras and of the user.

    Attributes:
        borrowed: dict from each layer that both models share to the reason.
    """

    def __init__(self, targets, convert, plain=False):
        self._targets = {id(layer) for layer in targets}
        self._convert = convert
        self._plain = plain
        self._copies = {}  # id -> copy, so that shared layers stay shared
        self._stack = contextlib.ExitStack()
        self.borrowed = {}

    def copy(self, model):
        """Returns the copy, which is not compiled.

        Raises:
            Obstacle: if a target cannot be replaced in its place.
        """
        with self._stack:
            copy = self._copy(model)
            if not copy.built:
                _build_like(model, copy)
        self._check_targets(model, copy)
        self._match(model, copy)
        if self._plain:
            for layer in finding.flatten_layers(copy):
                converted.as_plain(layer)
        return copy

    def _check_targets(self, model, copy):
        inside = {id(layer) for layer in finding.flatten_layers(copy)}
        lost = [
            layer
            for layer in finding.flatten_layers(model)
            if self._is_target(layer) and id(self._copies.get(id(layer))) not in inside
        ]
        if lost:
            raise Obstacle(lost, "is not an attribute of the layer or model around it")

    def _copy(self, layer):
        if id(layer) not in self._copies:
            self._copies[id(layer)] = self._make(layer)
        return self._copies[id(layer)]

    def _make(self, layer):
        if self._is_target(layer):
            return self._convert(layer)
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation of `keras.ops`, without state
        if finding.is_graph(layer):
            return self._copy_graph(layer)
        if not self._has_target(layer):
            return self._copy_whole(layer)
        if type(layer) is keras.layers.TimeDistributed:
            inner = self._copy(layer.layer)
            return keras.layers.TimeDistributed(inner, name=layer.name)
        return self._copy_holder(layer)

    def _copy_whole(self, layer):
        if isinstance(layer, Borrowed):
            return Borrowed(layer.layer)
        try:
            return self._without_build_inside(made_anew(layer, self._copy))
        except ValueError as error:
            self.borrowed[layer] = str(error)
            return Borrowed(layer)

    def _copy_graph(self, model):
        if isinstance(model, keras.Sequential):
            inputs = _input_like(model.inputs[0], model.inputs[0].name)
            layers = [self._copy(layer) for layer in model.layers]
            makes = type(model).__init__ is keras.Sequential.__init__
            cls = type(model) if makes else keras.Sequential
            return cls([inputs, *layers], name=model.name)
        # This model is not compiled. Keras would compile the clone of a compiled one.
        graph = keras.Model(model.input, model.output, name=model.name)
        names = {
            id(layer.output): layer.name
            for layer in model.layers
            if isinstance(layer, keras.layers.InputLayer)
        }
        inputs = keras.tree.map_structure(
            lambda tensor: _input_like(tensor, names[id(tensor)]), model.input
        )
        copy = keras.models.clone_model(graph, inputs, clone_function=self._copy)
        if type(model).__init__ is not type(copy).__init__:
            return copy  # a class that makes its own layers
        return type(model)(copy.input, copy.output, name=model.name)

    def _copy_holder(self, layer):
        """Returns a copy of a user's layer or model with other inner layers."""
        try:
            copy = made_anew(layer, self._copy, plain=True)
            self._without_build_inside(copy)
        except ValueError as error:
            raise self._obstacle(layer, error) from error
        places = [
            (name, index, self._copy_held(leaf))
            for name, held in held_layers(layer).items()
            for index, leaf in enumerate(leaves_of(held))
            if self._has_target(leaf) or converted.was_put(layer, leaf)
        ]
        made = {name: leaves_of(held) for name, held in held_layers(copy).items()}
        converted.as_loadable(copy, _config_or_none(layer))
        try:
            converted.put_layers(copy, places)
        except ValueError as error:  # its constructor builds it
            raise self._obstacle(layer, error) from error
        if all(
            converted.is_made_by(type(made[name][index]), new)
            if name in made and index < len(made[name])
            else converted.is_converted(layer)  # its class makes plain layers
            for name, index, new in places
        ) and not any(stochastic.stochastic_layers(new) for _, _, new in places):
            copy._recipe.forget()  # the user's class makes them
        return copy

    def _obstacle(self, layer, error):
        inside = [x for x in finding.flatten_layers(layer) if self._is_target(x)]
        reason = f"is inside a layer that cannot be copied: {error}"
        return Obstacle(inside, reason)

    def _is_target(self, layer):
        return id(layer) in self._targets

    def _has_target(self, leaf):
        """Returns whether `leaf` is a target or a layer that holds one."""
        return isinstance(leaf, keras.layers.Layer) and any(
            map(self._is_target, finding.flatten_layers(leaf))
        )

    def _copy_held(self, layer):
        copy = self._copy(layer)
        if self._is_target(layer):
            self._without_build(copy)
        return copy

    def _without_build(self, layer):
        """Makes `build` of a built layer do nothing while the model is copied.

        The layer that holds it may call `build` again.
        """
        self._stack.enter_context(
            copies.method_replaced(layer, "build", lambda *args, **kwargs: None)
        )

    def _without_build_inside(self, layer):
        for inner in finding.flatten_layers(layer):
            if inner is not layer and inner.built:
                self._without_build(inner)
        return layer

    def _match(self, layer, copy):
        """Gives a copy and its inner layers the state of the original."""
        pairs = {}
        self._pair(layer, copy, pairs)
        self._check_weights(pairs)
        for original, new in pairs.values():  # outermost first: it sets the inner ones
            if not isinstance(new, Borrowed):
                new.trainable = original.trainable
        for original, new in pairs.values():
            if self._is_target(original) or isinstance(new, Borrowed):
                continue
            if not self._has_target(original):
                weights = [ops.convert_to_numpy(w) for w in original.weights]
                copies.assign_weights(new, weights)
                copy_assets(original, new)
            else:
                for old_variable, variable in zip(
                    *map(finding.own_variables, (original, new)), strict=True
                ):
                    copies.assign_copy(variable, old_variable)

    def _pair(self, layer, copy, pairs):
        if id(layer) in pairs or not isinstance(layer, keras.layers.Layer):
            return
        pairs[id(layer)] = layer, copy
        if self._is_target(layer) or isinstance(copy, Borrowed):
            return
        if isinstance(layer, keras.Model) and finding.is_graph(layer):
            for inner in layer.layers:
                if id(inner) in self._copies:
                    self._pair(inner, self._copies[id(inner)], pairs)
        elif type(layer) is keras.layers.TimeDistributed:
            self._pair(layer.layer, copy.layer, pairs)
        else:
            copies = held_layers(copy)
            for name, held in held_layers(layer).items():
                for old, new in zip(leaves_of(held), leaves_of(copies.get(name, []))):
                    self._pair(old, new, pairs)

    def _check_weights(self, pairs):
        """Raises an error for a layer with weights that no attribute leads to."""
        known = set()
        for layer, _ in pairs.values():
            holds_targets = self._has_target(layer) and not self._is_target(layer)
            own = finding.own_variables(layer) if holds_targets else layer.variables
            known |= {id(variable) for variable in own}
        for layer, _ in pairs.values():
            lost = any(id(variable) not in known for variable in layer.weights)
            if lost and self._has_target(layer):
                inside = [
                    x for x in finding.flatten_layers(layer) if self._is_target(x)
                ]
                raise Obstacle(inside, "is beside layers that no attribute holds")


def copied(layer, plain=False):
    """Returns a copy of a built layer or model with its weights.

    Args:
        layer: Keras layer or model.
        plain: as in `ModelCopier`.

    Returns:
        The copy and the dict `ModelCopier.borrowed`. A layer that cannot be made again
        is returned itself.
    """
    copier = ModelCopier([], lambda target: target, plain)
    copy = copier.copy(layer)
    return (copy.layer if isinstance(copy, Borrowed) else copy), copier.borrowed


def own_copy(layer, plain=False):
    """Returns a copy of a layer or model that shares no weights with it.

    Raises:
        ValueError: if a layer with weights cannot be made again.
    """
    copy, borrowed = copied(layer, plain)
    for part, reason in borrowed.items():
        if part.weights:
            raise ValueError(reason)
    return copy


def trainable_copy(layer):
    """Returns `own_copy`, in which variables are frozen that are so one by one."""
    copy = own_copy(layer)
    for new, old in zip(copy.weights, layer.weights, strict=True):
        if new.trainable and not old.trainable:
            new.trainable = False
    return copy


def is_holder(layer):
    """Returns whether a layer or model is the user's own and holds other layers."""
    return (
        type(layer).__module__.split(".")[0] != "keras"
        and not stochastic.is_whole(layer)
        and not (isinstance(layer, keras.Model) and finding.is_graph(layer))
        and bool(held_layers(layer))
    )


def _input_like(tensor, name):
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)


def _config_or_none(layer):
    """Returns the config of the user's layer, or None if its class has none."""
    try:
        return converted.own_config(layer)
    except NotImplementedError:
        return None


# Dtypes of inputs, in the order in which they are tried. A model of more than
# `_MOST_INPUTS` inputs is tried with one dtype for all of them.
_INPUT_DTYPES = ("float32", "int32", "string")
_MOST_INPUTS = 3


def _build_like(model, copy):
    """Builds `copy` by a symbolic call on inputs of the first dtypes that it accepts.

    Keras records the shapes that a model was built with, but not the dtypes.
    """
    config = model.get_build_config() or {}
    if not isinstance(model, keras.Model):
        copies.build_alike(copy, model)
        if len(copy.weights) == len(model.weights):
            return  # other layers make their variables when they are called
    shapes = config.get("shapes_dict") or {"input_shape": config.get("input_shape")}
    if None in shapes.values():
        raise ValueError(
            f"Model '{model.name}' does not know the shape of its inputs; call "
            f"`model.build(input_shape)`. Received: model={model.name!r}"
        )
    count = []
    keras.tree.map_shape_structure(count.append, shapes)
    dtypes = [[dtype] * len(count) for dtype in _INPUT_DTYPES]
    if len(count) <= _MOST_INPUTS:
        dtypes += itertools.product(_INPUT_DTYPES, repeat=len(count))
    first_error = None
    for choice in dtypes:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                converted.call_symbolically(copy, config, choice)
        except Exception as error:  # the user's call may raise anything
            first_error = first_error or error
            continue
        if converted.is_converted(copy) and set(choice) != {"float32"}:
            copy._recipe.dtypes = list(choice)
        return
    raise ValueError(
        f"Model '{model.name}' cannot be called on symbols of the shapes {shapes}: "
        f"{first_error}. Received: model={model.name!r}"
    ) from first_error
