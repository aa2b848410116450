"""Residual networks that decide for each image how many of their units to run.

    python examples/early_exit.py                  # digits, no network
    python examples/early_exit.py --dataset mnist  # by tensorflow_datasets
    python examples/early_exit.py --mixed          # half of the images distorted
    python examples/early_exit.py --smoke          # seconds, to try it out

Residual units are trained so that one classifier reads the state after each. Then
halting heads, which see what the classifier would say, learn where each image may stop,
at several prices of a unit (`prior_rate`, nats). Beside them stand plain networks of
all units and of fewer, each trained for itself. The table has test accuracy,
multiply-adds and the time of a call of 256 images; the joint posterior of label and
depth (by all depths) is compared with what the halting heads decide.

Pictures, in `--output`:

    early_exit_curve.png    accuracy against multiply-adds and against time
    early_exit_images.png   images that stop first and last
    early_exit_classes.png  mean depth of each class
"""

import dataclasses
import statistics
import time

import cli
import data
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_bdl
from keras_bdl import plots


@dataclasses.dataclass(frozen=True)
class Settings:
    """The size of the networks and their training."""

    units: int = 8
    channels: int = 96
    stem_strides: int = 4
    prices: tuple = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    fixed_depths: tuple = (1, 2, 4)
    epochs: int = 10
    head_epochs: int = 2
    batch_size: int = 128
    learning_rate: float = 2e-3
    head_learning_rate: float = 5e-3


SETTINGS = {
    "digits": Settings(
        channels=16, stem_strides=2, epochs=40, head_epochs=20, batch_size=32
    ),
    "mnist": Settings(),
}
SMOKE = {"units": 3, "channels": 4, "prices": (0.01,), "fixed_depths": (1,)}
NUM_CLASSES = 10
CALL_ROWS = 256


# --- Networks ----------------------------------------------------------------------


class Body:
    """The layers that networks of one training share: stem, units, classifier."""

    def __init__(self, settings, depth):
        self.stem = keras.layers.Conv2D(
            settings.channels,
            5,
            settings.stem_strides,
            padding="same",
            activation="relu",
            name="stem",
        )
        self.units = [residual_unit(settings.channels, i) for i in range(depth)]
        self.classifier = keras.Sequential(
            [
                keras.layers.GlobalAveragePooling2D(),
                # States grow with depth: one classifier reads all at one scale.
                keras.layers.LayerNormalization(),
                keras.layers.Dense(settings.channels, activation="relu"),
                keras.layers.Dense(NUM_CLASSES),
            ],
            name="classifier",
        )

    @classmethod
    def of(cls, network):
        """The body of a network, as it is when loaded."""
        body = cls.__new__(cls)
        body.stem = network.get_layer("stem")
        names = [layer.name for layer in network.layers]
        units = sorted(name for name in names if name.startswith("unit_"))
        body.units = [network.get_layer(name) for name in units]
        body.classifier = network.get_layer("classifier")
        return body

    def layers(self):
        return [self.stem, *self.units, self.classifier]

    def network(self, image_shape):
        """All units, for every image."""
        inputs = keras.Input(image_shape)
        *_, last = self._logits(inputs)
        return keras.Model(inputs, last)

    def network_of_all_depths(self, image_shape):
        """The logits after each unit, a list."""
        inputs = keras.Input(image_shape)
        return keras.Model(inputs, list(self._logits(inputs)))

    def early_exit_network(self, image_shape, price):
        """Units in a block whose heads look at what the classifier would say."""
        inputs = keras.Input(image_shape)
        x = self.stem(inputs)
        heads = [
            halting_head(self.classifier, x.shape[1:], f"halt_{index + 1}")
            for index in range(len(self.units) - 1)
        ]
        block = keras_bdl.EarlyExitResBlock(
            self.units, price, halting_heads=heads, name="early_exit"
        )
        return keras.Model(inputs, self.classifier(block(x)))

    def _logits(self, inputs):
        x = self.stem(inputs)
        for unit in self.units:
            x = keras.layers.Add()([x, unit(x)])
            yield self.classifier(x)


