"""Programs on tables: rows of numbers and categories."""

import keras
import numpy as np
from keras import layers, ops

from programs.registry import Program, floats, integers, program, register

CROSSENTROPY = "sparse_categorical_crossentropy"


@program
def mlp():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(16, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    return Program(model, floats(8, 6), integers(3, 8), CROSSENTROPY)


@program
def wide_and_deep():
    wide, deep = keras.Input((10,), name="wide"), keras.Input((4,), name="deep")
    hidden = layers.Dense(12, activation="relu")(layers.BatchNormalization()(deep))
    hidden = layers.Dense(12, activation="relu")(hidden)
    joined = layers.Concatenate()([wide, hidden])
    model = keras.Model([wide, deep], layers.Dense(1, activation="sigmoid")(joined))
    x = [floats(8, 10), floats(8, 4)]
    return Program(model, x, integers(2, 8, 1), "binary_crossentropy")


@program
def tabular_numbers():
    """Numbers that are standardised or cut into bins, and integer categories."""
    x = {
        "age": 40.0 + 10.0 * floats(10, 1),
        "income": np.exp(floats(10, 2)),
        "region": integers(4, 10, 1),
    }
    standardize = layers.Normalization()
    standardize.adapt(x["income"])
    inputs = {
        "age": keras.Input((1,), name="age"),
        "income": keras.Input((2,), name="income"),
        "region": keras.Input((1,), dtype="int32", name="region"),
    }
    bins = layers.Discretization([30.0, 40.0, 50.0])(inputs["age"])
    features = [
        layers.CategoryEncoding(4, output_mode="one_hot")(bins),
        standardize(inputs["income"]),
        layers.CategoryEncoding(4, output_mode="one_hot")(inputs["region"]),
    ]
    hidden = layers.Dense(12, activation="relu")(layers.Concatenate()(features))
    model = keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.3)(hidden)))
    return Program(model, x, floats(10, 1), "mse")


def chosen(values, dtype):
    """A column of some of the values, a tensor: Keras takes no arrays of strings."""
    return ops.convert_to_tensor(np.random.choice(values, (10, 1)), dtype=dtype)


# Elsewhere Keras looks up strings in the input pipeline alone.
@program(backends=("tensorflow",))
def tabular_lookups():
    x = {
        "job": chosen(["cook", "nurse", "pilot", "clown"], "string"),
        "city": chosen(["Bonn", "Oslo", "Rome"], "string"),
        "code": chosen([3, 5, 8, 13], "int32"),
    }
    inputs = {
        "job": keras.Input((1,), dtype="string", name="job"),
        "city": keras.Input((1,), dtype="string", name="city"),
        "code": keras.Input((1,), dtype="int32", name="code"),
    }
    job = layers.StringLookup(vocabulary=["cook", "nurse", "pilot"])(inputs["job"])
    city = layers.Hashing(num_bins=5)(inputs["city"])
    code = layers.IntegerLookup(vocabulary=[3, 5, 8], output_mode="one_hot")
    features = [
        layers.Flatten()(layers.Embedding(4, 5)(job)),
        layers.Flatten()(layers.Embedding(5, 5)(city)),
        code(inputs["code"]),
    ]
    hidden = layers.Dense(12, activation="relu")(layers.Concatenate()(features))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(hidden))
    return Program(model, x, integers(2, 10), CROSSENTROPY)


@program
def tab_transformer():
    """Columns of categories attend to each other."""
    sizes, width = (3, 5, 4), 8
    inputs = {
        "categories": keras.Input((3,), dtype="int32", name="categories"),
        "numbers": keras.Input((4,), name="numbers"),
    }
    columns = [
        layers.Embedding(size, width)(inputs["categories"][:, index])
        for index, size in enumerate(sizes)
    ]
    x = ops.stack(columns, axis=1)
    for _ in range(2):
        attended = layers.MultiHeadAttention(2, width // 2, dropout=0.1)(x, x)
        x = layers.LayerNormalization()(x + attended)
        forward = layers.Dense(2 * width, activation="gelu")(x)
        forward = layers.Dropout(0.1)(layers.Dense(width)(forward))
        x = layers.LayerNormalization()(x + forward)
    numbers = layers.LayerNormalization()(inputs["numbers"])
    joined = layers.Concatenate()([layers.Flatten()(x), numbers])
    hidden = layers.Dense(16, activation="selu")(joined)
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(hidden))
    x = {
        "categories": np.stack([integers(size, 8) for size in sizes], axis=1),
        "numbers": floats(8, 4),
    }
    return Program(model, x, integers(2, 8, 1), "binary_crossentropy")


