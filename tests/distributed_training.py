"""Trains the linear-Gaussian model on several devices: `python ... KIND [RANK PORTS]`.

Prints its posterior as JSON. What several devices are is set before Keras is imported.
"""

import json
import os
import sys

KIND, *ADDRESS = sys.argv[1:]
NUM_DEVICES = 2
STEPS = 1000

if KIND == "jax_devices":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
if KIND == "jax_processes":
    os.environ["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"
if KIND == "tensorflow_processes":
    rank, *ports = map(int, ADDRESS)
    workers = [f"127.0.0.1:{port}" for port in ports]
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
    )

import keras  # noqa: E402 (the environment comes first)
import numpy as np  # noqa: E402
import test_exact_posterior as exact  # noqa: E402
from contract import to_numpy  # noqa: E402

regression = exact.make_regression()


def mirrored():
    """`fit` of replicas on logical devices."""
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    logical = [tf.config.LogicalDeviceConfiguration()] * NUM_DEVICES
    tf.config.set_logical_device_configuration(cpu, logical)
    names = [f"CPU:{index}" for index in range(NUM_DEVICES)]
    with tf.distribute.MirroredStrategy(names).scope():
        return exact.train(regression, 64, "flipout", 1, STEPS)


def tensorflow_processes():
    """A custom loop, as `fit` fails there in Keras 3.15 even for a Dense layer."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model, layer = exact.make_model(64, "flipout", STEPS)
    rows = np.array_split(np.arange(exact.ROWS), NUM_DEVICES)[int(ADDRESS[0])]
    x = tf.constant(regression.x[rows], "float32")
    y = tf.constant(regression.targets[rows, None], "float32")

    def replica_step():
        with tf.GradientTape() as tape:
            nll = tf.reduce_mean(exact.gaussian_nll(y, model(x, training=True)))
            # The optimizer adds up the gradients of all replicas.
            loss = (nll + sum(model.losses)) / strategy.num_replicas_in_sync
        variables = model.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in variables])
        model.optimizer.apply_gradients(zip(gradients, variables))

    @tf.function
    def train_steps():
        for _ in tf.range(100):
            strategy.run(replica_step)

    for _ in range(STEPS // 100):
        train_steps()
    return model, layer


def jax_devices():
    """`fit` with the batch split over the devices of a process."""
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    return exact.train(regression, 64, "flipout", 1, STEPS)


def jax_processes():
    """`fit` with the batch split over processes: Keras wants a `tf.data.Dataset`."""
    import tensorflow as tf

    rank, *ports = map(int, ADDRESS)
    addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
    keras.distribution.initialize(addresses, NUM_DEVICES, rank)
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    model, layer = exact.make_model(64, "flipout", STEPS)
    rows = (regression.x.astype("float32"), regression.targets[:, None])
    data = tf.data.Dataset.from_tensor_slices(rows).batch(exact.ROWS).repeat()
    model.fit(data, steps_per_epoch=STEPS, verbose=0)
    return model, layer


def main():
    keras.utils.set_random_seed(0)
    model, layer = globals()[KIND]()
    mean, variance = exact.posterior_of(layer)
    print(
        json.dumps(
            {
                "mean": mean.tolist(),
                "variance": variance.tolist(),
                "spread": float(np.std(to_numpy(layer.kernel), axis=1).max()),
            }
        )
    )


if __name__ == "__main__":
    main()
