"""Latent variables of examples: what their layers and a model tell each other.

A layer that chooses among states for each row makes a loss whose gradient Keras
cannot see. Within the `LatentScope` of a keras_bdl model's training step, the model
runs several copies of the batch, layers choose a state for each row of each copy and
say its probability, and the loss is made of the losses of all copies.
"""

import keras
from keras import ops, random

from keras_bdl.core.scopes import ThreadScope
from keras_bdl.ops import estimators

# Estimators of gradients that need the loss of every row.
DISCRETE = ("score_function", "enumerate")


class LatentScope(ThreadScope):
    """What the layers with latent variables told in one forward pass.

    Tensors are copy-major: `(num_copies * rows, ...)`.

    Args:
        num_copies: copies of the batch.
        estimator: "score_function": states are drawn; "enumerate": copies are the
            combinations of all states; None: nothing is chosen, layers report.
        forced: whether layers choose that otherwise would not.
    """

    def __init__(self, num_copies=1, estimator=None, forced=False):
        self.num_copies = num_copies
        self.estimator = estimator
        self.forced = forced
        self.metrics_are_updated = False
        self.depths = []  # pairs of block and depths, in the order of calls
        self.log_priors = []
        self._terms = []
        self._log_probs = []
        self._combinations = 1

    def copy(self, tensors):
        """A nest of tensors with its rows repeated, once for each copy."""
        if self.num_copies == 1:
            return tensors

        def tile(x):
            x = ops.convert_to_tensor(x)
            return ops.tile(x, (self.num_copies,) + (1,) * (len(x.shape) - 1))

        return keras.tree.map_structure(tile, tensors)

    def first_copy(self, tensor):
        """The rows of one copy, `(rows, ...)`."""
        return self._by_copy(tensor)[0]

    def choose(self, log_probs, seed):
        """A state for each row, `(copies * rows,)` integers.

        Args:
            log_probs: `(copies * rows, states)`, normalised, in nats.
            seed: `keras.random.SeedGenerator`.
        """
        num_states = log_probs.shape[-1]
        if self.estimator == "enumerate":
            copies = ops.arange(self.num_copies) // self._combinations % num_states
            self._combinations *= num_states
            rows = ops.shape(log_probs)[0] // self.num_copies
            states = ops.reshape(ops.tile(ops.expand_dims(copies, 1), (1, rows)), (-1,))
        else:
            states = random.categorical(log_probs, 1, dtype="int32", seed=seed)[:, 0]
        one_hot = ops.one_hot(states, num_states, dtype=log_probs.dtype)
        self._log_probs.append(ops.sum(one_hot * log_probs, axis=-1))
        return states

    def weights(self):
        """Probability of the enumerated states chosen so far, of each row, or 1."""
        if self.estimator != "enumerate" or not self._log_probs:
            return 1.0
        return ops.exp(ops.stop_gradient(sum(self._log_probs)))

    def add_term(self, values):
        """Adds a term of the objective for each row, `(copies * rows,)`."""
        self._terms.append(values)

    def loss(self, losses):
        """The loss of the batch, from one loss for each row of each copy.

        Its value is the expectation over states (the exact one when they are
        enumerated), its gradient an unbiased estimate of that of the expectation.
        """
        values = self._by_copy(sum(self._terms, losses))
        log_probs = self.log_probs()
        if self.estimator == "enumerate":
            return ops.mean(ops.sum(ops.exp(log_probs) * values, axis=0))
        return ops.mean(estimators.score_function(values, log_probs))

    def mean(self, tensor):
        """The expectation over states of what copies have, `(rows, ...)`."""
        values = self._by_copy(tensor)
        if self.estimator != "enumerate":
            return ops.mean(values, axis=0)
        weights = ops.exp(self.log_probs())
        weights = ops.reshape(
            weights, (*ops.shape(weights), *[1] * (len(values.shape) - 2))
        )
        return ops.sum(ops.cast(weights, values.dtype) * values, axis=0)

    def mean_depth(self):
        """Units run in all blocks, expected over states, `(rows,)`."""
        return self.mean(ops.stop_gradient(sum(depth for _, depth in self.depths)))

    def log_probs(self):
        """Log probability of the states of each copy and row, `(copies, rows)`."""
        if self.estimator == "enumerate" and self._combinations != self.num_copies:
            raise ValueError(
                f"Expected {self.num_copies} combinations of states in one forward "
                "pass; a layer with enumerated states can be called once in a model, "
                f"every time. Received: {self._combinations} combinations"
            )
        if not self._log_probs:
            raise ValueError(
                "Expected a layer that chooses its states in this forward pass. "
                "Received: none was called"
            )
        return self._by_copy(sum(self._log_probs))

    def _by_copy(self, tensor):
        return ops.reshape(tensor, (self.num_copies, -1, *ops.shape(tensor)[1:]))
