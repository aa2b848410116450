"""Programs of the ways in which Keras lets users write a model."""

import keras
from keras import layers, ops

from programs.registry import Program, floats, integers, program, register

CROSSENTROPY = "sparse_categorical_crossentropy"


@program
def two_outputs():
    """A shared trunk, and a list of outputs."""
    inputs = keras.Input((6,))
    trunk = layers.Dense(10, activation="relu")(inputs)
    label = layers.Dense(3, activation="softmax")(trunk)
    value = layers.Dense(1)(layers.Dense(6, activation="tanh")(trunk))
    model = keras.Model(inputs, [label, value])
    return Program(
        model, floats(8, 6), [integers(3, 8), floats(8, 1)], [CROSSENTROPY, "mse"]
    )


@program
def nested_models():
    """Models in models, one of which is called twice."""
    first, second = keras.Input((4,)), keras.Input((4,))
    dense = layers.Dense(6, activation="relu")
    joined = layers.Concatenate()([dense(first), dense(second)])
    inner = keras.Model([first, second], joined, name="inner")
    outer = keras.Sequential(
        [keras.Input((12,)), layers.Dense(6), layers.BatchNormalization()], name="outer"
    )
    left, right = keras.Input((4,)), keras.Input((4,))
    x = layers.Average()([outer(inner([left, right])), outer(inner([right, left]))])
    model = keras.Model([left, right], layers.Dense(2, activation="softmax")(x))
    return Program(model, [floats(8, 4), floats(8, 4)], integers(2, 8), CROSSENTROPY)


@register
class ListOfLayers(keras.Model):
    def __init__(self, widths, **kwargs):
        super().__init__(**kwargs)
        self.widths = list(widths)
        self.hidden = [layers.Dense(width, activation="relu") for width in widths]
        self.out = layers.Dense(1)

    def call(self, x):
        for layer in self.hidden:
            x = layer(x)
        return self.out(x)

    def get_config(self):
        return {**super().get_config(), "widths": self.widths}


@program
def list_of_layers():
    return Program(ListOfLayers([10, 8, 6]), floats(8, 5), floats(8, 1), "mse")


@register
class DictOfLayers(keras.Model):
    """A dict of layers for a dict of inputs."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.branches = {
            "left": layers.Dense(units, activation="relu"),
            "right": keras.Sequential([layers.Dense(units), layers.ReLU()]),
        }
        self.heads = {"sum": layers.Dense(1), "kind": layers.Dense(3, "softmax")}

    def call(self, inputs):
        parts = [self.branches[name](inputs[name]) for name in ("left", "right")]
        x = ops.concatenate(parts, axis=-1)
        return {name: head(x) for name, head in self.heads.items()}

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@program
def dict_of_layers():
    x = {"left": floats(8, 4), "right": floats(8, 3)}
    y = {"sum": floats(8, 1), "kind": integers(3, 8)}
    return Program(DictOfLayers(8), x, y, {"sum": "mse", "kind": CROSSENTROPY})


@register
class MadeInBuild(layers.Layer):
    """Knows its layers when it knows its inputs; squeezes and excites them."""

    def __init__(self, ratio=2, **kwargs):
        super().__init__(**kwargs)
        self.ratio = ratio

    def build(self, shape):
        self.squeeze = layers.Dense(shape[-1] // self.ratio, activation="relu")
        self.excite = layers.Dense(shape[-1], activation="sigmoid")
        self.squeeze.build(shape)
        self.excite.build((*shape[:-1], shape[-1] // self.ratio))

    def call(self, x):
        return x * self.excite(self.squeeze(x))

    def get_config(self):
        return {**super().get_config(), "ratio": self.ratio}


@program
def made_in_build():
    inputs = keras.Input((8,))
    x = MadeInBuild(4)(MadeInBuild()(inputs))
    model = keras.Model(inputs, layers.Dense(1)(x))
    return Program(model, floats(8, 8), floats(8, 1), "mse")


@register
def saturated(x):
    return x / (1.0 + ops.max(ops.abs(x), axis=-1, keepdims=True))


# Keras loads a function without a name only where it is trusted.
@program(safe_mode=False)
def with_lambdas():
    inputs = keras.Input((6,))
    x = layers.Lambda(lambda x: (x - 0.5) * 2.0)(inputs)
    x = layers.Dense(10, activation="relu")(x)
    x = layers.Lambda(saturated)(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    return Program(model, floats(8, 6), floats(8, 2), "mse")


class Scaled(layers.Layer):
    """Takes a function, and no name."""

    def __init__(self, units, function):
        super().__init__()
        self.units, self.function = units, function
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.function(self.dense(x))


@program(has_config=False)
def layer_without_config():
    inputs = keras.Input((6,))
    x = Scaled(8, ops.sin)(Scaled(8, ops.tanh)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    return Program(model, floats(8, 6), floats(8, 2), "mse")


class EncoderDecoder(keras.Model):
    """A model of two models, with no config."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def call(self, x, training=None):
        return self.decoder(self.encoder(x, training=training), training=training)


@program(has_config=False, least_share=0.85, reason="a tenth is normalisation")
def model_without_config():
    encoder = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dropout(0.1)]
    )
    decoder = keras.Sequential(
        [keras.Input((8,)), layers.BatchNormalization(), layers.Dense(6)]
    )
    x = floats(8, 6)
    return Program(EncoderDecoder(encoder, decoder), x, x, "mse")


@register
class FunctionalSubclass(keras.Model):
    """A functional model that its own constructor builds."""

    def __init__(self, units, **kwargs):
        inputs = keras.Input((6,))
        x = layers.Dense(units, activation="relu", name="hidden")(inputs)
        super().__init__(inputs, layers.Dense(3, name="head")(x), **kwargs)
        self.units = units

    def get_config(self):
        return {"name": self.name, "units": self.units}


@program
def functional_subclass():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Program(FunctionalSubclass(10), floats(8, 6), integers(3, 8), loss)


@program(policy="mixed_float16", atol=1e-2)
def mixed_precision():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, activation="relu")(inputs)
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, strides=2)(x))
    x = layers.Dense(8, activation="relu")(layers.Flatten()(x))
    outputs = layers.Dense(3)(x)
    outputs = layers.Activation("softmax", dtype="float32")(outputs)
    model = keras.Model(inputs, outputs)
    return Program(model, floats(6, 8, 8, 3), integers(3, 6), CROSSENTROPY)


@program
def einsum_dense():
    """Attention that is written out."""
    inputs = keras.Input((5, 6))
    query, key, value = (
        layers.EinsumDense("btd,dhk->bthk", (None, 2, 3), bias_axes="hk")(inputs)
        for _ in range(3)
    )
    scores = ops.softmax(ops.einsum("bqhk,bthk->bhqt", query, key) / 3**0.5)
    x = ops.einsum("bhqt,bthk->bqhk", scores, value)
    x = layers.EinsumDense("bthk,hkd->btd", (None, 6), bias_axes="d")(x)
    x = layers.GlobalAveragePooling1D()(layers.Add()([x, inputs]))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    return Program(model, floats(8, 5, 6), integers(2, 8), CROSSENTROPY)
