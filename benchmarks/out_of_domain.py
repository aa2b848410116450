"""Digits against rendered letters by p(x) of a VAE, in both directions.

    python benchmarks/out_of_domain.py

A VAE of dense layers is trained on MNIST digits and scores test digits and letters;
another is trained on letters and scores other letters and test digits. Two likelihoods:
Bernoulli, of images binarised anew in every batch (those scored: once), and discretised
logistic, of 256 levels of grey. AUROCs of every score of `ood_score`, over seeds;
nothing is chosen by them. 0.5 is chance.
"""

import argparse
import dataclasses
import pathlib
import sys

import common
import keras
import numpy as np

import keras_bdl

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import data  # noqa: E402 (found by the line above)
import vae as example  # noqa: E402

LIKELIHOODS = {
    "bernoulli": ("log_prob", "typicality"),
    "discretized_logistic": ("log_prob", "typicality", "complexity"),
}


def aurocs(train_data, inside, outside, settings, likelihood, seed):
    """AUROC of each score, by a VAE trained on `train_data`."""
    keras.utils.set_random_seed(seed)
    preprocessing = None
    if likelihood == "bernoulli":
        preprocessing = keras_bdl.layers.DynamicBinarization(seed)
        inside, outside, known = (
            preprocessing.binarize(images, seed=seed)
            for images in (inside, outside, train_data[:1000])
        )
    else:
        train_data, inside, outside = map(grey_levels, (train_data, inside, outside))
        known = train_data[:1000]
    vae = example.train(
        train_data, settings, seed, likelihood=likelihood, preprocessing=preprocessing
    )
    options = {"num_samples": 100, "batch_size": 100, "seed": seed, "verbose": 0}
    vae.fit_ood(known, **options)
    return {
        method: keras_bdl.ops.uncertainty.auroc(
            vae.ood_score(inside, method, **options),
            vae.ood_score(outside, method, **options),
        )
        for method in LIKELIHOODS[likelihood]
    }


def grey_levels(images):
    return np.round(images * 255.0) / np.float32(255.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--npz", help="MNIST as one .npz instead of TFDS")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rows", type=int, default=1000, help="scored on each side")
    args = parser.parse_args()
    settings = dataclasses.replace(example.SETTINGS["mnist"], epochs=args.epochs)
    (digits, _), (test_digits, _) = common.load_mnist(args.npz)
    letters = data.letters(28, 20_000, seed=0)
    test_letters = data.letters(28, args.rows, seed=1)
    directions = {
        "trained on digits": (digits, test_digits[: args.rows], test_letters),
        "trained on letters": (letters, test_letters, test_digits[: args.rows]),
    }
    runs = {}
    for name, (train_data, inside, outside) in directions.items():
        for likelihood in LIKELIHOODS:
            for seed in range(args.seeds):
                found = aurocs(train_data, inside, outside, settings, likelihood, seed)
                print(f"{name}, {likelihood}, seed {seed}: {found}", flush=True)
                for method, value in found.items():
                    key = f"{name}, {likelihood}, {method}"
                    runs.setdefault(key, []).append(value)
    summary = {name: common.mean_and_error(values) for name, values in runs.items()}
    for name, row in summary.items():
        print(f"{name:<52} {row['mean']:.4f} +- {row['standard_error'] or 0:.4f}")
    common.save(
        "out_of_domain", {"settings": dataclasses.asdict(settings), "auroc": summary}
    )


if __name__ == "__main__":
    main()
