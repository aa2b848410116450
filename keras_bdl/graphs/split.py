"""Cuts a model before its first sampled layer, so that the rest can run alone."""

import warnings

import keras
import numpy as np
from keras import ops

from keras_bdl.core import finding, masking, scopes, stochastic
from keras_bdl.graphs.trace import symbolic_tensors, trace_of


class Parts:
    """The two parts of a model: the prefix runs once, the suffix once per sample.

    Args:
        prefix: callable, inputs -> boundary tensors, each with its mask or None.
        suffix: callable, (boundary, scope) -> outputs, sample-major.
        batched: whether the suffix takes several samples at once. It can if the rows
            of its outputs are the rows of its inputs, and no row affects another.
        moment_layers: ids of the layers that may be sampled from their moments. They
            are called once, in the graph itself, on inputs without positions.
        shared_layers: ids of the layers that take the rows of the prefix and return
            the rows of each sample.
    """

    def __init__(
        self,
        prefix,
        suffix,
        batched,
        moment_layers=frozenset(),
        shared_layers=frozenset(),
    ):
        self.prefix = prefix
        self.suffix = suffix
        self.batched = batched
        self.moment_layers = moment_layers
        self.shared_layers = shared_layers


def split(model, is_sampled, moments, replace=lambda layer: layer):
    """Cuts a functional or Sequential model. Others run whole, sample by sample.

    Args:
        model: Keras model.
        is_sampled: function of a layer that returns whether its outputs differ by
            sample.
        moments: whether a first Dense layer may be sampled from its moments,
            which are then part of the prefix.
        replace: function from a layer to the layer that is called in its place.

    Returns:
        `Parts`.
    """
    if not finding.is_graph(model):
        whole = replace(model)
        return Parts(lambda x: x, lambda x, scope: whole(x, training=False), False)
    return _GraphSplitter(model, is_sampled, moments, replace).parts()


class _GraphSplitter:
    """Calls the layers of a graph again, and records which tensors differ by sample."""

    def __init__(self, model, is_sampled, moments, replace):
        self.trace = trace_of(model)
        self.inputs = finding.fresh_inputs(model)
        self.num_calls = self.trace.num_calls()
        self.is_sampled = is_sampled
        self.replace = replace
        self.keeps_rows = keeps_rows(model)
        self.moments = moments and self.keeps_rows
        self.sampled = {}  # id -> tensor that differs by sample
        self.boundary = {}  # (id, tile) -> (tensor, its copy, whether to tile it)
        inputs = keras.tree.flatten(finding.graph_input(model))
        self.dense = not any(tensor.sparse for tensor in inputs)
        self.moment_layers = set()
        self.shared_layers = set()

    def parts(self):
        outputs = self.trace.replay(self._call, self.inputs)
        outputs = keras.tree.map_structure(self._sampled_output, outputs)
        _, tensors, tiled = map(list, zip(*self.boundary.values()))
        prefix = keras.Model(self.inputs, tensors)
        suffix = keras.Model(tensors, outputs)

        def run_prefix(x):
            outputs = keras.tree.flatten(prefix(x, training=False))
            return [masking.take_mask(tensor) for tensor in outputs]

        def run_suffix(boundary, scope):
            if scope.num_samples > 1:
                # Layers pass a mask on to outputs that have the rows of all samples.
                boundary = [
                    (
                        _tile_rows(tensor, scope.num_samples) if tile else tensor,
                        _tile_rows(mask, scope.num_samples),
                    )
                    for (tensor, mask), tile in zip(boundary, tiled)
                ]
            tensors, masks = map(list, zip(*boundary))
            if all(mask is None for mask in masks):
                return suffix(tensors, training=False)
            with warnings.catch_warnings():
                # The warning is wrong here: a graph passes its masks to its layers.
                warnings.filterwarnings("ignore", "(?s).*does not support masking")
                return suffix(tensors, mask=masks, training=False)

        batched = self.keeps_rows and all(
            t.shape[0] is None for t in keras.tree.flatten(self.inputs)
        )
        return Parts(
            run_prefix,
            run_suffix,
            batched,
            frozenset(self.moment_layers),
            frozenset(self.shared_layers),
        )

    def _call(self, node, *args, **kwargs):
        layer, tensors = node.layer, symbolic_tensors((args, kwargs))
        meets_sample = any(id(tensor) in self.sampled for tensor in tensors)
        samples = isinstance(layer, keras.layers.Layer) and self.is_sampled(layer)
        if kwargs.get("training") is True and not samples:
            raise ValueError(
                f"Layer '{layer.name}' is called with `training=True` in the model, so "
                "its noise or its statistics would not be those of a sample. Leave "
                "`training` out; Dropout is sampled with `mc_dropout=True`. "
                f"Received: layer={layer.name!r}, training=True"
            )
        if not (meets_sample or samples):
            return layer(*args, **kwargs)
        has_moments = samples and self._has_moments(layer, tensors)
        shares_inputs = samples and self._shares_inputs(layer)
        layer = self.replace(layer)
        if has_moments:
            self.moment_layers.add(id(layer))
        if has_moments and not meets_sample:
            outputs = self._moments_call(layer, tensors[0])
        elif shares_inputs and not meets_sample:
            self.shared_layers.add(id(layer))
            outputs = layer(self._across(tensors[0], tile=False))
        else:
            args, kwargs = keras.tree.map_structure(self._across, (args, kwargs))
            outputs = layer(*args, **kwargs)
        for tensor in keras.tree.flatten(outputs):
            self.sampled[id(tensor)] = tensor
        return outputs

    def _has_moments(self, layer, tensors):
        # A layer that is called twice has one weight draw for both calls. It cannot
        # be sampled from moments.
        return (
            self.moments
            and self._called_once_as_known(layer)
            and hasattr(layer, "supports_moments")
            and layer.supports_moments(tensors[0].shape)
        )

    def _shares_inputs(self, layer):
        return self._called_once_as_known(layer) and layer.takes_shared_inputs

    def _called_once_as_known(self, layer):
        # A user's subclass may do more in its `call`.
        known = type(layer) in stochastic.REGISTRY.values()
        return known and self.num_calls[id(layer)] == 1

    def _moments_call(self, layer, tensor):
        moments = [
            self._across(moment, tile=False) for moment in Moments(layer)(tensor)
        ]
        return SampleMoments(layer)(moments)

    def _across(self, tensor, tile=True):
        """Returns what the suffix uses in place of a tensor of the prefix."""
        if not isinstance(tensor, keras.KerasTensor) or id(tensor) in self.sampled:
            return tensor
        tile = tile and tensor.shape[:1] == (None,)  # without rows, not tiled
        key = (id(tensor), tile)
        if key not in self.boundary:
            self.boundary[key] = (tensor, self._identity()(tensor), tile)
        return self.boundary[key][1]

    def _sampled_output(self, tensor):
        sampled = tensor if id(tensor) in self.sampled else self._across(tensor)
        return self._identity()(sampled)  # a tensor of its own for each output

    def _identity(self):
        return Boundary() if self.dense else keras.layers.Identity(autocast=False)


