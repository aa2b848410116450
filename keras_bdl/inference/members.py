"""The networks of an ensemble: how they are made and told apart."""

import keras
from keras import ops

from keras_bdl.core import copies, finding
from keras_bdl.core.stochastic import stochastic_layers
from keras_bdl.graphs.layer_copy import made_anew
from keras_bdl.layers.bayesian import counted_layers


def check_network(network: keras.Model) -> None:
    """Raises an error for a network that cannot be a member of an ensemble."""
    if hasattr(network, "sampled_network") or hasattr(network, "log_prob"):
        raise ValueError(
            "Expected `network` to be a network by itself, which is trained by the "
            "loss of the ensemble; this is a model around one: give its `network`. "
            f"Received: network={network!r}"
        )
    if any(layer.num_draws is not None for layer in stochastic_layers(network)):
        raise ValueError(
            "Expected `network` to be one network; this one has members itself. "
            f"Received: network={network!r}"
        )
    for layer in counted_layers(network):
        if layer.num_examples is None and getattr(layer, "has_kl", True):
            raise ValueError(
                f"Layer '{layer.name}' is not told the number of training examples, "
                "which divides its KL term: call "
                "`keras_bdl.set_num_examples(network, n)` before. "
                f"Received: network={network!r}"
            )


def drawn_anew(network):
    """Returns a copy of a model with new initial weights."""
    if finding.is_graph(network):
        return keras.models.clone_model(network)
    copy = made_anew(network)
    if not copy.built:
        copies.build_alike(copy, network)
    return copy


def only_computes(network):
    """Whether layers draw no noise in training, add no loss and are all of Keras."""
    weights = {id(weight) for weight in network.weights}
    layers = finding.flatten_layers(network)
    return (
        all(id(variable) in weights for variable in network.variables)  # no seeds
        and all(layer.activity_regularizer is None for layer in layers)
        and all(type(layer).__module__.startswith("keras.") for layer in layers)
    )


def unstacked(tensors, count):
    """Returns `count` nests of the slices of tensors along their first axis."""
    leaves = keras.tree.flatten(tensors)
    apart = zip(*[ops.unstack(tensor, count) for tensor in leaves])
    return [keras.tree.pack_sequence_as(tensors, list(parts)) for parts in apart]
