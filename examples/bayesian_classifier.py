"""A Bayesian convolutional network beside its deterministic twin.

    python examples/bayesian_classifier.py                  # digits, no network
    python examples/bayesian_classifier.py --dataset mnist  # by tensorflow_datasets
    python examples/bayesian_classifier.py --smoke          # seconds, to try it out

Both networks have the same layers, optimizer, learning rate and epochs. The
Bayesian one has a Gaussian posterior over every weight and predicts by averaging
over samples of it. The script prints how accurate and how calibrated each is on
the test set, and how well its uncertainty tells test digits from two kinds of
input that it has never seen: the test digits turned by 90 degrees, and letters.
The score is the area under the ROC curve (AUROC): 0.5 is chance, 1 is perfect.

Pictures, in `--output`:

    reliability.png      accuracy against confidence, both networks
    certainty.png        the test digits it is most and least certain of
    rotation.png         predictive entropy while the digits turn, both networks
    out_of_domain.png    what it has never seen, and how uncertain it is of it
"""

import dataclasses
import time
import typing

import cli
import data
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_bdl
from keras_bdl import plots
from keras_bdl.ops import uncertainty


@dataclasses.dataclass(frozen=True)
class Settings:
    """Training of both networks; `kl_weight` is of the Bayesian one.

    Those of the digits were chosen by cross-validation inside the training set:
    1347 images are few for so many weights, and with the whole KL term the network
    underfits (accuracy 0.96, NLL 0.2 nats), hence a `kl_weight` far below 1. That
    is a "cold" posterior: Wenzel et al., "How good is the Bayes posterior in deep
    neural networks really?", 2020. That of MNIST is the choice of
    benchmarks/README.md for a similar network.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    kl_weight: float

    @property
    def verbose(self):
        """A bar for each epoch, where epochs are few and long."""
        return 1 if self.epochs < 20 else 0


SETTINGS = {
    "digits": Settings(100, 32, 1e-2, kl_weight=0.02),
    "mnist": Settings(8, 128, 2e-3, kl_weight=0.1),
}
NUM_CLASSES = 10
ANGLES = np.arange(0, 181, 15)  # degrees
NUM_ROTATED = 1000  # test digits for the curve over angles
NUM_LETTERS = 2000


class Prediction(typing.NamedTuple):
    """What a network says of n inputs; entropies in nats."""

    probabilities: np.ndarray  # (n, classes)
    entropy: np.ndarray  # (n,), of the prediction: total uncertainty
    mutual_information: np.ndarray | None = None  # (n,), of prediction and weights


def make_network(conv, dense, image_shape, **options):
    """Logits of ten classes. Which layer classes it gets makes it Bayesian or not."""
    return keras.Sequential(
        [
            keras.Input(image_shape),
            conv(16, 3, padding="same", activation="relu", **options),
            keras.layers.MaxPooling2D(),
            conv(32, 3, padding="same", activation="relu", **options),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            dense(64, activation="relu", **options),
            dense(NUM_CLASSES, **options),
        ]
    )


def make_optimizer(settings, num_examples):
    steps = settings.epochs * int(np.ceil(num_examples / settings.batch_size))
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    return keras.optimizers.Adam(rate)


def train_bayesian(x, y, settings, num_samples):
    network = make_network(
        keras_bdl.VariationalConv2D,
        keras_bdl.VariationalDense,
        x.shape[1:],
        prior=keras_bdl.priors.LearnedNormal(0.1),
        kl_weight=settings.kl_weight,
    )
    classifier = keras_bdl.BayesianClassifier(network, num_samples=num_samples)
    classifier.compile(make_optimizer(settings, len(x)))
    classifier.fit(
        x,
        y,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        callbacks=[keras_bdl.callbacks.KLWarmup(max(1, settings.epochs // 5))],
        verbose=settings.verbose,
    )
    return classifier


def train_deterministic(x, y, settings):
    network = make_network(keras.layers.Conv2D, keras.layers.Dense, x.shape[1:])
    network.compile(
        make_optimizer(settings, len(x)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    network.fit(
        x,
        y,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        verbose=settings.verbose,
    )
    return network


def predict_deterministic(network, x):
    """Probabilities and entropy of one network: it has no mutual information."""
    logits = network.predict(x, batch_size=500, verbose=0)
    probabilities = keras.ops.softmax(logits)
    entropy = uncertainty.entropy(probabilities)
    return Prediction(*map(keras.ops.convert_to_numpy, (probabilities, entropy)))


def predict_bayesian(classifier, x, seed):
    result = classifier.predict_uncertainty(x, batch_size=500, verbose=0, seed=seed)
    return Prediction(
        result.probabilities, result.predictive_entropy, result.mutual_information
    )


def evaluate(predictions, labels):
    """Rows of the table, name to number, of one network.

    Args:
        predictions: `Prediction` by name of the inputs; "test" has the labels.
        labels: `(n,)`.
    """
    test = predictions["test"]
    nll = keras_bdl.metrics.NegativeLogLikelihood()
    ece = keras_bdl.metrics.ExpectedCalibrationError(num_bins=15)
    for metric in (nll, ece):
        metric.update_state(labels, test.probabilities)
    rows = {
        "accuracy": float(np.mean(test.probabilities.argmax(axis=-1) == labels)),
        "NLL (nats)": float(nll.result()),
        "ECE (15 bins)": float(ece.result()),
    }
    for name, other in predictions.items():
        if name == "test":
            continue
        rows[f"AUROC {name}, entropy"] = uncertainty.auroc(test.entropy, other.entropy)
        if test.mutual_information is not None:
            rows[f"AUROC {name}, mutual information"] = uncertainty.auroc(
                test.mutual_information, other.mutual_information
            )
    return rows


def print_table(results):
    names = max(results.values(), key=len)
    print(f"{'':44}" + "".join(f"{network:>15}" for network in results))
    for name in names:
        values = [rows.get(name) for rows in results.values()]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        print(f"{name:44}" + "".join(f"{cell:>15}" for cell in cells))


def draw_reliability(predictions, labels):
    figure, axes = plt.subplots(1, 2, figsize=(9, 5.4), layout="constrained")
    for ax, (network, inputs) in zip(axes, predictions.items()):
        plots.reliability_diagram(
            labels, inputs["test"].probabilities, ax=ax, label=network
        )
    return figure


def nats(value):
    return f"{value:.2f} nats" if value >= 0.01 else "< 0.01 nats"


def draw_certainty(images, labels, prediction):
    """The ten digits of least entropy and the twenty of most."""
    order = np.argsort(prediction.entropy)
    classes = prediction.probabilities.argmax(axis=-1)
    groups = {"Most certain": order[:10], "Least certain": order[::-1][:20]}
    figure = plt.figure(figsize=(10, 5), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=[1, 1.8])
    for part, (name, chosen) in zip(parts, groups.items()):
        titles = [
            f"{classes[i]}"
            + (f", is {labels[i]}" if classes[i] != labels[i] else "")
            + f"\n{nats(prediction.entropy[i])}"
            for i in chosen
        ]
        axes = plots.image_sheet(images[chosen], titles, columns=10, figure=part)
        for ax, i in zip(axes.flat, chosen):
            if classes[i] != labels[i]:
                ax.title.set_color(plots.VERMILLION)
        part.suptitle(f"{name}: prediction and its entropy", fontweight="bold")
    return figure


def draw_rotation(images, predictors):
    """Mean entropy of the same digits at each angle, with its standard error."""
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    ax.set_xlim(ANGLES[0] - 8, ANGLES[-1] + 8)
    for network, predict in predictors.items():
        entropy = [predict(data.rotate(images, angle)).entropy for angle in ANGLES]
        error = np.std(entropy, axis=1) / np.sqrt(len(images))
        plots.curve_with_band(ANGLES, np.mean(entropy, axis=1), error, ax, network)
    ax.set(
        xlabel="rotation (degrees)",
        ylabel="predictive entropy (nats)",
        xticks=ANGLES[::2],
        ylim=(0, None),
    )
    ax.set_title(f"{len(images)} test digits, mean and standard error", y=1.15)
    for angle in ANGLES:  # one of the digits, above its points of the curves
        place = (angle - 6, 1.02, 12, 0.12)
        picture = ax.inset_axes(place, transform=ax.get_xaxis_transform())
        turned = data.rotate(images[:1], angle)[0, ..., 0]
        picture.imshow(turned, cmap="gray", vmin=0, vmax=1)
        picture.set_axis_off()
    ax.legend(frameon=False)
    return figure


def draw_out_of_domain(inputs, predictions):
    """Ten of each kind of input, and how the uncertainty of each spreads."""
    figure = plt.figure(figsize=(10, 8), layout="constrained")
    *sheets, bottom = figure.subfigures(4, 1, height_ratios=[1, 1, 1, 3])
    for part, (name, images) in zip(sheets, inputs.items()):
        information = predictions["Bayesian"][name].mutual_information
        titles = [nats(value) for value in information[:10]]
        plots.image_sheet(images[:10], titles, columns=10, figure=part)
        part.suptitle(f"{name}: mutual information", fontweight="bold")
    panels = (
        ("Bayesian", "mutual_information"),
        ("Bayesian", "entropy"),
        ("deterministic", "entropy"),
    )
    for ax, (network, field) in zip(bottom.subplots(1, 3, sharey=True), panels):
        values = {k: getattr(p, field) for k, p in predictions[network].items()}
        plots.uncertainty_histograms(
            values.pop("test"), values, ax, f"{field.replace('_', ' ')} (nats)"
        )
        ax.set_title(network)
        ax.label_outer()
    return figure


def main():
    parser = cli.make_parser(__doc__, {k: v.epochs for k, v in SETTINGS.items()})
    parser.add_argument("--num-samples", type=int, default=64, help="of the posterior")
    args = parser.parse_args()
    settings = SETTINGS[args.dataset]
    if args.smoke or args.epochs:
        settings = dataclasses.replace(settings, epochs=args.epochs or 1)
    (x_train, y_train), (x_test, y_test) = cli.load(args)

    keras.utils.set_random_seed(args.seed)
    print(f"training two networks for {settings.epochs} epochs each ...", flush=True)
    start = time.perf_counter()
    classifier = train_bayesian(x_train, y_train, settings, args.num_samples)
    middle = time.perf_counter()
    network = train_deterministic(x_train, y_train, settings)
    end = time.perf_counter()
    print(
        f"{args.dataset}: {len(x_train)} training and {len(x_test)} test images, "
        f"{settings.epochs} epochs\n"
        f"training took {middle - start:.0f} s (Bayesian) and {end - middle:.0f} s"
    )

    predictors = {
        "Bayesian": lambda x: predict_bayesian(classifier, x, args.seed),
        "deterministic": lambda x: predict_deterministic(network, x),
    }
    inputs = {
        "test": x_test,
        "rotated 90 degrees": data.rotate(x_test, 90.0),
        "letters": data.letters(x_test.shape[1], min(NUM_LETTERS, len(x_test)), seed=0),
    }
    predictions = {
        network: {name: predict(x) for name, x in inputs.items()}
        for network, predict in predictors.items()
    }
    print_table({k: evaluate(v, y_test) for k, v in predictions.items()})

    figures = {
        "reliability": draw_reliability(predictions, y_test),
        "certainty": draw_certainty(x_test, y_test, predictions["Bayesian"]["test"]),
        "rotation": draw_rotation(x_test[:NUM_ROTATED], predictors),
        "out_of_domain": draw_out_of_domain(inputs, predictions),
    }
    cli.save_figures(figures, args.output)


if __name__ == "__main__":
    main()
