"""Communication between a model and its layers with latent variables of examples.

If a layer chooses among states for each row, Keras cannot compute the gradient of the
loss. In the training step of a keras_bdl model, a `LatentScope` is active: the model
runs several copies of the batch, the layers choose a state for each row of each copy
and record its probability, and the loss combines the losses of all copies.
"""

import keras
from keras import ops, random

from keras_bdl.core.scopes import ThreadScope
from keras_bdl.ops import estimators

# Estimators of gradients that need the loss of every row.
DISCRETE = ("score_function", "enumerate")


class LatentScope(ThreadScope):
    """Record of the layers with latent variables in one forward pass.

    Tensors are copy-major: `(num_copies * rows, ...)`.

    Args:
        num_copies: number of copies of the batch.
        estimator: "score_function", by which states are drawn; "enumerate", by which
            the copies are the combinations of all states; or None, by which layers
            report and nothing is chosen.
        forced: whether layers choose a state that would not do so otherwise.
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
        """Returns a nest of tensors whose rows are repeated, once for each copy."""
        if self.num_copies == 1:
            return tensors

        def tile(x):
            x = ops.convert_to_tensor(x)
            return ops.tile(x, (self.num_copies,) + (1,) * (len(x.shape) - 1))

        return keras.tree.map_structure(tile, tensors)

    def first_copy(self, tensor):
        """Returns the rows of the first copy, `(rows, ...)`."""
        return self._by_copy(tensor)[0]

    def choose(self, log_probs, seed):
        """Chooses a state for each row, and returns integers `(copies * rows,)`.

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
        """Returns the probability of each row's states enumerated so far, or 1."""
        if self.estimator != "enumerate" or not self._log_probs:
            return 1.0
        return ops.exp(ops.stop_gradient(sum(self._log_probs)))

    def add_term(self, values):
        """Adds a term of the objective for each row, `(copies * rows,)`."""
        self._terms.append(values)

    def loss(self, losses):
        """Returns the loss of the batch, from one loss for each row of each copy.

        Its value estimates the expectation over states, and is exact if they are
        enumerated. Its gradient is an unbiased estimate of the gradient of the
        expectation.
        """
        values = self._by_copy(sum(self._terms, losses))
        log_probs = self.log_probs()
        if self.estimator == "enumerate":
            return ops.mean(ops.sum(ops.exp(log_probs) * values, axis=0))
        return ops.mean(estimators.score_function(values, log_probs))

    def mean(self, tensor):
        """Returns the expectation of a tensor over states, `(rows, ...)`."""
        values = self._by_copy(tensor)
        if self.estimator != "enumerate":
            return ops.mean(values, axis=0)
        weights = ops.exp(self.log_probs())
        weights = ops.reshape(
            weights, (*ops.shape(weights), *[1] * (len(values.shape) - 2))
        )
        return ops.sum(ops.cast(weights, values.dtype) * values, axis=0)

    def mean_depth(self):
        """Returns the expected number of units run in all blocks, `(rows,)`."""
        return self.mean(ops.stop_gradient(sum(depth for _, depth in self.depths)))

    def log_probs(self):
        """Returns log probabilities of the states, `(copies, rows)`, in nats."""
        if self.estimator == "enumerate" and self._combinations != self.num_copies:
            raise ValueError(
                f"Expected {self.num_copies} combinations of states in one forward "
                "pass; the model must call each layer with enumerated states exactly "
                f"once. Received: {self._combinations} combinations"
            )
        if not self._log_probs:
            raise ValueError(
                "Expected a layer that chooses its states in this forward pass. "
                "Received: none was called"
            )
        return self._by_copy(sum(self._log_probs))

    def _by_copy(self, tensor):
        return ops.reshape(tensor, (self.num_copies, -1, *ops.shape(tensor)[1:]))
