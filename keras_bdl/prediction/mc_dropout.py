"""Monte Carlo dropout: layers that sample in place of a model's plain Dropout layers.

The model of the user is not touched: other threads may be calling it. What holds a
Dropout layer is replaced by a double that shares all else, its variables too.
"""

import warnings

import keras

from keras_bdl.core import finding, scopes, stochastic
from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.graphs.copy import held_layers
from keras_bdl.ops import estimators


class DropoutSampling:
    """Doubles of the layers of a model in which plain Dropout layers sample.

    Args:
        model: Keras model.
        first_place: place of the noise of the first Dropout layer.

    Attributes:
        places: place of the noise of each Dropout layer, by the id of its generator.
    """

    def __init__(self, model, first_place=0):
        self._doubles = {
            id(layer): SampledDropout(layer) for layer in dropout_layers(model)
        }
        self.places = {
            id(double.noise): first_place + index
            for index, double in enumerate(self._doubles.values())
        }
        self._of_dropout = frozenset(self._doubles)
        self._checked = False

    def affects(self, layer):
        """Whether a layer is, or holds, a Dropout layer that samples."""
        return isinstance(layer, keras.layers.Layer) and any(
            id(inner) in self._of_dropout for inner in finding.flatten_layers(layer)
        )

    def replace(self, layer):
        """The layer that samples in place of another, which may be the same.

        Raises:
            ValueError: if a Dropout layer is held where it cannot be got at.
        """
        if not self.affects(layer):
            return layer
        if id(layer) not in self._doubles:
            graph = isinstance(layer, keras.Model) and finding.is_graph(layer)
            make = self._double_of_graph if graph else self._double_of_holder
            self._doubles[id(layer)] = make(layer)
        return self._doubles[id(layer)]

    def check_called(self):
        """Warns once, after the model has run, of Dropout that was not sampled."""
        if self._checked:
            return
        self._checked = True
        doubles = [self._doubles[key] for key in self._of_dropout]
        names = sorted(double.name for double in doubles if not double.called)
        if names:
            warnings.warn(
                f"{names}: these Dropout layers add no noise to the samples, because "
                "the model does not call them at inference, or calls them by another "
                "way than its attributes (a function that closes over the layer, say).",
                stacklevel=2,
            )

    def _double_of_graph(self, model):
        outputs = finding.graph_output(model)
        graph = keras.Model(finding.graph_input(model), outputs, name=model.name)
        return keras.models.clone_model(graph, clone_function=self.replace)

    def _double_of_holder(self, layer):
        _refuse_own_call_of_graph(layer)
        double = object.__new__(type(layer))
        # With lists of its own, such as that of its calls and of its losses.
        own = (list, set)
        double.__dict__.update(
            (name, type(value)(value) if type(value) in own else value)
            for name, value in layer.__dict__.items()
        )
        reached = set()

        def replace(held):
            reached.update(map(id, finding.flatten_layers(held)))
            return self.replace(held)

        for name, held in held_layers(layer).items():
            if any(map(self.affects, keras.tree.flatten(held))):
                replaced = keras.tree.map_structure(
                    lambda x: replace(x) if self.affects(x) else x, held
                )
                # Past Keras, which would track it in lists that both share.
                object.__setattr__(double, name, replaced)
        for inner in finding.flatten_layers(layer):
            if id(inner) in self._of_dropout and id(inner) not in reached:
                raise ValueError(
                    f"Layer '{inner.name}' inside `{type(layer).__name__}` is no "
                    "attribute of it, also none in a list or a dict, where "
                    "`mc_dropout` could sample it; use `keras_bdl.MCDropout` there. "
                    f"Received: layer={inner.name!r}"
                )
        return double


class SampledDropout(keras.layers.Dropout):
    """A Dropout layer that draws its masks from the sampling scope.

    One mask per sample, shared by rows and batches: a draw of the weights that
    the mask multiplies. A second call has its own.

    Args:
        layer: the `keras.layers.Dropout` in whose place it stands.
    """

    def __init__(self, layer):
        super().__init__(layer.rate, name=layer.name, dtype=layer.dtype_policy)
        # Past Keras, to which the layer is built. In a scope it has no state.
        noise = NoiseGenerator(0, salt=layer.name)
        object.__setattr__(self, "noise", noise)
        self.called = False
        self._sizes = _noise_shape_of(layer)

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs, training=None):
        scope = scopes.SamplingScope.current()
        if scope is None:  # a symbolic call, which makes the graph
            return inputs
        self.called = True
        sizes = self._sizes(len(inputs.shape))[1:]
        return estimators.dropout_per_sample(
            inputs, self.rate, sizes, scope.num_samples, self.noise
        )


def dropout_layers(model):
    """The plain Dropout layers of a model that drop something.

    Raises:
        ValueError: if the model has dropout of a kind that cannot be sampled.
    """
    found = []
    for layer in finding.flatten_layers(model):
        if isinstance(layer, stochastic.StochasticLayer):
            continue  # it samples by itself
        if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
            found.append(layer)
        _refuse_other_dropout(layer)
    return found


def _noise_shape_of(layer):
    """Function of a rank: sizes of the mask where they differ from the inputs'."""
    first = getattr(layer, "data_format", None) == "channels_first"
    spatial = (
        keras.layers.SpatialDropout1D,
        keras.layers.SpatialDropout2D,
        keras.layers.SpatialDropout3D,
    )

    def sizes(rank):
        if layer.noise_shape is not None:
            return list(layer.noise_shape)
        if not isinstance(layer, spatial):
            return [None] * rank
        positions = [1] * (rank - 2)
        return [None, None, *positions] if first else [None, *positions, None]

    return sizes


def _refuse_own_call_of_graph(layer):
    """Refuses a graph of which the layers are not held as attributes."""
    if isinstance(layer, keras.Sequential) or finding.is_functional(layer):
        raise ValueError(
            "`mc_dropout` samples Dropout in a Sequential or functional model that is "
            "built and has no `call` of its own; use `keras_bdl.MCDropout` in this "
            f"one. Received: {type(layer).__name__} {layer.name!r}, built={layer.built}"
        )


def _refuse_other_dropout(layer):
    """Refuses noise of a layer that would be passed over in silence, or replaced."""
    own_call = not getattr(type(layer).call, "__module__", "").startswith("keras.")
    if isinstance(layer, keras.layers.Dropout) and own_call:
        raise ValueError(
            "`mc_dropout` samples `keras.layers.Dropout` and its spatial forms, and "
            "this one has a `call` of its own; give the class a base of "
            f"`keras_bdl.MCDropout`. Received: {type(layer).__name__} {layer.name!r}"
        )
    if isinstance(layer, (keras.layers.GaussianDropout, keras.layers.AlphaDropout)):
        raise ValueError(
            "`mc_dropout` samples `keras.layers.Dropout` and its spatial forms; no "
            "draw of weights is known for this layer. "
            f"Received: {type(layer).__name__} {layer.name!r}"
        )
    cells = (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)
    if not isinstance(layer, (keras.layers.RNN, *cells)):
        return
    for name in ("dropout", "recurrent_dropout"):
        rate = getattr(layer, name, 0)
        if isinstance(rate, float) and rate > 0:
            raise ValueError(
                "`mc_dropout` cannot sample dropout inside a recurrent layer; put a "
                f"Dropout layer before it. Received: {name}={rate} in {layer.name!r}"
            )
