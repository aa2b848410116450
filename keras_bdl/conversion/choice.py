"""Chooses which layers of a model are replaced, and reports it."""

import math

from keras_bdl.core import finding
from keras_bdl.layers.bayesian import bayesian_layers

_COLUMNS = ("layer", "class", "replaced by", "left, because", "share")


class ConversionReport:
    """Says which layers `to_bayesian` replaced. `print` shows a table.

    Attributes:
        rows: one dict per layer that has weights or drops, in the order of the model.
            The keys are layer, class, replaced_by (name of a class, or None), reason
            (why the layer was left, or None) and share (part of the trained weights of
            the model, in scalars, that have a posterior in this layer).
        share: part of the trained weights of the model that have a posterior.
    """

    def __init__(self, rows):
        self.rows = rows

    @property
    def share(self):
        """Part of the trained weights of the model, in scalars, with a posterior."""
        return sum(row["share"] for row in self.rows)

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
        for row in self.rows:
            share = f"{100 * row['share']:.1f} %"
            table.append((*(x or "" for x in list(row.values())[:-1]), share))
        table.append(("all", "", "", "", f"{100 * self.share:.1f} %"))
        widths = [max(map(len, column)) for column in zip(*table)]
        return "\n".join(
            "  ".join(map(str.ljust, line, widths)).rstrip() for line in table
        )


def _ask_for_parts(found, asks):
    """Chooses layers inside of a layer that is wrapped, whose other weights stay.

    Args:
        found: list of `search.Found`.
        asks: function from a layer to whether it is asked for.
    """
    for entry in found:
        if getattr(entry.cls, "wraps_any_layer", False) and not asks(entry.layer):
            inside = finding.flatten_layers(entry.layer)[1:]
            names = [x.name for x in inside if x.trainable_weights and asks(x)]
            entry.weights = names or entry.weights


def choose(found, layers):
    """Returns the ids of the layers to replace.

    The `weights` of layers that are wrapped are set to what is asked for.
    """
    if callable(layers):
        _ask_for_parts(found, layers)
    elif isinstance(layers, (list, tuple, set)):
        for entry in found:
            if entry.on_demand and entry.layer.name in layers:
                entry.cls, entry.weights, entry.reason = entry.on_demand, "all", None
        _ask_for_parts(found, lambda layer: layer.name in layers)
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
        chosen = [x.layer for x in found if x.cls and (layers(x.layer) or _in_part(x))]
    elif asked:
        names = {layer.name for layer in candidates}
        names.update(name for x in found if _in_part(x) for name in x.weights)
        for name in layers:
            if name not in names:
                reasons = [x.reason for x in found if x.layer.name == name and x.reason]
                raise ValueError(
                    f"Expected `layers` to name layers that can be replaced, of "
                    f"{sorted(names)}. Received: {name!r} in layers"
                    f"{', which ' + reasons[0] if reasons else ''}"
                )
        chosen = [
            x.layer for x in found if x.cls and (x.layer.name in layers or _in_part(x))
        ]
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


def _in_part(entry):
    """Whether layers inside a layer are asked for, and not the layer itself."""
    return entry.cls is not None and isinstance(entry.weights, list)


def row(entry, chosen, share):
    """Returns the row of a report."""
    replaced = id(entry.layer) in chosen
    return {
        "layer": entry.layer.name,
        "class": type(entry.layer).__name__,
        "replaced_by": entry.cls.__name__ if replaced else None,
        "reason": None if replaced else entry.reason or "not chosen by `layers`",
        "share": share,
    }


def num_weights(variables):
    """Returns the number of scalars in variables or shapes."""
    shapes = (getattr(variable, "shape", variable) for variable in variables)
    return sum(math.prod(shape) for shape in shapes)


def num_uncertain(layer):
    """Returns the number of scalars with a posterior in a layer or model."""
    return sum(
        num_weights(bayesian.posterior.shapes.values())
        for bayesian in bayesian_layers(layer)
        if hasattr(bayesian.posterior, "shapes")
    )
