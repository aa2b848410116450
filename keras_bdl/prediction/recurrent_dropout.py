"""Samples of the dropout inside recurrent layers, as draws of their weights.

Dropout of the inputs and of the state sets rows of the two kernels to 0, the same rows
at every step of a sequence: Gal and Ghahramani, "A theoretically grounded application
of dropout in recurrent neural networks", 2016, section 4.
"""

import keras
from keras import ops, random

from keras_bdl import maps
from keras_bdl.core import scopes
from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.core.stochastic import StochasticLayer
from keras_bdl.graphs.doubles import state_of

LAYERS = (keras.layers.SimpleRNN, keras.layers.GRU, keras.layers.LSTM)
RATES = {"kernel": "dropout", "recurrent_kernel": "recurrent_dropout"}
_MAP = maps.Recurrent()


class _Sampling:
    """Mixin of the double of a recurrent layer, which draws its masks in the scope."""

    def call(self, sequences, initial_state=None, mask=None, training=False):
        arguments = {"initial_state": initial_state, "mask": mask}
        scope = scopes.SamplingScope.current()
        if scope is None or isinstance(self.original, StochasticLayer):
            return super().call(sequences, training=training, **arguments)
        weights = {
            name: ops.broadcast_to(value, (scope.num_samples, *value.shape))
            for name, value in _MAP.variables(self.original).items()
        }
        weights = self.masked(weights, scope)
        weights = {n: ops.cast(w, self.compute_dtype) for n, w in weights.items()}
        return _MAP.apply_per_sample(self.original, sequences, weights, **arguments)

    def drawn_weights(self, seed, num_samples=None):
        """Draws weights from the posterior of a Bayesian layer, and masks for them."""
        weights = super().drawn_weights(seed, num_samples)
        scope = scopes.SamplingScope.current()
        return weights if scope is None else self.masked(weights, scope)

    def masked(self, weights, scope):
        """Multiplies kernels `(samples, inputs, gates * units)` by dropout masks."""
        object.__setattr__(self, "called", True)
        scope.restart(self.masks)
        cell = self.original.cell
        for name, attribute in RATES.items():
            rate = getattr(cell, attribute)
            if not 0.0 < rate < 1.0:
                continue
            kernel = weights[name]
            # By Keras, the gates have masks of their own or share one.
            gates = getattr(cell, "dropout_mask_count", None) or 1
            ones = ops.ones((*kernel.shape[:2], gates), dtype=kernel.dtype)
            mask = random.dropout(ones, rate, seed=self.masks)
            units = kernel.shape[-1] // gates
            weights[name] = kernel * ops.repeat(mask, units, axis=-1)
        return weights


def sampled_recurrent(layer):
    """Returns the double of a recurrent layer whose dropout samples.

    It shares the variables of the layer, and draws one mask per sample, which rows,
    steps and batches share.
    """
    cls = type(layer)
    double = object.__new__(type(f"Sampled{cls.__name__}", (_Sampling, cls), {}))
    double.__dict__.update(state_of(layer))
    # This avoids the tracking of Keras, in lists that both layers share.
    noise = NoiseGenerator(0, salt=layer.name)
    for name, value in {"original": layer, "masks": noise, "called": False}.items():
        object.__setattr__(double, name, value)
    return double


def has_dropout(layer):
    """Whether dropout inside a recurrent layer or a cell is above 0."""
    rates = (getattr(layer, name, 0.0) for name in RATES.values())
    return any(isinstance(rate, float) and rate > 0.0 for rate in rates)
