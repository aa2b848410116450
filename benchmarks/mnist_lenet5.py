"""LeNet-5-wide on MNIST: one Bayesian network beside its deterministic twin.

    python benchmarks/mnist_lenet5.py                      # 3 seeds, test set
    python benchmarks/mnist_lenet5.py --validate           # last 10,000 of train

Network: convolutions 6@5, 16@5, 120@5 (same padding), max-pooling after the
first two, dense 84, dense 10, ReLU; Adam with cosine decay to 0, batch 256, 5000
steps. Three networks in one run: `bayesian` with the KL term weighted by
`--kl-weight` (a tempered posterior), `bayesian_full_kl` with weight 1, and
`deterministic`. Hyper-parameters were chosen with `--validate`.
"""

import argparse

import common
import keras
import numpy as np

import keras_bdl

KINDS = ["bayesian", "deterministic", "bayesian_full_kl"]


def make_network(kind, **options):
    """The network of a kind; `options` are those of the Bayesian layers."""
    conv, dense = keras_bdl.VariationalConv2D, keras_bdl.VariationalDense
    if kind == "deterministic":
        conv, dense, options = keras.layers.Conv2D, keras.layers.Dense, {}
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            conv(6, 5, padding="same", activation="relu", **options),
            keras.layers.MaxPooling2D(),
            conv(16, 5, padding="same", activation="relu", **options),
            keras.layers.MaxPooling2D(),
            conv(120, 5, padding="same", activation="relu", **options),
            keras.layers.Flatten(),
            dense(84, activation="relu", **options),
            dense(10, **options),
        ]
    )


def scores(probabilities, labels):
    """NLL in nats, accuracy and 15-bin calibration error."""
    results = {}
    for name, metric in (
        ("nll", keras_bdl.metrics.NegativeLogLikelihood()),
        ("accuracy", keras.metrics.SparseCategoricalAccuracy()),
        ("ece", keras_bdl.metrics.ExpectedCalibrationError()),
    ):
        metric.update_state(labels, probabilities)
        results[name] = float(metric.result())
    return results


def train(kind, seed, train_data, test_data, args):
    keras.utils.set_random_seed(seed)
    kl_weight = 1.0 if kind == "bayesian_full_kl" else args.kl_weight
    if args.prior_stddev > 0:
        prior = keras_bdl.priors.Normal(stddev=args.prior_stddev)
    else:
        prior = keras_bdl.priors.LearnedNormal(0.1)
    network = make_network(
        kind,
        prior=prior,
        initial_log_stddev=args.initial_log_stddev,
        kl_weight=kl_weight,
    )
    x, y = train_data
    steps = args.steps
    epochs = round(steps / np.ceil(len(x) / 256))
    optimizer = keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(args.learning_rate, steps)
    )
    callbacks = []
    if kind == "deterministic":
        model = network
        model.compile(optimizer, keras_bdl.losses.CategoricalNLL())
    else:
        model = keras_bdl.BayesianClassifier(network, num_samples=args.num_samples)
        model.compile(optimizer)
        if args.warmup:
            callbacks.append(keras_bdl.callbacks.KLWarmup(args.warmup))
    history = model.fit(
        x, y, batch_size=256, epochs=epochs, callbacks=callbacks, verbose=args.verbose
    )
    x_test, y_test = test_data
    if kind == "deterministic":
        logits = model.predict(x_test, batch_size=1000, verbose=0)
        probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    else:
        probabilities = model.predict(x_test, batch_size=1000, verbose=0, seed=seed)
    result = {"kind": kind, "seed": seed, **scores(probabilities, y_test)}
    if kind != "deterministic":
        mean_logits = network.predict(x_test, batch_size=1000, verbose=0)
        mean = keras.ops.convert_to_numpy(keras.ops.softmax(mean_logits))
        result["mean_weights"] = scores(mean, y_test)
        result["kl"] = float(
            sum(float(layer.kl()) for layer in network.layers if hasattr(layer, "kl"))
        )
    result["train_loss"] = history.history["loss"][-1]
    print(result, flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--npz", help="MNIST as one .npz instead of TFDS")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--prior-stddev", type=float, default=0.1, help="0: learned")
    parser.add_argument("--initial-log-stddev", type=float, default=-5.0)
    parser.add_argument("--kl-weight", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=5, help="epochs")
    parser.add_argument("--num-samples", type=int, default=100)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--verbose", type=int, default=0)
    parser.add_argument("--out", default="mnist_lenet5")
    args = parser.parse_args()

    train_data, test_data = common.load_mnist(args.npz, 10_000 if args.validate else 0)
    runs = []
    for seed in range(args.seeds):
        for kind in args.kinds:
            runs.append(train(kind, seed, train_data, test_data, args))
        if not args.validate:
            summary = summarize(runs, args.kinds)
            arguments = {k: v for k, v in vars(args).items() if k != "npz"}
            result = {"arguments": arguments, "summary": summary, "runs": runs}
            common.save(args.out, result)


def summarize(runs, kinds):
    return {
        kind: {
            name: common.mean_and_error([r[name] for r in runs if r["kind"] == kind])
            for name in ("nll", "accuracy", "ece")
        }
        for kind in kinds
    }


if __name__ == "__main__":
    main()
