"""Sparse variational dropout: a network that learns which weights it needs.

    python examples/sparse_lenet.py                                # digits, no network
    python examples/sparse_lenet.py --dataset mnist                # LeNet-300-100
    python examples/sparse_lenet.py --dataset mnist --network lenet5_caffe
    python examples/sparse_lenet.py --smoke                        # seconds

Trains the network of Molchanov, Ashukha and Vetrov (2017) with a posterior over
every weight, removes the weights that turned out to be noise, builds the small
plain Keras model of what is left, and prints what that costs and saves: test
error, compression, size of the file, and time of a prediction. MNIST takes 10 to
40 minutes for LeNet-300-100 and hours for LeNet-5; `benchmarks/sparse_vd.py` has
the settings of the published comparison.

Pictures, in `--output`:

    sparsity.png         compression and pruned weights by epoch
    first_layer.png      what the first layer looks at, before and after training
"""

import pathlib
import tempfile
import time

import cli
import data
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_bdl
from keras_bdl import plots

EPOCHS = {"digits": 200, "mnist": 100}
BATCH_SIZE = {"digits": 32, "mnist": 100}
# Chosen on held-out rows of MNIST (benchmarks/README.md).
KL_WEIGHT, WEIGHT_DECAY, LEARNING_RATE = 1.1, 0.05, 3e-3
# Molchanov et al. (2017), table 1, on MNIST.
PUBLISHED = {
    "lenet_300_100": (1.92, 68.0),
    "lenet5_caffe": (0.75, 280.0),
}
BATCH = 1000  # rows of the timed prediction


def lenet_300_100(image_shape, **options):
    dense = keras_bdl.SparseVDDense
    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Flatten(),
            dense(300, activation="relu", name="dense_300", **options),
            dense(100, activation="relu", name="dense_100", **options),
            dense(10, name="dense_10", **options),
        ]
    )


def lenet5_caffe(image_shape, **options):
    conv, dense = keras_bdl.SparseVDConv2D, keras_bdl.SparseVDDense
    size = 5 if image_shape[0] > 12 else 3  # the digits have 8 pixels a side
    padding = "valid" if size == 5 else "same"
    return keras.Sequential(
        [
            keras.Input(image_shape),
            conv(
                20, size, padding=padding, activation="relu", name="conv_20", **options
            ),
            keras.layers.MaxPooling2D(),
            conv(
                50, size, padding=padding, activation="relu", name="conv_50", **options
            ),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            dense(500, activation="relu", name="dense_500", **options),
            dense(10, name="dense_10", **options),
        ]
    )


NETWORKS = {"lenet_300_100": lenet_300_100, "lenet5_caffe": lenet5_caffe}


def first_kernel(model):
    layer = next(layer for layer in model.layers if hasattr(layer, "mean_kernel"))
    return keras.ops.convert_to_numpy(layer.mean_kernel())


