"""Test error on MNIST from 100 labels: M1+M2, on the codes of a VAE.

    python benchmarks/semi_supervised.py

The protocol of Kingma, Rezende, Mohamed and Welling (2014): 10 labels of each class,
drawn by five seeds; all other training images without labels; error of q(y | x) on the
10,000 test images after the last epoch. The VAE (M1) is that of benchmarks/vae.py with
a code of fewer numbers. With `--validate` the last 10,000 training images are left out
and scored in place of the test set, for the choice of settings. In `--checkpoints`, a
folder for one choice of settings, are the VAE, the errors of seeds that are done, and
what a later run goes on from.
"""

import argparse
import json
import pathlib
import sys
import time

import common
import keras
import numpy as np
import vae as recipe

import keras_bdl

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import semi_supervised as example  # noqa: E402 (found by the line above)


def load(args):
    return [
        (x.reshape(len(x), -1), y)
        for x, y in common.load_mnist(args.npz, 10_000 if args.validate else 0)
    ]


def load_vae(args, x):
    """M1, trained where there is no file of it."""
    path = args.checkpoints / f"vae_{args.code_dim}_{len(x)}.keras"
    if not path.exists():
        options = recipe.make_parser().parse_args(["train"])
        options.epochs, options.checkpoints = args.vae_epochs, args.checkpoints
        vae = recipe.make(options, 0, args.code_dim)
        vae.build((None, 784))
        recipe.train(vae, options, x, path.stem)
        vae.save(path)
    return keras.models.load_model(path)


def train(args, vae, x, labels, seed, folder):
    keras.utils.set_random_seed(seed)
    model = keras_bdl.SemiSupervisedVAE.on_codes(
        vae,
        args.latent_dim,
        num_classes=10,
        hidden=tuple(args.hidden),
        classifier_weight=args.classifier_weight,
        labeled_share=args.labeled_share,
        summed_classes=args.summed_classes or None,
        seed=seed,
    )
    unlabeled = args.batch_size * (1.0 - args.labeled_share)
    steps = args.epochs * int(np.ceil(np.sum(labels < 0) / unlabeled))
    rate = common.cosine_with_warmup(args.learning_rate, steps, steps // 20)
    model.compile(keras.optimizers.Adam(rate))
    common.fit_from_checkpoints(
        model, x, labels, folder, args.batch_size, args.epochs, log_every=10
    )
    return model


def run(args, train_data, test_data, seed):
    """The error of a seed, from its file where it has been measured."""
    kind = "val" if args.validate else "test"
    folder = args.checkpoints / f"semi_supervised_{kind}_{args.epochs}_{seed}"
    path = folder.with_suffix(".json")
    if not path.exists():
        x, y = train_data
        vae = load_vae(args, x)
        start = time.perf_counter()
        model = train(
            args, vae, x, example.keep_labels(y, args.labels, seed), seed, folder
        )
        row = {
            "error_percent": example.error(model, *test_data),
            "minutes": (time.perf_counter() - start) / 60,
        }
        path.write_text(json.dumps(row))
    return json.loads(path.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--npz", help="MNIST as one .npz instead of TFDS")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--labeled-share", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--classifier-weight", type=float, default=5.0)
    parser.add_argument(
        "--summed-classes", type=int, default=1, help="0 sums all (exact, slower)"
    )
    parser.add_argument("--vae-epochs", type=int, default=150)
    parser.add_argument("--code-dim", type=int, default=20, help="numbers of M1's code")
    parser.add_argument("--latent-dim", type=int, default=10, help="of M2's code")
    parser.add_argument("--hidden", type=int, nargs="*", default=[500])
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--checkpoints", type=pathlib.Path, default="runs/ck")
    args = parser.parse_args()
    train_data, test_data = load(args)
    rows = []
    for seed in args.seeds:
        rows.append(run(args, train_data, test_data, seed))
        print(f"seed {seed}", rows[-1], flush=True)
    summary = {key: common.mean_and_error([r[key] for r in rows]) for key in rows[0]}
    print(summary)
    if not args.validate:
        settings = {
            k: v for k, v in vars(args).items() if k not in ("npz", "checkpoints")
        }
        common.save(
            f"semi_supervised_{args.labels}", {"settings": settings, "summary": summary}
        )


if __name__ == "__main__":
    main()
