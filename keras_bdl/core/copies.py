"""Copies of layers: their configs, weights and activations."""

import contextlib
import inspect

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.finding import flatten_layers


def live_config(cls, layer):
    """Returns `cls.get_config()` of a layer, with functions in place of their names.

    A config holds a function by its name or bytecode, which may fail to load.
    """
    config = cls.get_config(layer)
    for name in config:
        function = getattr(layer, name, None)
        is_function = name.endswith("activation") or name.endswith("_initializer")
        # Some layers, such as attention, keep them under other names.
        known = hasattr(layer, name) and not isinstance(function, keras.layers.Layer)
        if is_function and known:
            config[name] = function
    return config


def build_alike(copy, layer):
    """Builds a layer on the shapes of the inputs of another one."""
    config = layer.get_build_config()
    if config and None not in config.values():
        copy.build_from_config(config)
    else:
        copy.build(None)


def copied(layer):
    """Returns a copy of a built layer or model, with its weights.

    Raises:
        ValueError: if its class has no config.
    """
    try:
        copy = type(layer).from_config(live_config(type(layer), layer))
    except NotImplementedError as error:
        raise ValueError(
            f"Layer '{layer.name}' cannot be copied, because its class "
            f"{type(layer).__name__} has no `get_config`. Received: layer={layer!r}"
        ) from error
    if not copy.built:
        build_alike(copy, layer)
    weights = [ops.convert_to_numpy(weight) for weight in layer.weights]
    assign_weights(copy, weights)
    return copy


def make_trainable(layer):
    """Makes a layer, and each one inside, trainable.

    On TensorFlow Keras does nothing where the attribute has that value already, so one
    assignment does not reach a frozen layer inside of another.
    """
    for inner in flatten_layers(layer):
        inner.trainable = True


def check_weights(weights):
    """Raises an error unless `weights` is "mean" or "sample"."""
    validation.choice("weights", weights, ("mean", "sample"))


def assign_copy(variable, value):
    """Assigns a copy of a value to a variable.

    Without the copy two variables would share one buffer on JAX, where training donates
    it.
    """
    variable.assign(ops.copy(ops.convert_to_tensor(value)))


def copy_activation(layer, copy):
    """Copies the weights of an activation that is itself a layer."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, keras.layers.Layer) and activation.variables:
        if not copy.activation.built:
            copy.activation.build(activation.get_build_config()["input_shape"])
        copy.activation.set_weights(activation.get_weights())


def assign_weights(layer, weights):
    """Calls `layer.set_weights` and updates what Keras derives from the weights.

    Keras updates a `Normalization` layer only by `finalize_state`.
    """
    layer.set_weights(weights)
    for inner in flatten_layers(layer):
        if isinstance(inner, keras.layers.Normalization):
            inner.finalize_state()


@contextlib.contextmanager
def method_replaced(layer, name, function):
    """Replaces a method of one layer within a `with`; its class is not changed."""
    own = vars(layer).get(name)  # Keras sets `build` on the layer itself
    object.__setattr__(layer, name, function)
    try:
        yield
    finally:
        object.__delattr__(layer, name)
        if own is not None:
            object.__setattr__(layer, name, own)


def call_with_training(layer, x, training):
    """Calls a layer, and passes `training` if its `call` has that argument."""
    if "training" in inspect.signature(layer.call).parameters:
        return layer(x, training=training)
    return layer(x)
