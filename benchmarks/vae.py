"""VAE on MNIST: -log p(x) of the bounds, and the throughput of `log_prob`.

    python benchmarks/vae.py train --bound elbo --samples 1
    python benchmarks/vae.py train --bound dreg --samples 5
    python benchmarks/vae.py throughput

The network and protocol are those of Burda, Grosse and Salakhutdinov (2015): 784 -
200 - 200 - 50, tanh; training images binarised anew in every batch, the test images
once; -log p(x) by 5,000 samples on all 10,000 test images, at the last epoch. With
`--validate` the last 5,000 training images are scored in their place, by 500 samples,
for the choice of settings. Training goes on from `--checkpoints`.
"""

import argparse
import pathlib
import statistics
import time

import common
import keras
import numpy as np

import keras_bdl


def load(args):
    held_out = 5000 if args.validate else 0
    (train, _), (test, _) = common.load_mnist(args.npz, held_out)
    bits = keras_bdl.layers.DynamicBinarization().binarize(test, seed=0)
    return train.reshape(len(train), -1), bits.reshape(len(bits), -1)


def make(args, seed, latent_dim=50):
    keras.utils.set_random_seed(seed)
    return keras_bdl.VAE.dense(
        (784,),
        latent_dim,
        hidden=(200, 200),
        activation="tanh",
        num_importance_samples=args.samples,
        gradient=args.bound,
        preprocessing=keras_bdl.layers.DynamicBinarization(seed),
        seed=seed,
    )


def train(vae, args, x, name):
    """Trains a built model and gives the minutes; goes on from checkpoints."""
    steps = args.epochs * -(-len(x) // args.batch_size)
    rate = common.cosine_with_warmup(args.learning_rate, steps, steps // 50)
    vae.compile(
        keras.optimizers.Muon(
            rate,
            adam_lr_ratio=0.3,
            use_ema=args.ema > 0,
            ema_momentum=args.ema or 0.99,
            ema_overwrite_frequency=None,
        )
    )
    folder = args.checkpoints / name
    start = time.perf_counter()
    common.fit_from_checkpoints(
        vae, x, None, folder, args.batch_size, args.epochs, log_every=20
    )
    if args.ema:
        vae.optimizer.finalize_variable_values(vae.trainable_variables)
    return (time.perf_counter() - start) / 60


def run_training(args):
    x, test = load(args)
    rows = []
    for seed in range(args.seeds):
        vae = make(args, seed)
        vae.build((None, 784))
        name = f"vae_{args.bound}_{args.samples}_{args.epochs}_{args.batch_size}"
        minutes = train(vae, args, x, f"{name}_{args.learning_rate:g}_{seed}")
        if args.save:
            args.save.mkdir(parents=True, exist_ok=True)
            vae.save(args.save / f"vae_{args.bound}_{args.samples}_{seed}.keras")
        samples = 500 if args.validate else 5000
        log_prob = vae.log_prob(test, samples, seed=0, verbose=2)
        elbo = vae.elbo(test, 1, seed=0, verbose=0)
        rows.append(
            {
                "negative_log_prob": -float(log_prob.mean()),
                "error_over_images": float(log_prob.std() / np.sqrt(len(test))),
                "negative_elbo": -float(elbo.mean()),
                "minutes": minutes,
            }
        )
        print(f"{args.bound}, k = {args.samples}, seed {seed}", rows[-1], flush=True)
    if args.validate:
        return
    summary = {key: common.mean_and_error([r[key] for r in rows]) for key in rows[0]}
    settings = {
        name: getattr(args, name)
        for name in ("epochs", "batch_size", "learning_rate", "ema", "samples", "bound")
    }
    common.save(
        f"vae_{args.bound}_{args.samples}",
        {"settings": settings, "summary": summary, "runs": rows},
    )


def run_throughput(args):
    """Images per second of `log_prob` and of a loop over single samples."""
    _, test = load(args)
    vae = make(args, 0)
    vae.build((None, 784))
    x = test[:256]
    vae.log_prob(x, 5000, batch_size=32, verbose=0)  # compiles
    vae.log_prob(x, 1, batch_size=256, verbose=0)
    blocks, loop = [], []
    for _ in range(args.repeats):
        start = time.perf_counter()
        vae.log_prob(x, 5000, batch_size=32, verbose=0)
        blocks.append(len(x) / (time.perf_counter() - start))
        start = time.perf_counter()
        for _ in range(50):  # of 5,000 single samples
            vae.log_prob(x, 1, batch_size=256, verbose=0)
        loop.append(len(x) / (100 * (time.perf_counter() - start)))
    result = {
        "backend": keras.backend.backend(),
        "images_per_second": statistics.median(blocks),
        "images_per_second_loop": statistics.median(loop),
    }
    print(result)
    common.save(f"vae_throughput_{result['backend']}", result)


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("train", "throughput"))
    parser.add_argument("--npz", help="MNIST as one .npz instead of TFDS")
    parser.add_argument("--bound", choices=("elbo", "iwae", "dreg"), default="elbo")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--checkpoints", type=pathlib.Path, default="runs/ck")
    parser.add_argument("--save", type=pathlib.Path)
    return parser


def main():
    args = make_parser().parse_args()
    {"train": run_training, "throughput": run_throughput}[args.what](args)


if __name__ == "__main__":
    main()
