"""Models as users write them, to be converted: one table for several test files.

`ZOO` has by name a function that makes a built model, and its inputs.
"""

import keras
import numpy as np
from keras import layers, ops

rng = np.random.default_rng(0)
register = keras.saving.register_keras_serializable("zoo")


def floats(*shape):
    return rng.normal(size=(3, *shape)).astype("float32")


def tokens(*shape):
    return rng.integers(0, 7, size=(3, *shape)).astype("int32")


def functional(shape, *parts, dtype=None):
    x = inputs = keras.Input(shape, dtype=dtype)
    for part in parts:
        x = part(x)
    return keras.Model(inputs, x)


def head():
    return layers.Dense(2, name="head")


# Layers that hold others, with a config


@register
class Block(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units, activation="relu", name="inner")

    def call(self, x):
        return x + self.dense(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@register
class ShapedBlock(Block):
    """Says its output shape, so that Keras does not run it to know."""

    def build(self, input_shape):
        self.dense.build(input_shape)

    def compute_output_shape(self, input_shape):
        return input_shape


@register
class Containers(layers.Layer):
    """Lists built by `append`, dicts, tuples, a Sequential, blocks in blocks."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.stack = []
        for index in range(2):
            self.stack.append(layers.Dense(units, "tanh", name=f"stack_{index}"))
        self.norm = layers.BatchNormalization()
        self.heads = {"b": layers.Dense(units), 1: (layers.Dense(units), Block(units))}
        self.named = {"x": [layers.Dense(units, name="named"), Block(units)]}
        self.net = keras.Sequential([layers.Dense(units, name="net"), layers.ReLU()])
        self.attention = layers.MultiHeadAttention(1, units)
        self.dropout = layers.Dropout(0.3)

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x, training=None):
        for layer in self.stack:
            x = layer(x)
        x = self.dropout(self.norm(x, training=training), training=training)
        for layer in self.named["x"]:
            x = layer(x)
        x = self.heads["b"](x) + self.heads[1][1](self.heads[1][0](x))
        rows = ops.expand_dims(self.net(x), 1)
        return self.scale * self.attention(rows, rows)[:, 0]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@register
class BuildsInBuild(layers.Layer):
    def build(self, input_shape):
        self.squeeze = layers.Dense(3, "relu", name="squeeze")
        self.excite = [layers.Dense(input_shape[-1], name="excite")]

    def call(self, x):
        return x * self.excite[0](self.squeeze(x))


# Layers that Keras cannot make again from their config


class Patches(layers.Layer):
    """No `**kwargs`, no `get_config`."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def call(self, x):
        return ops.reshape(x, (-1, 8 // self.size, self.size))


class Bare(layers.Layer):
    """As `Patches`, with weights and layers."""

    def __init__(self, units, function):
        super().__init__()
        self.units, self.function = units, function
        self.dense = layers.Dense(units, name="inner")

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(1,), initializer="ones", name="scale")

    def call(self, x):
        return self.function(self.dense(x)) * self.scale


class Forgetful(layers.Layer):
    """Does not keep its argument: nobody can make it again."""

    def __init__(self, factor, weighted=False):
        super().__init__()
        self.weighted = weighted
        self.table = np.full((8,), factor, "float32")
        self.hidden_function = lambda x: x * factor if weighted else x
        self.inner = layers.Dense(8, name="inner") if weighted else None

    def build(self, input_shape):
        if self.weighted:
            self.scale = self.add_weight(shape=(8,), initializer="ones", name="scale")

    def call(self, x):
        x = self.hidden_function(x) * self.table
        return self.inner(x) * self.scale if self.weighted else x

    def get_config(self):
        raise NotImplementedError


class FewKeywords(keras.Model):
    """A subclassed model without `**kwargs` and without `get_config`."""

    def __init__(self, units):
        super().__init__()
        self.units = units
        self.hidden = layers.Dense(units, "tanh", name="hidden")
        self.out = head()

    def call(self, x):
        return self.out(self.hidden(x))


class OfParts(keras.Model):
    """A subclassed model around models that are its arguments."""

    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.decoder = encoder, decoder

    def call(self, x):
        return self.decoder(self.encoder(x))


def of_parts():
    encoder = keras.Sequential([keras.Input((8,)), layers.Dense(4, name="code")])
    decoder = keras.Sequential([layers.Dense(3, name="mid"), head()])
    return OfParts(encoder, decoder)


# Subclassed models


@register
class Net(keras.Model):
    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = layers.Dense(units, name="hidden")
        self.block = Block(units)
        self.out = head()

    def call(self, x):
        return self.out(self.block(self.hidden(x)))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def trained():
    model = Net()
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(floats(8), floats(2), verbose=0)
    return model


@register
class Tokens(keras.Model):
    """Takes integers, which no float can stand for."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = layers.Embedding(7, 4)
        self.lookup = layers.CategoryEncoding(7, output_mode="multi_hot")
        self.out = head()

    def call(self, x):
        hot = ops.one_hot(x, 7)
        features = ops.concatenate([self.embedding(x), hot], -1)
        return self.out(ops.mean(features, 1))


@register
class Mixed(keras.Model):
    """Takes a dict of integers and floats."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = layers.Dense(4, name="hidden")
        self.out = head()

    def call(self, x):
        hot = ops.one_hot(x["tokens"], 7)
        return self.out(self.hidden(x["floats"]) + ops.sum(hot, 1)[:, :4])


# Layers that read weights of those that they hold


@register
class Masked(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv1D(2, 3, padding="same", name="conv")

    def build(self, shape):
        self.conv.build(shape)
        self.mask = np.ones(self.conv.kernel.shape, "float32")
        self.mask[1:] = 0

    def call(self, x):
        self.conv.kernel.assign(self.conv.kernel * self.mask)
        return self.conv(x)


@register
class MaskedWeights(Masked):
    """As `Masked`, by the list of weights."""

    def call(self, x):
        kernel, bias = self.conv.weights
        kernel.assign(kernel * self.mask)
        return self.conv(x)


@register
class MaskedInTraining(Masked):
    def call(self, x, training=None):
        if training:
            self.conv.kernel.assign(self.conv.kernel * self.mask)
        return self.conv(x)


@register
class Normalised(layers.Wrapper):
    """Weight normalisation: the kernel is a variable of the wrapper's too."""

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)
        self.direction = self.layer.kernel
        self.length = self.add_weight(shape=(), initializer="ones", name="length")

    def call(self, x):
        norm = ops.sqrt(ops.sum(ops.square(self.direction)))
        self.direction.assign(self.direction * self.length / norm)
        return self.layer(x)


@register
class Tied(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoder = layers.Dense(3, name="encoder")
        self.out = head()

    def call(self, x):
        code = self.encoder(x)
        return self.out(ops.matmul(code, ops.transpose(self.encoder.kernel)))


@register
class FeedForward(layers.Layer):
    """Holds a graph, as transformer blocks do."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inner = keras.Sequential([layers.Dense(5, name="in"), layers.Dense(units)])

    def call(self, x):
        return x + self.inner(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@register
class Popping(layers.Layer):
    """Takes its layer out of the config that it is given, as guides show it."""

    def __init__(self, held, **kwargs):
        super().__init__(**kwargs)
        self.held = held

    def call(self, x):
        return self.held(x)

    def get_config(self):
        held = keras.saving.serialize_keras_object(self.held)
        return {**super().get_config(), "held": held}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("held")), **config)


@register
class Listed(layers.Layer):
    """Has a list of layers under a name that models have for their own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layers = [layers.Dense(8, name="first"), layers.Dense(8, name="second")]

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def spectral():
    return functional((8,), layers.SpectralNormalization(layers.Dense(4)), head())


def frozen():
    base = keras.Sequential([keras.Input((8,)), layers.Dense(4, name="frozen")])
    base.trainable = False
    return functional((8,), base, head())


def shared_between_blocks():
    block = Block(8)
    inputs = keras.Input((8,))
    return keras.Model(inputs, head()(block(block(inputs))))


ZOO = {
    "block": (lambda: functional((8,), Block(8), head()), lambda: floats(8)),
    "shaped_block": (
        lambda: functional((8,), ShapedBlock(8), head()),
        lambda: floats(8),
    ),
    "block_called_twice": (shared_between_blocks, lambda: floats(8)),
    "containers": (lambda: functional((8,), Containers(8), head()), lambda: floats(8)),
    "builds_in_build": (
        lambda: functional((8,), BuildsInBuild(), head()),
        lambda: floats(8),
    ),
    "patches": (
        lambda: functional((8,), Patches(4), layers.Flatten(), head()),
        lambda: floats(8),
    ),
    "bare": (lambda: functional((8,), Bare(8, ops.tanh), head()), lambda: floats(8)),
    "forgetful": (lambda: functional((8,), Forgetful(2.0), head()), lambda: floats(8)),
    "forgetful_weights": (
        lambda: functional((8,), Forgetful(2.0, True), head()),
        lambda: floats(8),
    ),
    "lambda": (
        lambda: functional((8,), layers.Lambda(lambda x: 3.0 * x), head()),
        lambda: floats(8),
    ),
    "few_keywords": (lambda: FewKeywords(4), lambda: floats(8)),
    "of_parts": (of_parts, lambda: floats(8)),
    "subclassed": (Net, lambda: floats(8)),
    "trained": (trained, lambda: floats(8)),
    "tokens": (Tokens, lambda: tokens(5)),
    "mixed": (Mixed, lambda: {"tokens": tokens(5), "floats": floats(8)}),
    "frozen": (frozen, lambda: floats(8)),
    "spectral": (spectral, lambda: floats(8)),
    "feed_forward": (
        lambda: functional((8,), FeedForward(8), head()),
        lambda: floats(8),
    ),
    "popping": (
        lambda: functional((8,), Popping(layers.Dense(4, name="popped")), head()),
        lambda: floats(8),
    ),
    "listed": (lambda: functional((8,), Listed(), head()), lambda: floats(8)),
    "tied": (Tied, lambda: floats(8)),
    **{
        cls.__name__: (
            lambda cls=cls: functional((8, 1), cls(), layers.Flatten(), head()),
            lambda: floats(8, 1),
        )
        for cls in (Masked, MaskedWeights, MaskedInTraining)
    },
    "Normalised": (
        lambda: functional((8,), Normalised(layers.Dense(4, name="v")), head()),
        lambda: floats(8),
    ),
}


def make(name):
    """A built model whose weights are not those of its initializers, and inputs."""
    keras.utils.set_random_seed(0)
    make_model, make_inputs = ZOO[name]
    model, x = make_model(), make_inputs()
    model(x)
    values = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(variable + values.normal(0.0, 0.1, variable.shape))
    return model, x
