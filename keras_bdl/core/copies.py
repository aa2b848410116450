"""Copies of layers: their configs, weights and activations."""

import contextlib
import inspect

import keras
from keras import ops

from keras_bdl.core import validation
from keras_bdl.core.finding import flatten_layers


def live_config(cls, layer):
    """`cls.get_config()` of a layer, with its functions as they are.

    A config holds a function by a name or bytecode that may not load.
    """
    config = cls.get_config(layer)
    for name in config:
        function = getattr(layer, name, None)
        is_function = name == "activation" or name.endswith("_initializer")
        # Attention, for one, keeps them under other names.
        known = hasattr(layer, name) and not isinstance(function, keras.layers.Layer)
        if is_function and known:
            config[name] = function
    return config


def built_shape(layer):
    """The input shape that a layer was built with, or None."""
    return (layer.get_build_config() or {}).get("input_shape")


def check_weights(weights):
    """Refuses other weights of a plain copy than the mean or a sample."""
    validation.choice("weights", weights, ("mean", "sample"))


def assign_copy(variable, value):
    """Assigns a copy: on JAX two variables would share what training gives away."""
    variable.assign(ops.copy(ops.convert_to_tensor(value)))


def copy_activation(layer, copy):
    """Gives a copy of a layer the weights of an activation that is a layer."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, keras.layers.Layer) and activation.variables:
        if not copy.activation.built:
            copy.activation.build(activation.get_build_config()["input_shape"])
        copy.activation.set_weights(activation.get_weights())


def assign_weights(layer, weights):
    """`layer.set_weights`, and what Keras derives from weights only when asked."""
    layer.set_weights(weights)
    for inner in flatten_layers(layer):
        if isinstance(inner, keras.layers.Normalization):
            inner.finalize_state()


@contextlib.contextmanager
def method_replaced(layer, name, function):
    """Within, a method of one layer is another function; its class is untouched."""
    own = vars(layer).get(name)  # Keras gives a layer a `build` of its own
    object.__setattr__(layer, name, function)
    try:
        yield
    finally:
        object.__delattr__(layer, name)
        if own is not None:
            object.__setattr__(layer, name, own)


def call_with_training(layer, x, training):
    """Calls a layer, with `training` if it takes it."""
    if "training" in inspect.signature(layer.call).parameters:
        return layer(x, training=training)
    return layer(x)
