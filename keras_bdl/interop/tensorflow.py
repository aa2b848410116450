"""The only module that imports TensorFlow."""

import tensorflow as tf


def replica_id():
    """Index of this replica as an int32 tensor, or None outside a strategy."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return tf.cast(context.replica_id_in_sync_group, "int32")


def repeats(dataset):
    """Whether a `tf.data.Dataset` is known to give its rows more than once."""
    if "Repeat" in type(dataset).__name__:
        return True
    inputs = getattr(dataset, "_inputs", list)()  # not public: unknown without it
    return any(map(repeats, inputs))
