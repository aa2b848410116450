"""A copy of a model in which some layers are replaced by others.

Graphs (functional and Sequential models, nested ones too) are called anew, shared
layers once. Layers and models of the user's own are made anew from their configs, and
what they hold as attributes is replaced before they are built.
"""

import contextlib
import tempfile

import keras
from keras import ops

from keras_bdl.layers import base


class ModelCopier:
    """Copies a model with all weights; `targets` are converted instead.

    Args:
        targets: layers of the model.
        convert: function from one of them to the built layer in its place.
    """

    def __init__(self, targets, convert):
        self._targets = {id(layer) for layer in targets}
        self._convert = convert
        self._copies = {}  # id -> copy, so that what is shared stays shared
        self._calls = {}  # id of a held target -> whether its copy was called
        self._stack = contextlib.ExitStack()

    def copy(self, model):
        """The copy, not compiled.

        Raises:
            ValueError: if a layer cannot be made anew, or replaced where it is.
        """
        with self._stack:
            copy = self._copy(model)
            if not copy.built:
                _build_like(model, copy)
        for layer in base.flatten_layers(model):
            if id(layer) in self._calls and not self._calls[id(layer)]:
                raise ValueError(
                    f"Layer '{layer.name}' is not used by being called (its kernel may "
                    "be read by itself), so that another in its place would change "
                    "nothing; leave it out by `layers`. "
                    f"Received: layer={layer.name!r}"
                )
        self._match(model, copy)
        return copy

    def _copy(self, layer):
        if id(layer) not in self._copies:
            self._copies[id(layer)] = self._make(layer)
        return self._copies[id(layer)]

    def _make(self, layer):
        if self._is_target(layer):
            return self._convert(layer)
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation of `keras.ops`, without state
        if base.is_graph(layer):
            return self._copy_graph(layer)
        if not self._has_target(layer):
            return made_anew(layer)
        if type(layer) is keras.layers.TimeDistributed:
            inner = self._copy(layer.layer)
            return keras.layers.TimeDistributed(inner, name=layer.name)
        return self._copy_holder(layer)

    def _copy_graph(self, model):
        if isinstance(model, keras.Sequential):
            inputs = _input_like(model.inputs[0], model.inputs[0].name)
            layers = [self._copy(layer) for layer in model.layers]
            return keras.Sequential([inputs, *layers], name=model.name)
        # Around the layers alone: Keras would compile the clone of a compiled model.
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
        """A layer or model of the user's own, with other layers in its attributes."""
        copy = made_anew(layer)
        for name, held in held_layers(copy).items():
            replaced = keras.tree.map_structure(
                lambda old, new: self._copy_held(old) if self._has_target(old) else new,
                getattr(layer, name),
                held,
            )
            kept = {id(leaf) for leaf in keras.tree.flatten(replaced)}
            dropped = [x for x in keras.tree.flatten(held) if id(x) not in kept]
            for leaf in dropped:
                _untrack(copy, leaf)
            if dropped:
                setattr(copy, name, replaced)
        inside = {id(inner) for inner in base.flatten_layers(copy)}
        for inner in base.flatten_layers(layer):
            if self._is_target(inner) and id(self._copies.get(id(inner))) not in inside:
                raise ValueError(
                    f"Layer '{inner.name}' inside `{type(layer).__name__}` cannot be "
                    "replaced: it is not an attribute made by the constructor. Make "
                    "it in `__init__`, or leave it out by `layers`. "
                    f"Received: layer={inner.name!r}"
                )
        return copy

    def _is_target(self, layer):
        return id(layer) in self._targets

    def _has_target(self, leaf):
        """Whether something is a target or a layer with one inside."""
        return isinstance(leaf, keras.layers.Layer) and any(
            map(self._is_target, base.flatten_layers(leaf))
        )

    def _copy_held(self, layer):
        copy = self._copy(layer)
        if self._is_target(layer) and id(layer) not in self._calls:
            self._calls[id(layer)] = False
            call = copy.call

            def recorded(*args, **kwargs):
                self._calls[id(layer)] = True
                return call(*args, **kwargs)

            # The layer that holds it may build it, which is done.
            for name, function in (("call", recorded), ("build", lambda shape: None)):
                self._stack.enter_context(base.method_replaced(copy, name, function))
        return copy

    def _match(self, layer, copy):
        """Gives a copy, and what is inside, the state of the original."""
        pairs = {}
        self._pair(layer, copy, pairs)
        for original, new in pairs.values():
            new.trainable = original.trainable  # outermost first: it sets all inside
        for original, new in pairs.values():
            if self._is_target(original):
                continue
            if not self._has_target(original):
                weights = [ops.convert_to_numpy(w) for w in original.weights]
                base.assign_weights(new, weights)
                copy_assets(original, new)
            else:
                for old_variable, variable in zip(
                    *map(_own_variables, (original, new)), strict=True
                ):
                    base.assign_copy(variable, old_variable)

    def _pair(self, layer, copy, pairs):
        if id(layer) in pairs or not isinstance(layer, keras.layers.Layer):
            return
        pairs[id(layer)] = layer, copy
        if self._is_target(layer):
            return
        if isinstance(layer, keras.Model) and base.is_graph(layer):
            for inner in layer.layers:
                if id(inner) in self._copies:
                    self._pair(inner, self._copies[id(inner)], pairs)
        elif type(layer) is keras.layers.TimeDistributed:
            self._pair(layer.layer, copy.layer, pairs)
        else:
            copies = held_layers(copy)
            for name, held in held_layers(layer).items():
                keras.tree.map_structure(
                    lambda old, new: self._pair(old, new, pairs), held, copies[name]
                )


