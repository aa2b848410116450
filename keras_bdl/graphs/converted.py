"""Saves and clones users' layers whose inner layers were replaced by others.

A user's class makes plain layers. A copy with Bayesian layers belongs to a subclass of
the user's class. The config of the subclass says how to make the user's layer, and
which layers to put in which places.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
import warnings

import keras

from keras_bdl.core import finding, stochastic

BASE_ARGUMENTS = ("name", "trainable", "dtype")


@dataclasses.dataclass
class Recipe:
    """Says how to make a converted layer again.

    Attributes:
        config: config of the user's layer, or None if it has no config.
        places: triples of an attribute's name, the index of a leaf in the attribute
            and the index of a layer in `layers`.
        layers: the layers that were put in these places.
        dtypes: dtypes of the inputs of a model that cannot be built with floats, or
            None.
        pending: a dict for the attributes that `build` will make. It maps the name of
            the attribute to the layers by the index of the leaf.
        build_configs: build configs of the layers, as read from a file.
        frozen: what is not trained inside, as read from a file: places of layers, and
            names of weights of the layer itself.
    """

    config: dict | None
    places: list = dataclasses.field(default_factory=list)
    layers: list = dataclasses.field(default_factory=list)
    dtypes: list | None = None
    pending: dict = dataclasses.field(default_factory=dict)
    build_configs: list = dataclasses.field(default_factory=list)
    frozen: tuple = ((), ())

    def put(self, name, index, layer):
        """Records that a layer is put in a place."""
        if all(layer is not known for known in self.layers):
            self.layers.append(layer)
        number = [layer is known for known in self.layers].index(True)
        self.places.append([name, index, number])

    def forget(self):
        """Forgets all layers, because the user's class makes them itself."""
        self.places.clear()
        self.layers.clear()


class Converted:
    """Base class that subclasses of users' classes have before the user's class."""

    def __setattr__(self, name, value):
        recipe = vars(self).get("_recipe")
        if recipe is not None and name in recipe.pending:
            value = with_leaves(value, recipe.pending.pop(name))
        super().__setattr__(name, value)

    def get_config(self):
        recipe = self._recipe
        config = dict(own_config(self))
        if "trainable" in config:
            config["trainable"] = self.trainable
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "layer": {
                "module": _module(user_class(self)),
                "class_name": user_class(self).__name__,
                "config": keras.saving.serialize_keras_object(config),
                "registered_name": keras.saving.get_registered_name(user_class(self)),
            },
            "places": recipe.places,
            "layers": [_unbuilt(layer) for layer in recipe.layers],
            "build_configs": [
                keras.saving.serialize_keras_object(layer.get_build_config())
                for layer in recipe.layers
            ],
            "input_dtypes": recipe.dtypes,
            "frozen": _frozen_inside(self),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        if "places" not in config:  # a config of the user's class, found by its name
            return user_class(cls).from_config(config)
        own, known = config["layer"], dict(custom_objects or {})
        kept = copy.deepcopy(own["config"])
        if cls is not Converted and cls.__name__ == own["class_name"]:
            known[own["registered_name"]] = user_class(cls)
        layer = keras.saving.deserialize_keras_object(own, custom_objects=known)
        if layer.name != config["name"]:
            layer.name = config["name"]
        policy = keras.dtype_policies.get(config["dtype"])
        if layer.dtype_policy != policy:
            layer.dtype_policy = policy
        layers = [
            keras.saving.deserialize_keras_object(part, custom_objects=known)
            for part in config["layers"]
        ]
        made = as_loadable(layer, kept)
        made._recipe.dtypes = config["input_dtypes"]
        made._recipe.build_configs = config["build_configs"]
        made._recipe.frozen = config.get("frozen", ((), ()))  # older files have none
        put_layers(made, [(name, i, layers[k]) for name, i, k in config["places"]])
        _freeze_inside(made, made._recipe.frozen)
        if not config["trainable"] and made.trainable:
            made.trainable = False
        return made

    def build_from_config(self, config):
        if self._recipe.dtypes is not None:
            call_symbolically(self, config, self._recipe.dtypes)
        else:
            with warnings.catch_warnings():
                # Keras warns that inner layers are not built. The layers that are
                # called are built.
                warnings.simplefilter("ignore")
                super().build_from_config(config)
            for layer, own in zip(self._recipe.layers, self._recipe.build_configs):
                if own and not layer.built:
                    layer.build_from_config(own)
        _freeze_inside(self, self._recipe.frozen)  # what `build` has made


