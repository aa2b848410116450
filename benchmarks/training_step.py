"""Time of a training step, beside the deterministic twin and peers of the same run.

    KERAS_BACKEND=jax python benchmarks/training_step.py

LeNet-300-100 at batches 128 and 1000 and the LeNet-5 at 128, one `fit` epoch per
measurement, models taken in turn, median of several. On TensorFlow also TFP's
DenseLocalReparameterization under tf_keras (in a process of its own, beside
tf_keras's own Dense) and, where installed, keras-proba's.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import common
import keras
import mnist_lenet5
import numpy as np

import keras_bdl

ESTIMATORS = ("local_reparameterization", "flipout", "reparameterization")
STEPS = 60
ROUNDS = 15


def dense_net(dense):
    model = keras.Sequential(
        [
            keras.Input((784,)),
            dense(300, activation="relu"),
            dense(100, activation="relu"),
            dense(10),
        ]
    )
    return compiled(model)


def compiled(model):
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def dense_models():
    models = {"deterministic": dense_net(keras.layers.Dense)}
    for estimator in ESTIMATORS:
        models[estimator] = dense_net(
            lambda units, estimator=estimator, **options: keras_bdl.VariationalDense(
                units, estimator=estimator, num_examples=60_000, **options
            )
        )
    try:
        import keras_proba.layers.variational as peer
    except ImportError:
        return models
    models["keras_proba_local_reparameterization"] = dense_net(
        lambda units, **options: peer.DenseLocalReparameterization(
            units, kl_weight=1 / 60_000, **options
        )
    )
    return models


def lenet5_models():
    models = {"deterministic": compiled(mnist_lenet5.make_network("deterministic"))}
    for estimator in ESTIMATORS:
        network = mnist_lenet5.make_network(
            "bayesian", estimator=estimator, num_examples=60_000
        )
        models[estimator] = compiled(network)
    return models


# Name, function that makes the models, shape of a row, batch size.
NETS = (
    ("lenet_300_100", dense_models, (784,), 128),
    ("lenet_300_100", dense_models, (784,), 1000),
    ("lenet5_wide", lenet5_models, (28, 28, 1), 128),
)


def step_times(models, shape, batch_size, steps, rounds):
    """Milliseconds of a step by model: a list of one value per round."""
    rng = np.random.default_rng(0)
    x = rng.random((batch_size * steps, *shape), dtype="float32")
    y = rng.integers(0, 10, len(x))
    times = {name: [] for name in models}
    for model in models.values():
        model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
            times[name].append((time.perf_counter() - start) / steps * 1e3)
    return times


TFP_SCRIPT = """
import json, sys, time
import numpy as np, tf_keras, tensorflow as tf, tensorflow_probability as tfp
batch_size, steps, rounds = map(int, sys.argv[1:])
def net(dense):
    model = tf_keras.Sequential([
        tf_keras.Input((784,)), dense(300, activation="relu"),
        dense(100, activation="relu"), dense(10)])
    model.compile(tf_keras.optimizers.Adam(1e-3),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model
kl = lambda q, p, _: tfp.distributions.kl_divergence(q, p) / 60_000
models = {
    "tf_keras_deterministic": net(tf_keras.layers.Dense),
    "tfp_local_reparameterization": net(
        lambda units, **options: tfp.layers.DenseLocalReparameterization(
            units, kernel_divergence_fn=kl, **options))}
rng = np.random.default_rng(0)
x = rng.random((batch_size * steps, 784), dtype="float32")
y = rng.integers(0, 10, len(x))
times = {name: [] for name in models}
for model in models.values():
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
for _ in range(rounds):
    for name, model in models.items():
        start = time.perf_counter()
        model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
        times[name].append((time.perf_counter() - start) / steps * 1e3)
print(json.dumps(times))
"""


def tfp_step_times(batch_size, steps, rounds):
    """The same measurement of TFP's layer, which needs Keras 2's process."""
    result = subprocess.run(
        [sys.executable, "-c", TFP_SCRIPT, *map(str, (batch_size, steps, rounds))],
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    backend = keras.backend.backend()
    measurements = []
    for net, models, shape, batch_size in NETS:
        times = step_times(models(), shape, batch_size, args.steps, args.rounds)
        if backend == "tensorflow" and net == "lenet_300_100":
            times |= tfp_step_times(batch_size, args.steps, args.rounds)
        medians = {name: float(np.median(t)) for name, t in times.items()}
        ratios = {  # of the same round, so that drift of the machine cancels
            name: float(np.median(np.divide(t, times["deterministic"])))
            for name, t in times.items()
        }
        row = {"net": net, "batch_size": batch_size, "ms": medians, "ratio": ratios}
        measurements.append(row)
        print(net, batch_size)
        for name, milliseconds in medians.items():
            print(f"  {name:40s} {milliseconds:8.2f} ms  {ratios[name]:5.2f}x")
        keras.backend.clear_session()
    common.save(f"training_step_{backend}", {"measurements": measurements})


if __name__ == "__main__":
    main()
