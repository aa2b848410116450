"""Programs on text: classifiers, taggers and language models."""

import keras
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
VOCABULARY, LENGTH = 12, 6


def words():
    return keras.Input((LENGTH,), dtype="int32")


def binary(inputs, features):
    """The program of a classifier of sentences with these features at its end."""
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(features))
    tokens = sentences(VOCABULARY, 8, LENGTH)
    return Program(model, tokens, integers(2, 8, 1), "binary_crossentropy")


@program
def text_cnn():
    inputs = words()
    x = layers.Dropout(0.3)(layers.Embedding(VOCABULARY, 6)(inputs))
    pooled = [
        layers.GlobalMaxPooling1D()(layers.Conv1D(5, size, activation="relu")(x))
        for size in (2, 3)
    ]
    x = layers.Dense(8, activation="relu")(layers.Concatenate()(pooled))
    return binary(inputs, x)


@program
def embedding_average():
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            layers.Embedding(VOCABULARY, 6, mask_zero=True),
            layers.GlobalAveragePooling1D(),
            layers.Dense(8, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    return Program(
        model, sentences(VOCABULARY, 8, LENGTH), integers(3, 8), CROSSENTROPY
    )


@program
def bidirectional_lstm():
    inputs = words()
    x = layers.Embedding(VOCABULARY, 6)(inputs)
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True))(x)
    return binary(inputs, layers.Bidirectional(layers.LSTM(4))(x))


@program
def stacked_gru_with_masks():
    inputs = words()
    x = layers.Embedding(VOCABULARY, 6, mask_zero=True)(inputs)
    x = layers.GRU(6, return_sequences=True)(x)
    return binary(inputs, layers.GRU(5)(x))


@program
def text_transformer():
    inputs = words()
    x = TransformerBlock(8)(TokenAndPosition(LENGTH, VOCABULARY, 8)(inputs))
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(x))
    return binary(inputs, layers.Dense(8, activation="relu")(x))


@program
def masked_transformer():
    """Padding gets no attention and does not count in the average."""
    inputs = words()
    x = TokenAndPosition(LENGTH, VOCABULARY, 8, mask_zero=True)(inputs)
    x = TransformerBlock(8)(TransformerBlock(8)(x))
    return binary(inputs, layers.GlobalAveragePooling1D()(x))


@program
def entity_tagger():
    inputs = words()
    x = layers.Embedding(VOCABULARY, 6, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.GRU(5, return_sequences=True), merge_mode="sum")(x)
    x = layers.TimeDistributed(layers.Dense(6, activation="relu"))(x)
    outputs = layers.TimeDistributed(layers.Dense(4, activation="softmax"))(x)
    tokens = sentences(VOCABULARY, 8, LENGTH)
    model = keras.Model(inputs, outputs)
    return Program(model, tokens, integers(4, 8, LENGTH), CROSSENTROPY)


