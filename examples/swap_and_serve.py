"""From a trained Keras network to a Bayesian one, and to a server without Keras.

    python examples/swap_and_serve.py                  # digits, no network
    python examples/swap_and_serve.py --dataset mnist  # by tensorflow_datasets
    python examples/swap_and_serve.py --smoke          # seconds, to try it out

A plain convolutional network is trained. `to_bayesian` puts Bayesian layers in place
of its own, with the trained weights as means of priors and posteriors (MOPED), and two
epochs of training fit the uncertainty. The table compares both on test digits, and how
well their predictive entropy tells test digits from letters (AUROC: 0.5 is chance).
`export` writes a SavedModel, from which another process answers with TensorFlow alone.

Picture, in `--output`:

    swap_and_serve.png   accuracy against confidence before and after, and the entropy
                         of digits and letters
"""

import dataclasses
import pathlib
import subprocess
import sys
import tempfile

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
    """Training of the plain network, and of the Bayesian one after it.

    `moped` is the choice of 3 splits of the digits' training set (NLL 0.107 nats, plain
    0.112; with 0.3 or a prior N(0, 1) two epochs make calibration worse).
    """

    epochs: int
    batch_size: int
    learning_rate: float = 2e-3
    fine_tuning_epochs: int = 2
    moped: float = 0.1


SETTINGS = {"digits": Settings(40, 32), "mnist": Settings(6, 128)}
NUM_CLASSES = 10

# What runs on the server: no Keras there, and no keras_bdl.
SERVER = """
import sys
for name in ("keras", "keras_bdl"):
    sys.modules[name] = None  # an import would fail
import numpy as np
import tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
answer = served.predictive(np.load(sys.argv[2]))
for p, nats in zip(answer["probabilities"].numpy(), answer["mutual_information"]):
    print(f"class {p.argmax()}, probability {p.max():.3f}, mutual information "
          f"{nats:.3f} nats")
"""


def make_network(image_shape):
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(NUM_CLASSES),
        ]
    )


def train(network, x, y, settings, epochs, learning_rate):
    steps = epochs * int(np.ceil(len(x) / settings.batch_size))
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(rate), loss)
    network.fit(x, y, settings.batch_size, epochs, verbose=0)


def probabilities(network, x, seed):
    """Of the plain network, or of the posterior predictive of 100 samples."""
    if keras_bdl.core.stochastic.stochastic_layers(network):
        return keras_bdl.predict(network, x, 100, batch_size=500, seed=seed, verbose=0)
    logits = network.predict(x, batch_size=500, verbose=0)
    return keras.ops.convert_to_numpy(keras.ops.softmax(logits))


def entropy(p):
    return keras.ops.convert_to_numpy(uncertainty.entropy(p))


def scores(test, labels, letters):
    nll = keras_bdl.metrics.NegativeLogLikelihood()
    ece = keras_bdl.metrics.ExpectedCalibrationError(num_bins=15)
    for metric in (nll, ece):
        metric.update_state(labels, test)
    return {
        "accuracy": float(np.mean(test.argmax(axis=-1) == labels)),
        "NLL (nats)": float(nll.result()),
        "ECE (15 bins)": float(ece.result()),
        "AUROC letters": uncertainty.auroc(entropy(test), entropy(letters)),
    }


def print_table(results):
    print(f"\n{'':16}" + "".join(f"{name:>12}" for name in results))
    for row in next(iter(results.values())):
        cells = (f"{result[row]:>12.4f}" for result in results.values())
        print(f"{row:16}" + "".join(cells))


def serve(network, images):
    """Exports the network, and asks another process, which prints its answers."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        keras_bdl.export(network, folder / "served", num_samples=32, verbose=False)
        np.save(folder / "images.npy", images)
        arguments = [folder / "served", folder / "images.npy"]
        answers = subprocess.run(
            [sys.executable, "-c", SERVER, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=True,
        )
    return answers.stdout.splitlines()


def draw(predictions, labels):
    figure, axes = plt.subplots(2, 2, figsize=(9, 9), layout="constrained")
    for row, (name, (test, letters)) in zip(axes, predictions.items()):
        plots.reliability_diagram(labels, test, ax=row[0], label=name)
        plots.uncertainty_histograms(
            entropy(test),
            {"letters": entropy(letters)},
            row[1],
            "predictive entropy (nats)",
        )
        row[1].set_title(name)
    return figure


def main():
    parser = cli.make_parser(__doc__, {k: v.epochs for k, v in SETTINGS.items()})
    args = parser.parse_args()
    settings = SETTINGS[args.dataset]
    if args.smoke or args.epochs:
        settings = dataclasses.replace(settings, epochs=args.epochs or 1)
    (x, y), (x_test, y_test) = cli.load(args)
    keras.utils.set_random_seed(args.seed)

    network = make_network(x.shape[1:])
    train(network, x, y, settings, settings.epochs, settings.learning_rate)
    bayesian, report = keras_bdl.to_bayesian(
        network, len(x), moped=settings.moped, return_report=True
    )
    print(report)
    rate = settings.learning_rate / 4
    train(bayesian, x, y, settings, settings.fine_tuning_epochs, rate)

    letters = data.letters(x.shape[1], min(2000, len(x_test)), seed=0)
    predictions = {
        name: [probabilities(model, inputs, args.seed) for inputs in (x_test, letters)]
        for name, model in (("plain", network), ("Bayesian", bayesian))
    }
    print_table({k: scores(a, y_test, b) for k, (a, b) in predictions.items()})

    if keras.backend.backend() == "tensorflow":
        print("\nanswers of a process with TensorFlow alone:")
        answers = serve(bayesian, np.concatenate([x_test[:3], letters[:3]]))
        for name, answer in zip(["digit"] * 3 + ["letter"] * 3, answers):
            print(f"{name}: {answer}")
    cli.save_figures({"swap_and_serve": draw(predictions, y_test)}, args.output)


if __name__ == "__main__":
    main()
