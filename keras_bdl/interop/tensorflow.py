"""The only module that imports TensorFlow."""

import tensorflow as tf


def replica_id():
    """Index of this replica as an int32 tensor, or None outside a strategy."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return tf.cast(context.replica_id_in_sync_group, "int32")


def fresh_seed():
    """A random int32 scalar, another in every call of a traced function.

    The two zeros make TensorFlow seed the operation anew in every process, whatever
    `tf.random.set_seed` said while it was traced; it has a lock of its own.
    """
    return tf.raw_ops.RandomUniformInt(
        shape=tf.constant([], "int32"),
        minval=tf.constant(0, "int32"),
        maxval=tf.constant(2**31 - 1, "int32"),
        seed=0,
        seed2=0,
    )


def repeats(dataset):
    """Whether a `tf.data.Dataset` is known to give its rows more than once."""
    if "Repeat" in type(dataset).__name__:
        return True
    inputs = getattr(dataset, "_inputs", list)()  # not public: unknown without it
    return any(map(repeats, inputs))


def on_rows(function, live, state, about):
    """Applies a function to some rows of tensors; it runs on no others.

    Args:
        function: from dictionaries of rows of `state` and of `about` to one like that
            of `state`.
        live: booleans `(n,)`.
        state, about: dictionaries of tensors `(n, ...)`.

    Returns:
        `state`, with the function's results on live rows. Without a live row the
        function does not run at all.
    """

    def some():
        index = tf.where(live)
        rows = [
            {name: tf.gather_nd(t, index) for name, t in tensors.items()}
            for tensors in (state, about)
        ]
        return {
            name: tf.tensor_scatter_nd_update(state[name], index, result)
            for name, result in function(*rows).items()
        }

    return tf.cond(tf.reduce_any(live), some, lambda: dict(state))
