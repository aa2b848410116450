"""Regression tables: posterior weights beside Monte Carlo dropout and a plain network.

    python examples/uci_regression.py                         # diabetes, no network
    python examples/uci_regression.py --data concrete.npz     # all splits of the file
    python examples/uci_regression.py --data houses.csv --target price
    python examples/uci_regression.py --smoke                 # seconds, to try it out

The data are an `.npz` with `x` (n, d), `y` (n,), and for each split a row of
`train_idx` and of `test_idx` (padded with -1), or a CSV of numbers with a header, or
by default the 442 diabetes patients in scikit-learn; the last two are split at random,
90 % for training. All networks have one hidden layer of 50 units, and inputs and
targets are standardised by `normalize=True`. The table has means over the splits and
their standard errors, in the units of the targets: the root mean squared error, the
log-likelihood of a test target (nats), and the share of test targets in the central
90 % of the predictive. `benchmarks/uci.py` searches over settings inside each training
split; here they are fixed.

Pictures, in `--output`:

    predictions.png    targets of the first test split against their 90 % intervals
    calibration.png    share of test targets below each quantile, over all splits
"""

import argparse
import pathlib

import cli
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_bdl
from keras_bdl import plots

UNITS = 50
BATCH_SIZE = 32
LEARNING_RATE = 1e-2
LEVELS = tuple(np.round(np.linspace(0.05, 0.95, 19), 2))  # of the quantiles
LOW, HIGH = LEVELS.index(0.05), LEVELS.index(0.95)


def load(path, target, num_splits):
    """Inputs `(n, d)`, targets `(n,)`, and pairs of training and test rows."""
    if path is not None and path.suffix == ".npz":
        content = np.load(path)
        splits = zip(content["train_idx"], content["test_idx"])
        splits = [tuple(rows[rows >= 0] for rows in split) for split in splits]
        return content["x"], content["y"], splits[:num_splits]
    if path is None:
        from sklearn import datasets

        x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    else:
        x, y = read_csv(path, target)
    return x, y, random_splits(len(x), num_splits or 5)


def read_csv(path, target):
    names = path.read_text().splitlines()[0].split(",")
    names = [name.strip().strip('"') for name in names]
    target = names[-1] if target is None else target
    if target not in names:
        raise ValueError(
            f"Expected `--target` to be one of the columns {names}. "
            f"Received: target={target!r}"
        )
    table = np.genfromtxt(path, delimiter=",", skip_header=1)
    bad = [name for name, column in zip(names, table.T) if np.isnan(column).any()]
    if bad:
        raise ValueError(
            f"Expected numbers in all columns of {path.name}; encode categories and "
            f"fill in what is missing first. Received: not a number in {bad}"
        )
    place = names.index(target)
    return np.delete(table, place, axis=1), table[:, place]


