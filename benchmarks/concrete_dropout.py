"""Learned dropout rates: the toy of the source, and a convolutional net on MNIST.

    python benchmarks/concrete_dropout.py toy
    python benchmarks/concrete_dropout.py mnist

The networks and their training are those of examples/concrete_dropout.py with
`--dataset mnist`: nothing in them was searched over.
"""

import argparse
import pathlib
import sys

import common
import keras
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import concrete_dropout as example  # noqa: E402 (found by the line above)

SETTINGS = example.SETTINGS["mnist"]


def toy(seed):
    """Rates and standard deviations by number of data."""
    keras.utils.set_random_seed(seed)
    _, runs = example.run_toy(SETTINGS, np.random.default_rng(seed), num_samples=200)
    return {
        str(size): {
            "rates": run["rates"],
            "aleatoric": float(run["aleatoric"]),
            "epistemic": float(run["epistemic"]),
            # The noise that training sees: 1, and what the masks add to the mean.
            "aleatoric_variance_ratio": float(
                run["aleatoric"] ** 2 / (1.0 + run["epistemic"] ** 2)
            ),
        }
        for size, run in runs.items()
    }


def mnist(seed):
    """Test scores with learned rates, sampled, and without dropout."""
    (x_train, y_train), (x_test, y_test) = common.load_mnist()
    keras.utils.set_random_seed(seed)
    classifier, twin, _ = example.train_images(x_train, y_train, SETTINGS)
    scores = example.score_images(classifier, twin, x_test, y_test, 100, seed)
    print(scores, flush=True)
    return {"rates": example.rates(classifier.network), **scores}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("toy", "mnist"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    runs = []
    for seed in range(args.seeds):
        runs.append({"toy": toy, "mnist": mnist}[args.what](seed))
        result = {"runs": runs}
        if args.what == "mnist":
            result["summary"] = {
                network: {
                    score: common.mean_and_error([run[network][score] for run in runs])
                    for score in runs[0][network]
                }
                for network in runs[0]
                if network != "rates"
            }
        common.save(f"concrete_dropout_{args.what}", result)


if __name__ == "__main__":
    main()
