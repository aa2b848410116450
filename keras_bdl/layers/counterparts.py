"""What layers with a posterior share in converting from plain layers and back."""

from keras_bdl.core.copies import (
    assign_copy,
    build_alike,
    check_weights,
    copy_activation,
)


def filled(copy, layer, weight_map, weights):
    """Builds a new layer as another is built, and copies weights and activation to it.

    Args:
        copy: new layer.
        layer: built layer, whose activation is copied.
        weight_map: map of both layers.
        weights: values for the variables of the copy, by name.
    """
    build_alike(copy, layer)
    for name, variable in weight_map.variables(copy).items():
        assign_copy(variable, weights[name])
    copy_activation(layer, copy)
    return copy


def weight_options(names, suffix):
    """Returns the names of arguments for the weights of a layer, by their suffix."""
    return [n for n in names if n.endswith(suffix) and n != f"activity{suffix}"]


def obstacle(layer):
    """Returns why a plain layer cannot get a posterior over its weights, or None."""
    for name in weight_options(dir(layer), "_constraint"):
        if getattr(layer, name, None) is not None:
            return f"has a {name.lstrip('_')}"
    if getattr(layer, "quantization_mode", None):
        return "is quantized"
    if getattr(layer, "lora_enabled", False):
        return "has LoRA weights"
    return None


def check_plain(layer, reason):
    """Raises an error if there is a reason not to convert a plain layer."""
    if reason is not None:
        raise ValueError(
            f"Layer '{layer.name}' {reason}, which a posterior cannot keep. "
            f"Received: layer={layer!r}"
        )


def check_conversion(layer, weights):
    """Raises an error if the layer is not built or `weights` has an unknown value."""
    check_weights(weights)
    if not layer.built:
        raise ValueError(
            "Expected a built layer; call it on a batch first. "
            f"Received: layer={layer.name!r}"
        )


def of_posterior(name):
    """Returns a property that reads and sets an attribute of a layer's posterior."""

    def get(layer):
        return getattr(layer.posterior, name)

    def assign(layer, value):
        setattr(layer.posterior, name, value)

    return property(get, assign)
