"""A variational autoencoder: new digits, a map of codes, data that are none.

    python examples/vae.py                  # digits, no network
    python examples/vae.py --dataset mnist  # by tensorflow_datasets
    python examples/vae.py --smoke          # seconds, to try it out

Prints the test bound and log p(x), and how well three scores tell the digits 8 and 9
and letters from a model of the digits 0 to 7. Pictures, in `--output`:

    vae_samples.png          new digits
    vae_reconstructions.png  test images above what their codes say
    vae_interpolation.png    on the way between two codes
    vae_map.png              two-dimensional codes by class, and what lies between
    vae_out_of_domain.png    the scores inside and outside of the training data
"""

import dataclasses

import cli
import data
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_bdl
from keras_bdl import plots


@dataclasses.dataclass(frozen=True)
class Settings:
    latent_dim: int = 20
    hidden: tuple = (300, 300)
    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 1e-3
    num_samples: int = 500  # of log p(x)


SETTINGS = {
    "digits": Settings(latent_dim=8, hidden=(128, 128), epochs=200, batch_size=64),
    "mnist": Settings(),
}
METHODS = ("log_prob", "typicality", "complexity")
INSIDE = range(8)  # classes that the model of the last picture is trained on


# --- Models --------------------------------------------------------------------------


def train(x, settings, seed, latent_dim=None, **options):
    """A VAE of dense layers, trained."""
    vae = keras_bdl.VAE.dense(
        x.shape[1:],
        latent_dim or settings.latent_dim,
        settings.hidden,
        activation="relu",
        seed=seed,
        **options,
    )
    steps = settings.epochs * int(np.ceil(len(x) / settings.batch_size))
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    vae.compile(keras.optimizers.Adam(rate))
    warmup = keras_bdl.callbacks.KLWarmup(max(1, settings.epochs // 10))
    history = vae.fit(
        x, None, settings.batch_size, settings.epochs, callbacks=[warmup], verbose=0
    ).history
    print(
        "  last epoch:",
        ", ".join(f"{name} {values[-1]:.2f}" for name, values in history.items()),
    )
    return vae


def explain(vae, x, settings, seed):
    """Prints the bound and log p(x) of test images."""
    options = {"seed": seed, "verbose": 0}
    elbo = vae.elbo(x, 1, **options).mean()
    log_prob = vae.log_prob(x, settings.num_samples, **options).mean()
    print(
        f"test images: -ELBO {-elbo:.2f} nats, -log p(x) {-log_prob:.2f} nats "
        f"({settings.num_samples} samples)\n"
    )


def out_of_domain(train_data, test_data, settings, seed):
    """Scores of test images inside and outside of the classes 0 to 7, and letters.

    Returns:
        Dictionary of method to scores inside, and a dictionary of those outside.
    """
    (x, y), (x_test, y_test) = train_data, test_data
    x = x[np.isin(y, INSIDE)]
    # The probability of 256 levels of grey: comparable with the length of a file.
    levels = keras_bdl.losses.DiscretizedLogisticNLL()
    vae = train(x, settings, seed, likelihood=levels)
    options = {"num_samples": settings.num_samples // 5, "seed": seed, "verbose": 0}
    vae.fit_ood(x[:2000], **options)
    is_inside = np.isin(y_test, INSIDE)
    count = int(is_inside.sum())
    others = {
        "8 and 9": x_test[~is_inside],
        "letters": data.letters(x.shape[1], count, seed),
    }
    return {
        method: (
            vae.ood_score(x_test[is_inside], method, **options),
            {name: vae.ood_score(o, method, **options) for name, o in others.items()},
        )
        for method in METHODS
    }


def print_aurocs(scores):
    print(f"\n{'AUROC against 0 to 7':<22}" + "".join(f"{m:>13}" for m in METHODS))
    for name in scores[METHODS[0]][1]:
        row = [
            keras_bdl.ops.uncertainty.auroc(inside, outside[name])
            for inside, outside in scores.values()
        ]
        print(f"{name:<22}" + "".join(f"{value:>13.3f}" for value in row))


# --- Pictures ------------------------------------------------------------------------


def draw_sheet(images, columns=10):
    return plots.image_sheet(images, columns=columns)[0, 0].figure


def draw_reconstructions(vae, x):
    x = x[:10]
    return draw_sheet(np.concatenate([x, vae.reconstruct(x)]))


def draw_interpolation(vae, x, y):
    """From one class to the next, five times."""
    firsts = [x[y == label][:1] for label in range(10)]
    starts, ends = np.concatenate(firsts[:5]), np.concatenate(firsts[5:])
    path = vae.interpolate(starts, ends, steps=10)
    return draw_sheet(path.reshape(-1, *path.shape[2:]))


def draw_map(vae, x, y, size=16):
    """Codes of test images, and the decoded grid under them."""
    codes = vae.encode(x)
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    plots.latent_map(codes, y, axes[0])
    low, high = np.quantile(codes, [0.02, 0.98], axis=0)
    grid = np.stack(
        np.meshgrid(
            np.linspace(low[0], high[0], size), np.linspace(high[1], low[1], size)
        ),
        axis=-1,
    )
    images = vae.decode(grid.reshape(-1, 2))[..., 0]
    images = np.pad(images, [[0, 0], [0, 1], [0, 1]], constant_values=0.5)
    pixels = images.shape[1]
    sheet = images.reshape(size, size, pixels, pixels).swapaxes(1, 2)
    axes[1].imshow(
        sheet.reshape(size * pixels, size * pixels),
        cmap="gray",
        extent=(low[0], high[0], low[1], high[1]),
        aspect="auto",
    )
    axes[1].set(xlabel="$z_1$", ylabel="$z_2$", title="decoded")
    return figure


def draw_scores(scores):
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    labels = {
        "log_prob": "-log p(x) (nats)",
        "typicality": "distance from the mean of log p (nats)",
        "complexity": "-log2 p(x) - PNG (bits)",
    }
    for ax, (method, (inside, outside)) in zip(axes, scores.items()):
        plots.score_histograms(inside, outside, ax, labels[method])
        ax.set_title(method)
    return figure


def main():
    epochs = {name: settings.epochs for name, settings in SETTINGS.items()}
    args = cli.make_parser(__doc__, epochs).parse_args()
    settings = SETTINGS[args.dataset]
    if args.smoke:
        settings = dataclasses.replace(
            settings, hidden=(16,), epochs=2, latent_dim=3, num_samples=10
        )
    if args.epochs:
        settings = dataclasses.replace(settings, epochs=args.epochs)

    keras.utils.set_random_seed(args.seed)
    train_data, test_data = cli.load(args, smoke_rows=200)
    (x, _), (x_test, y_test) = train_data, test_data
    bits = keras_bdl.layers.DynamicBinarization(seed=args.seed)

    print(f"training: {settings.latent_dim} numbers to a code ...", flush=True)
    vae = train(x, settings, args.seed, preprocessing=bits)
    explain(vae, bits.binarize(x_test[:1000], args.seed), settings, args.seed)
    print("training: 2 numbers to a code ...", flush=True)
    flat = train(x, settings, args.seed, latent_dim=2, preprocessing=bits)
    print("training: 8 bits to a pixel, digits 0 to 7 ...", flush=True)
    scores = out_of_domain(train_data, test_data, settings, args.seed)
    print_aurocs(scores)

    figures = {
        "vae_samples": draw_sheet(vae.sample(50, seed=args.seed)),
        "vae_reconstructions": draw_reconstructions(vae, x_test),
        "vae_interpolation": draw_interpolation(vae, x_test, y_test),
        "vae_map": draw_map(flat, x_test, y_test),
        "vae_out_of_domain": draw_scores(scores),
    }
    cli.save_figures(figures, args.output)


if __name__ == "__main__":
    main()