def held_layers(owner):
    """Attributes of a layer of the user's own that hold layers, also in containers."""
    found = {}
    for name in dir(owner):
        if name in _KERAS_ATTRIBUTES or isinstance(
            getattr(type(owner), name, None), property
        ):
            continue
        value = getattr(owner, name, None)
        if isinstance(value, (keras.layers.Layer, list, tuple, dict)):
            leaves = keras.tree.flatten(value)
            if any(isinstance(leaf, keras.layers.Layer) for leaf in leaves):
                found[name] = value
    return found


def _keras_attributes():
    """Names of attributes that every layer or model has, once it has a layer."""
    probe = keras.Model()
    probe.probe = keras.layers.Layer()
    return set(dir(probe)) - {"probe"}


_KERAS_ATTRIBUTES = _keras_attributes()


def _input_like(tensor, name):
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)


def made_anew(layer):
    """A layer of the same config, without the weights."""
    try:
        if type(layer) is keras.layers.Lambda:
            # Its bytecode is not yet the function, which may read variables around it.
            copy = keras.layers.Lambda.from_config(layer.get_config(), safe_mode=False)
            copy.function = layer.function
            return copy
        return type(layer).from_config(base.live_config(type(layer), layer))
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"Layer '{layer.name}' of class {type(layer).__name__} cannot be made anew "
            f"from its config ({reason}). Give it a `get_config` with the arguments of "
            "its constructor, and functions a name that Keras knows "
            "(`keras.saving.register_keras_serializable`). "
            f"Received: layer={layer.name!r}"
        ) from error


def copy_assets(layer, copy):
    """Gives a copy the state that Keras saves in files, such as vocabularies."""
    for old, new in zip(
        base.flatten_layers(layer), base.flatten_layers(copy), strict=True
    ):
        if hasattr(old, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)


def _build_like(model, copy):
    """Builds a model by a symbolic call, which also shows what it calls."""
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"input_shape": config.get("input_shape")}
    if None in shapes.values():
        raise ValueError(
            f"Model '{model.name}' does not know the shape of its inputs; call "
            f"`model.build(input_shape)`. Received: model={model.name!r}"
        )
    inputs = [
        keras.tree.map_shape_structure(lambda x: keras.Input(batch_shape=x), shape)
        for shape in shapes.values()
    ]
    copy(*inputs)


def _untrack(owner, layer):
    """Makes Keras forget a layer of an attribute that is to be replaced."""
    owner.to_be_replaced = [layer]
    owner.to_be_replaced.remove(layer)  # Keras follows its lists
    del owner.to_be_replaced


def _own_variables(layer):
    """Variables of a layer that are of no layer inside."""
    inner = [x for x in base.flatten_layers(layer) if x is not layer]
    inside = {id(v) for x in inner for v in x.variables}
    return [v for v in layer.weights if id(v) not in inside]
