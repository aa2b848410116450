"""Programs from sequences to sequences, with an encoder and a decoder."""

import keras
import numpy as np
from keras import layers, ops

from programs.blocks import TokenAndPosition, TransformerBlock
from programs.registry import (
    Program,
    floats,
    integers,
    program,
    register,
    sentences,
)

CROSSENTROPY = "sparse_categorical_crossentropy"


@register
class DecoderBlock(layers.Layer):
    """Attention to earlier positions and to the outputs of an encoder."""

    def __init__(self, width, heads=2, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        self.supports_masking = True
        self.to_itself = layers.MultiHeadAttention(heads, width // heads)
        self.to_encoder = layers.MultiHeadAttention(heads, width // heads)
        self.forward = keras.Sequential(
            [layers.Dense(2 * width, activation="relu"), layers.Dense(width)]
        )
        self.norms = [layers.LayerNormalization() for _ in range(3)]

    def call(self, inputs, mask=None):
        x, encoded = inputs
        x_mask, encoded_mask = (None, None) if mask is None else mask
        attended = self.to_itself(
            query=x, value=x, key=x, use_causal_mask=True, query_mask=x_mask
        )
        x = self.norms[0](x + attended)
        attended = self.to_encoder(
            query=x,
            value=encoded,
            key=encoded,
            query_mask=x_mask,
            key_mask=encoded_mask,
        )
        x = self.norms[1](x + attended)
        return self.norms[2](x + self.forward(x))

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else mask[0]

    def get_config(self):
        own = {"width": self.width, "heads": self.heads}
        return {**super().get_config(), **own}


@program
def translation_transformer():
    source = keras.Input((6,), dtype="int32", name="source")
    target = keras.Input((5,), dtype="int32", name="target")
    encoded = TokenAndPosition(6, 12, 8, mask_zero=True)(source)
    encoded = TransformerBlock(8)(encoded)
    x = TokenAndPosition(5, 10, 8, mask_zero=True)(target)
    x = layers.Dropout(0.2)(DecoderBlock(8)([x, encoded]))
    outputs = layers.Dense(10, activation="softmax")(x)
    model = keras.Model({"source": source, "target": target}, outputs)
    words = sentences(10, 8, 6)
    x = {"source": sentences(12, 8, 6), "target": words[:, :-1]}
    return Program(model, x, words[:, 1:], CROSSENTROPY)


@register
class SpeechTransformer(keras.Model):
    """Nested encoders and decoders, called by the methods of a subclassed model."""

    def __init__(self, width, vocabulary, **kwargs):
        super().__init__(**kwargs)
        self.width, self.vocabulary = width, vocabulary
        self.listen = keras.Sequential(
            [
                layers.Conv1D(width, 3, strides=2, padding="same", activation="relu"),
                layers.Conv1D(width, 3, padding="same", activation="relu"),
                TransformerBlock(width),
            ]
        )
        self.embed = TokenAndPosition(4, vocabulary, width)
        self.decoder = DecoderBlock(width)
        self.classify = layers.Dense(vocabulary)

    def decode(self, encoded, tokens):
        return self.decoder([self.embed(tokens), encoded])

    def call(self, inputs):
        sound, tokens = inputs
        return self.classify(self.decode(self.listen(sound), tokens))

    def get_config(self):
        own = {"width": self.width, "vocabulary": self.vocabulary}
        return {**super().get_config(), **own}


@program
def speech_transformer():
    tokens = integers(9, 8, 5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x = [floats(8, 8, 3), tokens[:, :-1]]
    return Program(SpeechTransformer(8, 9), x, tokens[:, 1:], loss)


@program
def seq2seq_lstm():
    """The decoder starts from the states of the encoder."""
    source, target = keras.Input((None, 5)), keras.Input((None, 4))
    _, *states = layers.LSTM(6, return_state=True)(source)
    decoder = layers.LSTM(6, return_sequences=True, return_state=True)
    x, _, _ = decoder(target, initial_state=states)
    model = keras.Model([source, target], layers.Dense(4, activation="softmax")(x))
    x = [floats(8, 5, 5), floats(8, 4, 4)]
    return Program(model, x, integers(4, 8, 4), CROSSENTROPY)


@program
def seq2seq_gru_with_attention():
    source = keras.Input((6,), dtype="int32")
    target = keras.Input((4,), dtype="int32")
    embedded = layers.Embedding(12, 6, mask_zero=True)(source)
    forwards = layers.GRU(5, return_sequences=True, return_state=True)
    encoded, *states = layers.Bidirectional(forwards)(embedded)
    state = layers.Dense(6, activation="tanh")(layers.Concatenate()(states))
    x = layers.Embedding(9, 6)(target)
    x = layers.GRU(6, return_sequences=True)(x, initial_state=state)
    context = layers.AdditiveAttention()([x, layers.Dense(6)(encoded)])
    x = layers.Dense(8, activation="tanh")(layers.Concatenate()([x, context]))
    model = keras.Model([source, target], layers.Dense(9, activation="softmax")(x))
    tokens = integers(9, 8, 5)
    x = [sentences(12, 8, 6), tokens[:, :-1]]
    return Program(model, x, tokens[:, 1:], CROSSENTROPY)


@program
def addition_lstm():
    """Sums as strings of digits, by a repeated state."""
    model = keras.Sequential(
        [
            keras.Input((5, 8)),
            layers.LSTM(8),
            layers.RepeatVector(3),
            layers.LSTM(8, return_sequences=True),
            layers.Dense(8, activation="softmax"),
        ]
    )
    x = keras.utils.to_categorical(integers(8, 8, 5), 8).astype("float32")
    y = keras.utils.to_categorical(integers(8, 8, 3), 8).astype("float32")
    return Program(model, x, y, "categorical_crossentropy")


@program(outputs="mean")
def speech_ctc():
    """Spectrograms to characters without an alignment."""
    inputs = keras.Input((12, 6))
    x = layers.Reshape((12, 6, 1))(inputs)
    x = layers.Conv2D(4, 3, strides=(1, 2), padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Reshape((12, 12))(x)
    x = layers.Bidirectional(layers.GRU(6, return_sequences=True, reset_after=True))(x)
    model = keras.Model(inputs, layers.Dense(5, activation="softmax")(x))
    characters = np.random.randint(1, 5, (6, 3)).astype("int32")
    return Program(model, floats(6, 12, 6), characters, keras.losses.CTC())


@register
class Perceiver(layers.Layer):
    """A learned array attends to the inputs, and then to itself."""

    def __init__(self, num_latents, width, **kwargs):
        super().__init__(**kwargs)
        self.num_latents, self.width = num_latents, width
        self.cross = layers.MultiHeadAttention(1, width)
        self.norm = layers.LayerNormalization()
        self.block = TransformerBlock(width)

    def build(self, shape):
        self.latents = self.add_weight(
            shape=(self.num_latents, self.width),
            initializer="random_normal",
            name="latents",
        )

    def call(self, x):
        latents = ops.expand_dims(self.latents, 0)
        latents = ops.repeat(latents, ops.shape(x)[0], axis=0)
        latents = self.norm(latents + self.cross(latents, x, x))
        return self.block(latents)

    def get_config(self):
        own = {"num_latents": self.num_latents, "width": self.width}
        return {**super().get_config(), **own}


@program
def perceiver():
    inputs = keras.Input((10, 4))
    x = Perceiver(3, 8)(layers.Dense(8)(inputs))
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    return Program(model, floats(6, 10, 4), integers(3, 6), CROSSENTROPY)
