"""Posterior predictive of LeNet-300-100: 100 samples for 2,000 rows.

    python benchmarks/predict_speed.py

`keras_bdl.predict` beside 100 calls of `model.predict` at the same batch size, and
beside peers looped over one big batch where they are installed (TFP under
tf_keras, keras-proba, bayesian-torch). Then peak memory for 10 and 1,000 samples,
each in a process of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import common
import numpy as np

ROWS, SAMPLES = 2000, 100


def data():
    return np.random.default_rng(0).random((ROWS, 784), dtype="float32")


def median_seconds(function, rounds):
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def network():
    import keras

    import keras_bdl

    return keras.Sequential(
        [
            keras.Input((784,)),
            keras_bdl.VariationalDense(300, activation="relu"),
            keras_bdl.VariationalDense(100, activation="relu"),
            keras_bdl.VariationalDense(10),
        ]
    )


def ours(batch_size, rounds):
    import keras_bdl

    model, x = network(), data()
    options = {"batch_size": batch_size, "verbose": 0}
    sampled = median_seconds(
        lambda: keras_bdl.predict(model, x, SAMPLES, outputs="logits", **options),
        rounds,
    )
    once = median_seconds(lambda: model.predict(x, **options), 10)

    def looped():
        for _ in range(SAMPLES):
            model.predict(x, **options)

    loop = median_seconds(looped, 2)
    return {"keras_bdl": sampled, "model_predict": once, "looped_predict": loop}


def keras_proba(rounds):
    import keras
    import keras_proba.layers.variational as peer

    model = keras.Sequential(
        [
            keras.Input((784,)),
            peer.DenseLocalReparameterization(300, activation="relu"),
            peer.DenseLocalReparameterization(100, activation="relu"),
            peer.DenseLocalReparameterization(10),
        ]
    )
    x = data()

    def run():
        for _ in range(SAMPLES):
            model.predict(x, batch_size=ROWS, verbose=0)

    return {"keras_proba": median_seconds(run, rounds)}


def bayesian_torch(rounds):
    import torch
    from bayesian_torch.layers.variational_layers import linear_variational

    layers = [
        linear_variational.LinearReparameterization(a, b)
        for a, b in ((784, 300), (300, 100), (100, 10))
    ]
    x = torch.from_numpy(data())

    @torch.no_grad()
    def run():
        total = 0
        for _ in range(SAMPLES):
            h = torch.relu(layers[0](x, return_kl=False))
            h = torch.relu(layers[1](h, return_kl=False))
            total = total + torch.softmax(layers[2](h, return_kl=False), dim=-1)
        return (total / SAMPLES).numpy()

    return {"bayesian_torch": median_seconds(run, rounds)}


def tfp(rounds):
    import tensorflow as tf
    import tensorflow_probability as tfp
    import tf_keras

    dense = tfp.layers.DenseReparameterization
    model = tf_keras.Sequential(
        [
            tf_keras.Input((784,)),
            dense(300, activation="relu"),
            dense(100, activation="relu"),
            dense(10),
        ]
    )
    x = tf.constant(data())

    @tf.function
    def sample():
        return tf.nn.softmax(model(x))

    def run():
        total = 0
        for _ in range(SAMPLES):
            total = total + sample()
        return (total / SAMPLES).numpy()

    return {"tfp": median_seconds(run, rounds)}


def peak_memory(samples):
    """Peak resident memory in MiB of predicting with a number of samples."""
    import keras_bdl

    model, x = network(), data()
    keras_bdl.predict(model, x, samples, batch_size=256, outputs="logits", verbose=0)
    return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def in_process(part, *arguments, **environment):
    """Runs one part of this file in its own process; None if it cannot import."""
    result = subprocess.run(
        [sys.executable, __file__, "--part", part, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1]
        print(f"  {part}: not measured ({reason})")
        return {}
    return json.loads(result.stdout.splitlines()[-1])


PARTS = {
    "ours": ours,
    "keras_proba": keras_proba,
    "bayesian_torch": bayesian_torch,
    "tfp": tfp,
    "peak_memory": peak_memory,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--part", nargs="+", help="internal: one part, as JSON")
    args = parser.parse_args()
    if args.part:
        name, *numbers = args.part
        print(json.dumps(PARTS[name](*map(int, numbers))))
        return

    measurements = []
    for batch_size in (128, 1000, 2000):
        times = in_process("ours", batch_size, args.rounds)
        speedup = times["looped_predict"] / times["keras_bdl"]
        measurements.append({"batch_size": batch_size, "s": times, "speedup": speedup})
        print(f"batch {batch_size}: {times}, {speedup:.1f}x the loop")
    peers = {}
    peers |= in_process("keras_proba", 3)
    peers |= in_process("bayesian_torch", args.rounds)
    peers |= in_process("tfp", args.rounds, TF_USE_LEGACY_KERAS="1")
    print("peers, one batch of 2000:", peers)
    memory = {
        samples: in_process("peak_memory", samples).get("peak_mib")
        for samples in (10, 1000)
    }
    print("peak memory, MiB:", memory)
    import keras

    common.save(
        f"predict_speed_{keras.backend.backend()}",
        {"measurements": measurements, "peers_s": peers, "peak_memory_mib": memory},
    )


if __name__ == "__main__":
    main()