def residual_unit(channels, index):
    """Two convolutions with batch normalisation and ReLU."""
    layers = []
    for _ in range(2):
        layers += [
            keras.layers.Conv2D(channels, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    return keras.Sequential(layers, name=f"unit_{index + 1}")


def without_normalization(unit):
    """A unit with the same outputs at inference, of convolutions alone."""
    convolutions, norms = unit.layers[::3], unit.layers[1::3]
    folded = keras.Sequential(
        [
            keras.layers.Conv2D(conv.filters, 3, padding="same", activation="relu")
            for conv in convolutions
        ],
        name=unit.name,
    )
    folded.build(unit.input_shape)
    for conv, norm, layer in zip(convolutions, norms, folded.layers):
        kernel = conv.get_weights()[0]
        gamma, beta, mean, variance = norm.get_weights()
        scale = gamma / np.sqrt(variance + norm.epsilon)
        layer.set_weights([kernel * scale, beta - mean * scale])
    return folded


def for_inference(network):
    """A copy that runs faster: batch normalisation is part of the convolutions."""
    image_shape = network.input_shape[1:]
    body = Body.of(network)
    if body.units:
        body.units = [without_normalization(unit) for unit in body.units]
        return body.network(image_shape)
    block = network.get_layer("early_exit")
    faster = keras_bdl.EarlyExitResBlock(
        [without_normalization(unit) for unit in block.units],
        block.prior_rate,
        halting_heads=block.halting_heads,
        name=block.name,
    )
    inputs = keras.Input(image_shape)
    return keras.Model(inputs, body.classifier(faster(body.stem(inputs))))


def halting_head(classifier, state_shape, name):
    """From a state to one logit of stopping, by what the classifier would say.

    It sees by how much each of the classifier's logits is below the largest, in order.
    The classifier in it is a copy that is not trained.
    """
    reader = keras.models.clone_model(classifier)
    reader.set_weights(classifier.get_weights())
    reader.trainable = False
    inputs = keras.Input(state_shape)
    logits, _ = keras.ops.top_k(reader(inputs), NUM_CLASSES)
    hidden = keras.layers.Dense(32, activation="relu")(logits[:, :1] - logits)
    return keras.Model(inputs, keras.layers.Dense(1)(hidden), name=name)


# --- Training ------------------------------------------------------------------------


def fit(network, x, y, optimizer, batch_size, epochs, loss_weights=None):
    """Trains on augmented images. `y` is a list where there are several outputs."""
    # Without augmentation all training images become easy, and the heads learn to stop
    # at once. Outside of the network: exported, these layers would go on.
    inputs = keras.Input(x.shape[1:])
    augmentation = keras.Sequential(
        [
            keras.layers.RandomTranslation(0.08, 0.08, fill_mode="constant"),
            keras.layers.RandomRotation(0.04, fill_mode="constant"),
        ]
    )
    if keras.backend.backend() == "jax":
        for layer in augmentation.layers:
            layer.supports_jit = True  # They do there; as they say not, steps are slow.
    augmented = keras.Model(inputs, network(augmentation(inputs)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = [loss] * len(y) if isinstance(y, list) else loss
    augmented.compile(optimizer, losses, loss_weights)
    augmented.fit(x, y, batch_size, epochs, verbose=0)


def train_fixed(x, y, settings, depth):
    """A plain network of some units."""
    network = Body(settings, depth).network(x.shape[1:])
    fit(network, x, y, *_schedule(x, settings))
    return network


def train_body(x, y, settings):
    """A body whose classifier reads the state after every unit.

    Each depth has a loss of its own. Trained by the halting heads alone, the units
    that are rarely run would learn late, and the heads settle for one depth.
    """
    body = Body(settings, settings.units)
    network = body.network_of_all_depths(x.shape[1:])
    weights = 1.0 / np.sqrt(np.arange(1, settings.units + 1))
    weights = list(weights / weights.sum())
    labels = [y] * settings.units
    fit(network, x, labels, *_schedule(x, settings), loss_weights=weights)
    return body


def train_heads(body, x, y, settings, price):
    """The early-exit network of a price: its heads trained, its body as it is."""
    network = body.early_exit_network(x.shape[1:], price)
    for layer in body.layers():
        layer.trainable = False
    steps = settings.head_epochs * int(np.ceil(len(x) / settings.batch_size))
    rate = keras.optimizers.schedules.CosineDecay(settings.head_learning_rate, steps)
    optimizer = keras.optimizers.Adam(rate)
    fit(network, x, y, optimizer, settings.batch_size, settings.head_epochs)
    for layer in body.layers():
        layer.trainable = True
    return network


def _schedule(x, settings):
    steps = settings.epochs * int(np.ceil(len(x) / settings.batch_size))
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    return keras.optimizers.AdamW(rate), settings.batch_size, settings.epochs


# --- Measurements ------------------------------------------------------------------


def accuracy(network, x, y):
    logits = network.predict(x, batch_size=1000, verbose=0)
    return float(np.mean(logits.argmax(axis=-1) == y))


def call_milliseconds(networks, x, repeats=15):
    """Median time of a call of each network, taken in turns."""
    batch = x[:CALL_ROWS]
    times = [[] for _ in networks]
    for turn in range(repeats + 2):
        for network, taken in zip(networks, times):
            start = time.perf_counter()
            network.predict_on_batch(batch)
            if turn >= 2:  # the first calls trace
                taken.append(time.perf_counter() - start)
    return [1e3 * statistics.median(taken) for taken in times]


def measure(networks, x, y):
    """Accuracy, executed multiply-adds and call time of each network."""
    times = call_milliseconds(networks, x)
    return [
        {
            "accuracy": accuracy(network, x, y),
            "multiply_adds": keras_bdl.flops_report(network, x, verbose=0).executed,
            "milliseconds": milliseconds,
        }
        for network, milliseconds in zip(networks, times)
    ]


def run(train_data, test_data, settings):
    """Trains all networks and measures them.

    Returns:
        Dictionary of names to networks, and of names to measurements.
    """
    networks = {}
    for depth in (*settings.fixed_depths, settings.units):
        print(f"training: {depth} of {settings.units} units ...", flush=True)
        name = f"fixed, {depth} of {settings.units}"
        networks[name] = train_fixed(*train_data, settings, depth)
    print("training: all depths ...", flush=True)
    body = train_body(*train_data, settings)
    for price in settings.prices:
        print(f"training: halting heads, {price:g} nats a unit ...", flush=True)
        network = train_heads(body, *train_data, settings, price)
        networks[f"early exit, {price:g}"] = network
    networks = {name: for_inference(network) for name, network in networks.items()}
    measured = dict(zip(networks, measure(list(networks.values()), *test_data)))
    return networks, measured


def print_table(measured):
    print(f"\n{'network':<20}{'accuracy':>10}{'multiply-adds':>15}{'ms / 256':>10}")
    for name, row in measured.items():
        print(
            f"{name:<20}{row['accuracy']:>10.4f}{row['multiply_adds']:>15,.0f}"
            f"{row['milliseconds']:>10.2f}"
        )


def compare_depth_posterior(network, x, y):
    """The mode of p(y, z | x) by all depths, beside what the heads decide."""
    classifier = keras_bdl.BayesianClassifier(network)
    classifier.build((None, *x.shape[1:]))
    result = classifier.predict_depth_posterior(x, batch_size=500, verbose=0)
    price = network.get_layer("early_exit").prior_rate
    amortized = network.predict(x, batch_size=500, verbose=0).argmax(axis=-1)
    print(
        f"\njoint posterior of label and depth, price {price:g}: accuracy "
        f"{np.mean(result.label == y):.4f}, mean depth of the mode "
        f"{result.depth.mean():.2f}, units until it is certain "
        f"{result.exact_stop.mean():.2f}\nhalting heads: accuracy "
        f"{np.mean(amortized == y):.4f}, units run {result.amortized_depth.mean():.2f}"
    )


# --- Pictures ------------------------------------------------------------------------


def draw_curve(measured):
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 4), sharey=True, layout="constrained"
    )
    for kind, color in (("early exit", plots.BLUE), ("fixed", plots.VERMILLION)):
        rows = [row for name, row in measured.items() if name.startswith(kind)]
        for ax, measure, unit in zip(axes, ("multiply_adds", "milliseconds"), (1e6, 1)):
            points = sorted((row[measure] / unit, row["accuracy"]) for row in rows)
            x, y = np.transpose(points)
            ax.plot(x, 100 * y, "o-", color=color, label=kind)
    axes[0].set(xlabel="million multiply-adds per image", ylabel="test accuracy (%)")
    axes[1].set(xlabel=f"milliseconds per call of {CALL_ROWS} images")
    for ax in axes:
        ax.set_xlim(0, None)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    return figure


def draw_classes(depths, y):
    figure, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
    means = [depths[y == label].mean() for label in range(NUM_CLASSES)]
    ax.bar(range(NUM_CLASSES), means, color=plots.BLUE)
    ax.set(xlabel="class", ylabel="mean number of units", xticks=range(NUM_CLASSES))
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def main():
    epochs = {name: settings.epochs for name, settings in SETTINGS.items()}
    parser = cli.make_parser(__doc__, epochs)
    parser.add_argument(
        "--mixed", action="store_true", help="half of the images turned and shifted"
    )
    args = parser.parse_args()
    settings = SETTINGS[args.dataset]
    if args.smoke:
        settings = dataclasses.replace(settings, **SMOKE, epochs=2, head_epochs=1)
    if args.epochs:
        settings = dataclasses.replace(settings, epochs=args.epochs)

    keras.utils.set_random_seed(args.seed)
    train_data, test_data = cli.load(args)
    if args.mixed:
        train_data, test_data = (
            (data.distort_half(x, seed), y)
            for seed, (x, y) in enumerate((train_data, test_data))
        )
    networks, measured = run(train_data, test_data, settings)
    print_table(measured)

    middle = settings.prices[len(settings.prices) // 2]
    network = networks[f"early exit, {middle:g}"]
    x, y = test_data
    compare_depth_posterior(network, x, y)
    depths = keras_bdl.depth(network, x, batch_size=500, verbose=0)[:, 0]
    figures = {
        "early_exit_curve": draw_curve(measured),
        "early_exit_images": plots.depth_sheet(x, depths)[0, 0].figure,
        "early_exit_classes": draw_classes(depths, y),
    }
    cli.save_figures(figures, args.output)


if __name__ == "__main__":
    main()
