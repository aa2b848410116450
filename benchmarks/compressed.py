"""What compression saves: the compressed network beside the plain one of full size.

    python benchmarks/compressed.py runs/models/sparse_vd_lenet_300_100_*.keras

Takes models that `benchmarks/sparse_vd.py --save` wrote, which may have been shrunk in
training: the plain one is of the size before that. Both networks are exported to
SavedModel and called at batch 1000, in turn, many times; sizes are those of the float32
weights and of the file of `save_sparse`. TensorFlow only.
"""

import argparse
import pathlib
import tempfile
import time

import common
import keras
import numpy as np
import tensorflow as tf
from sparse_vd import NETWORKS

import keras_bdl

ROWS = 1000


def plain(network):
    """The network in plain layers of the same size."""

    def to_plain(layer):
        return layer.to_keras() if hasattr(layer, "to_keras") else layer

    return keras.models.clone_model(network, clone_function=to_plain)


def exported(model, folder):
    model.export(folder, verbose=False)
    return tf.saved_model.load(folder)


def measure(path, rounds):
    model = keras.models.load_model(path)
    (full,) = (make() for name, make in NETWORKS.items() if name in str(path))
    small = keras_bdl.compress(model)
    x = np.random.default_rng(0).random((ROWS, *model.input_shape[1:]), "float32")
    networks = {"original": plain(full), "compressed": small}
    outputs = [n.predict(x, batch_size=ROWS, verbose=0) for n in (model, small)]
    difference = float(np.abs(outputs[0] - outputs[1]).max())

    x = tf.constant(x)
    times = {name: [] for name in networks}
    with tempfile.TemporaryDirectory() as folder:
        loaded = {n: exported(m, f"{folder}/{n}") for n, m in networks.items()}
        bytes_sparse = {
            dtype: keras_bdl.save_sparse(small, f"{folder}/{dtype}.npz", dtype)
            for dtype in ("float16", "float32")
        }
        for index in range(rounds + 10):
            for name, served in loaded.items():
                start = time.perf_counter()
                served.serve(x).numpy()
                if index >= 10:
                    times[name].append(time.perf_counter() - start)
    milliseconds = {n: 1e3 * float(np.median(t)) for n, t in times.items()}
    return {
        "model": pathlib.Path(path).stem,
        "compression": keras_bdl.sparsity_report(full).weights
        / keras_bdl.sparsity_report(small).non_zero,
        "shapes": [list(w.shape) for w in small.weights],
        "largest_difference_of_outputs": difference,
        "milliseconds": milliseconds,
        "speedup": float(np.median(np.divide(times["original"], times["compressed"]))),
        "float32_bytes": 4 * networks["original"].count_params(),
        "save_sparse_bytes": bytes_sparse,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", help=".keras files")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--out", default="compressed")
    args = parser.parse_args()
    results = [measure(path, args.rounds) for path in args.models]
    for result in results:
        print(result)
    common.save(args.out, {"rows": ROWS, "results": results})


if __name__ == "__main__":
    main()