def _frozen_inside(layer):
    """Returns places of layers, and names of own weights, that are not trained."""
    places = [
        [name, index]
        for name, held in held_layers(layer).items()
        for index, leaf in enumerate(leaves_of(held))
        if isinstance(leaf, keras.layers.Layer) and not leaf.trainable
    ]
    return [places, [v.name for v in finding.own_variables(layer) if not v.trainable]]


def _freeze_inside(layer, frozen):
    """Freezes what `_frozen_inside` has found in another layer of this class."""
    places, names = frozen
    held = {name: leaves_of(value) for name, value in held_layers(layer).items()}
    for name, index in places:
        if index < len(held.get(name, ())):
            held[name][index].trainable = False
    for variable in finding.own_variables(layer):
        if variable.name in names:
            variable.trainable = False


keras.saving.register_keras_serializable(stochastic.PACKAGE)(Converted)


@functools.cache
def _subclass(cls):
    """Returns the subclass of a user's class. All have the same name in files."""
    names = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    made = type(cls)(cls.__name__, (Converted, cls), names)
    keras.saving.register_keras_serializable(stochastic.PACKAGE, "Converted")(made)
    return made


def is_converted(layer):
    """Returns whether a layer is a user's layer whose inner layers were replaced."""
    return isinstance(layer, Converted)


def user_class(layer):
    """Returns the user's class that a layer or a class comes from."""
    cls = layer if isinstance(layer, type) else type(layer)
    return cls.__mro__[2] if issubclass(cls, Converted) else cls


def is_made_by(cls, layer):
    """Returns whether a layer is of a class and no layer was put in it."""
    if is_converted(layer):
        return user_class(layer) is cls and not layer._recipe.places
    return type(layer) is cls


def was_put(owner, layer):
    """Returns whether `layer` is one of the layers that were put in `owner`."""
    return is_converted(owner) and any(layer is x for x in owner._recipe.layers)


def as_loadable(layer, config):
    """Gives the layer a class that makes it again from this config, and returns it."""
    if not is_converted(layer):
        object.__setattr__(layer, "_recipe", Recipe(config))
        layer.__class__ = _subclass(type(layer))
    return layer


def as_plain(layer):
    """Gives the layer the user's class if no layers were put in it, and returns it."""
    if is_converted(layer) and not layer._recipe.places:
        layer.__class__ = user_class(layer)
    return layer


def own_config(layer):
    """Returns the config of a user's layer, without the layers that were put in it.

    Raises:
        NotImplementedError: if the class has no config. The message says how the
            model can be saved.
    """
    if is_converted(layer):
        config = copy.deepcopy(layer._recipe.config)  # `from_config` may change it
    else:
        with contextlib.suppress(NotImplementedError):
            return layer.get_config()
        config = None
    if config is None:
        refuse_config(layer)
    return config


def refuse_config(layer):
    """Raises the error for a layer without a config in a saved or cloned model."""
    raise NotImplementedError(
        f"Layer '{layer.name}' of class {user_class(layer).__name__} cannot be made "
        "again from a config, so that its model can be neither written as a `.keras` "
        "file nor cloned. Give the class a `get_config`; or use `save_weights`, and "
        "`load_weights` into a model converted by the same code. "
        f"Received: layer={layer.name!r}"
    )


