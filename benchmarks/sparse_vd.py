"""Sparse variational dropout on MNIST: test error and compression.

    python benchmarks/sparse_vd.py lenet_300_100 --seeds 0 1 2
    python benchmarks/sparse_vd.py lenet5_caffe --seeds 0
    python benchmarks/sparse_vd.py lenet_300_100 --validate --epochs 100 ...

Networks and numbers to beat are those of Molchanov et al. (2017): LeNet-300-100
(266,200 weights) 68x at 1.92 % error, LeNet-5-Caffe (430,500 weights) 280x at
.75 %. With `--validate` the last 5,000 training rows are held out and scored
instead of the test set; settings were chosen so. Training resumes from
`--checkpoints` where it was cut off. `--shrink 30 60` takes units that are dead by
then out of the network, which is trained on as before, but faster.
"""

import argparse
import pathlib

import common
import keras
import numpy as np

import keras_bdl
from keras_bdl.sparsity.channels import ChannelGraph
from keras_bdl.sparsity.rules import is_linear


def lenet_300_100(**options):
    dense = keras_bdl.SparseVDDense
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            dense(300, activation="relu", **options),
            dense(100, activation="relu", **options),
            dense(10, **options),
        ]
    )


def lenet5_caffe(**options):
    conv, dense = keras_bdl.SparseVDConv2D, keras_bdl.SparseVDDense
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            conv(20, 5, activation="relu", **options),
            keras.layers.MaxPooling2D(),
            conv(50, 5, activation="relu", **options),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            dense(500, activation="relu", **options),
            dense(10, **options),
        ]
    )


NETWORKS = {"lenet_300_100": lenet_300_100, "lenet5_caffe": lenet5_caffe}


def make_model(args, num_examples):
    network = NETWORKS[args.network](
        num_examples=num_examples,
        kl_weight=args.kl_weight,
        initial_log_stddev=args.initial_log_stddev,
        prune_in_training=args.prune_in_training,
    )
    return compiled(network, args.learning_rate, args.weight_decay)


def compiled(network, learning_rate, weight_decay=None):
    optimizer = keras.optimizers.Adam(learning_rate, weight_decay=weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["log_stddev", "bias"])
    network.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return network


def shrink(model):
    """The sparse network without its dead units: the same layers, not compiled.

    Unlike those of `compress`, they keep their noise. What the mean of a dead unit
    gave its readers goes into their biases; its noise goes.
    """
    graph = ChannelGraph(model)
    smaller = keras.Sequential([keras.Input(model.input_shape[1:])])
    for node in graph.nodes:
        layer, config = node.layer, node.layer.get_config()
        if not is_linear(layer):
            smaller.add(type(layer).from_config(config))
            continue
        keep_in, keep_out = graph.kept(node.inputs[0]), graph.kept(node.outputs)
        config["units" if "units" in config else "filters"] = int(keep_out.sum())
        new = type(layer).from_config(config)
        smaller.add(new)
        for name in ("kernel", "kernel_log_stddev"):
            values = keras.ops.convert_to_numpy(getattr(layer, name))
            getattr(new, name).assign(values[..., keep_in, :][..., keep_out])
        kernel, bias = graph.weights(node)
        new.bias.assign((bias + graph.folded_bias(node, kernel))[keep_out])
    return smaller


def finetune(model, x, y, args):
    """Trains the surviving weights on, with less of the KL term than before."""
    small = shrink(model)
    for layer in small.layers:
        if hasattr(layer, "log_alpha"):
            keep_pruned(layer)
            layer.kl_weight.assign(args.finetune_kl_weight)
    steps = args.finetune * int(np.ceil(len(x) / args.batch_size))
    rate = keras.optimizers.schedules.PolynomialDecay(1e-3, steps, 0.0)
    compiled(small, rate, args.weight_decay)
    small.fit(x, y, batch_size=args.batch_size, epochs=args.finetune, verbose=2)
    return small


def keep_pruned(layer):
    """Weights that are pruned stay so: a mean of 0, and noise too small to matter."""
    alive = keras.ops.convert_to_numpy(layer.log_alpha() < layer.threshold)
    for weights, value in ((layer.kernel, 0.0), (layer.kernel_log_stddev, -7.6)):
        weights.constraint = lambda w, value=value: keras.ops.where(
            alive, keras.ops.convert_to_tensor(w), value
        )
        weights.assign(weights.constraint(weights))


