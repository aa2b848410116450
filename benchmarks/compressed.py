"""What compression saves: the compressed network beside the plain one of full size.

    python benchmarks/compressed.py runs/models/sparse_vd_lenet_300_100_*.keras

Takes models that `benchmarks/sparse_vd.py --save` wrote. Both networks are exported
to SavedModel and called at batch 1000, in turn, many times; sizes are those of the
float32 weights and of the file of `save_sparse`. TensorFlow only.
"""

import argparse
import pathlib
import tempfile
import time

import common
import keras
import numpy as np
import tensorflow as tf

import keras_bdl

ROWS = 1000


def plain_twin(model):
    """The network of full size: plain layers that hold the pruned means."""

    def plain(layer):
        return layer.to_keras() if hasattr(layer, "to_keras") else layer

    return keras.models.clone_model(model, clone_function=plain)


def exported(model, folder):
    model.export(folder, verbose=False)
    return tf.saved_model.load(folder).serve


def measure(path, rounds):
    model = keras.models.load_model(path)
    small = keras_bdl.compress(model)
    x = np.random.default_rng(0).random((ROWS, *model.input_shape[1:]), "float32")
    networks = {"original": plain_twin(model), "compressed": small}
    outputs = [n.predict(x, batch_size=ROWS, verbose=0) for n in networks.values()]
    difference = float(np.abs(outputs[0] - outputs[1]).max())

    x = tf.constant(x)
    times = {name: [] for name in networks}
    with tempfile.TemporaryDirectory() as folder:
        calls = {n: exported(m, f"{folder}/{n}") for n, m in networks.items()}
        bytes_sparse = {
            dtype: keras_bdl.save_sparse(small, f"{folder}/{dtype}.npz", dtype)
            for dtype in ("float16", "float32")
        }
        for index in range(rounds + 10):
            for name, call in calls.items():
                start = time.perf_counter()
                call(x).numpy()
                if index >= 10:
                    times[name].append(time.perf_counter() - start)
    milliseconds = {n: 1e3 * float(np.median(t)) for n, t in times.items()}
    return {
        "model": pathlib.Path(path).stem,
        "compression": keras_bdl.sparsity_report(model).factor,
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
