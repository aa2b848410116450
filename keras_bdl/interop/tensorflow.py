"""The only module that imports TensorFlow."""

import os

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2


def replica_id():
    """Returns this replica's index, an int32 tensor, or None outside a strategy."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return tf.cast(context.replica_id_in_sync_group, "int32")


def fresh_seed():
    """Returns a random int32 scalar, a new one in every call of a traced function.

    The two zeros make TensorFlow seed the operation again in every process, whatever
    seed `tf.random.set_seed` had set during tracing. The operation has its own lock.
    """
    return tf.raw_ops.RandomUniformInt(
        shape=tf.constant([], "int32"),
        minval=tf.constant(0, "int32"),
        maxval=tf.constant(2**31 - 1, "int32"),
        seed=0,
        seed2=0,
    )


def write_saved_model(archive, filepath, verbose):
    """Writes a `keras.export.ExportArchive` whose endpoints keep their variables alive.

    A loaded function holds its variables and tables by weak references, so
    `tf.saved_model.load(filepath).serve(x)` would find them deleted. In this file each
    function has the loaded object as an attribute, which keeps them alive.
    """
    archive.write_out(filepath, verbose=verbose)
    name = os.path.join(filepath, "saved_model.pb")
    with tf.io.gfile.GFile(name, "rb") as file:
        saved = saved_model_pb2.SavedModel.FromString(file.read())
    for graph in saved.meta_graphs:
        for node in graph.object_graph_def.nodes:
            if node.WhichOneof("kind") == "function":
                node.children.add(node_id=0, local_name="loaded_object")
    with tf.io.gfile.GFile(name, "wb") as file:
        file.write(saved.SerializeToString(deterministic=True))


def repeats(dataset):
    """Tells whether a `tf.data.Dataset` is known to repeat its rows."""
    if "Repeat" in type(dataset).__name__:
        return True
    inputs = getattr(dataset, "_inputs", list)()  # not public, so it may be missing
    return any(map(repeats, inputs))


def with_seed(dataset, word):
    """Adds a seed to a `tf.data.Dataset`; see `keras_bdl.prediction.seeded_data`."""

    def beside(index, batch):
        x = keras.utils.unpack_x_y_sample_weight(batch)[0]
        row = tf.stack([word, tf.cast(index, "int32")])
        return {"x": x, "seed": tf.tile(row[None], [_num_rows(x), 1])}

    return dataset.enumerate().map(beside, num_parallel_calls=tf.data.AUTOTUNE)


def _num_rows(x):
    first = tf.nest.flatten(x)[0]
    if isinstance(first, tf.RaggedTensor):
        return tf.cast(first.nrows(), "int32")
    if first.shape.rank == 0:
        raise ValueError(
            "Expected a `tf.data.Dataset` of batches; call `dataset.batch(n)`. "
            f"Received: elements {x}"
        )
    return tf.shape(first)[0]


def with_size(tensor, axis, size):
    """Returns the tensor with a known size along an axis, checked when it runs.

    Keras drops the static sizes of a traced function once it has seen unequal ones.
    """
    shape = tensor.shape.as_list()
    shape[axis] = size
    return tf.ensure_shape(tensor, shape)


def with_rank(tensor, rank):
    """Gives a tensor of unknown rank this rank, by axes of size 1 at its end."""
    shape = tf.shape(tensor)
    ones = tf.ones((rank,), "int32")
    shape = tf.concat([shape, ones], axis=0)[:rank]
    tensor = tf.reshape(tensor, shape)
    return tf.ensure_shape(tensor, [None] * rank)


def class_probabilities(labels, rank, num_classes):
    """Converts labels of unknown rank to class probabilities with the logits' rank.

    Args:
        labels: indices, which may have a last axis of 1, or one-hot labels.
        rank: rank of the logits.
        num_classes: number of logits.
    """
    labels = tf.cast(labels, "float32")
    shape = tf.shape(labels)
    width = tf.where(tf.rank(labels) == rank, shape[-1], 1)
    rows = tf.reshape(labels, (-1, width))
    one_hot = tf.one_hot(tf.cast(rows[:, 0], "int32"), num_classes)
    whole = tf.reduce_all(rows == tf.round(rows), axis=-1, keepdims=True)
    one_hot = tf.where(whole, one_hot, float("nan"))  # fractions are not labels
    # Both branches need the same width. Rows of width 1 are broadcast, but not used.
    probabilities = tf.where(width == 1, one_hot, rows + tf.zeros_like(one_hot))
    shape = tf.concat([shape[: rank - 1], [num_classes]], axis=0)
    return tf.ensure_shape(
        tf.reshape(probabilities, shape), [None] * (rank - 1) + [num_classes]
    )


def run_until_stopped(step, num_steps, state, about):
    """Runs steps on rows of tensors, each row only until it stops.

    Args:
        step, num_steps, state, about: as in `keras_bdl.layers.residual`.

    Returns:
        The final `state` of all rows.
    """
    now, stops = step(0, state, about)
    if num_steps == 1:
        return now
    # One branch skips all other steps. A single row most often stops at once, and then
    # costs no more than this step.
    return tf.cond(
        tf.reduce_all(stops),
        lambda: now,
        lambda: _run_live(step, num_steps, now, about, stops),
    )


def _run_live(step, num_steps, now, about, stops):
    """Runs the steps from the second on, each on the rows that have not stopped.

    The branches follow one another and are not nested, because a nested branch would
    capture the variables of all later steps.
    """
    state = now
    index = tf.range(tf.shape(stops)[0])
    stopped = []
    for number in range(1, num_steps):
        tensors = [now, about, index]
        halves = [
            tf.dynamic_partition(t, tf.cast(stops, "int32"), 2)
            for t in tf.nest.flatten(tensors)
        ]
        live, done = (tf.nest.pack_sequence_as(tensors, half) for half in zip(*halves))
        stopped.append(done)
        now, about, index = live

        def some(number=number, now=now, about=about):
            return step(number, now, about)

        def none(now=now):
            return now, tf.zeros((0,), "bool")

        now, stops = tf.cond(tf.size(index) > 0, some, none)
    stopped.append([now, about, index])
    indices = [index for _, _, index in stopped]

    def together(like, *parts):
        merged = tf.raw_ops.ParallelDynamicStitch(indices=indices, data=parts)
        return tf.ensure_shape(merged, like.shape)

    return tf.nest.map_structure(together, state, *[now for now, _, _ in stopped])


def output_gradients(function):
    """Returns outputs, and the gradients of their columns by marked tensors.

    See `interop.jax.output_gradients`.
    """
    marked = []
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:

        def mark(y):
            tape.watch(y)
            marked.append(y)
            return y

        outputs, others = function(mark)
        columns = tf.unstack(tf.reduce_sum(outputs, axis=0))
    zero = tf.UnconnectedGradients.ZERO
    found = [tape.gradient(c, marked, unconnected_gradients=zero) for c in columns]
    return outputs, others, [tf.stack(of_columns) for of_columns in zip(*found)]


class NoUTurn:
    """Chains of the no-U-turn sampler side by side, on TensorFlow.

    Args:
        log_density: function of the weights of one chain.
        starts: first weights of all chains, arrays `(chains, ...)`.
        num_warmup_steps: steps in which the size of a step is tuned.
        max_tree_depth: logarithm to base 2 of the most gradients of a step.
        seed: integer.
    """

    def __init__(self, log_density, starts, num_warmup_steps, max_tree_depth, seed):
        from keras_bdl.interop.tfp import tfp

        num_chains = len(starts[0])

        def of_all(*parts):
            chains = zip(*(tf.unstack(part, num_chains) for part in parts))
            return tf.stack([log_density(*chain) for chain in chains])

        kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
            tfp.mcmc.NoUTurnSampler(of_all, 0.01, max_tree_depth),
            num_adaptation_steps=int(0.8 * num_warmup_steps),
        )

        def trace(_, results):
            own = results.inner_results
            accepted = tf.exp(tf.minimum(own.log_accept_ratio, 0.0))
            return own.target_log_prob, accepted, own.has_divergence

        def run(state, results, count, seed):
            return tfp.mcmc.sample_chain(
                count,
                state,
                previous_kernel_results=results,
                kernel=kernel,
                trace_fn=trace,
                return_final_kernel_results=True,
                seed=seed,
            )

        self._run = tf.function(run, reduce_retracing=True)
        self._state = [tf.convert_to_tensor(start) for start in starts]
        self._results = kernel.bootstrap_results(self._state)
        self._seed, self._traced = seed, []
        self._r_hat = tfp.mcmc.potential_scale_reduction

    def run(self, count):
        """Takes steps, and returns the weights after each, `(count, chains, ...)`."""
        seed = tf.constant([self._seed, len(self._traced)], "int32")
        count = tf.constant(count, "int32")
        found = self._run(self._state, self._results, count, seed)
        self._results = found.final_kernel_results
        self._traced.append([np.asarray(part) for part in found.trace])
        self._state = [part[-1] for part in found.all_states]
        return [np.asarray(part) for part in found.all_states]

    def diagnostics(self, num_warmup_steps):
        """Returns what the steps after the warm-up say of the chains."""
        density, accepted, diverged = (
            np.concatenate(parts)[num_warmup_steps:] for parts in zip(*self._traced)
        )
        r_hat = float("nan")
        if density.shape[1] > 1 and len(density) > 1:
            r_hat = float(self._r_hat(density))
        return {
            "acceptance": float(accepted.mean()),
            "r_hat": r_hat,
            "divergences": float(diverged.mean()),
        }
