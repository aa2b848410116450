"""Dropout rates that are learned, on a toy with known noise and on images.

    python examples/concrete_dropout.py                  # digits, no network
    python examples/concrete_dropout.py --dataset mnist  # by tensorflow_datasets
    python examples/concrete_dropout.py --smoke          # seconds, to try it out

The toy is that of Gal, Hron and Kendall, "Concrete dropout", 2017, section 4.1:
y = 2 x + 8 + noise of standard deviation 1. As data grow, the spread of the noise
(aleatoric) is found, that of the weights (epistemic) vanishes, and the network turns
off the dropout of its one input. On the images a convolutional network learns the
rate of each layer, beside the same network without dropout.

Pictures, in `--output`:

    toy_uncertainty.png   predictions of the toy, with both kinds of uncertainty
    toy_rates.png         learned rates and both spreads against the number of data
    image_rates.png       the rate of each layer of the image network over the epochs
"""

import dataclasses

import cli
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_bdl
from keras_bdl import plots


@dataclasses.dataclass(frozen=True)
class Settings:
    """The toy's sizes and steps, and the training of the image networks."""

    toy_sizes: tuple = (10, 100, 1_000, 10_000)
    toy_units: int = 1024
    toy_steps: int = 3_000
    epochs: int = 60
    batch_size: int = 32
    learning_rate: float = 1e-3


SETTINGS = {
    "digits": Settings(toy_units=256),
    "mnist": Settings(toy_steps=16_000, epochs=15, batch_size=128),
}
SMOKE = {"toy_sizes": (10, 40), "toy_units": 16, "toy_steps": 20, "epochs": 2}
NUM_CLASSES = 10
TOY_LENGTH_SCALE = 1e-4  # the source's: almost no weight decay


# --- Toy -------------------------------------------------------------------------


def toy_data(num_rows, rng):
    x = rng.normal(size=(num_rows, 1))
    return x, 2.0 * x + 8.0 + rng.normal(size=(num_rows, 1))


def train_toy(x, y, settings):
    """Three hidden layers and a head of mean and log standard deviation."""
    widths = [settings.toy_units] * 3 + [2]
    layers = [
        keras_bdl.ConcreteDropout(
            keras.layers.Dense(width, activation=None if width == 2 else "relu"),
            length_scale=TOY_LENGTH_SCALE,
        )
        for width in widths
    ]
    network = keras.Sequential([keras.Input((1,)), *layers])
    model = keras_bdl.BayesianRegressor(network)
    steps = settings.toy_steps
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    model.compile(keras.optimizers.Adam(rate))
    batch_size = min(100, len(x))
    epochs = int(np.ceil(steps * batch_size / len(x)))
    model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0)
    return model


def rates(network):
    layers = [x for x in network.layers if isinstance(x, keras_bdl.ConcreteDropout)]
    return [layer.rate for layer in layers]


def run_toy(settings, rng, num_samples):
    """For each number of data: the data, the learned rates and the uncertainty."""
    grid = np.linspace(-4.0, 4.0, 81)[:, None]
    x_test = rng.normal(size=(500, 1))
    runs = {}
    print(f"{'N':>7} {'aleatoric':>10} {'epistemic':>10}   rates by layer")
    for num_rows in settings.toy_sizes:
        x, y = toy_data(num_rows, rng)
        model = train_toy(x, y, settings)
        options = {"num_samples": num_samples, "seed": 0, "verbose": 0}
        test = model.predict_uncertainty(x_test, **options)
        run = {
            "data": (x, y),
            "rates": rates(model.network),
            "aleatoric": np.sqrt(np.mean(test.aleatoric_stddev**2)),
            "epistemic": np.sqrt(np.mean(test.epistemic_stddev**2)),
            "grid": model.predict_uncertainty(grid, **options),
        }
        runs[num_rows] = run
        print(
            f"{num_rows:>7} {run['aleatoric']:>10.3f} {run['epistemic']:>10.3f}   "
            + " ".join(f"{rate:.3f}" for rate in run["rates"]),
            flush=True,
        )
    return grid, runs


def draw_toy(grid, runs):
    """The predictive with one standard deviation of each kind, for each N."""
    figure, axes = plt.subplots(
        1, len(runs), figsize=(3.6 * len(runs), 4), sharey=True, layout="constrained"
    )
    x = grid[:, 0]
    for ax, (num_rows, run) in zip(np.atleast_1d(axes), runs.items()):
        spread = run["grid"]
        mean, aleatoric, epistemic = (v[:, 0] for v in spread[:3])
        ax.plot(x, mean, color=plots.BLUE, label="predictive mean")
        ax.plot(x, 2 * x + 8, color="0.3", linestyle="--", label="truth, 2 x + 8")
        total = np.sqrt(aleatoric**2 + epistemic**2)
        for spread, alpha, name in (
            (total, 0.18, "total, 1 standard deviation"),
            (epistemic, 0.45, "epistemic"),
        ):
            low, high = mean - spread, mean + spread
            band = {"color": plots.BLUE, "alpha": alpha, "linewidth": 0}
            ax.fill_between(x, low, high, label=name, **band)
        shown = slice(0, 300)
        points = [v[shown, 0] for v in run["data"]]
        ax.plot(*points, ".", color=plots.VERMILLION, markersize=3, label="data")
        ax.set(title=f"N = {num_rows:,}", xlabel="x", xlim=(-4, 4), ylim=(-4, 20))
    axes = np.atleast_1d(axes)
    axes[0].set_ylabel("y")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def draw_toy_rates(runs):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    sizes = list(runs)
    names = ("input", "hidden 1", "hidden 2", "hidden 3")
    for index, (name, color) in enumerate(zip(names, plots.COLORS)):
        values = [run["rates"][index] for run in runs.values()]
        left.plot(sizes, values, "o-", color=color, markersize=4, label=name)
    left.set(ylabel="dropout rate", ylim=(0, None), title="learned rates")
    for kind, color in (("aleatoric", plots.BLUE), ("epistemic", plots.VERMILLION)):
        values = [run[kind] for run in runs.values()]
        right.plot(sizes, values, "o-", color=color, markersize=4, label=kind)
    right.axhline(1.0, color="0.5", linestyle="--", linewidth=1, label="true noise")
    right.set(ylabel="standard deviation", ylim=(0, None), title="uncertainty")
    for ax in (left, right):
        ax.set(xscale="log", xlabel="number of training examples N")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    return figure