@register
class Cross(layers.Layer):
    """One layer of a deep and cross network: x_0 * (W x + b) + x."""

    def build(self, shapes):
        self.dense = layers.Dense(shapes[1][-1])

    def call(self, inputs):
        first, x = inputs
        return first * self.dense(x) + x


@program
def deep_and_cross():
    x = inputs = keras.Input((7,))
    for _ in range(2):
        x = Cross()([inputs, x])
    deep = layers.Dense(12, activation="relu")(inputs)
    joined = layers.concatenate([x, layers.Dense(12, activation="relu")(deep)])
    model = keras.Model(inputs, layers.Dense(3)(joined))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Program(model, floats(8, 7), integers(3, 8), loss)


@register
class GatedResidual(layers.Layer):
    """A gated residual network, which can pass its inputs by."""

    def __init__(self, units, rate=0.1, **kwargs):
        super().__init__(**kwargs)
        self.units, self.rate = units, rate
        self.hidden = layers.Dense(units, activation="elu")
        self.linear = layers.Dense(units)
        self.dropout = layers.Dropout(rate)
        self.gate = layers.Dense(units, activation="sigmoid")
        self.value = layers.Dense(units)
        self.norm = layers.LayerNormalization()
        self.project = layers.Dense(units)

    def call(self, inputs, training=None):
        x = self.dropout(self.linear(self.hidden(inputs)), training=training)
        if inputs.shape[-1] != self.units:
            inputs = self.project(inputs)
        return self.norm(inputs + self.gate(x) * self.value(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units, "rate": self.rate}


@register
class VariableSelection(layers.Layer):
    """Weighs the features of a row by a softmax that it computes from all of them."""

    def __init__(self, num_features, units, **kwargs):
        super().__init__(**kwargs)
        self.num_features, self.units = num_features, units
        self.networks = [GatedResidual(units) for _ in range(num_features)]
        self.weigher = GatedResidual(num_features)

    def call(self, inputs):
        weights = ops.softmax(self.weigher(inputs), axis=-1)
        features = ops.split(inputs, self.num_features, axis=-1)
        values = [network(x) for network, x in zip(self.networks, features)]
        return ops.sum(ops.stack(values, axis=1) * weights[..., None], axis=1)

    def get_config(self):
        own = {"num_features": self.num_features, "units": self.units}
        return {**super().get_config(), **own}


@program
def gated_residual():
    inputs = keras.Input((3,))
    x = GatedResidual(10)(VariableSelection(3, 10)(inputs))
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
    return Program(model, floats(8, 3), integers(2, 8, 1), "binary_crossentropy")


@program
def matrix_factorization():
    user = keras.Input((1,), dtype="int32", name="user")
    item = keras.Input((1,), dtype="int32", name="item")
    factors = [layers.Embedding(6, 4)(user), layers.Embedding(9, 4)(item)]
    biases = [layers.Embedding(6, 1)(user), layers.Embedding(9, 1)(item)]
    score = layers.Dot(axes=2)(factors)
    score = layers.Flatten()(layers.Add()([score, *biases]))
    model = keras.Model([user, item], score)
    x = [integers(6, 10, 1), integers(9, 10, 1)]
    return Program(model, x, floats(10, 1), "mse")


@register
class Recommender(keras.Model):
    """Scores pairs of a user and an item by the product of their factors."""

    def __init__(self, num_users, num_items, width, **kwargs):
        super().__init__(**kwargs)
        self.sizes = num_users, num_items, width
        self.user = layers.Embedding(
            num_users, width, embeddings_regularizer=keras.regularizers.L2(1e-6)
        )
        self.user_bias = layers.Embedding(num_users, 1)
        self.item = layers.Embedding(num_items, width)
        self.item_bias = layers.Embedding(num_items, 1)

    def call(self, pairs):
        user, item = pairs[:, 0], pairs[:, 1]
        product = ops.sum(self.user(user) * self.item(item), axis=1, keepdims=True)
        return ops.sigmoid(product + self.user_bias(user) + self.item_bias(item))

    def get_config(self):
        names = ("num_users", "num_items", "width")
        return {**super().get_config(), **dict(zip(names, self.sizes))}


@program
def recommender():
    pairs = np.stack([integers(6, 10), integers(9, 10)], axis=1)
    return Program(Recommender(6, 9, 4), pairs, integers(2, 10, 1), "mse")


@register
class MixtureOfExperts(layers.Layer):
    def __init__(self, num_experts, units, **kwargs):
        super().__init__(**kwargs)
        self.num_experts, self.units = num_experts, units
        self.experts = [layers.Dense(units, "relu") for _ in range(num_experts)]
        self.router = layers.Dense(num_experts, "softmax")

    def call(self, x):
        outputs = ops.stack([expert(x) for expert in self.experts], axis=1)
        return ops.einsum("be,beu->bu", self.router(x), outputs)

    def get_config(self):
        own = {"num_experts": self.num_experts, "units": self.units}
        return {**super().get_config(), **own}


@program
def mixture_of_experts():
    inputs = keras.Input((5,))
    x = MixtureOfExperts(3, 8)(inputs)
    x = MixtureOfExperts(2, 8)(x)
    model = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
    return Program(model, floats(8, 5), integers(4, 8), CROSSENTROPY)


@program
def regularized_mlp():
    """All kinds of regularizers; a posterior takes the place of those of weights."""
    l1_and_l2 = keras.regularizers.L1L2(1e-4, 1e-4)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(12, activation="relu", kernel_regularizer="l2"),
            layers.Dense(12, activation="tanh", activity_regularizer="l1"),
            layers.ActivityRegularization(l2=1e-3),
            layers.Dense(2, kernel_regularizer=l1_and_l2, bias_regularizer="l2"),
        ]
    )
    return Program(model, floats(8, 6), floats(8, 2), "huber")