def put_layers(owner, places):
    """Puts layers in attributes of a layer, now or when its `build` makes them.

    Args:
        owner: layer of a user's class that is not built yet.
        places: triples of an attribute's name, the index of a leaf in the attribute
            and a layer.
    """
    leaves = {}
    for name, index, layer in places:
        leaves.setdefault(name, {})[index] = layer
        owner._recipe.put(name, index, layer)
    values = {}
    for name, held in _in_order(owner).items():
        values[name] = with_leaves(held, leaves.pop(name, {}))
        # Keras tracks its lists, and forgets what is removed from a list. PyTorch
        # accepts no list in an attribute that held a layer.
        delattr(owner, name)
        setattr(owner, name, layers_of(held))
        for layer in layers_of(held):
            getattr(owner, name).remove(layer)
    for name, value in values.items():  # keeps the order of weights
        setattr(owner, name, value)
    owner._recipe.pending.update(leaves)


def _in_order(owner):
    """Returns the result of `held_layers`, in the order in which Keras tracks it."""
    order = {id(x): index for index, x in enumerate(finding.flatten_layers(owner))}

    def first(item):
        return min(order.get(id(layer), len(order)) for layer in layers_of(item[1]))

    return dict(sorted(held_layers(owner).items(), key=first))


def leaves_of(value):
    """Returns the leaves of nested lists, tuples and dicts.

    The keys of the dicts need not be sortable.
    """
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in leaves_of(part)]
    return [value]


def layers_of(value):
    """Returns the leaves that are layers."""
    return [leaf for leaf in leaves_of(value) if isinstance(leaf, keras.layers.Layer)]


def with_leaves(value, leaves):
    """Returns a copy of the structure with other leaves at some indices."""
    counter = itertools.count()

    def copied(part):
        if isinstance(part, dict):
            return {key: copied(inner) for key, inner in part.items()}
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*map(copied, part))
        if isinstance(part, (list, tuple)):
            return (tuple if isinstance(part, tuple) else list)(map(copied, part))
        return leaves.get(next(counter), part)

    return copied(value)


def held_layers(owner):
    """Returns the attributes of a user's layer that hold layers or containers of them.

    The result is a dict from the name of an attribute to its value.
    """
    found = {}
    known = _attributes(isinstance(owner, keras.Model))
    for name in dir(owner):
        if name in known or isinstance(getattr(type(owner), name, None), property):
            continue
        value = getattr(owner, name, None)
        if layers_of(value):
            found[name] = value
    return found


@functools.cache
def _attributes(is_model):
    """Returns the names of attributes of every layer or model that holds a layer.

    They are found only when they are needed, because compiling a model starts the
    backend.
    """
    probe = keras.Model() if is_model else keras.layers.Layer()
    probe.probe = keras.layers.Layer()
    if is_model:
        probe.compile()
    return frozenset(dir(probe)) - {"probe"}


def call_symbolically(model, build_config, dtypes):
    """Calls a model on symbolic inputs of the shapes that it was built with."""
    shapes = build_config.get("shapes_dict") or {
        "input_shape": build_config.get("input_shape")
    }
    dtypes = iter(dtypes)
    inputs = {
        name.removesuffix("_shape"): keras.tree.map_shape_structure(
            lambda shape: keras.Input(batch_shape=shape, dtype=next(dtypes)), shape
        )
        for name, shape in shapes.items()
    }
    inputs = with_leaves(inputs, {})  # Keras keeps shapes in its own class of dicts
    if len(inputs) == 1:
        return model(*inputs.values())
    return model(**inputs)


def _unbuilt(layer):
    """Returns a layer's config without `build_config`.

    The user's layer builds the layer, as it builds its own layers.
    """
    config = keras.saving.serialize_keras_object(layer)
    config.pop("build_config", None)
    return config


def _module(cls):
    return None if cls.__module__ == "__main__" else cls.__module__
