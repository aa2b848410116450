"""Digits against rendered letters by p(x) of a VAE, in both directions.

    KERAS_BACKEND=jax python benchmarks/out_of_domain.py

A VAE is trained on MNIST digits and scores test digits and letters; another is trained
on letters and scores other letters and test digits. The network and its optimizer are
those of benchmarks/vae.py. Two likelihoods: Bernoulli, of images binarised anew in
every batch (those scored: once), and discretised logistic, of 256 levels of grey.
AUROCs of every score of `ood_score`, over seeds; nothing is chosen by them. 0.5 is
chance. Training goes on from `--checkpoints`.
"""

import argparse
import pathlib
import sys

import common
import keras
import numpy as np
import vae as recipe

import keras_bdl

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))

import data  # noqa: E402 (found by the line above)

LIKELIHOODS = {
    "bernoulli": ("log_prob", "typicality"),
    "discretized_logistic": ("log_prob", "typicality", "complexity"),
}


def make(likelihood, seed):
    """A VAE, and what its inputs are of images."""
    keras.utils.set_random_seed(seed)
    bits = keras_bdl.layers.DynamicBinarization(seed)
    is_bits = likelihood == "bernoulli"
    vae = keras_bdl.VAE.dense(
        (28, 28, 1),
        50,
        hidden=(200, 200),
        activation="tanh",
        likelihood=likelihood,
        preprocessing=bits if is_bits else None,
        seed=seed,
    )
    vae.build((None, 28, 28, 1))
    if is_bits:
        return vae, lambda images: bits.binarize(images, seed=seed)
    return vae, grey_levels


def aurocs(sets, likelihood, seed, name, args):
    """AUROC of each score; `sets` are for training, inside and outside."""
    vae, prepare = make(likelihood, seed)
    train_data = sets[0] if likelihood == "bernoulli" else prepare(sets[0])
    folder = f"ood_{name.split()[-1]}_{likelihood}_{args.epochs}_{seed}"
    recipe.train(vae, args, train_data, folder)
    options = {"num_samples": 100, "batch_size": 100, "seed": seed, "verbose": 0}
    vae.fit_ood(prepare(sets[0][: args.rows]), **options)
    inside, outside = map(prepare, sets[1:])
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
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--rows", type=int, default=1000, help="scored on each side")
    parser.add_argument("--checkpoints", type=pathlib.Path, default="runs/ck")
    args = parser.parse_args()
    (digits, _), (test_digits, _) = common.load_mnist(args.npz)
    letters = data.letters(28, 20_000, seed=0)
    test_letters = data.letters(28, args.rows, seed=1)
    directions = {
        "trained on digits": (digits, test_digits[: args.rows], test_letters),
        "trained on letters": (letters, test_letters, test_digits[: args.rows]),
    }
    runs = {}
    for name, sets in directions.items():
        for likelihood in LIKELIHOODS:
            for seed in range(args.seeds):
                found = aurocs(sets, likelihood, seed, name, args)
                print(f"{name}, {likelihood}, seed {seed}: {found}", flush=True)
                for method, value in found.items():
                    key = f"{name}, {likelihood}, {method}"
                    runs.setdefault(key, []).append(value)
    summary = {name: common.mean_and_error(values) for name, values in runs.items()}
    for name, row in summary.items():
        print(f"{name:<52} {row['mean']:.4f} +- {row['standard_error'] or 0:.4f}")
    settings = {
        name: getattr(args, name)
        for name in ("epochs", "batch_size", "learning_rate", "ema", "rows")
    }
    common.save("out_of_domain", {"settings": settings, "auroc": summary})


if __name__ == "__main__":
    main()
