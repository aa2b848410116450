"""Test error on MNIST from 100 labels: M1+M2 on the codes of a trained VAE.

    python benchmarks/vae.py train --bound elbo --samples 1 --epochs 1500 --save FOLDER
    python benchmarks/semi_supervised.py --vae FOLDER/vae_elbo_1_0.keras

The protocol of Kingma, Rezende, Mohamed and Welling (2014): 10 labels of each class,
drawn by five seeds; all other training images without labels; error of q(y | x) on the
10,000 test images after the last epoch. With `--validate` the last 10,000 training
images are left out and scored in place of the test set, for the choice of settings.
Training goes on from `--checkpoints`.
"""

import argparse
import pathlib
import sys
import time

import common
import keras
import numpy as np

import keras_bdl

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import semi_supervised as example  # noqa: E402 (found by the line above)


def load(args):
    (x, y), test = common.load_mnist(args.npz)
    if args.validate:
        (x, y), test = (x[:-10_000], y[:-10_000]), (x[-10_000:], y[-10_000:])
    return (x.reshape(len(x), -1), y), (test[0].reshape(len(test[0]), -1), test[1])


def train(args, x, labels, seed):
    keras.utils.set_random_seed(seed)
    model = keras_bdl.SemiSupervisedVAE.on_codes(
        keras.models.load_model(args.vae),
        args.latent_dim,
        num_classes=10,
        hidden=tuple(args.hidden),
        classifier_weight=args.classifier_weight,
        labeled_share=args.labeled_share,
        seed=seed,
    )
    unlabeled = args.batch_size * (1.0 - args.labeled_share)
    steps = args.epochs * int(np.ceil(np.sum(labels < 0) / unlabeled))
    rate = keras.optimizers.schedules.CosineDecay(args.learning_rate, steps)
    model.compile(keras.optimizers.Adam(rate))
    kind = "val" if args.validate else "test"
    folder = args.checkpoints / f"semi_supervised_{kind}_{args.epochs}_{seed}"
    common.fit_from_checkpoints(
        model, x, labels, folder, args.batch_size, args.epochs, log_every=10
    )
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--npz", help="MNIST as one .npz instead of TFDS")
    parser.add_argument("--vae", required=True, help="file of the trained VAE (M1)")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--labeled-share", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--classifier-weight", type=float, default=5.0)
    parser.add_argument("--latent-dim", type=int, default=50)
    parser.add_argument("--hidden", type=int, nargs="*", default=[500])
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--checkpoints", type=pathlib.Path, default="runs/ck")
    args = parser.parse_args()
    (x, y), (x_test, y_test) = load(args)
    rows = []
    for seed in args.seeds:
        start = time.perf_counter()
        labels = example.keep_labels(y, args.labels, seed)
        model = train(args, x, labels, seed)
        rows.append(
            {
                "error_percent": example.error(model, x_test, y_test),
                "minutes": (time.perf_counter() - start) / 60,
            }
        )
        print(f"seed {seed}", rows[-1], flush=True)
    summary = {key: common.mean_and_error([r[key] for r in rows]) for key in rows[0]}
    print(summary)
    if not args.validate:
        settings = {k: v for k, v in vars(args).items() if k not in ("npz", "vae")}
        settings["checkpoints"] = None
        common.save(
            f"semi_supervised_{args.labels}", {"settings": settings, "summary": summary}
        )


if __name__ == "__main__":
    main()