def error_percent(model, x, y):
    logits = model.predict(x, batch_size=1000, verbose=0)
    return float(100 * np.mean(logits.argmax(-1) != y))


def fit(args, seed, train_data, test_data):
    """The trained model, its report before training, and compression by epoch.

    The last is of the epochs since training was last resumed.
    """
    x, y = train_data
    model, compression = make_model(args, len(x)), []
    full = keras_bdl.sparsity_report(model)
    ends = [*args.shrink, args.epochs]
    for begin, end in zip([0, *ends], ends):
        callbacks = keras_bdl.callbacks.sparse_vd_schedule(
            args.epochs,
            learning_rate=args.learning_rate,
            hold=args.hold,
            warmup=tuple(args.warmup),
        )
        callbacks.append(keras_bdl.callbacks.SparsityLogger())
        if args.checkpoints:
            folder = pathlib.Path(args.checkpoints) / f"{args.out}_{seed}"
            if (folder / f"{end}.keras").exists():
                model = keras.models.load_model(folder / f"{end}.keras")
                continue
            callbacks.append(keras.callbacks.BackupAndRestore(folder / f"to_{end}"))
        if begin:
            rate = float(model.optimizer.learning_rate)
            model = compiled(shrink(model), rate, args.weight_decay)
            print("shrunk to", [tuple(w.shape) for w in model.trainable_variables])
        history = model.fit(
            x,
            y,
            batch_size=args.batch_size,
            initial_epoch=begin,
            epochs=end,
            callbacks=callbacks,
            validation_data=test_data if args.validate else None,
            validation_freq=5,
            validation_batch_size=1000,
            verbose=2,
        )
        if args.checkpoints:
            model.save(folder / f"{end}.keras")
        share = keras_bdl.sparsity_report(model).weights / full.weights
        compression += [c / share for c in history.history["compression"]]
    return model, full, compression


def train(args, seed, train_data, test_data):
    keras.utils.set_random_seed(seed)
    (x, y), (x_test, y_test) = train_data, test_data
    model, full, compression_by_epoch = fit(args, seed, train_data, test_data)
    result = {"seed": seed, "error": error_percent(model, x_test, y_test)}
    report = keras_bdl.sparsity_report(model)
    if args.finetune:
        result["error_before_finetuning"] = result["error"]
        model = finetune(model, x, y, args)
        result["error"] = error_percent(model, x_test, y_test)
        report = keras_bdl.sparsity_report(model)
    result |= {
        "compression": report.factor * full.weights / report.weights,
        "non_zero": {
            f"{row['layer']} of {whole['weights']}": row["non_zero"]
            for row, whole in zip(report.rows, full.rows)
        },
        "report": report.to_dict(),
        "compression_by_epoch": compression_by_epoch,
    }
    print(report)
    print({k: v for k, v in result.items() if isinstance(v, (int, float))}, flush=True)
    if args.save:
        folder = pathlib.Path(args.save)
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder / f"{args.out}_{seed}.keras")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--npz", help="MNIST as one .npz instead of TFDS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--hold", type=float, default=0.5, help="share of epochs")
    parser.add_argument("--warmup", type=int, nargs=2, default=[5, 20])
    parser.add_argument("--kl-weight", type=float, default=1.0)
    parser.add_argument("--initial-log-stddev", type=float, default=-5.0)
    parser.add_argument("--shrink", type=int, nargs="*", default=[], help="epochs")
    parser.add_argument("--weight-decay", type=float, help="of the means")
    parser.add_argument("--finetune", type=int, default=0, help="epochs")
    parser.add_argument("--finetune-kl-weight", type=float, default=0.1)
    parser.add_argument("--prune-in-training", action="store_true")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--checkpoints", help="folder to resume from")
    parser.add_argument("--save", help="folder for the trained models")
    parser.add_argument("--out", help="name of the JSON in results/")
    args = parser.parse_args()
    args.out = args.out or f"sparse_vd_{args.network}"

    train_data, test_data = common.load_mnist(args.npz, 5000 if args.validate else 0)
    runs = []
    for seed in args.seeds:
        runs.append(train(args, seed, train_data, test_data))
        if not args.validate:
            summary = {
                name: common.mean_and_error([run[name] for run in runs])
                for name in ("error", "compression")
            }
            arguments = {
                k: v
                for k, v in vars(args).items()
                if k not in ("npz", "checkpoints", "save")
            }
            common.save(
                args.out, {"arguments": arguments, "summary": summary, "runs": runs}
            )


if __name__ == "__main__":
    main()
