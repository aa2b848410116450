"""Makes a smaller plain Keras model of the same outputs without the dead units."""

import warnings

import keras
import numpy as np
from keras import ops

from keras_bdl.conversion import convert
from keras_bdl.core import copies, finding
from keras_bdl.graphs.layer_copy import copy_assets, made_anew
from keras_bdl.sparsity.channels import ChannelGraph
from keras_bdl.sparsity.report import live_weights, network_of
from keras_bdl.sparsity.rules import is_linear


def compress(model: keras.Model) -> keras.Model:
    """Returns a plain Keras model with the same outputs and without the dead units.

    Units and filters that no weight reads, or that no weight feeds, are removed.
    The output of a constant unit is folded into the biases of the layers that read
    it. The shapes and names of the model's inputs and outputs stay the same. The
    small model has the posterior means and cannot be sampled. Layers that cannot be
    rewired (because they are called more than once, or mix channels in an unknown
    way) stay whole. If units around such a layer could have been removed, a warning
    names the layer.

    Args:
        model: built functional or Sequential Keras model (or a keras_bdl model
            around one) of plain and keras_bdl layers.

    Returns:
        A functional `keras.Model` of plain Keras layers, not compiled.

    Raises:
        TypeError: if the model is of another kind.
        ValueError: if a layer has no plain counterpart, or cannot be made again from
            its config (as in `to_keras`).

    Example:

    >>> small = keras_bdl.compress(model)
    >>> small.save("small.keras")
    """
    network_of(model)
    return _without_dead(convert.to_keras(model))


def _without_dead(plain):
    graph = ChannelGraph(plain)
    if graph.blocked:
        warnings.warn(
            "These layers stay whole, although units around them are dead: "
            f"{', '.join(sorted(set(graph.blocked)))}.",
            stacklevel=3,
        )
    return _Builder(graph).build(plain.name)


class _Builder:
    """Calls smaller copies of a graph's layers on new inputs."""

    def __init__(self, graph):
        self.graph = graph
        self.layers = {}  # id of the old layer -> new layer

    def build(self, name):
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
            self.graph.input,
        )
        outputs = self.graph.trace.replay(self._call, inputs)
        return keras.Model(inputs, outputs, name=name)

    def _call(self, node, *args, **kwargs):
        key = id(node.layer)
        if key not in self.layers:
            self.layers[key] = self._copy(node)
        layer, weights = self.layers[key]
        outputs = layer(*args, **kwargs)
        if weights:
            copies.assign_weights(layer, weights)
        return outputs

    def _copy(self, node):
        """Returns a new layer, and the weights that it gets once it is built."""
        layer = node.layer
        if not isinstance(layer, keras.layers.Layer):
            return layer, []  # an operation of `keras.ops`, without state
        if isinstance(layer, keras.Model) and finding.is_graph(layer):
            return _without_dead(layer), []
        if not self.graph.is_whole(node) and is_linear(layer):
            return self._copy_linear(node)
        weights = [ops.convert_to_numpy(w) for w in layer.weights]
        if self.graph.is_whole(node) or not weights:
            copy = made_anew(layer)
            copy_assets(layer, copy)
            return copy, weights
        kept = self.graph.kept(node.outputs)  # a BatchNormalization
        config = _config_to_narrow(layer)
        return type(layer).from_config(config), [w[kept] for w in weights]

    def _copy_linear(self, node):
        layer, (tensor,) = node.layer, node.inputs
        keep_in, keep_out = self.graph.kept(tensor), self.graph.kept(node.outputs)
        kernel, bias = self.graph.weights(node)
        bias = bias + self.graph.folded_bias(node, kernel)
        kernel = np.where(live_weights(self.graph, node, kernel), kernel, 0.0)
        kernel, bias = kernel[..., keep_in, :][..., keep_out], bias[keep_out]
        config = _config_to_narrow(layer)
        config["units" if "units" in config else "filters"] = int(keep_out.sum())
        config["use_bias"] = bool(layer.use_bias or (bias != 0).any())
        weights = [kernel, bias] if config["use_bias"] else [kernel]
        return type(layer).from_config(config), weights


def _config_to_narrow(layer):
    """Returns the config of a layer without initializers of the full width.

    The weights are assigned later.
    """
    config = copies.live_config(type(layer), layer)
    return config | {name: "zeros" for name in config if name.endswith("_initializer")}
