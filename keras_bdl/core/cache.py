"""Programs that are kept with the model that they run."""

import collections
import threading
import types

from keras_bdl.core import finding

# The number of programs of one kind that a model keeps; the oldest is dropped. Each
# program holds a compiled function until then.
_MOST_KEPT = 8


_LOCK = threading.RLock()  # two threads may ask for the same program


def kept_with(model, kind, key, make):
    """Returns the result of `make()`, which is called once per key.

    It is called again once the layers of the model, at any depth, are others.

    The model keeps the results that were asked for last, a few of each kind. Keras does
    not track them, because the model must not own what wraps it.

    Args:
        model: Keras model.
        kind: name of the kind of result.
        key: hashable value on which the result depends.
        make: function without arguments.

    Returns:
        The result for this key.
    """
    key = (key, tuple(map(id, finding.flatten_layers(model))))
    with _LOCK:
        if "_keras_bdl_kept" not in model.__dict__:
            # A namespace hides them: Keras loads weights into every model that is in a
            # dictionary.
            object.__setattr__(model, "_keras_bdl_kept", types.SimpleNamespace())
        by_kind = vars(model.__dict__["_keras_bdl_kept"])
        kept = by_kind.setdefault(kind, collections.OrderedDict())
        if key not in kept:
            kept[key] = make()
        kept.move_to_end(key)
        if len(kept) > _MOST_KEPT:
            kept.popitem(last=False)
        return kept[key]
