"""Finding the layers of a model, its graph, and which loss of Keras's it has."""

import functools
from typing import Any

import keras


def flatten_layers(model):
    """Returns the model and every layer below it, each once.

    `model.layers` stops at custom layers; this one private method does not.
    """
    seen = {id(layer): layer for layer in model._flatten_layers()}
    return list(seen.values())


def own_variables(layer):
    """Returns the weights of a layer that none of the layers inside has."""
    inside = {
        id(variable)
        for inner in flatten_layers(layer)
        if inner is not layer
        for variable in inner.variables
    }
    return [v for v in layer.weights if id(v) not in inside]


def normalisations_of(model):
    """Returns the layers of batch normalisation that are not frozen."""
    return [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]


def inner_optimizer(optimizer):
    """Returns the optimizer that one for mixed precision wraps, or the optimizer."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def idle_seeds(model):
    """Returns ids of states of seeds that inference changes without using them.

    Cells of recurrent layers draw a dropout mask in every call.
    """
    return {
        id(cell.seed_generator.state)
        for cell in flatten_layers(model)
        if hasattr(cell, "recurrent_dropout") and hasattr(cell, "seed_generator")
    }


def is_graph(model):
    """Whether a model is the plain graph of its layers, with no `call` of its own."""
    if isinstance(model, keras.Sequential):
        # A model that Keras could not call on symbolic inputs has no `inputs`.
        symbolic = model.built and hasattr(model, "inputs")
        return symbolic and type(model).call is keras.Sequential.call
    return is_functional(model) and type(model).call is _functional_class().call


def is_functional(model):
    """Whether a model is made of inputs and outputs; it may have its own `call`."""
    return isinstance(model, _functional_class())


@functools.cache
def _functional_class():
    """Returns the class that Keras makes of inputs and outputs.

    The class has no public name.
    """
    with keras.name_scope("functional_class"):
        inputs = keras.Input((1,), name="functional_class_input")
        return type(keras.Model(inputs, inputs, name="functional_class"))


def described(model):
    """Returns the model whose graph shows the inputs: the model, or one it wraps."""
    while hasattr(model, "wrapped_model"):
        model = model.wrapped_model
    return model


def graph_input(model):
    """Returns the symbolic inputs of a graph, nested as its `call` takes them."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0]
    return model.input


def graph_output(model):
    """Returns the symbolic outputs of a graph, nested as its `call` returns them."""
    if isinstance(model, keras.Sequential):
        return model.outputs[0]
    return model.output


def fresh_inputs(model):
    """Returns new symbolic inputs like those of a graph."""
    return keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
        graph_input(model),
    )


def name_of_keras_loss(loss: Any) -> str | None:
    """Returns the name of a loss of Keras's own, or None for any other.

    It is in small letters without underscores, equal for a class and its function.

    Args:
        loss: name of a loss, `keras.losses.Loss`, function, or None.
    """
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    source = type(loss) if isinstance(loss, keras.losses.Loss) else loss
    if getattr(source, "__module__", "").split(".")[0] != "keras":
        return None
    return source.__name__.replace("_", "").lower()


def unique_names(layers):
    """Returns names of built layers.

    Layers of equal names get their paths instead, with a number if these are equal.
    """
    names, paths = [x.name for x in layers], [x.path for x in layers]
    return [
        name
        if names.count(name) == 1
        else path + (f"_{index}" if paths.count(path) > 1 else "")
        for index, (name, path) in enumerate(zip(names, paths))
    ]