@register
class FourierMixing(layers.Layer):
    """Mixes tokens and channels by a Fourier transform in place of attention."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.hidden = layers.Dense(2 * width, activation="gelu")
        self.out = layers.Dense(width)
        self.norms = [layers.LayerNormalization() for _ in range(2)]

    def call(self, x):
        real, _ = ops.fft2((x, ops.zeros_like(x)))
        x = self.norms[0](x + real)
        return self.norms[1](x + self.out(self.hidden(x)))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@program
def fnet():
    inputs = words()
    x = TokenAndPosition(LENGTH, VOCABULARY, 8)(inputs)
    x = FourierMixing(8)(FourierMixing(8)(x))
    return binary(inputs, layers.GlobalAveragePooling1D()(x))


@program
def attention_to_sentence():
    """A question attends to a sentence, which convolutions have read."""
    question = keras.Input((3,), dtype="int32", name="question")
    sentence = keras.Input((LENGTH,), dtype="int32", name="sentence")
    embed = layers.Embedding(VOCABULARY, 6)
    read = layers.Conv1D(6, 3, padding="same")
    query, value = read(embed(question)), read(embed(sentence))
    answer = layers.Attention(use_scale=True, dropout=0.1)([query, value])
    pooled = [layers.GlobalAveragePooling1D()(x) for x in (query, answer)]
    x = layers.Concatenate()(pooled)
    model = keras.Model([question, sentence], layers.Dense(2, activation="softmax")(x))
    x = [integers(VOCABULARY, 8, 3), integers(VOCABULARY, 8, LENGTH)]
    return Program(model, x, integers(2, 8), CROSSENTROPY)


@program
def additive_attention():
    inputs = words()
    x = layers.Embedding(VOCABULARY, 6, mask_zero=True)(inputs)
    sequence, state = layers.GRU(6, return_sequences=True, return_state=True)(x)
    query = layers.Reshape((1, 6))(state)
    context = layers.AdditiveAttention()([query, sequence])
    x = layers.Concatenate()([layers.Flatten()(context), state])
    return binary(inputs, x)


@program
def grouped_query_attention():
    inputs = words()
    x = TokenAndPosition(LENGTH, VOCABULARY, 8)(inputs)
    attend = layers.GroupQueryAttention(4, num_query_heads=4, num_key_value_heads=2)
    x = x + attend(x, x, use_causal_mask=True)
    x = x + layers.Dense(8)(layers.Dense(16, activation="silu")(x))
    return binary(inputs, layers.GlobalMaxPooling1D()(x))


@register
class LanguageModel(keras.Model):
    """A small GPT: each token from those before it."""

    def __init__(self, vocabulary, length, width, num_blocks, **kwargs):
        super().__init__(**kwargs)
        self.arguments = (vocabulary, length, width, num_blocks)
        self.embed = TokenAndPosition(length, vocabulary, width)
        self.blocks = [TransformerBlock(width, causal=True) for _ in range(num_blocks)]
        self.out = layers.Dense(vocabulary)

    def call(self, tokens, training=None):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, training=training)
        return self.out(x)

    def get_config(self):
        names = ("vocabulary", "length", "width", "num_blocks")
        return {**super().get_config(), **dict(zip(names, self.arguments))}


@program
def mini_gpt():
    tokens = integers(VOCABULARY, 8, LENGTH + 1)
    model = LanguageModel(VOCABULARY, LENGTH, 8, 2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Program(model, tokens[:, :-1], tokens[:, 1:], loss)


@register
class TiedLanguageModel(keras.Model):
    """The scores of the next word are products with the embeddings of all words."""

    def __init__(self, vocabulary, width, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary, self.width = vocabulary, width
        self.embed = layers.Embedding(vocabulary, width)
        self.read = layers.GRU(2 * width, return_sequences=True)
        self.project = layers.Dense(width)

    def call(self, tokens):
        x = self.project(self.read(self.embed(tokens)))
        return ops.matmul(x, ops.transpose(self.embed.embeddings))

    def get_config(self):
        own = {"vocabulary": self.vocabulary, "width": self.width}
        return {**super().get_config(), **own}


@program(least_share=0.8, reason="the model reads the weights of its embedding")
def tied_language_model():
    tokens = integers(VOCABULARY, 8, LENGTH + 1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = TiedLanguageModel(VOCABULARY, 6)
    return Program(model, tokens[:, :-1], tokens[:, 1:], loss)


@program
def reversible_embedding():
    """As the tied model, by the layer of Keras that embeds and scores."""
    inputs = words()
    embed = layers.ReversibleEmbedding(VOCABULARY, 6)
    x = layers.GRU(6, return_sequences=True)(embed(inputs))
    model = keras.Model(inputs, embed(layers.Dense(6)(x), reverse=True))
    tokens = integers(VOCABULARY, 8, LENGTH + 1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Program(model, tokens[:, :-1], tokens[:, 1:], loss)


@program
def masked_language_model():
    """A small BERT: the words that are hidden, and whether a sentence follows."""
    inputs = {
        "words": keras.Input((LENGTH,), dtype="int32", name="words"),
        "segments": keras.Input((LENGTH,), dtype="int32", name="segments"),
    }
    x = TokenAndPosition(LENGTH, VOCABULARY, 8)(inputs["words"])
    x = x + layers.Embedding(2, 8)(inputs["segments"])
    x = TransformerBlock(8)(layers.LayerNormalization()(x))
    outputs = {
        "words": layers.Dense(VOCABULARY, activation="softmax")(x),
        "follows": layers.Dense(1, activation="sigmoid")(x[:, 0]),
    }
    words = integers(VOCABULARY, 8, LENGTH)
    x = {"words": words, "segments": integers(2, 8, LENGTH)}
    y = {"words": words, "follows": integers(2, 8, 1)}
    loss = {"words": CROSSENTROPY, "follows": "binary_crossentropy"}
    return Program(keras.Model(inputs, outputs), x, y, loss)


@program
def memory_network():
    """A question chooses sentences of a story by attention, as in MemN2N."""
    story = keras.Input((8,), dtype="int32", name="story")
    question = keras.Input((3,), dtype="int32", name="question")
    memory = layers.Dropout(0.2)(layers.Embedding(VOCABULARY, 6)(story))
    answers = layers.Embedding(VOCABULARY, 3)(story)
    asked = layers.Embedding(VOCABULARY, 6)(question)
    match = layers.Softmax()(layers.Dot(axes=(2, 2))([memory, asked]))
    response = layers.Permute((2, 1))(layers.Add()([match, answers]))
    x = layers.Dense(8)(layers.Concatenate()([response, asked]))
    x = layers.Dropout(0.2)(layers.LSTM(6)(x))
    outputs = layers.Dense(VOCABULARY, activation="softmax")(x)
    x = [integers(VOCABULARY, 8, 8), integers(VOCABULARY, 8, 3)]
    model = keras.Model([story, question], outputs)
    return Program(model, x, integers(VOCABULARY, 8), CROSSENTROPY)


@program
def character_lstm():
    """The next of a few characters, which are given one-hot."""
    model = keras.Sequential(
        [
            keras.Input((LENGTH, VOCABULARY)),
            layers.LSTM(8, stateful=False),
            layers.Dense(VOCABULARY, activation="softmax"),
        ]
    )
    x = keras.utils.to_categorical(integers(VOCABULARY, 8, LENGTH), VOCABULARY)
    return Program(model, x.astype("float32"), integers(VOCABULARY, 8), CROSSENTROPY)


@program
def text_similarity():
    """Two sentences through one recurrent network."""
    first, second = words(), words()
    embed = layers.Embedding(VOCABULARY, 6)
    read = layers.Bidirectional(layers.GRU(4))
    left, right = read(embed(first)), read(embed(second))
    features = [left, right, ops.abs(left - right), layers.Multiply()([left, right])]
    x = layers.Dense(8, activation="relu")(layers.Concatenate()(features))
    model = keras.Model([first, second], layers.Dense(1)(x))
    tokens = [integers(VOCABULARY, 8, LENGTH), integers(VOCABULARY, 8, LENGTH)]
    return Program(model, tokens, floats(8, 1), "mse")
