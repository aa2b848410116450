"""Early exit on MNIST: accuracy, executed multiply-adds and time of exported calls.

    python benchmarks/early_exit.py plain
    python benchmarks/early_exit.py mixed
    python benchmarks/early_exit.py plain --validate
    KERAS_BACKEND=jax python benchmarks/early_exit.py plain --train

The networks and their training are those of examples/early_exit.py with `--dataset
mnist`; `mixed` is its `--mixed`. Beside each price of a unit stand plain networks of 1
to 8 units trained on the same budget. Times are of the call of a SavedModel whose
weights are constants (`keras_bdl.export(..., freeze=True)` writes such), with batch
normalisation a part of the convolutions: the mean over batches (single images, or 256
of them) of the median of several calls, networks in turns. With `--validate` the last
5,000 training rows are scored instead of the test set, for the choice of settings.
Trained networks are kept in `--checkpoints`, from which a later run goes on. `--train`
only trains them, on any backend; `--trained` measures those that are there.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time

import common
import keras
import numpy as np

import keras_bdl
from keras_bdl.prediction import export

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import data  # noqa: E402 (found by the line above)
import early_exit as example  # noqa: E402


def load(args):
    train_data, test_data = common.load_mnist(args.npz, 5000 if args.validate else 0)
    if args.data == "mixed":
        train_data, test_data = (
            (data.distort_half(x, seed), y)
            for seed, (x, y) in enumerate((train_data, test_data))
        )
    return train_data, test_data


def keep(path, train):
    """Trains a network and writes its file, unless that is there."""
    if path.exists():
        return
    start = time.perf_counter()
    network = train()
    print(f"{path.stem}: {(time.perf_counter() - start) / 60:.1f} min", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    network.save(path)


def files(settings, depths, seed, folder):
    """Where networks are kept, by name: of fixed depths, and of each price."""
    fixed = {f"fixed, {n}": folder / f"fixed_{n}_{seed}.keras" for n in depths}
    priced = {
        f"price {price:g}": folder / f"price_{price:g}_{seed}.keras"
        for price in settings.prices
    }
    return fixed | priced


def train_all(train_data, settings, depths, seed, folder):
    """Trains the networks that are not there yet."""
    paths = files(settings, depths, seed, folder)
    shape = train_data[0].shape[1:]
    for depth in depths:

        def train_fixed(depth=depth):
            keras.utils.set_random_seed(seed)
            return example.train_fixed(*train_data, settings, depth)

        keep(paths[f"fixed, {depth}"], train_fixed)
    if not settings.prices:
        return

    def train_body():
        keras.utils.set_random_seed(seed)
        body = example.train_body(*train_data, settings)
        return body.network_of_all_depths(shape)

    body_path = folder / f"body_{seed}.keras"
    keep(body_path, train_body)
    body = example.Body.of(keras.models.load_model(body_path))
    for price in settings.prices:

        def train_heads(price=price):
            keras.utils.set_random_seed(seed)
            return example.train_heads(body, *train_data, settings, price)

        keep(paths[f"price {price:g}"], train_heads)


def exported(network):
    """A SavedModel made for speed."""
    import tensorflow as tf

    network = example.for_inference(network)

    def serve(x):
        return network(x, training=False)

    archive = keras.export.ExportArchive()
    archive.add_endpoint(
        "serve",
        export.frozen(serve, export.float_weights(network)),
        input_signature=export.input_signature(network),
    )
    folder = tempfile.mkdtemp()
    archive.write_out(folder, verbose=False)
    return tf.saved_model.load(folder)


def call_milliseconds(served, x, rows, num_batches, repeats=5):
    """Mean over batches of the median time of a call, of each network in turns."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    totals = [0.0] * len(served)
    for batch in range(num_batches + 1):
        inputs = tf.constant(x[rng.choice(len(x), rows, replace=False)])
        for index, model in enumerate(served):
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                model.serve(inputs).numpy()
                times.append(time.perf_counter() - start)
            if batch:  # the first is a warm-up
                totals[index] += 1e3 * statistics.median(times) / num_batches
    return totals


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", choices=("plain", "mixed"))
    parser.add_argument("--npz", help="MNIST as one .npz instead of TFDS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prices", type=float, nargs="*")
    parser.add_argument("--depths", type=int, nargs="*", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--validate", action="store_true")
    use = parser.add_mutually_exclusive_group()
    use.add_argument("--train", action="store_true", help="without measurements")
    use.add_argument("--trained", action="store_true", help="measure what is there")
    parser.add_argument("--checkpoints", type=pathlib.Path, required=True)
    args = parser.parse_args()
    settings = example.SETTINGS["mnist"]
    if args.epochs:
        settings = dataclasses.replace(settings, epochs=args.epochs)
    if args.prices is not None:
        settings = dataclasses.replace(settings, prices=tuple(args.prices))

    train_data, (x, y) = load(args)
    runs = {}
    for seed in args.seeds:
        folder = args.checkpoints / f"{args.data}_{'val' if args.validate else 'test'}"
        if not args.trained:
            train_all(train_data, settings, args.depths, seed, folder)
        if args.train:
            continue
        networks = {
            name: keras.models.load_model(path)
            for name, path in files(settings, args.depths, seed, folder).items()
            if path.exists()
        }
        served = [exported(network) for network in networks.values()]
        single = call_milliseconds(served, x, 1, 200)
        many = call_milliseconds(served, x, 256, 20)
        for (name, network), one, batch in zip(networks.items(), single, many):
            row = {
                "accuracy": example.accuracy(network, x, y),
                "multiply_adds": keras_bdl.flops_report(network, x, 500, 0).executed,
                "milliseconds_1": one,
                "milliseconds_256": batch,
            }
            if name.startswith("price"):
                depths = keras_bdl.depth(network, x, 500, 0)
                row["depth"] = float(depths.mean())
            runs.setdefault(name, []).append(row)
            print(f"{name:<14} seed {seed}", row, flush=True)
    summary = {
        name: {
            key: common.mean_and_error([row[key] for row in rows]) for key in rows[0]
        }
        for name, rows in runs.items()
    }
    for name, row in summary.items():
        print(name, {key: round(value["mean"], 4) for key, value in row.items()})
    if runs and not args.validate:
        common.save(
            f"early_exit_{args.data}",
            {
                "settings": dataclasses.asdict(settings),
                "summary": summary,
                "runs": runs,
            },
        )


if __name__ == "__main__":
    main()
