"""Sentiment of sentences: an LSTM and a transformer, plain and Bayesian.

    python examples/text.py --data-dir FOLDER   # with rt-polarity.pos and .neg
    python examples/text.py                     # sentences of a few rules
    python examples/text.py --smoke             # two minutes, to try it out

Each network is trained plainly; `to_bayesian` then gives posteriors to the weights of
all its layers: to the embedding, the LSTM or the attention, and the dense layers.

    plain         the network by itself
    Bayesian      the same network, trained from the start with priors N(0, 1)
    from plain    the trained network, with posteriors fitted around its weights (MOPED)

All stop training at the epoch of least NLL on a tenth of the training rows that is held
out. The table says how accurate and how calibrated each is on test sentences, and by
how much its entropy tells test sentences from the same with their words shuffled, and
from text about other things. The score is the area under the ROC curve (AUROC): 0.5 is
chance, 1 is perfect. Rows are means over seeds, with standard errors.

Pictures, in `--output`:

    text_entropy.png      entropy of test sentences, shuffled ones and other text
    text_rejection.png    accuracy on the sentences that each is most certain of
"""

import argparse
import dataclasses
import json
import pathlib

import cli
import keras
import matplotlib.pyplot as plt
import numpy as np
import text_data
from keras import layers

import keras_bdl
from keras_bdl import plots
from keras_bdl.ops import uncertainty

