"""Monte Carlo dropout: replaces layers with plain dropout by layers that sample."""

import warnings

import keras

from keras_bdl.core import finding, scopes, stochastic
from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.graphs.doubles import Doubles
from keras_bdl.ops import estimators
from keras_bdl.prediction.recurrent_dropout import (
    LAYERS,
    RATES,
    has_dropout,
    sampled_recurrent,
)


class DropoutSampling(Doubles):
    """Makes doubles of the layers of a model in which plain dropout samples.

    These are Dropout layers, and recurrent layers with dropout inside.

    Args:
        model: Keras model.
        first_place: place of the noise of the first such layer.

    Attributes:
        places: dict from the id of a layer's generator to the place of its
            noise.
    """

    def __init__(self, model, first_place=0):
        super().__init__(dropout_layers(model))
        self._sampled = {id(x): _sampled(x) for x in self.targets.values()}
        self.places = {
            id(double.masks): first_place + index
            for index, double in enumerate(self._sampled.values())
        }
        self._checked = False

    def make(self, layer):
        return self._sampled[id(layer)]

    def unreachable(self, layer, holder):
        if isinstance(holder, keras.Sequential) or finding.is_functional(holder):
            raise ValueError(
                "`mc_dropout` samples Dropout in a Sequential or functional model that "
                "is built and has no `call` of its own; use `keras_bdl.MCDropout` in "
                f"this one. Received: {type(holder).__name__} {holder.name!r}, "
                f"built={holder.built}"
            )
        raise ValueError(
            f"`mc_dropout` cannot sample layer '{layer.name}', because no attribute of "
            f"`{type(holder).__name__}` holds it, directly or in a list or a dict. Use "
            f"`keras_bdl.MCDropout` there. Received: layer={layer.name!r}"
        )

    def check_called(self):
        """Warns of Dropout that was not sampled. Call it after the model has run.

        The check is made only once.
        """
        if self._checked:
            return
        self._checked = True
        doubles = self._sampled.values()
        names = sorted(double.name for double in doubles if not double.called)
        if names:
            warnings.warn(
                f"{names}: the dropout of these layers adds no noise to the samples, "
                "because the model does not call them at inference, or calls them by "
                "other means than its attributes, such as a function that closes over "
                "them.",
                stacklevel=2,
            )


class SampledDropout(keras.layers.Dropout):
    """A Dropout layer that draws its masks from the sampling scope.

    It draws one mask per sample, which rows and batches share. So a mask is a draw of
    the weights that it multiplies. A second call of the layer draws another mask.

    Args:
        layer: the `keras.layers.Dropout` that it replaces.
    """

    def __init__(self, layer):
        super().__init__(layer.rate, name=layer.name, dtype=layer.dtype_policy)
        # This avoids the tracking of Keras, for which the layer is built already. The
        # generator has no state in a scope.
        noise = NoiseGenerator(0, salt=layer.name)
        object.__setattr__(self, "masks", noise)
        self.called = False
        self._sizes = _noise_shape_of(layer)

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs, training=None):
        scope = scopes.SamplingScope.current()
        if scope is None:  # a symbolic call that makes the graph
            return inputs
        self.called = True
        sizes = self._sizes(len(inputs.shape))[1:]
        return estimators.dropout_per_sample(
            inputs, self.rate, sizes, scope.num_samples, self.masks
        )


def _sampled(layer):
    """Returns the layer that samples in the place of one with dropout."""
    if isinstance(layer, keras.layers.Dropout):
        return SampledDropout(layer)
    return sampled_recurrent(layer)


def dropout_layers(model):
    """Returns the layers of a model with plain dropout at a rate above 0.

    These are Dropout layers, and recurrent layers with dropout inside.

    Raises:
        ValueError: if the model has dropout of a kind that cannot be sampled.
    """
    found, cells = [], set()
    for layer in finding.flatten_layers(model):
        if id(layer) in cells:
            continue
        if _is_recurrent(layer):
            found += [layer] * has_dropout(layer)
            cells.add(id(layer.cell))
            continue
        if isinstance(layer, keras.layers.RNN):
            _refuse_other_dropout(layer)
        if isinstance(layer, stochastic.StochasticLayer):
            continue  # it samples by itself
        if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
            found.append(layer)
        _refuse_other_dropout(layer)
    return found


def rates(layer):
    """Returns the rates of a layer of `dropout_layers`."""
    names = ("rate",) if isinstance(layer, keras.layers.Dropout) else RATES.values()
    return tuple(getattr(layer, name) for name in names)


def _is_recurrent(layer):
    """Whether a layer is a recurrent one whose dropout is a draw of its weights."""
    own = getattr(layer, "keras_class", type(layer))
    return isinstance(layer, LAYERS) and own in LAYERS and not layer.stateful


def _noise_shape_of(layer):
    """Returns a function from the rank of the inputs to the sizes of the mask.

    A size is None where it is equal to the size of the inputs.
    """
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


def _refuse_other_dropout(layer):
    """Raises an error for noise that would be ignored silently or replaced."""
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
    if isinstance(layer, (keras.layers.RNN, *cells)) and has_dropout(layer):
        raise ValueError(
            "`mc_dropout` samples the dropout inside `SimpleRNN`, `GRU` and `LSTM` "
            "that are not stateful. In another recurrent layer, put a Dropout layer "
            f"before it. Received: {type(layer).__name__} {layer.name!r}, "
            f"dropout={getattr(layer, 'dropout', 0.0)}, "
            f"recurrent_dropout={getattr(layer, 'recurrent_dropout', 0.0)}"
        )
