"""Monte Carlo dropout: plain Dropout layers that draw from the sampling scope."""

import contextlib

import keras

from keras_bdl import sampling
from keras_bdl.layers import base
from keras_bdl.ops import estimators


class DropoutSampling:
    """Makes plain Dropout layers draw masks from the sampling scope.

    One mask per sample, shared by rows and batches: a draw of the weights that
    the mask multiplies.
    """

    def __init__(self, model):
        self.layers = []
        for layer in base.flatten_layers(model):
            if isinstance(layer, base.StochasticLayer):
                continue  # it samples by itself
            if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:
                self.layers.append(layer)
            _refuse_other_dropout(layer)
        self._noise = {
            id(layer): sampling.NoiseGenerator(index, salt=layer.name)
            for index, layer in enumerate(self.layers)
        }

    def affects(self, layer):
        inner = {id(inner) for inner in base.flatten_layers(layer)}
        return any(id(dropout) in inner for dropout in self.layers)

    @contextlib.contextmanager
    def active(self):
        """Within, `call` of each Dropout layer samples."""
        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                call = self._sampled_call(layer)
                stack.enter_context(base.method_replaced(layer, "call", call))
            yield

    def _sampled_call(self, layer):
        noise = self._noise[id(layer)]

        def call(inputs, training=None):
            scope = sampling.current_scope()  # a second call has its own mask
            sizes = _noise_shape(layer, inputs)[1:]
            return estimators.dropout_per_sample(
                inputs, layer.rate, sizes, scope.num_samples, noise
            )

        return call


def _noise_shape(layer, inputs):
    """Sizes of the mask where they differ from the inputs', None elsewhere."""
    sizes = [None] * len(inputs.shape)
    if layer.noise_shape is not None:
        sizes = list(layer.noise_shape)
    elif isinstance(layer, keras.layers.SpatialDropout1D):
        sizes[1] = 1
    elif isinstance(
        layer, (keras.layers.SpatialDropout2D, keras.layers.SpatialDropout3D)
    ):
        first = 1 if layer.data_format == "channels_last" else 2
        for axis in range(first, first + len(sizes) - 2):
            sizes[axis] = 1
    return sizes


def _refuse_other_dropout(layer):
    """Refuses noise of a layer that would be passed over in silence."""
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
