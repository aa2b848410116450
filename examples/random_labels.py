"""Random labels: binary dropout memorises them, sparse variational dropout refuses.

    python examples/random_labels.py                  # digits, no network
    python examples/random_labels.py --dataset mnist  # 10,000 images of MNIST
    python examples/random_labels.py --smoke          # seconds

Zhang et al., "Understanding deep learning requires rethinking generalization",
2017, train networks on labels drawn by chance: nothing can be learned, and yet the
networks reach a training accuracy near 1, with dropout too. Molchanov, Ashukha and
Vetrov (2017), section 5.5, repeat it with sparse variational dropout: the bound
charges every weight for the information it keeps, so all weights are pruned and
the network says the same for every input. Both networks here have the same layers,
optimizer and epochs; each is trained on true and on random labels. The KL term of
the sparse one is warmed up, alike on both: it learns first and forgets what does
not pay.

Writes `random_labels.png` to `--output`: training accuracy by epoch.
"""

import cli
import data
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_bdl
from keras_bdl import plots

UNITS = 200
NUM_MNIST = 10_000
EPOCHS = {"digits": 300, "mnist": 100}


def make_dropout(image_shape, num_examples):
    del num_examples
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(UNITS, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(UNITS, activation="relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(10),
        ]
    )


def make_sparse(image_shape, num_examples):
    dense = keras_bdl.SparseVDDense
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Flatten(),
            dense(UNITS, activation="relu", num_examples=num_examples),
            dense(UNITS, activation="relu", num_examples=num_examples),
            dense(10, num_examples=num_examples),
        ]
    )


NETWORKS = {
    "binary dropout": make_dropout,
    "sparse variational dropout": make_sparse,
}


class TrainAccuracy(keras.callbacks.Callback):
    """Accuracy on the training set at inference, after each epoch."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.values = x, y, []

    def on_epoch_end(self, epoch, logs=None):
        logits = self.model.predict(self.x, batch_size=1000, verbose=0)
        self.values.append(float(np.mean(logits.argmax(axis=-1) == self.y)))


def train(make, x, y, epochs, batch_size):
    """Training accuracy by epoch, share of pruned weights (or None), and classes."""
    network = make(x.shape[1:], len(x))
    network.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras_bdl.metrics.NegativeLogLikelihood(from_logits=True)],
    )
    record = TrainAccuracy(x, y)
    callbacks = [record]
    sparse = [layer for layer in network.layers if hasattr(layer, "sparsity")]
    if sparse:
        callbacks.append(keras_bdl.callbacks.KLWarmup(max(1, epochs // 3)))
    network.fit(
        x, y, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=callbacks
    )
    classes = network.predict(x, batch_size=1000, verbose=0).argmax(axis=-1)
    pruned = None
    if sparse:
        report = keras_bdl.sparsity_report(network)
        pruned = 1.0 - report.non_zero / report.weights
    return record.values, pruned, len(np.unique(classes))


def main():
    args = cli.make_parser(__doc__, EPOCHS).parse_args()
    epochs = args.epochs or (3 if args.smoke else EPOCHS[args.dataset])
    (x, y), _ = data.load(args.dataset, args.data_dir)
    x, y = x[:NUM_MNIST], y[:NUM_MNIST]
    if args.smoke:
        x, y = x[:100], y[:100]

    keras.utils.set_random_seed(args.seed)
    labels = {
        "true labels": y,
        "random labels": np.random.default_rng(args.seed).integers(0, 10, len(y)),
    }
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 4), sharey=True, layout="constrained"
    )
    print(f"{len(x)} images, {epochs} epochs")
    print(f"{'':46}{'accuracy':>10}{'pruned':>9}{'classes':>9}")
    for ax, (kind, targets) in zip(axes, labels.items()):
        for color, (name, make) in zip(plots.COLORS, NETWORKS.items()):
            accuracy, pruned, classes = train(make, x, targets, epochs, 100)
            share = "-" if pruned is None else f"{100 * pruned:.1f} %"
            row = f"{kind}, {name}"
            print(f"{row:46}{accuracy[-1]:>10.3f}{share:>9}{classes:>9}", flush=True)
            ax.plot(np.arange(1, epochs + 1), accuracy, color=color, label=name)
        ax.set(title=kind, xlabel="epoch", ylim=(0, 1.02))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("training accuracy")
    axes[1].axhline(0.1, color="gray", linewidth=0.8, linestyle=":", label="chance")
    axes[1].legend(frameon=False, loc="center right")
    cli.save_figures({"random_labels": figure}, args.output)


if __name__ == "__main__":
    main()