LENGTH, WIDTH, BATCH = 40, 64, 64
NETWORKS = ("lstm", "transformer")
METHODS = ("plain", "Bayesian", "from plain")
KINDS = ("test", "shuffled words", "other text")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Training of every network. `epochs` is the most, `patience` in epochs."""

    epochs: int = 20
    patience: int = 3
    learning_rate: float = 1e-3
    num_samples: int = 32


@keras.saving.register_keras_serializable("examples")
class Positions(layers.Layer):
    """Adds a vector of its own to every position."""

    def __init__(self, length, width, **kwargs):
        super().__init__(**kwargs)
        self.table = layers.Embedding(length, width)
        self.length, self.width = length, width
        self.supports_masking = True

    def call(self, inputs):
        return inputs + self.table(keras.ops.arange(self.length))

    def get_config(self):
        return {**super().get_config(), "length": self.length, "width": self.width}


def lstm(num_words):
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(num_words, WIDTH, mask_zero=True)(inputs)
    x = layers.LSTM(WIDTH)(layers.Dropout(0.5)(x))
    return keras.Model(inputs, layers.Dense(2)(layers.Dropout(0.5)(x)), name="lstm")


def transformer(num_words):
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(num_words, WIDTH, mask_zero=True)(inputs)
    x = layers.Dropout(0.5)(Positions(LENGTH, WIDTH)(x))
    for _ in range(2):
        attended = layers.MultiHeadAttention(4, WIDTH // 4, dropout=0.1)(x, x)
        x = layers.LayerNormalization()(x + attended)
        hidden = layers.Dense(2 * WIDTH, activation="gelu")(x)
        x = layers.LayerNormalization()(x + layers.Dense(WIDTH)(hidden))
    x = layers.GlobalAveragePooling1D()(x)
    outputs = layers.Dense(2)(layers.Dropout(0.5)(x))
    return keras.Model(inputs, outputs, name="transformer")


MAKERS = {"lstm": lstm, "transformer": transformer}


def fit(model, split, settings):
    """Trains to the epoch of least NLL on the rows that are held out."""
    (x, y), held_out = split
    # The loss of a Bayesian network has the KL too, which is no measure of fit.
    nll = keras.metrics.SparseCategoricalCrossentropy(name="nll", from_logits=True)
    stop = keras.callbacks.EarlyStopping(
        "val_nll", mode="min", patience=settings.patience, restore_best_weights=True
    )
    model.compile(
        keras.optimizers.Adam(settings.learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[nll],
    )
    model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=settings.epochs,
        validation_data=held_out,
        callbacks=[stop],
        verbose=2,
    )
    return model


def trained(name, num_words, split, settings):
    """Yields the methods and their networks."""
    make = MAKERS[name]
    count = len(split[0][1])
    plain = fit(make(num_words), split, settings)
    yield "plain", plain
    bayesian = keras_bdl.to_bayesian(make(num_words), count)
    yield "Bayesian", fit(bayesian, split, settings)
    informed = keras_bdl.to_bayesian(plain, count, moped=0.1)
    yield "from plain", fit(informed, split, settings)


def predict(method, model, x, settings, seed):
    """Probabilities `(n, 2)` and their entropy in nats `(n,)`."""
    if method == "plain":
        probabilities = keras.ops.softmax(model.predict(x, batch_size=256, verbose=0))
        entropy = uncertainty.entropy(probabilities)
        return tuple(map(keras.ops.convert_to_numpy, (probabilities, entropy)))
    result = keras_bdl.predict_uncertainty(
        model,
        x,
        settings.num_samples,
        outputs="logits",
        batch_size=256,
        seed=seed,
        verbose=0,
    )
    return result.probabilities, result.predictive_entropy


def scores(predictions, labels):
    """Rows of the table by name, of one network."""
    probabilities, entropy = predictions["test"]
    nll = keras_bdl.metrics.NegativeLogLikelihood()
    ece = keras_bdl.metrics.ExpectedCalibrationError(num_bins=15)
    for metric in (nll, ece):
        metric.update_state(labels, probabilities)
    rows = {
        "accuracy": float(np.mean(probabilities.argmax(axis=-1) == labels)),
        "NLL (nats)": float(nll.result()),
        "ECE (15 bins)": float(ece.result()),
    }
    for kind, (_, other) in predictions.items():
        rows[f"entropy, {kind} (nats)"] = float(other.mean())
    for kind in KINDS[1:]:
        rows[f"AUROC, {kind}"] = float(uncertainty.auroc(entropy, predictions[kind][1]))
    return rows


def run(seed, args, settings):
    """Scores by network and method, and predictions with the labels for pictures."""
    (sentences, y), (test, labels) = text_data.load(args.data_dir, seed)
    if args.smoke:
        sentences, y, test, labels = sentences[:200], y[:200], test[:50], labels[:50]
    vocabulary = text_data.Vocabulary(sentences, 8000)
    x = vocabulary(sentences, LENGTH)
    count = len(x) * 9 // 10
    split = (x[:count], y[:count]), (x[count:], y[count:])
    typical = int(np.median([len(sentence) for sentence in test]))
    inputs = {
        "test": test,
        "shuffled words": text_data.shuffled(test, seed),
        "other text": text_data.other_text(len(test), typical, seed),
    }
    inputs = {kind: vocabulary(text, LENGTH) for kind, text in inputs.items()}
    keras.utils.set_random_seed(seed)
    results, predictions = {}, {}
    for name in args.networks:
        for method, model in trained(name, len(vocabulary), split, settings):
            found = {
                kind: predict(method, model, words, settings, seed)
                for kind, words in inputs.items()
            }
            key = f"{name}, {method}"
            results[key] = scores(found, labels)
            predictions[key] = found
            print(key, json.dumps(results[key]), flush=True)
    return results, predictions, labels


def print_table(results):
    """Prints mean and standard error over seeds."""
    for key in results[0]:
        print(f"\n{key}")
        for name in results[0][key]:
            values = np.array([result[key][name] for result in results])
            error = ""
            if len(values) > 1:
                error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.4f}"
            print(f"    {name:32s} {values.mean():.4f}{error}")


def draw_entropy(predictions):
    figure, axes = plt.subplots(
        len(predictions) // len(METHODS),
        len(METHODS),
        figsize=(11, 3.2 * len(predictions) // len(METHODS)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, (key, found) in zip(axes.flat, predictions.items()):
        values = {kind: entropy for kind, (_, entropy) in found.items()}
        plots.uncertainty_histograms(values.pop("test"), values, ax, "entropy (nats)")
        ax.set_title(key)
        ax.label_outer()
    return figure


def draw_rejection(predictions, labels):
    """Accuracy on the most certain part of the test sentences."""
    names = list(dict.fromkeys(key.split(", ")[0] for key in predictions))
    figure, axes = plt.subplots(
        1, len(names), figsize=(5 * len(names), 4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for key, found in predictions.items():
        name, method = key.split(", ")
        ax = axes[0, names.index(name)]
        probabilities, entropy = found["test"]
        right = (probabilities.argmax(axis=-1) == labels)[np.argsort(entropy)]
        kept = np.arange(1, len(right) + 1)
        start = max(1, len(right) // 10)
        share, accuracy = kept / len(right), np.cumsum(right) / kept
        ax.plot(share[start:], accuracy[start:], label=method)
        ax.set(title=name, xlabel="share of the sentences that are answered")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("accuracy")
    axes[0, 0].legend(frameon=False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_common(parser)
    parser.add_argument("--data-dir", type=pathlib.Path, help="of the film reviews")
    parser.add_argument("--seeds", type=int, default=1, help="runs, one per seed")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--save", type=pathlib.Path, help="JSON of all scores")
    args = parser.parse_args()
    settings = Settings(epochs=1, num_samples=4) if args.smoke else Settings()
    results = []
    for seed in range(args.seed, args.seed + args.seeds):
        scored, predictions, labels = run(seed, args, settings)
        results.append(scored)
        if args.save:
            args.save.parent.mkdir(parents=True, exist_ok=True)
            args.save.write_text(json.dumps(results, indent=1))
    print_table(results)
    figures = {
        "text_entropy": draw_entropy(predictions),
        "text_rejection": draw_rejection(predictions, labels),
    }
    cli.save_figures(figures, args.output)


if __name__ == "__main__":
    main()
