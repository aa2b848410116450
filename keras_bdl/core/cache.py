"""Programs that are kept with the model that they run."""

import collections
import threading
import types

# Programs of one kind that are kept with a model; the oldest goes. Each holds a
# compiled function for as long.
_MOST_KEPT = 8


_LOCK = threading.RLock()  # of what is kept: threads may ask for the same program


def kept_with(model, kind, key, make):
    """What `make()` gives, made once for a key and kept with the model.

    Of each kind the few that were last asked for are kept. They are outside of Keras's
    tracking, because the model must not own what wraps it.

    Args:
        model: Keras model.
        kind: name of what is made.
        key: what it depends on.
        make: function without arguments.
    """
    with _LOCK:
        if "_keras_bdl_kept" not in model.__dict__:
            # In a namespace: Keras loads weights into every model in a dictionary.
            object.__setattr__(model, "_keras_bdl_kept", types.SimpleNamespace())
        by_kind = vars(model.__dict__["_keras_bdl_kept"])
        kept = by_kind.setdefault(kind, collections.OrderedDict())
        if key not in kept:
            kept[key] = make()
        kept.move_to_end(key)
        if len(kept) > _MOST_KEPT:
            kept.popitem(last=False)
        return kept[key]