@program
def self_normalizing():
    """Noise in training that is no dropout of units."""
    inputs = keras.Input((6,))
    x = layers.GaussianNoise(0.1)(inputs)
    for _ in range(2):
        x = layers.Dense(
            12, activation="selu", kernel_initializer="lecun_normal", use_bias=False
        )(x)
        x = layers.AlphaDropout(0.1)(x)
    x = layers.GaussianDropout(0.1)(layers.PReLU()(layers.Dense(12)(x)))
    model = keras.Model(inputs, layers.Dense(1)(x))
    return Program(model, floats(8, 6), floats(8, 1), "mae")


@program(least_share=0.6, reason="a wrapper rewrites the kernels that it divides")
def spectral_mlp():
    inputs = keras.Input((6,))
    x = layers.SpectralNormalization(layers.Dense(12))(inputs)
    x = layers.Dense(12)(layers.LeakyReLU(0.2)(x))
    model = keras.Model(inputs, layers.Dense(1)(ops.relu(x)))
    return Program(model, floats(8, 6), floats(8, 1), "mse")


@register
class HyperDense(layers.Layer):
    """A dense layer of which every row has weights of its own, by another network."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shapes):
        self.width = shapes[0][-1]
        self.kernel_of = layers.Dense(self.width * self.units, name="kernel_of")
        self.bias_of = layers.Dense(self.units, name="bias_of")

    def call(self, inputs):
        x, context = inputs
        kernel = ops.reshape(self.kernel_of(context), (-1, self.width, self.units))
        return ops.einsum("bi,biu->bu", x, kernel) + self.bias_of(context)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@program
def hypernetwork():
    x, context = keras.Input((4,), name="x"), keras.Input((3,), name="context")
    code = layers.Dense(5, activation="tanh")(context)
    hidden = ops.tanh(HyperDense(6)([x, code]))
    model = keras.Model({"x": x, "context": context}, HyperDense(1)([hidden, code]))
    data = {"x": floats(8, 4), "context": floats(8, 3)}
    return Program(model, data, floats(8, 1), "mse")


@register
class Linear(layers.Layer):
    """The dense layer of the guides, with weights of its own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], self.units), name="w")
        self.b = self.add_weight(shape=(self.units,), initializer="zeros", name="b")

    def call(self, x):
        return ops.einsum("...i,iu->...u", x, self.w) + self.b

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@program(least_share=0.5, reason="weights of a layer of the user's own")
def linear_from_scratch():
    inputs = keras.Input((6,))
    x = ops.relu(Linear(8)(inputs))
    x = layers.Dense(12, activation="relu")(x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Program(model, floats(8, 6), integers(3, 8), loss)
