"""Programs on time series, sound and films."""

import keras
import numpy as np
from keras import layers, ops

from programs.registry import Program, floats, integers, program, register

CROSSENTROPY = "sparse_categorical_crossentropy"


def forecast(*parts, horizon=1):
    """The program of a Sequential model that forecasts from 8 steps of 3 values."""
    model = keras.Sequential([keras.Input((8, 3)), *parts, layers.Dense(horizon)])
    return Program(model, floats(8, 8, 3), floats(8, horizon), "mse")


@program
def weather_lstm():
    normalize = layers.Normalization()
    normalize.adapt(10.0 + 3.0 * floats(20, 8, 3))
    return forecast(normalize, layers.LSTM(8), horizon=2)


@program
def simple_rnn():
    return forecast(
        layers.SimpleRNN(6, return_sequences=True), layers.SimpleRNN(6, "relu")
    )


@program
def lstm_with_dropout():
    return forecast(
        layers.LSTM(6, dropout=0.2, recurrent_dropout=0.2, return_sequences=True),
        layers.GRU(5, dropout=0.2, recurrent_dropout=0.2),
    )


@program
def backwards_gru():
    """Options of recurrent layers that few use."""
    return forecast(
        layers.GRU(6, reset_after=False, go_backwards=True, return_sequences=True),
        layers.LSTM(5, unroll=True, use_bias=False, recurrent_activation="sigmoid"),
    )


@program
def stacked_cells():
    return forecast(layers.RNN([layers.LSTMCell(6), layers.LSTMCell(5)]))


@register
class MinimalCell(layers.Layer):
    """The cell of the guide, with weights of its own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], self.units), name="kernel")
        self.recurrent = self.add_weight((self.units, self.units), name="recurrent")

    def call(self, inputs, states):
        output = ops.tanh(
            ops.matmul(inputs, self.kernel) + ops.matmul(states[0], self.recurrent)
        )
        return output, [output]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@program(least_share=0.4, reason="weights of a cell of the user's own")
def own_cell():
    return forecast(
        layers.Dense(8), layers.RNN(MinimalCell(5)), layers.Dense(5, activation="relu")
    )


@register
class CellOfLayers(layers.Layer):
    """A gated cell that is made of dense layers."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units
        self.gate = layers.Dense(units, activation="sigmoid")
        self.candidate = layers.Dense(units, activation="tanh")

    def build(self, shape):
        joined = (shape[0], shape[-1] + self.units)
        self.gate.build(joined)
        self.candidate.build(joined)

    def call(self, inputs, states):
        joined = ops.concatenate([inputs, states[0]], axis=-1)
        gate = self.gate(joined)
        output = gate * states[0] + (1.0 - gate) * self.candidate(joined)
        return output, [output]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@program
def cell_of_layers():
    return forecast(layers.RNN(CellOfLayers(6)))


@program
def conv_lstm_1d():
    inputs = keras.Input((4, 6, 2))
    x = layers.ConvLSTM1D(3, 3, padding="same", return_sequences=True)(inputs)
    x = layers.Flatten()(layers.ConvLSTM1D(3, 3)(x))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    return Program(model, floats(6, 4, 6, 2), integers(2, 6), CROSSENTROPY)


@program
def next_frame():
    """Films, a frame ahead: ConvLSTM2D under a Conv3D."""
    inputs = keras.Input((3, 6, 6, 1))
    x = layers.ConvLSTM2D(3, 3, padding="same", return_sequences=True)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.ConvLSTM2D(3, 1, padding="same", return_sequences=True)(x)
    x = layers.Conv3D(1, 3, padding="same", activation="sigmoid")(x)
    films = np.random.uniform(size=(6, 4, 6, 6, 1)).astype("float32")
    model = keras.Model(inputs, x)
    return Program(model, films[:, :-1], films[:, 1:], "binary_crossentropy")


