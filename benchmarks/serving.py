"""Latency of a served LeNet-5: posterior mean, and predictive of 32 samples.

    python benchmarks/serving.py

The SavedModel of `keras_bdl.export` is called as a server calls it, endpoints in turns:
p50 and p99 in milliseconds of many calls at batch 1 and 64. LeNet-5 is that of LeCun et
al. (1998) with ReLU: convolutions 6@5 and 16@5, dense 120, 84, 10; which of its layers
are Bayesian decides how much runs once for all samples. Weights are those of the
initializers, which do not change the time. The bar is 6 times `serve` at batch 64;
`by_hand` is what TensorFlow itself takes for all samples in the fastest form found.
"""

import argparse
import tempfile
import time

import common
import keras
import numpy as np
import tensorflow as tf

import keras_bdl

BAYESIAN = {
    "all layers": "all",
    "dense layers": lambda layer: isinstance(layer, keras.layers.Dense),
    "last layer": "last",
}


def make_network():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(6, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(120, activation="relu"),
            layers.Dense(84, activation="relu"),
            layers.Dense(10),
        ]
    )


def endpoints_of(served, rows):
    """Calls of a SavedModel's endpoints, by name."""
    x = tf.random.normal((rows, 28, 28, 1))
    return {
        "serve": lambda: served.serve(x),
        "predictive": lambda: served.predictive(x)["probabilities"],
    }


def latencies(endpoints, calls):
    """Milliseconds of each call of each endpoint, `(calls,)`, in turns."""
    times = {name: [] for name in endpoints}
    for call in range(calls + 10):
        for name, endpoint in endpoints.items():
            start = time.perf_counter()
            endpoint().numpy()
            if call >= 10:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def by_hand(rows, num_samples):
    """A call of the network of all samples, written for speed alone.

    Kernels of all samples, drawn beforehand, are channels of one convolution and then
    its groups; there are no biases and no seeds.
    """
    normal = tf.random.normal
    x = normal((rows, 28, 28, 1))
    first = normal((5, 5, 1, 6 * num_samples))
    second = normal((5, 5, 6, 16 * num_samples))  # one group per sample
    sizes = ((400, 120), (120, 84), (84, 10))
    dense = [normal((num_samples, *size)) for size in sizes]

    def pooled(hidden):
        return tf.nn.max_pool2d(tf.nn.relu(hidden), 2, 2, "VALID")

    @tf.function
    def call():
        hidden = pooled(tf.nn.conv2d(x, first, 1, "SAME"))
        hidden = pooled(tf.nn.conv2d(hidden, second, 1, "VALID"))
        hidden = tf.reshape(hidden, (rows, 25, num_samples, 16))
        hidden = tf.reshape(tf.transpose(hidden, (2, 0, 1, 3)), (num_samples, rows, -1))
        for kernel in dense[:-1]:
            hidden = tf.nn.relu(hidden @ kernel)
        return tf.reduce_mean(tf.nn.softmax(hidden @ dense[-1]), axis=0)

    return call


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-samples", type=int, default=32)
    parser.add_argument("--calls", type=int, default=300)
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    result = {"num_samples": args.num_samples}
    for name, layers in BAYESIAN.items():
        network = keras_bdl.to_bayesian(make_network(), 60_000, layers)
        network.compile("adam", keras_bdl.losses.CategoricalNLL())
        folder = tempfile.mkdtemp()
        keras_bdl.export(network, folder, args.num_samples, verbose=False)
        served = tf.saved_model.load(folder)
        result[name] = {}
        for rows in (1, 64):
            times = latencies(endpoints_of(served, rows), args.calls)
            row = {
                endpoint: {f"p{q}": float(np.percentile(values, q)) for q in (50, 99)}
                for endpoint, values in times.items()
            }
            row["ratio"] = row["predictive"]["p50"] / row["serve"]["p50"]
            print(f"{name} Bayesian, batch {rows}: {row}", flush=True)
            result[name][f"batch_{rows}"] = row
    calls = {f"batch_{rows}": by_hand(rows, args.num_samples) for rows in (1, 64)}
    result["by_hand"] = {
        name: float(np.median(latencies({name: call}, args.calls)[name]))
        for name, call in calls.items()
    }
    print(f"all layers, by hand: {result['by_hand']}")
    common.save("serving", result)


if __name__ == "__main__":
    main()
