"""Programs on graphs: nodes with features, and which of them are neighbours."""

import keras
import numpy as np
from keras import layers, ops

from programs.registry import Program, floats, integers, program, register

CROSSENTROPY = "sparse_categorical_crossentropy"


def neighbours(rows, nodes):
    """Symmetric matrices of zeros and ones, with ones on the diagonal."""
    chosen = np.random.uniform(size=(rows, nodes, nodes)) < 0.3
    chosen = chosen | chosen.transpose(0, 2, 1) | np.eye(nodes, dtype=bool)
    return chosen.astype("float32")


@register
class GraphConvolution(layers.Layer):
    """A dense layer on the mean over the neighbours of a node."""

    def __init__(self, units, activation=None, **kwargs):
        super().__init__(**kwargs)
        self.units, self.activation = units, activation
        self.dense = layers.Dense(units, activation=activation)

    def call(self, inputs):
        nodes, adjacency = inputs
        degrees = ops.sum(adjacency, axis=-1, keepdims=True)
        return self.dense(ops.matmul(adjacency, nodes) / degrees)

    def get_config(self):
        own = {"units": self.units, "activation": self.activation}
        return {**super().get_config(), **own}


@program
def graph_convolution():
    nodes = keras.Input((5, 4), name="nodes")
    adjacency = keras.Input((5, 5), name="adjacency")
    x = GraphConvolution(8, "relu")([nodes, adjacency])
    x = GraphConvolution(8, "relu")([layers.Dropout(0.2)(x), adjacency])
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model([nodes, adjacency], layers.Dense(3, activation="softmax")(x))
    x = [floats(8, 5, 4), neighbours(8, 5)]
    return Program(model, x, integers(3, 8), CROSSENTROPY)


@register
class GraphAttention(layers.Layer):
    """Each node weighs its neighbours."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.project = layers.Dense(units, use_bias=False)
        self.from_node = layers.Dense(1, use_bias=False)
        self.to_node = layers.Dense(1, use_bias=False)

    def call(self, inputs):
        nodes, adjacency = inputs
        x = self.project(nodes)
        scores = self.from_node(x) + ops.transpose(self.to_node(x), (0, 2, 1))
        scores = ops.leaky_relu(scores) - 1e4 * (1.0 - adjacency)
        return ops.elu(ops.matmul(ops.softmax(scores, axis=-1), x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@program
def graph_attention():
    """A label for every node."""
    nodes = keras.Input((5, 4), name="nodes")
    adjacency = keras.Input((5, 5), name="adjacency")
    heads = [GraphAttention(4)([nodes, adjacency]) for _ in range(2)]
    x = GraphAttention(6)([layers.Concatenate()(heads), adjacency])
    inputs = {"nodes": nodes, "adjacency": adjacency}
    model = keras.Model(inputs, layers.Dense(3)(x))
    x = {"nodes": floats(8, 5, 4), "adjacency": neighbours(8, 5)}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Program(model, x, integers(3, 8, 5), loss)


@register
class RoadGraph(layers.Layer):
    """Graph convolution on roads whose neighbours are known when it is made."""

    def __init__(self, adjacency, units, **kwargs):
        super().__init__(**kwargs)
        self.adjacency, self.units = [list(row) for row in adjacency], units
        self.near = layers.EinsumDense("bnti,io->bnto", (None, None, units))
        self.own = layers.EinsumDense("bnti,io->bnto", (None, None, units))

    def call(self, x):
        adjacency = ops.convert_to_tensor(self.adjacency, dtype=x.dtype)
        spread = ops.einsum("nm,bmti->bnti", adjacency, x)
        return ops.relu(self.near(spread) + self.own(x))

    def get_config(self):
        own = {"adjacency": self.adjacency, "units": self.units}
        return {**super().get_config(), **own}


@program
def traffic():
    """Speeds on roads: a graph convolution for every step, then an LSTM."""
    roads = neighbours(1, 4)[0]
    roads = (roads / roads.sum(1, keepdims=True)).tolist()
    inputs = keras.Input((4, 6, 1))
    x = RoadGraph(roads, 5)(inputs)
    x = layers.LSTM(6)(layers.Reshape((6, 20))(layers.Permute((2, 1, 3))(x)))
    model = keras.Model(inputs, layers.Dense(4)(x))
    return Program(model, floats(8, 4, 6, 1), floats(8, 4), "mse")


@register
class MessagePassing(layers.Layer):
    """Messages along edges update the nodes by a recurrent cell."""

    def __init__(self, units, num_steps, **kwargs):
        super().__init__(**kwargs)
        self.units, self.num_steps = units, num_steps
        self.message = layers.Dense(units, activation="relu")
        self.update = layers.GRUCell(units)

    def build(self, shapes):
        self.message.build((*shapes[0][:-1], self.units))
        self.update.build((None, self.units))

    def call(self, inputs):
        nodes, adjacency = inputs
        count = nodes.shape[1]
        for _ in range(self.num_steps):
            messages = ops.matmul(adjacency, self.message(nodes))
            messages = ops.reshape(messages, (-1, self.units))
            state = ops.reshape(nodes, (-1, self.units))
            state, _ = self.update(messages, state)
            nodes = ops.reshape(state, (-1, count, self.units))
        return nodes

    def get_config(self):
        own = {"units": self.units, "num_steps": self.num_steps}
        return {**super().get_config(), **own}


@program
def message_passing():
    atoms, bonds = keras.Input((5, 4), name="atoms"), keras.Input((5, 5), name="bonds")
    x = MessagePassing(6, 2)([layers.Dense(6)(atoms), bonds])
    x = x + layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.Dense(8, activation="relu")(layers.GlobalAveragePooling1D()(x))
    model = keras.Model([atoms, bonds], layers.Dense(1, activation="sigmoid")(x))
    x = [floats(8, 5, 4), neighbours(8, 5)]
    return Program(model, x, integers(2, 8, 1), "binary_crossentropy")


@register
class Bag(layers.Layer):
    """Weighs the instances of a bag by weights of its own, gated."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.v = self.add_weight((shape[-1], self.units), "glorot_uniform", name="v")
        self.u = self.add_weight((shape[-1], self.units), "glorot_uniform", name="u")
        self.w = self.add_weight((self.units, 1), "glorot_uniform", name="w")

    def call(self, x):
        gate = ops.sigmoid(ops.tensordot(x, self.u, axes=1))
        scores = ops.tensordot(
            ops.tanh(ops.tensordot(x, self.v, axes=1)) * gate, self.w, 1
        )
        return ops.sum(ops.softmax(scores, axis=1) * x, axis=1)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@program(least_share=0.6, reason="weights of a layer of the user's own")
def multiple_instances():
    """A label for a bag of instances, by attention."""
    inputs = keras.Input((5, 6))
    x = layers.Dense(6, activation="relu")(layers.Dense(10, activation="relu")(inputs))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(Bag(4)(x)))
    return Program(model, floats(8, 5, 6), integers(2, 8), CROSSENTROPY)