@program
def video_cnn_lstm():
    frame = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
        ]
    )
    inputs = keras.Input((4, 6, 6, 2))
    x = layers.LSTM(6)(layers.TimeDistributed(frame)(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    return Program(model, floats(6, 4, 6, 6, 2), integers(3, 6), CROSSENTROPY)


@program
def video_time_distributed():
    """Each layer by itself over the frames, with a mask of the films' ends."""
    inputs = keras.Input((4, 6, 6, 2))
    x = layers.Masking()(layers.Reshape((4, 72))(inputs))
    x = layers.TimeDistributed(layers.Dense(8, activation="relu"))(x)
    x = layers.TimeDistributed(layers.LayerNormalization())(x)
    x = layers.GRU(5)(x)
    films = floats(6, 4, 6, 6, 2)
    films[3:, 2:] = 0.0
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    return Program(model, films, integers(3, 6), CROSSENTROPY)


@program
def wavenet():
    """Gated causal convolutions with growing dilation, and a sum of skips."""
    inputs = keras.Input((12, 2))
    x = layers.Conv1D(6, 2, padding="causal")(inputs)
    skips = []
    for rate in (1, 2, 4):
        options = {"padding": "causal", "dilation_rate": rate}
        value = layers.Conv1D(6, 2, activation="tanh", **options)(x)
        gate = layers.Conv1D(6, 2, activation="sigmoid", **options)(x)
        gated = layers.Multiply()([value, gate])
        skips.append(layers.Conv1D(4, 1)(gated))
        x = layers.Add()([x, layers.Conv1D(6, 1)(gated)])
    x = layers.Activation("relu")(layers.Add()(skips))
    model = keras.Model(inputs, layers.Conv1D(5, 1)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Program(model, floats(6, 12, 2), integers(5, 6, 12), loss)


@register
class TemporalBlock(layers.Layer):
    def __init__(self, filters, dilation_rate, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.dilation_rate = filters, dilation_rate
        options = {"padding": "causal", "dilation_rate": dilation_rate}
        self.convolutions = {
            "first": layers.Conv1D(filters, 3, activation="relu", **options),
            "second": layers.Conv1D(filters, 3, activation="relu", **options),
        }
        self.norm = layers.LayerNormalization()
        self.dropout = layers.SpatialDropout1D(0.1)
        self.match = layers.Conv1D(filters, 1)

    def call(self, inputs, training=None):
        x = self.dropout(self.convolutions["first"](inputs), training=training)
        x = self.norm(self.convolutions["second"](x))
        return ops.relu(x + self.match(inputs))

    def get_config(self):
        own = {"filters": self.filters, "dilation_rate": self.dilation_rate}
        return {**super().get_config(), **own}


@program
def temporal_convolutions():
    return forecast(
        TemporalBlock(6, 1),
        TemporalBlock(6, 2),
        layers.Cropping1D((7, 0)),
        layers.Flatten(),
    )


@program
def timeseries_transformer():
    """Attention and convolutions of width one, on raw values."""
    x = inputs = keras.Input((10, 1))
    for _ in range(2):
        attended = layers.MultiHeadAttention(2, 6, dropout=0.1)(x, x)
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Dropout(0.1)(attended)) + x
        forward = layers.Conv1D(4, 1, activation="relu")(x)
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv1D(1, 1)(forward)) + x
    x = layers.GlobalAveragePooling1D(data_format="channels_last")(x)
    x = layers.Dropout(0.2)(layers.Dense(8, activation="relu")(x))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    return Program(model, floats(8, 10, 1), integers(2, 8), CROSSENTROPY)


@program(least_share=0.85, reason="a tenth is normalisation")
def timeseries_convolutions():
    x = inputs = keras.Input((10, 2))
    for _ in range(2):
        x = layers.Conv1D(8, 3, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    return Program(model, floats(8, 10, 2), integers(2, 8), CROSSENTROPY)


@program
def keyword_spotting():
    """Separable and depthwise convolutions over time."""
    inputs = keras.Input((12, 4))
    x = layers.SeparableConv1D(8, 5, padding="same", activation="relu")(inputs)
    x = layers.DepthwiseConv1D(3, strides=2, padding="same", depth_multiplier=2)(x)
    x = layers.BatchNormalization(center=False)(x)
    x = layers.SeparableConv1D(8, 3, activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling1D(2)(x))
    model = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    return Program(model, floats(6, 12, 4), integers(4, 6), CROSSENTROPY)


@program
def unet_1d():
    inputs = keras.Input((12, 2))
    top = layers.Conv1D(6, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv1D(8, 3, strides=2, padding="same", activation="relu")(top)
    x = layers.Dropout(0.2)(x)
    x = layers.Conv1DTranspose(6, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Concatenate()([x, top])
    model = keras.Model(inputs, layers.Conv1DTranspose(2, 3, padding="same")(x))
    series = floats(6, 12, 2)
    return Program(model, series, series, "mse")


@program
def volume_autoencoder():
    """Three dimensions down and up again."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 4, 1)),
            layers.Conv3D(4, 2, strides=2, activation="relu"),
            layers.Conv3D(4, 1, activation="relu"),
            layers.Conv3DTranspose(4, 2, strides=2, activation="relu"),
            layers.Conv3D(1, 1),
        ]
    )
    volumes = floats(6, 4, 4, 4, 1)
    return Program(model, volumes, volumes, "mse")


@program
def lstm_autoencoder():
    model = keras.Sequential(
        [
            keras.Input((8, 2)),
            layers.LSTM(6, activation="relu"),
            layers.RepeatVector(8),
            layers.LSTM(6, activation="relu", return_sequences=True),
            layers.TimeDistributed(layers.Dense(2)),
        ]
    )
    series = floats(6, 8, 2)
    return Program(model, series, series, "mae")