def keeps_rows(operation):
    """Returns whether an operation is known to keep the rows of its inputs.

    If an operation joins rows or turns them into positions, noise that the rows share
    would be shared by the parts of one example.
    """
    if isinstance(operation, keras.Model):
        inner = getattr(operation, "operations", operation.layers)
        return finding.is_graph(operation) and all(map(keeps_rows, inner))
    if _goes_over_rows(operation):
        return False
    if isinstance(operation, keras.layers.Layer):
        if not getattr(operation, "keeps_rows", True):
            return False
        package = type(operation).__module__.split(".")[0]
        plain = package == "keras" and not isinstance(operation, keras.layers.Lambda)
        return plain or package == "keras_bdl"
    shapes = [tensor.shape for tensor in keras.tree.flatten(operation.input)]
    return any(operation.output.shape == shape for shape in shapes)


def _goes_over_rows(operation):
    """Returns whether an operation or its activation may work along the rows' axis."""
    is_layer = isinstance(operation, keras.layers.Layer)
    if not is_layer and hasattr(operation, "axis") and operation.axis is None:
        return True  # all axes
    axes = [getattr(operation, name, ()) for name in ("axis", "attention_axes")]
    axes = keras.tree.flatten(axes)
    axes = [axis for axis in axes if isinstance(axis, int)]
    if any(axis <= 0 for axis in axes):
        ranks = {len(t.shape) for t in keras.tree.flatten(operation.output)}
        if any(axis % rank == 0 for axis in axes for rank in ranks if rank):
            return True
    activation = getattr(operation, "activation", None) if is_layer else None
    return callable(activation) and not _acts_by_row(activation, operation)


def _acts_by_row(activation, layer):
    """Returns whether an activation treats each row independently of the others."""
    if isinstance(activation, keras.layers.Layer):
        return keeps_rows(activation)
    if getattr(activation, "__module__", "").split(".")[0] == "keras":
        return True
    shape = [4, *(2 if size is None else size for size in layer.output.shape[1:])]
    rows = np.random.default_rng(0).normal(size=shape).astype("float32")
    try:
        together = ops.convert_to_numpy(activation(ops.convert_to_tensor(rows)))
        alone = [
            ops.convert_to_numpy(activation(ops.convert_to_tensor(row[None])))
            for row in rows
        ]
        return np.allclose(together, np.concatenate(alone), atol=1e-5)
    except Exception:  # the user's function may expect other inputs
        return False


def _tile_rows(tensor, num_samples):
    if tensor is None:
        return None
    return ops.tile(tensor, (num_samples,) + (1,) * (len(tensor.shape) - 1))


class Boundary(keras.layers.Layer):
    """Returns a dense tensor unchanged.

    Keras marks the product of a tensor and a number as sparse. An input that is made
    from such a tensor fails on PyTorch.
    """

    def __init__(self):
        super().__init__(autocast=False)
        self.supports_masking = True
        self.built = True

    def call(self, inputs):
        return inputs

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)


class Moments(keras.layers.Layer):
    """Computes the mean and the spread of a Bayesian layer's outputs."""

    def __init__(self, layer):
        super().__init__(autocast=False, dtype=layer.dtype_policy)
        self.layer = layer
        self.built = True

    def call(self, inputs):
        return self.layer.moments(self.layer.prepare_inputs(inputs))

    def compute_output_spec(self, inputs):
        mean, spread = self.layer.moment_shapes(inputs.shape)
        wide = self.layer.variable_dtype
        return (
            keras.KerasTensor(mean, dtype=self.layer.compute_dtype),
            keras.KerasTensor(spread, dtype="float32" if wide != "float64" else wide),
        )


class SampleMoments(keras.layers.Layer):
    """Draws the outputs of a Bayesian layer from their moments."""

    def __init__(self, layer):
        super().__init__(autocast=False, dtype=layer.dtype_policy)
        self.layer = layer
        self.built = True

    def call(self, moments):
        return self.layer.sample_moments(*moments, scopes.SamplingScope.current())

    def compute_output_spec(self, moments):
        return keras.KerasTensor(moments[0].shape, dtype=self.layer.compute_dtype)
