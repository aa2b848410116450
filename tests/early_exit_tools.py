"""A block of residual units in NumPy and as a plain layer, to compare with."""

import keras
import numpy as np
from contract import to_numpy
from keras import ops
from scipy import special


class ResidualStack(keras.layers.Layer):
    """All states of a block, of which each row takes the one where it stops."""

    def __init__(self, units, objective="map", exit_threshold=0.5, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.objective = objective
        self.exit_threshold = exit_threshold
        self.block = None  # whose weights and heads to take; None: nothing stops

    def take(self, block, shape):
        self.block = block
        for mine, its in zip(self.units, block.units):
            mine.build((None, *shape))
            mine.set_weights(its.get_weights())

    def states(self, inputs):
        states = []
        x = ops.convert_to_tensor(inputs)
        for unit in self.units:
            x = x + unit(x)
            states.append(x)
        return states

    def call(self, inputs):
        states = self.states(inputs)
        if self.block is None or not len(inputs):
            return states[-1]
        depths = self.depths(states)
        rows = np.arange(len(depths))
        return ops.convert_to_tensor(
            np.stack([to_numpy(state) for state in states])[depths - 1, rows]
        )

    def logits(self, states):
        return block_logits(self.block, [to_numpy(state) for state in states])

    def depths(self, states):
        logits = self.logits(states)
        stops = special.expit(logits)
        if self.objective == "elbo":
            stops = 1.0 - np.cumprod(1.0 - stops, axis=1)
            stops = np.concatenate([stops, np.ones((len(stops), 1))], axis=1)
            return (stops >= self.exit_threshold).argmax(axis=1) + 1
        stops = np.concatenate([stops, np.ones((len(stops), 1))], axis=1)
        return (stops > self.exit_threshold).argmax(axis=1) + 1

    def compute_output_shape(self, input_shape):
        return input_shape


def block_logits(block, states):
    """Logits of the default heads, `(n, L - 1)`."""
    logits = np.zeros((len(states[0]), 0))
    for head, state in zip(block.halting_heads, states):
        pooled = state.reshape(len(state), -1, state.shape[-1]).mean(axis=1)
        kernel, bias = head.get_weights()
        logits = np.concatenate([logits, pooled @ kernel + bias], axis=1)
    return logits


def halting_probs(logits):
    """q(z = l), `(n, L)`, term by term."""
    h = np.concatenate([special.expit(logits), np.ones((len(logits), 1))], axis=1)
    q = np.zeros_like(h)
    left = np.ones(len(h))
    for index in range(h.shape[1]):
        q[:, index] = left * h[:, index]
        left = left * (1 - h[:, index])
    return q


def randomize_heads(block, seed=0, scale=1.0, bias=0.0):
    rng = np.random.default_rng(seed)
    for head in block.halting_heads:
        kernel, old = head.get_weights()
        head.set_weights([scale * rng.normal(size=kernel.shape), 0 * old + bias])


def numpy_network(weights, x, num_units):
    """Logits of the classes at each depth, and q, of a small dense network.

    Args:
        weights: those of `num_units` tanh units, then of the heads, then of the last
            Dense layer: kernel, bias, kernel, bias ...
    """
    pairs = list(zip(weights[::2], weights[1::2]))
    units, heads = pairs[:num_units], pairs[num_units:-1]
    states, logits = [], []
    for index, (kernel, bias) in enumerate(units):
        x = x + np.tanh(x @ kernel + bias)
        states.append(x)
        if index < num_units - 1:
            logits.append(x @ heads[index][0] + heads[index][1])
    kernel, bias = pairs[-1]
    outputs = np.stack([state @ kernel + bias for state in states])
    return outputs, halting_probs(np.concatenate(logits, axis=1))


def numeric_gradients(loss, weights, step=1e-5):
    """Central differences of a function of a list of float64 arrays."""
    gradients = []
    for array in weights:
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            value = array[index]
            array[index] = value + step
            above = loss(weights)
            array[index] = value - step
            gradient[index] = (above - loss(weights)) / (2 * step)
            array[index] = value
        gradients.append(gradient)
    return gradients
