"""Classes from few labels: a generative model learns from the images without one.

    python examples/semi_supervised.py                  # digits, no network
    python examples/semi_supervised.py --dataset mnist  # by tensorflow_datasets
    python examples/semi_supervised.py --smoke          # seconds, to try it out

For several numbers of labels, the same number of each class, the test error of

    supervised    a classifier on the labelled images alone
    M2            `SemiSupervisedVAE` on all images
    M1+M2         the same on the codes of a VAE of all images

over several draws of the labels. Pictures, in `--output`:

    semi_supervised_error.png    test error against the number of labels
    semi_supervised_classes.png  one style in each row, all classes
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
    labels: tuple = (100, 1000)
    draws: int = 3
    latent_dim: int = 50
    hidden: tuple = (300, 300)
    vae_epochs: int = 40
    epochs: int = 20
    batch_size: int = 200
    learning_rate: float = 1e-3


SETTINGS = {
    "digits": Settings(
        labels=(20, 50, 200),
        latent_dim=10,
        hidden=(128,),
        vae_epochs=150,
        epochs=60,
        batch_size=64,
        learning_rate=2e-3,
    ),
    "mnist": Settings(),
}
NUM_CLASSES = 10


# --- Training ------------------------------------------------------------------------


def keep_labels(y, count, seed):
    """Labels of `count` rows, as many of each class; -1 for the others."""
    rng = np.random.default_rng(seed)
    kept = np.full(len(y), -1)
    for label in range(NUM_CLASSES):
        rows = rng.permutation(np.flatnonzero(y == label))[: count // NUM_CLASSES]
        kept[rows] = label
    return kept


def optimizer(rows, epochs, settings):
    steps = epochs * int(np.ceil(rows / settings.batch_size))
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    return keras.optimizers.Adam(rate)


def train_vae(x, settings, seed):
    vae = keras_bdl.VAE.dense(
        x.shape[1:], settings.latent_dim, settings.hidden, "relu", seed=seed
    )
    vae.compile(optimizer(len(x), settings.vae_epochs, settings))
    vae.fit(x, None, settings.batch_size, settings.vae_epochs, verbose=0)
    return vae


def train_semi_supervised(model, x, labels, settings):
    # Half of every batch has labels: an epoch has twice as many steps.
    model.compile(optimizer(2 * len(x), settings.epochs, settings))
    model.fit(x, labels, settings.batch_size, settings.epochs, verbose=0)
    return model


def train_supervised(x, labels, settings):
    known = labels >= 0
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Flatten(),
            *(keras.layers.Dense(n, activation="relu") for n in settings.hidden),
            keras.layers.Dense(NUM_CLASSES, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x[known], labels[known], 16, 50, verbose=0)
    return model


def error(model, x, y):
    probabilities = model.predict(x, batch_size=1000, verbose=0)
    return float(100.0 * np.mean(probabilities.argmax(axis=-1) != y))


def run(train_data, test_data, settings, seed):
    """Test errors in percent by method and number of labels, `(counts, draws)`.

    Returns:
        Dictionary of errors by method, and the last M1+M2 model.
    """
    x, y = train_data
    print("training: a VAE of all images ...", flush=True)
    vae = train_vae(x, settings, seed)
    errors = {name: [] for name in ("supervised", "M2", "M1+M2")}
    for count in settings.labels:
        for draw in range(settings.draws):
            print(f"training: {count} labels, draw {draw + 1} ...", flush=True)
            labels = keep_labels(y, count, seed + draw)
            dense = keras_bdl.SemiSupervisedVAE.dense(
                x.shape[1:], settings.latent_dim, NUM_CLASSES, settings.hidden
            )
            on_codes = keras_bdl.SemiSupervisedVAE.on_codes(
                vae, settings.latent_dim, NUM_CLASSES, hidden=settings.hidden
            )
            models = (
                train_supervised(x, labels, settings),
                train_semi_supervised(dense, x, labels, settings),
                train_semi_supervised(on_codes, x, labels, settings),
            )
            for found, model in zip(errors.values(), models):
                found.append(error(model, *test_data))
    shape = (len(settings.labels), settings.draws)
    return {name: np.reshape(v, shape) for name, v in errors.items()}, dense


# --- Results -------------------------------------------------------------------------


def standard_error(errors):
    return errors.std(axis=1, ddof=1 if errors.shape[1] > 1 else 0) / np.sqrt(
        errors.shape[1]
    )


def print_table(errors, settings):
    print("\ntest error (%), mean and standard error over draws of the labels")
    print("labels".ljust(12) + "".join(f"{count:>16}" for count in settings.labels))
    for name, values in errors.items():
        cells = zip(values.mean(axis=1), standard_error(values))
        print(name.ljust(12) + "".join(f"{m:>9.2f} +- {s:4.2f}" for m, s in cells))


def draw_errors(errors, settings):
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in errors.items():
        plots.curve_with_band(
            settings.labels, values.mean(axis=1), standard_error(values), ax, name
        )
    ax.set(xscale="log", xlabel="labelled images", ylabel="test error (%)")
    ax.set_xticks(settings.labels, [str(count) for count in settings.labels])
    ax.minorticks_off()
    ax.set_ylim(0, None)
    ax.legend(frameon=False)
    return figure


def draw_classes(model, seed, rows=6):
    """Images of every class; those of a row have one code."""
    images = np.stack(
        [
            model.sample(rows, label=label, seed=seed).squeeze(-1)
            for label in range(NUM_CLASSES)
        ],
        axis=1,
    )
    sheet = images.reshape(-1, *images.shape[2:])
    return plots.image_sheet(sheet, columns=NUM_CLASSES)[0, 0].figure


def main():
    epochs = {name: settings.epochs for name, settings in SETTINGS.items()}
    args = cli.make_parser(__doc__, epochs).parse_args()
    settings = SETTINGS[args.dataset]
    if args.smoke:
        settings = dataclasses.replace(
            settings, labels=(20,), draws=1, hidden=(16,), vae_epochs=2, epochs=2
        )
    if args.epochs:
        settings = dataclasses.replace(settings, epochs=args.epochs)
    keras.utils.set_random_seed(args.seed)
    train_data, test_data = data.load(args.dataset, args.data_dir)
    errors, model = run(train_data, test_data, settings, args.seed)
    print_table(errors, settings)
    figures = {
        "semi_supervised_error": draw_errors(errors, settings),
        "semi_supervised_classes": draw_classes(model, args.seed),
    }
    cli.save_figures(figures, args.output)


if __name__ == "__main__":
    main()
