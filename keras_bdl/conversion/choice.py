"""Decides which layers of a model are replaced and which are left, and says why."""

import dataclasses

import keras

from keras_bdl.conversion.weight_use import obstacles
from keras_bdl.core import finding, stochastic
from keras_bdl.graphs.converted import held_layers, layers_of

_COLUMNS = ("layer", "class", "replaced by", "left, because")


class ConversionReport:
    """Says which layers `to_bayesian` replaced. `print` shows a table.

    Attributes:
        rows: one dict per layer that has weights or drops, in the order of the model.
            The keys are layer, class, replaced_by (name of a class, or None) and
            reason (why the layer was left, or None).
    """

    def __init__(self, rows):
        self.rows = rows

    @property
    def replaced(self):
        """Names of the layers that were replaced."""
        return [row["layer"] for row in self.rows if row["replaced_by"]]

    @property
    def left(self):
        """Dict from the name of each layer that was left to the reason."""
        return {r["layer"]: r["reason"] for r in self.rows if not r["replaced_by"]}

    def __str__(self):
        table = [_COLUMNS]
        table += [tuple(value or "" for value in row.values()) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*table)]
        return "\n".join(
            "  ".join(map(str.ljust, line, widths)).rstrip() for line in table
        )


@dataclasses.dataclass
class Found:
    """A layer, the class that can replace it (or None), and a reason against it."""

    layer: keras.layers.Layer
    cls: type | None
    reason: str | None
    is_frozen: bool = False


def find(model, classes):
    """Returns a `Found` for every layer that has weights or could be replaced."""
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
        for part in inner:
            visit(part, is_frozen)
        if not inner and layer.weights:
            found.append(Found(layer, None, "has no counterpart"))

    for part in _inside(model):
        visit(part, not model.trainable)
    candidates = [entry.layer for entry in found if entry.cls]
    reasons = obstacles(model, candidates)
    for entry in found:
        if id(entry.layer) in reasons:
            entry.cls, entry.reason = None, reasons[id(entry.layer)]
        elif entry.cls and entry.is_frozen:
            entry.reason = "is frozen (`trainable=False`)"
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


def choose(found, layers):
    """Returns the ids of the layers to replace."""
    candidates = [entry.layer for entry in found if entry.cls]
    trained = [entry.layer for entry in found if entry.cls and not entry.is_frozen]
    asked = callable(layers) or isinstance(layers, (list, tuple, set))
    if not (candidates if asked else trained):
        reasons = [f"{row.layer.name}: {row.reason}" for row in found[:5]]
        raise ValueError(
            "Nothing in the model can be replaced by this method"
            f"{'; name frozen layers in `layers`' if candidates else ''}. Received: "
            f"a model with {'; '.join(reasons) if reasons else 'no such layers'}"
        )
    name = layers if isinstance(layers, str) else None
    if name == "all":
        chosen = trained
    elif name == "last":
        chosen = trained[-1:]
    elif callable(layers):
        chosen = [layer for layer in candidates if layers(layer)]
    elif asked:
        names = {layer.name for layer in candidates}
        for name in layers:
            if name not in names:
                reasons = [x.reason for x in found if x.layer.name == name and x.reason]
                raise ValueError(
                    f"Expected `layers` to name layers that can be replaced, of "
                    f"{sorted(names)}. Received: {name!r} in layers"
                    f"{', which ' + reasons[0] if reasons else ''}"
                )
        chosen = [layer for layer in candidates if layer.name in layers]
    else:
        raise ValueError(
            "Expected `layers` to be 'all', 'last', a list of names or a function of "
            f"a layer. Received: layers={layers!r}"
        )
    if not chosen:
        raise ValueError(
            "Expected `layers` to choose at least one layer, of "
            f"{[layer.name for layer in candidates]}. Received: layers={layers!r}"
        )
    return {id(layer) for layer in chosen}


def row(entry, chosen):
    replaced = id(entry.layer) in chosen
    return {
        "layer": entry.layer.name,
        "class": type(entry.layer).__name__,
        "replaced_by": entry.cls.__name__ if replaced else None,
        "reason": None if replaced else entry.reason or "not chosen by `layers`",
    }
