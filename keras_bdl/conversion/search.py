"""Finds which layers of a model can be replaced, by which class, and why not."""

import dataclasses
import math

import keras

from keras_bdl.conversion import weight_use
from keras_bdl.core import finding, stochastic
from keras_bdl.graphs.converted import held_layers, layers_of
from keras_bdl.graphs.copy import is_holder
from keras_bdl.maps import weights_inside

# A layer is wrapped whole if more than this part of its trained weights is in none of
# the layers inside.
_MOST_OWN_WEIGHTS = 0.1


@dataclasses.dataclass
class Found:
    """A layer, the class that can replace it (or None), and a reason against it.

    `weights` says which weights of a layer that is wrapped get a posterior. `on_demand`
    is the class that wraps a layer without matrices, if `layers` names it.
    """

    layer: keras.layers.Layer
    cls: type | None
    reason: str | None
    is_frozen: bool = False
    weights: str | list[str] = "matrices"
    on_demand: type | None = None

    def weights_of_copy(self):
        """Returns `weights`, with names of weights, which are the same in a copy."""
        if isinstance(self.weights, str):
            return self.weights
        return list(weights_inside(self.layer, self.weights))


def find(model, classes, wrapper=None, whole=True):
    """Returns a `Found` for every layer that has weights or could be replaced.

    Args:
        model: built Keras model.
        classes: classes that replace layers of a Keras class.
        wrapper: class that wraps a layer without a counterpart, or None.
        whole: whether it may also wrap a layer or the model whole, if layers inside
            cannot be replaced one by one. The layers inside are then not in the list.
    """
    found = _listed(model, classes, wrapper)
    candidates = [entry.layer for entry in found if entry.cls or entry.on_demand]
    reasons = weight_use.obstacles(model, candidates)
    holders = [x for x in finding.flatten_layers(model) if is_holder(x)]
    wrapped = {}
    if wrapper is not None and whole:
        wrapped = _holders_to_wrap(model, holders, reasons, wrapper)
        nothing = not any(x.cls and id(x.layer) not in reasons for x in found)
        if id(model) in wrapped or (
            nothing and not wrapped and wrapper.obstacle(model) is None
        ):
            return [Found(model, wrapper, None)]
    inside = {
        id(inner): holder
        for holder in wrapped.values()
        for inner in finding.flatten_layers(holder)
    }
    result, done = [], set()
    for entry in found:
        holder = inside.get(id(entry.layer))
        if holder is not None:
            if id(holder) not in done:
                result.append(Found(holder, wrapper, None))
            done.add(id(holder))
            continue
        if id(entry.layer) in reasons:
            entry.cls, entry.reason = None, reasons[id(entry.layer)]
            entry.on_demand = None
        elif entry.cls and entry.is_frozen:
            entry.reason = "is frozen (`trainable=False`)"
        result.append(entry)
    return result


def _listed(model, classes, wrapper):
    """Returns a `Found` for every layer, without regard to how layers are used."""
    found, seen = [], set()

    def visit(layer, is_frozen):
        if id(layer) in seen:
            return
        seen.add(id(layer))
        is_frozen = is_frozen or not layer.trainable
        if stochastic.is_whole(layer):
            found.append(Found(layer, None, "is Bayesian already"))
            return
        cls = next((cls for cls in classes if cls.replaces(layer)), None)
        if cls is not None:
            reason = cls.obstacle(layer) if layer.built else "is never called"
            frozen = is_frozen and bool(layer.weights)
            found.append(Found(layer, None if reason else cls, reason, frozen))
            return
        inner = _inside(layer)
        if wrapper is not None and layer.weights and _is_one(layer, inner):
            reason = wrapper.obstacle(layer)
            entry = Found(layer, None if reason else wrapper, reason, is_frozen)
            if reason == wrapper.NO_MATRIX:
                entry.on_demand = wrapper
            found.append(entry)
            return
        for part in inner:
            visit(part, is_frozen)
        if not inner and layer.weights:
            found.append(Found(layer, None, "has no counterpart"))

    for part in _inside(model):
        visit(part, not model.trainable)
    return found


def _inside(layer):
    """Returns the inner layers of a layer that can be reached."""
    if isinstance(layer, keras.Model) and finding.is_graph(layer):
        return layer.layers
    if type(layer) is keras.layers.TimeDistributed:
        return [layer.layer]
    if type(layer).__module__.split(".")[0] == "keras":
        return []  # Keras makes and uses the inner layers in its own way
    return layers_of(held_layers(layer))


def _is_one(layer, inner):
    """Returns whether a layer is one unit: most of its weights are its own."""
    inside = {id(weight) for part in inner for weight in part.trainable_weights}
    sizes = [(id(w) in inside, math.prod(w.shape)) for w in layer.trainable_weights]
    own = sum(size for is_inside, size in sizes if not is_inside)
    return own > _MOST_OWN_WEIGHTS * sum(size for _, size in sizes) or not inner


def _holders_to_wrap(model, holders, reasons, wrapper):
    """Returns the users' layers, by id, that have to be wrapped whole.

    They read the weights of a layer inside, call it in a way of their own, or cannot be
    made again.
    """
    final = (weight_use.NOT_CALLED, weight_use.ASSIGNED)
    wrapped = {}
    for holder in holders:
        inside = [reasons.get(id(x)) for x in finding.flatten_layers(holder)]
        is_outermost = not any(
            holder is not outer and holder in finding.flatten_layers(outer)
            for outer in holders
            if outer is not model
        )
        cures = any(r is not None and r not in final for r in inside)
        if cures and is_outermost and weight_use.ASSIGNED not in inside:
            wrapped[id(holder)] = holder
    inner = {k: v for k, v in wrapped.items() if v is not model}
    covered = {id(x) for v in inner.values() for x in finding.flatten_layers(v)}
    open_ones = [k for k, r in reasons.items() if r not in final and k not in covered]
    if not open_ones:
        wrapped = inner
    return {k: v for k, v in wrapped.items() if wrapper.obstacle(v) is None}