def train(network, x, y, epochs, batch_size):
    optimizer = keras.optimizers.Adam(weight_decay=WEIGHT_DECAY)
    optimizer.exclude_from_weight_decay(var_names=["log_stddev", "bias"])
    network.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[
            "accuracy",
            keras_bdl.metrics.NegativeLogLikelihood(from_logits=True),
        ],
    )
    warmup = (max(1, epochs // 40), max(2, epochs // 10))
    callbacks = keras_bdl.callbacks.sparse_vd_schedule(
        epochs, learning_rate=LEARNING_RATE, warmup=warmup
    )
    return network.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=[*callbacks, keras_bdl.callbacks.SparsityLogger()],
        verbose=2,
    ).history


def to_plain(layer):
    """The plain Keras layer of the same size and weights: nothing removed."""
    if hasattr(layer, "to_keras"):
        return layer.to_keras()
    return type(layer).from_config(layer.get_config())


def error_percent(model, x, y):
    logits = model.predict(x, batch_size=500, verbose=0)
    return 100.0 * float(np.mean(logits.argmax(axis=-1) != y))


def file_bytes(model):
    """Size of the weights alone, as float32."""
    return 4 * sum(int(np.prod(weight.shape)) for weight in model.weights)


def call_milliseconds(model, x):
    """Median time of a compiled call, without Keras's own work around `predict`."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    function = tf.function(lambda x: model(x, training=False))
    x, times = tf.constant(x), []
    function(x)
    for _ in range(50):
        start = time.perf_counter()
        function(x).numpy()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def print_table(dense, small, network, report, x_test, y_test, sparse_bytes):
    x = np.resize(x_test, (BATCH, *x_test.shape[1:]))
    times = [call_milliseconds(model, x) for model in (dense, small)]
    rows = [
        ("test error (%)", *(error_percent(m, x_test, y_test) for m in (dense, small))),
        ("weights", float(report.weights), float(report.non_zero)),
        ("bytes of the file", float(file_bytes(dense)), float(sparse_bytes)),
        (f"ms for {BATCH} rows", *times),
    ]
    print(f"{'':24}{'original':>14}{'compressed':>14}")
    for name, *values in rows:
        cells = [
            "-" if v is None else f"{v:,.2f}".rstrip("0").rstrip(".") for v in values
        ]
        print(f"{name:24}" + "".join(f"{cell:>14}" for cell in cells))
    error, factor = PUBLISHED[network]
    print(
        f"compression {report.factor:.1f}x (on MNIST, Molchanov et al. (2017) have "
        f"{factor:.0f}x at {error:.2f} % error)"
    )


def draw_sparsity(history):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = np.arange(1, len(history["compression"]) + 1)
    axes[0].plot(epochs, history["compression"], color=plots.BLUE)
    axes[0].set(xlabel="epoch", ylabel="compression (times)", yscale="log")
    axes[0].spines[["top", "right"]].set_visible(False)
    plots.sparsity_by_layer(history, axes[1])
    return figure


def draw_first_layer(before, after, image_shape):
    """Weights of the first layer: units as images, or filters."""
    if before.ndim == 2:
        before, after = (k.T.reshape(-1, *image_shape[:2]) for k in (before, after))
    else:
        before, after = (k[..., 0, :].transpose(2, 0, 1) for k in (before, after))
    chosen = np.argsort(-np.abs(after).sum(axis=(1, 2)))[:20]
    figure = plt.figure(figsize=(10, 6), layout="constrained")
    parts = figure.subfigures(2, 1)
    for part, kernels, name in zip(
        parts, (before, after), ("before training", "after training and pruning")
    ):
        limit = np.abs(kernels[chosen]).max() or 1.0
        axes = part.subplots(2, 10)
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, kernel in zip(axes.flat, kernels[chosen]):
            ax.imshow(kernel, cmap="RdBu", vmin=-limit, vmax=limit)
        part.suptitle(f"Weights of the first layer {name}", fontweight="bold")
    return figure


def main():
    parser = cli.make_parser(__doc__, EPOCHS)
    parser.add_argument("--network", choices=NETWORKS, default="lenet_300_100")
    args = parser.parse_args()
    epochs = args.epochs or (4 if args.smoke else EPOCHS[args.dataset])
    if epochs < 4:
        parser.error("the recipe needs at least 4 epochs")
    (x_train, y_train), (x_test, y_test) = data.load(args.dataset, args.data_dir)
    if args.smoke:
        x_train, y_train = x_train[:200], y_train[:200]

    keras.utils.set_random_seed(args.seed)
    network = NETWORKS[args.network](
        x_train.shape[1:],
        num_examples=len(x_train),
        kl_weight=KL_WEIGHT,
        prune_in_training=True,
    )
    before = first_kernel(network)
    history = train(network, x_train, y_train, epochs, BATCH_SIZE[args.dataset])

    report = keras_bdl.sparsity_report(network)
    print(report)
    small = keras_bdl.compress(network)
    small.summary()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "sparse.npz"
        sparse_bytes = keras_bdl.save_sparse(network, path)
    plain = keras.models.clone_model(network, clone_function=to_plain)
    print_table(plain, small, args.network, report, x_test, y_test, sparse_bytes)

    figures = {
        "sparsity": draw_sparsity(history),
        "first_layer": draw_first_layer(
            before, first_kernel(network), x_train.shape[1:]
        ),
    }
    cli.save_figures(figures, args.output)


if __name__ == "__main__":
    main()
