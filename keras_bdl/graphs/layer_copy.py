"""Makes a layer again from its config or from the arguments of its constructor.

Layers of Keras know their config. Users' layers often do not: their constructor takes
no `name`, their class has no `get_config`, or an argument is a function or a layer.
"""

import functools
import inspect
import tempfile

import keras

from keras_bdl.core import copies, finding, stochastic
from keras_bdl.graphs.converted import (
    BASE_ARGUMENTS,
    as_loadable,
    is_converted,
    own_config,
    refuse_config,
    user_class,
)

_PLAIN = (str, int, float, bool, type(None))
_WITH_STATE = (keras.Variable, keras.metrics.Metric, keras.optimizers.Optimizer)


def made_anew(layer, copy_layer=None, plain=False):
    """Returns a layer of the same config, without the weights.

    Args:
        layer: Keras layer.
        copy_layer: function that copies a layer which is an argument of the
            constructor, or None if such arguments are not allowed.
        plain: whether to leave out the layers that were put in a user's layer.

    Raises:
        ValueError: if the layer can be made again neither from its config nor from
            the constructor's arguments, as kept in attributes of the same names.
    """
    if type(layer) is keras.layers.Lambda:
        # The function may read variables around it, which its bytecode does not hold.
        copy = keras.layers.Lambda.from_config(layer.get_config(), safe_mode=False)
        copy.function = layer.function
        return copy
    for inner in finding.flatten_layers(layer):
        if inner is not layer and (
            getattr(inner, "lora_enabled", False)
            or getattr(inner, "quantization_mode", None)
        ):
            raise ValueError(
                f"Layer '{layer.name}' cannot be made again: it holds "
                f"'{inner.name}', which has LoRA or quantized weights. "
                f"Received: layer={layer.name!r}"
            )
    first_error = None
    ways = [_from_config, _from_part_of_config]
    if plain and is_converted(layer):
        ways = [lambda layer: user_class(layer).from_config(own_config(layer))]
    for way in (*ways, functools.partial(_from_attributes, copy_layer=copy_layer)):
        try:
            copy = way(layer)
            _check_arguments(layer, copy)
        except Exception as error:  # the user's constructor may raise anything
            first_error = first_error or error
            continue
        if copy.name != layer.name:
            copy.name = layer.name
        return copy
    raise ValueError(
        f"Layer '{layer.name}' of class {type(layer).__name__} cannot be made again "
        f"from its config ({_first_line(first_error)}). Give it a `get_config` with "
        "the arguments of its constructor, and functions a name that Keras knows "
        "(`keras.saving.register_keras_serializable`). "
        f"Received: layer={layer.name!r}"
    ) from first_error


def _from_config(layer):
    return type(layer).from_config(copies.live_config(type(layer), layer))


def _from_part_of_config(layer):
    """Leaves out those arguments of every Keras layer that this layer does not take."""
    if is_converted(layer):
        raise ValueError("its config is whole")
    accepted = _parameters(type(layer))
    config = copies.live_config(type(layer), layer)
    left_out = {name for name in BASE_ARGUMENTS if name not in accepted}
    copy = type(layer)(**{k: v for k, v in config.items() if k not in left_out})
    copy.dtype_policy = layer.dtype_policy
    plain = {k: v for k, v in layer.get_config().items() if k not in left_out}
    return as_loadable(copy, plain)


def _from_attributes(layer, copy_layer):
    """Takes the arguments from the attributes of the same names."""
    cls = user_class(layer)
    if cls.__module__.split(".")[0] in ("keras", stochastic.PACKAGE):
        raise ValueError("its class does not keep the arguments")
    arguments = {}
    for name, parameter in _parameters(cls).items():
        if name in BASE_ARGUMENTS or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is not parameter.VAR_POSITIONAL and hasattr(layer, name):
            value = getattr(layer, name)
            arguments[name] = keras.tree.map_structure(
                functools.partial(_copied, copy_layer=copy_layer), value
            )
        else:
            raise ValueError(f"its argument `{name}` is not kept as an attribute")
    copy = cls(**arguments)
    if all(isinstance(x, _PLAIN) for x in keras.tree.flatten(arguments)):
        as_loadable(copy, arguments)
    return copy


def _copied(value, copy_layer):
    if isinstance(value, keras.layers.Layer):
        if copy_layer is None:
            raise ValueError("one of its arguments is a layer")
        return copy_layer(value)
    if isinstance(value, _WITH_STATE):
        raise ValueError(f"one of its arguments is a {type(value).__name__}")
    return value


def _check_arguments(layer, copy):
    """Raises an error if the copy keeps other arguments than the layer."""
    cls = user_class(layer)
    if cls.__module__.split(".")[0] in ("keras", stochastic.PACKAGE):
        return
    for name in _parameters(cls):
        old, new = getattr(layer, name, None), getattr(copy, name, None)
        if isinstance(old, _PLAIN) and name not in BASE_ARGUMENTS and old != new:
            raise ValueError(f"its config gives {name}={new!r} in place of {old!r}")


def _parameters(cls):
    parameters = dict(inspect.signature(cls.__init__).parameters)
    parameters.pop("self", None)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        parameters |= dict.fromkeys(
            BASE_ARGUMENTS, inspect.Parameter("any", inspect.Parameter.VAR_KEYWORD)
        )
    return parameters


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def copy_assets(layer, copy):
    """Gives a copy the state that Keras saves as files, such as vocabularies."""
    for old, new in zip(
        finding.flatten_layers(layer), finding.flatten_layers(copy), strict=True
    ):
        if hasattr(old, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)


class Borrowed(keras.layers.Layer):
    """Takes the place of a layer that cannot be copied, and calls that layer.

    In this way the graph of the copy leaves no trace in the layer.

    Args:
        layer: built layer of another model.
    """

    def __init__(self, layer):
        super().__init__(name=layer.name, dtype=layer.dtype_policy, autocast=False)
        self.layer = layer
        self.supports_masking = True
        self.built = True

    def build(self, *args, **kwargs):
        """Does nothing, because the layer is built."""

    def call(self, *args, **kwargs):
        return self.layer(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self):
        refuse_config(self.layer)
