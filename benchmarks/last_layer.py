"""`fit_last_layer` on a trained LeNet-5: calibration, AUROC, minutes.

    python benchmarks/last_layer.py

LeNet-5 of benchmarks/serving.py is trained on MNIST (Adam 1e-3 with cosine decay to 0,
batch 256, `--epochs`), three seeds; then its last layer gets Laplace's posterior, prior
precision by evidence. NLL, accuracy and ECE on the test images, and how well predictive
entropy tells them from the same images rotated by 90 degrees and from rendered letters
(AUROC), of the network before, of the predictive of 100 samples, and of the probit
approximation; of the samples also by their mutual information.
"""

import argparse
import pathlib
import sys
import time

import common
import keras
import mnist_lenet5
import numpy as np
from serving import make_network

import keras_bdl
from keras_bdl.ops import uncertainty

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import data  # noqa: E402 (found by the line above)


def softmax(model, x):
    logits = model.predict(x, batch_size=1000, verbose=0)
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))


def aurocs(scores):
    """Of each set beside the test images, by scores of all sets."""
    return {
        f"auroc_{name}": uncertainty.auroc(scores["test"], values)
        for name, values in scores.items()
        if name != "test"
    }


def entropies(probabilities):
    return {
        name: keras.ops.convert_to_numpy(uncertainty.entropy(p))
        for name, p in probabilities.items()
    }


def run(seed, train_data, labels, sets, epochs):
    """Scores by method of one seed."""
    keras.utils.set_random_seed(seed)
    x, y = train_data
    network = make_network()
    steps = epochs * int(np.ceil(len(x) / 256))
    network.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    network.fit(x, y, batch_size=256, epochs=epochs, verbose=0)

    start = time.perf_counter()
    sampled = keras_bdl.fit_last_layer(network, x, y, verbose=0)
    seconds = time.perf_counter() - start
    probit = keras_bdl.fit_last_layer(network, x, y, probit=True, verbose=0)
    uncertainties = {
        name: sampled.predict_uncertainty(
            images, num_samples=100, batch_size=1000, seed=seed, verbose=0
        )
        for name, images in sets.items()
    }
    predictions = {
        "network": {name: softmax(network, images) for name, images in sets.items()},
        "samples": {name: u.probabilities for name, u in uncertainties.items()},
        "probit": {
            name: softmax(probit.network, images) for name, images in sets.items()
        },
    }
    rows = {
        name: {**mnist_lenet5.scores(p["test"], labels), **aurocs(entropies(p))}
        for name, p in predictions.items()
    }
    rows["mutual information"] = aurocs(
        {name: u.mutual_information for name, u in uncertainties.items()}
    )
    rows["fit_last_layer"] = {"seconds": seconds}
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--npz", help="MNIST as one .npz instead of TFDS")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--validate", action="store_true", help="last 10,000 of train")
    args = parser.parse_args()
    held_out = 10_000 if args.validate else 0
    (x, y), (x_test, y_test) = common.load_mnist(args.npz, held_out)
    sets = {
        "test": x_test,
        "rotated": data.rotate(x_test, 90.0),
        "letters": data.letters(28, 5000, seed=0),
    }
    runs = []
    for seed in range(args.seeds):
        runs.append(run(seed, (x, y), y_test, sets, args.epochs))
        print(f"seed {seed}", runs[-1], flush=True)
    summary = {
        method: {
            score: common.mean_and_error([row[method][score] for row in runs])
            for score in scores
        }
        for method, scores in runs[0].items()
    }
    for method, scores in summary.items():
        line = ", ".join(
            f"{score} {value['mean']:.4f} +- {value['standard_error'] or 0:.4f}"
            for score, value in scores.items()
        )
        print(f"{method}: {line}")
    if not args.validate:
        common.save("last_layer", {"epochs": args.epochs, "summary": summary})


if __name__ == "__main__":
    main()
