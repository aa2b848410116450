"""Recurrent layers, whose weights are those of their cell."""

from typing import Any

import keras

from keras_bdl.maps.whole import Whole


class Recurrent(Whole):
    """Computes `keras.layers.SimpleRNN`, `GRU`, `LSTM` and the `ConvLSTM`s.

    All steps of a sequence share one draw of the weights.
    """

    kernel = "kernel"
    attributes = {
        "kernel": "cell.kernel",
        "recurrent_kernel": "cell.recurrent_kernel",
        "bias": "cell.bias",
    }

    def run(
        self,
        layer: keras.layers.Layer,
        inputs: Any,
        is_training: bool | None = None,
        **arguments: Any,
    ) -> Any:
        cls = getattr(layer, "keras_class", type(layer))  # or a plain layer
        return cls.call(layer, inputs, training=bool(is_training), **arguments)
