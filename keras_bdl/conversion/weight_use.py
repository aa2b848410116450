"""Finds which layers inside users' layers can be replaced, by a run of a copy.

A user's layer may read or assign the weights of a layer that it holds (a masked or
normalised convolution, tied weights). If a layer with a posterior took the place of the
inner layer, the draws of its weights would never be masked, or never be used.
"""

import contextlib
import functools
import inspect

import keras

from keras_bdl.core import finding
from keras_bdl.graphs.copy import ModelCopier, Obstacle, is_holder
from keras_bdl.graphs.layer_copy import made_anew


def obstacles(model, candidates):
    """Returns reasons against replacing layers inside the user's layers.

    Args:
        model: built Keras model. A copy of it is run.
        candidates: plain layers of the model.

    Returns:
        Dict from the id of a layer to the reason.
    """
    holders = [x for x in finding.flatten_layers(model) if is_holder(x)]
    inside = {id(inner) for x in holders for inner in finding.flatten_layers(x)}
    left = {id(layer): layer for layer in candidates if id(layer) in inside}
    reasons = {}
    while left:
        run = _DryRun(left.values())
        try:
            run.copy(model)
        except Obstacle as obstacle:
            found = {id(layer): obstacle.reason for layer in obstacle.layers}
        else:
            found = {id(x): run.uses[id(x)].obstacle() for x in left.values()}
            found = {key: reason for key, reason in found.items() if reason}
            return reasons | found
        reasons |= found
        left = {key: layer for key, layer in left.items() if key not in found}
    return reasons


# Reasons that hold for the layer around too.
NOT_CALLED = "is not used by being called"
ASSIGNED = "has weights that the layer around it assigns"


class _Use:
    """Records how one layer is used."""

    def __init__(self):
        self.running = 0
        self.is_called = self.reads_itself = self.is_read = False
        self.is_assigned = False
        self.has_weights = False

    def obstacle(self):
        """Returns why the layer cannot be replaced, or None if it can."""
        if self.is_assigned:
            return ASSIGNED
        if self.is_read:
            return "has weights that the layer around it reads"
        if not self.is_called:
            return NOT_CALLED
        if self.has_weights and not self.reads_itself:
            return "is called with other weights than its own"
        return None


class _DryRun(ModelCopier):
    """Puts plain copies in place of the candidates, and watches their weights."""

    def __init__(self, candidates):
        super().__init__(candidates, self._watched_copy)
        self.uses = {}
        self._holders_running = 0

    def _watched_copy(self, layer):
        copy = made_anew(layer)
        copy.build_from_config(layer.get_build_config())
        use = self.uses[id(layer)] = _Use()
        call = copy.call

        @functools.wraps(call)
        def watched_call(*args, **kwargs):
            use.is_called = True
            use.running += 1
            try:
                return call(*args, **kwargs)
            finally:
                use.running -= 1

        object.__setattr__(copy, "call", watched_call)
        note = functools.partial(self._note, use)
        for variable in copy.weights:
            use.has_weights = True
            object.__setattr__(variable, "noted_by", note)
            variable.__class__ = _watched_class(type(variable))
        return copy

    def _note(self, use, assigned=False):
        """Records that a variable is read or assigned."""
        if use.running:
            use.reads_itself = True
        elif self._holders_running:
            use.is_read = True
            use.is_assigned = use.is_assigned or assigned

    def _copy_holder(self, layer):
        copy = super()._copy_holder(layer)
        call = copy.call
        parameters = inspect.signature(call).parameters

        @functools.wraps(call)
        def watched_call(*args, **kwargs):
            self._holders_running += 1
            try:
                if "training" in parameters and not kwargs.get("training"):
                    # The user's code may not be made for this mode.
                    with contextlib.suppress(Exception):
                        call(*args, **{**kwargs, "training": True})
                return call(*args, **kwargs)
            finally:
                self._holders_running -= 1

        object.__setattr__(copy, "call", watched_call)
        # Keras would not run `call` if the layer computes its output shape itself.
        by_call = functools.partial(keras.Operation.compute_output_spec, copy)
        object.__setattr__(copy, "compute_output_spec", by_call)
        return copy


@functools.cache
def _watched_class(cls):
    """Returns a class of variables that report when they are read or assigned."""

    class Watched(cls):
        @property
        def value(self):
            self.noted_by()
            return super().value

        def assign(self, value):
            self.noted_by(assigned=True)
            return super().assign(value)

    return Watched