# --- Images ------------------------------------------------------------------------


def image_network(image_shape, dropout):
    """A convolutional network; `dropout` wraps the layers that learn a rate."""
    conv, dense = keras.layers.Conv2D, keras.layers.Dense
    options = {"padding": "valid" if image_shape[0] > 8 else "same"}
    return keras.Sequential(
        [
            keras.Input(image_shape),
            conv(32, 5, activation="relu", **options),
            keras.layers.MaxPooling2D(),
            dropout(conv(64, 5, activation="relu", name="convolution", **options)),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            dropout(dense(256, activation="relu", name="hidden")),
            dropout(dense(NUM_CLASSES, name="logits")),
        ]
    )


def train_images(x, y, settings):
    """The network with learned rates, and its twin without dropout."""
    steps = settings.epochs * int(np.ceil(len(x) / settings.batch_size))
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    options = {"batch_size": settings.batch_size, "epochs": settings.epochs}
    verbose = 1 if settings.epochs <= 20 else 0

    def wrap(layer):
        return keras_bdl.ConcreteDropout(layer, length_scale=1.0, name=layer.name)

    network = image_network(x.shape[1:], wrap)
    classifier = keras_bdl.BayesianClassifier(network)
    classifier.compile(keras.optimizers.Adam(rate))
    logger = keras_bdl.callbacks.DropoutRateLogger()
    history = classifier.fit(x, y, callbacks=[logger], verbose=verbose, **options)

    twin = image_network(x.shape[1:], lambda layer: layer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    twin.compile(keras.optimizers.Adam(rate), loss)
    twin.fit(x, y, verbose=verbose, **options)
    return classifier, twin, history.history


def score_images(classifier, twin, x, y, num_samples, seed):
    """Accuracy, NLL in nats and calibration error (15 bins) of both networks."""
    probabilities = {
        "learned rates, sampled": classifier.predict(
            x, batch_size=500, num_samples=num_samples, seed=seed, verbose=0
        ),
        "no dropout": keras.ops.convert_to_numpy(
            keras.ops.softmax(twin.predict(x, batch_size=500, verbose=0))
        ),
    }
    scores = {}
    for name, predicted in probabilities.items():
        nll = keras_bdl.metrics.NegativeLogLikelihood()
        ece = keras_bdl.metrics.ExpectedCalibrationError()
        for metric in (nll, ece):
            metric.update_state(y, predicted)
        scores[name] = {
            "accuracy": float(np.mean(predicted.argmax(axis=-1) == y)),
            "NLL": float(nll.result()),
            "ECE": float(ece.result()),
        }
    return scores


def print_scores(scores):
    print(f"{'':24}" + "".join(f"{name:>10}" for name in ("accuracy", "NLL", "ECE")))
    for name, row in scores.items():
        print(f"{name:24}" + "".join(f"{value:>10.4f}" for value in row.values()))


def draw_image_rates(history):
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    names = [name for name in history if name.startswith("rate_")]
    for name, color in zip(names, plots.COLORS):
        epochs = np.arange(1, len(history[name]) + 1)
        ax.plot(epochs, history[name], color=color, label=name[len("rate_") :])
    ax.set(xlabel="epoch", ylabel="dropout rate", ylim=(0, None))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure


def main():
    epochs = {name: settings.epochs for name, settings in SETTINGS.items()}
    parser = cli.make_parser(__doc__, epochs)
    parser.add_argument("--num-samples", type=int, default=100, help="of the masks")
    args = parser.parse_args()
    settings = SETTINGS[args.dataset]
    if args.smoke:
        settings = dataclasses.replace(settings, **SMOKE)
    if args.epochs:
        settings = dataclasses.replace(settings, epochs=args.epochs)

    keras.utils.set_random_seed(args.seed)
    print("toy: standard deviations by source, true noise 1", flush=True)
    grid, runs = run_toy(settings, np.random.default_rng(args.seed), args.num_samples)

    (x_train, y_train), (x_test, y_test) = cli.load(args)
    print(
        f"\n{args.dataset}: training two networks on {len(x_train)} images for "
        f"{settings.epochs} epochs each ...",
        flush=True,
    )
    classifier, twin, history = train_images(x_train, y_train, settings)
    print_scores(
        score_images(classifier, twin, x_test, y_test, args.num_samples, args.seed)
    )
    print("rates: " + " ".join(f"{rate:.3f}" for rate in rates(classifier.network)))

    figures = {
        "toy_uncertainty": draw_toy(grid, runs),
        "toy_rates": draw_toy_rates(runs),
        "image_rates": draw_image_rates(history),
    }
    cli.save_figures(figures, args.output)


if __name__ == "__main__":
    main()