def random_splits(num_rows, num_splits):
    num_test = max(1, num_rows // 10)
    orders = (np.random.default_rng(s).permutation(num_rows) for s in range(num_splits))
    return [(order[num_test:], order[:num_test]) for order in orders]


# --- Networks --------------------------------------------------------------------


def make_variational(num_inputs):
    """Posterior weights, and noise that depends on the input."""
    options = {"prior": keras_bdl.priors.LearnedNormal(0.5), "initial_log_stddev": -4.0}
    network = keras.Sequential(
        [
            keras.Input((num_inputs,)),
            keras_bdl.VariationalDense(UNITS, activation="relu", **options),
            keras_bdl.VariationalDense(2, **options),
        ]
    )
    return keras_bdl.BayesianRegressor(network, normalize=True)


def make_dense(num_inputs, num_examples, noise, dropout=None):
    """A plain network with little weight decay, or one that samples its dropout."""
    decay = keras.regularizers.L2(0.25 / num_examples)
    outputs = 2 if noise == "heteroscedastic" else 1
    layers = [
        keras.layers.Dense(UNITS, activation="relu", kernel_regularizer=decay),
        keras.layers.Dense(outputs, kernel_regularizer=decay),
    ]
    if dropout:
        layers.insert(1, keras.layers.Dropout(dropout))
        layers.insert(0, keras.layers.Dropout(dropout))
    network = keras.Sequential([keras.Input((num_inputs,)), *layers])
    return keras_bdl.BayesianRegressor(network, noise, normalize=True)


NETWORKS = {
    "variational": lambda d, n: make_variational(d),
    "MC dropout": lambda d, n: make_dense(d, n, "heteroscedastic", dropout=0.02),
    "deterministic": lambda d, n: make_dense(d, n, "homoscedastic"),
}


def train(model, x, y, epochs):
    steps = epochs * int(np.ceil(len(x) / BATCH_SIZE))
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    model.compile(keras.optimizers.Adam(rate))
    warmup = []
    if any(hasattr(layer, "kl_weight") for layer in model.network.layers):
        warmup = [keras_bdl.callbacks.KLWarmup(max(1, epochs // 5))]
    model.fit(x, y, batch_size=BATCH_SIZE, epochs=epochs, callbacks=warmup, verbose=0)


def score(model, x, y, num_samples):
    """Mean scores of a test split, and its quantiles `(levels, n)`."""
    options = {"num_samples": num_samples, "seed": 0, "verbose": 0}
    spread = model.predict_uncertainty(x, quantiles=LEVELS, **options)
    quantiles = spread.quantiles[..., 0]
    inside = (quantiles[LOW] <= y) & (y <= quantiles[HIGH])
    return {
        "RMSE": np.sqrt(np.mean((spread.mean[:, 0] - y) ** 2)),
        "log-likelihood": model.log_likelihood(x, y, **options).mean(),
        "in 90 %": inside.mean(),
    }, quantiles


def run(x, y, splits, epochs, num_samples, seed):
    """Scores and quantiles by network and split."""
    scores = {name: [] for name in NETWORKS}
    quantiles = {name: [] for name in NETWORKS}
    bar = keras.utils.Progbar(len(splits) * len(NETWORKS), unit_name="network")
    for train_rows, test_rows in splits:
        for name, make in NETWORKS.items():
            keras.utils.set_random_seed(seed)
            model = make(x.shape[1], len(train_rows))
            train(model, x[train_rows], y[train_rows], epochs)
            result, levels = score(model, x[test_rows], y[test_rows], num_samples)
            scores[name].append(result)
            quantiles[name].append(levels)
            bar.add(1)
    return scores, quantiles


def print_table(scores):
    columns = list(next(iter(scores.values()))[0])
    print(f"{'':15}" + "".join(f"{column:>20}" for column in columns))
    for name, rows in scores.items():
        cells = []
        for column in columns:
            values = np.array([row[column] for row in rows])
            cell = f"{values.mean():.3f}"
            if len(values) > 1:
                cell += f" ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}"
            cells.append(cell)
        print(f"{name:15}" + "".join(f"{cell:>20}" for cell in cells))


# --- Pictures ----------------------------------------------------------------------


def draw_predictions(y, quantiles):
    """Test targets in the order of their predicted medians, with 90 % intervals."""
    figure, axes = plt.subplots(
        1, len(quantiles), figsize=(12, 4), sharey=True, layout="constrained"
    )
    for ax, (name, levels) in zip(axes, quantiles.items()):
        levels = levels[0]
        low, median, high = levels[LOW], levels[len(LEVELS) // 2], levels[HIGH]
        order = np.argsort(median)
        place = np.arange(len(y))
        bars = {"color": plots.BLUE, "alpha": 0.35, "linewidth": 2.5}
        ax.vlines(place, low[order], high[order], label="90 % interval", **bars)
        ax.plot(place, median[order], "_", color=plots.BLUE, label="median")
        outside = ((y < low) | (y > high))[order]
        for chosen, color, label in (
            (~outside, "0.15", "target inside"),
            (outside, plots.VERMILLION, "target outside"),
        ):
            points = place[chosen], y[order][chosen]
            ax.plot(*points, ".", color=color, markersize=5, label=label)
        ax.set(title=name, xlabel="test rows, by predicted median")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("target")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_calibration(targets, quantiles):
    """Share of the targets of all test splits below each predicted quantile."""
    figure, ax = plt.subplots(figsize=(5, 5), layout="constrained")
    ax.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="ideal")
    for (name, splits), color in zip(quantiles.items(), plots.COLORS):
        below = [y <= levels for y, levels in zip(targets, splits)]
        share = np.concatenate(below, axis=1).mean(axis=1)
        ax.plot(LEVELS, share, "o-", color=color, markersize=3.5, label=name)
    ax.set(
        xlabel="level of the predicted quantile",
        ylabel="share of test targets below it",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    ax.set_aspect("equal")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, help=".npz or .csv file")
    parser.add_argument("--target", help="column of a CSV; default: the last")
    parser.add_argument("--splits", type=int, help="how many; default: all, or 5")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--num-samples", type=int, default=1000, help="of the weights")
    cli.add_common(parser)
    args = parser.parse_args()
    if args.smoke:
        args.epochs, args.splits, args.num_samples = 2, 2, 50

    x, y, splits = load(args.data, args.target, args.splits)
    print(
        f"{len(y)} rows of {x.shape[1]} inputs, {len(splits)} splits, "
        f"{args.epochs} epochs",
        flush=True,
    )
    scores, quantiles = run(x, y, splits, args.epochs, args.num_samples, args.seed)
    print_table(scores)
    targets = [y[test_rows] for _, test_rows in splits]
    figures = {
        "predictions": draw_predictions(targets[0], quantiles),
        "calibration": draw_calibration(targets, quantiles),
    }
    cli.save_figures(figures, args.output)


if __name__ == "__main__":
    main()
