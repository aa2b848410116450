"""A line through points: the exact posterior, and the best mean-field one.

    python examples/bayesian_linear_regression.py
    python examples/bayesian_linear_regression.py --smoke      # seconds, to try it out

First the posterior as data arrive, after 0, 1, 3 and 20 points: lines drawn from it,
and the predictive with bands of one and two standard deviations.

Then `VariationalDense`, trained by `fit`, beside the exact posterior of the same model.
Slope and intercept are correlated given the data (all inputs are positive), which
independent Gaussians cannot say. The best of them have the exact mean and the variances
1 / (S^-1)_ii, S the exact covariance: narrower than the marginal variances S_ii. The
table checks the trained layer against that closed form.

Pictures, in `--output`:

    line_posterior.png    lines and bands as data arrive
    mean_field.png        exact and mean-field posterior, and what they say of the line
"""

import argparse

import cli
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops
from matplotlib import patches

import keras_bdl
from keras_bdl import plots

COUNTS = (0, 1, 3, 20)
INTERCEPT, SLOPE, NOISE_STDDEV, PRIOR_STDDEV = -0.3, 0.5, 0.2, 0.7
NAMES = ("slope", "intercept")


def make_data(low, high, count, seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(low, high, count)
    return x, INTERCEPT + SLOPE * x + NOISE_STDDEV * rng.normal(size=count)


def design(x):
    """The intercept as a column of ones: so its prior is that of the slope."""
    return np.column_stack([x, np.ones(len(x))])


def exact_model():
    return keras_bdl.BayesianLinearRegression(
        prior_precision=PRIOR_STDDEV**-2,
        noise_precision=NOISE_STDDEV**-2,
        fit_intercept=False,
    )


# --- The posterior as data arrive --------------------------------------------------


def draw_lines(seed):
    """Prints the posterior after each number of points, and draws lines and bands."""
    x, y = make_data(-1.0, 1.0, max(COUNTS), seed)
    at = np.linspace(-1.5, 1.5, 101)
    figure, axes = plt.subplots(
        2,
        len(COUNTS),
        figsize=(12, 5.6),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    print(f"{'points':>6}{'slope':>17}{'intercept':>17}{'log evidence':>14}")
    model, seen = exact_model(), 0
    for column, count in zip(axes.T, COUNTS):
        model.partial_fit(design(x[seen:count]), y[seen:count])
        seen = count
        stddev = model.posterior().stddev().numpy()
        cells = "".join(
            f"{f'{m:.3f} ± {s:.3f}':>17}" for m, s in zip(model.coef_, stddev)
        )
        print(f"{count:>6}{cells}{model.log_evidence():>14.3f}")

        lines, bands = column
        draws = model.sample(12, seed=seed) @ design(at).T
        lines.plot(at, draws.T, color=plots.BLUE, alpha=0.5, linewidth=1)
        plots.predictive_band(at, *model.predict(design(at), return_std=True), bands)
        for ax in column:
            truth = INTERCEPT + SLOPE * at
            ax.plot(at, truth, color="k", linestyle="--", linewidth=1, label="truth")
            ax.plot(x[:count], y[:count], "o", color=plots.VERMILLION, markersize=4,
                    label="data", zorder=4)  # fmt: skip
        lines.set_title(f"{count} point{'' if count == 1 else 's'}")
        lines.spines[["top", "right"]].set_visible(False)
        bands.set_xlabel("x")
    axes[0, 0].set(xlim=(at[0], at[-1]), ylim=(-2.2, 2.2), ylabel="y, drawn lines")
    axes[0, 0].set_xticks([-1, 0, 1])
    axes[1, 0].set_ylabel("y, predictive")
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    compare_with_dense(model, x, y)
    return figure


def compare_with_dense(model, x, y):
    """The closed form with a plain inverse (Bishop, 2006, eq. 3.53 and 3.54)."""
    phi = design(x)
    covariance = np.linalg.inv(
        np.eye(2) / PRIOR_STDDEV**2 + phi.T @ phi / NOISE_STDDEV**2
    )
    mean = covariance @ phi.T @ y / NOISE_STDDEV**2
    gaps = (
        np.abs(model.coef_ - mean).max(),
        np.abs(model.posterior().covariance().numpy() - covariance).max(),
    )
    print("against the closed form: mean {:.1e}, covariance {:.1e}".format(*gaps))


# --- Full covariance and mean field ------------------------------------------------


def train_layer(x, y, steps, copies):
    """`VariationalDense` by `fit`: each step sees the data `copies` times.

    More copies mean more draws of the weights in a step, so less noise in the end.
    """
    layer = keras_bdl.VariationalDense(
        1,
        prior=keras_bdl.priors.Normal(stddev=PRIOR_STDDEV),
        num_examples=len(x),
        initial_log_stddev=-3.0,
    )
    model = keras.Sequential([keras.Input((1,)), layer])
    rate = keras.optimizers.schedules.CosineDecay(0.05, steps)
    loss = keras_bdl.losses.GaussianNLL(stddev=NOISE_STDDEV)
    model.compile(keras.optimizers.Adam(rate), loss)
    rows = np.tile(np.arange(len(x)), steps * copies)
    model.fit(
        x[rows, None], y[rows], batch_size=copies * len(x), shuffle=False, verbose=0
    )
    mean = [layer.kernel, layer.bias]
    log_stddev = [layer.kernel_log_stddev, layer.bias_log_stddev]
    mean, log_stddev = (
        np.concatenate([ops.convert_to_numpy(v).ravel() for v in values])
        for values in (mean, log_stddev)
    )
    return mean, np.exp(log_stddev)


def draw_mean_field(seed, steps, copies):
    """Prints exact against trained means and deviations, and draws both posteriors."""
    x, y = make_data(0.5, 2.0, 20, seed)
    exact = exact_model().fit(design(x), y)
    covariance = exact.posterior().covariance().numpy()
    best = 1.0 / np.sqrt(np.diag(np.linalg.inv(covariance)))
    mean, stddev = train_layer(x, y, steps, copies)

    print(f"\n{'':<10}{'mean':>16}{'':>8}{'standard deviation':>25}")
    print(f"{'':<10}{'exact':>9}{'trained':>9}"
          f"{'exact':>10}{'mean-field':>12}{'trained':>9}")  # fmt: skip
    marginal = np.sqrt(np.diag(covariance))
    for row in zip(NAMES, exact.coef_, mean, marginal, best, stddev):
        print("{:<10}{:>9.4f}{:>9.4f}{:>10.4f}{:>12.4f}{:>9.4f}".format(*row))
    gaps = np.abs(mean - exact.coef_).max(), 100 * np.abs(stddev / best - 1).max()
    print(
        "trained against the closed form: means {:.4f}, deviations {:.1f} %".format(
            *gaps
        )
    )

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    draw_ellipses(left, exact.coef_, covariance, mean, np.diag(stddev**2))
    draw_spread(right, x, covariance, np.diag(stddev**2))
    return figure


def draw_ellipses(ax, exact_mean, covariance, mean, mean_field):
    """Contours of one and two standard deviations."""
    both = ((exact_mean, covariance, plots.BLUE, "exact"),
            (mean, mean_field, plots.VERMILLION, "VariationalDense"))  # fmt: skip
    for centre, matrix, color, label in both:
        values, vectors = np.linalg.eigh(matrix)
        angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
        for width in (2, 1):
            sides = 2 * width * np.sqrt(values)
            ellipse = patches.Ellipse(centre, sides[1], sides[0], angle=angle,
                                      facecolor=color, alpha=0.2)  # fmt: skip
            ax.add_patch(ellipse)
        ax.plot(*centre, "o", color=color, markersize=4, label=label)
    ax.plot(SLOPE, INTERCEPT, "k^", label="truth")
    ax.autoscale_view()
    ax.set(xlabel="slope", ylabel="intercept", title="posterior, 1 and 2 deviations")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)


def draw_spread(ax, x, covariance, mean_field):
    """Standard deviation of the line itself, without noise."""
    at = np.linspace(-1.0, 3.0, 201)
    phi = design(at)
    for matrix, color, label in (
        (covariance, plots.BLUE, "exact"),
        (mean_field, plots.VERMILLION, "VariationalDense"),
    ):
        stddev = np.sqrt(np.einsum("ni,ij,nj->n", phi, matrix, phi))
        ax.plot(at, stddev, color=color, label=label)
    ax.plot(x, np.zeros(len(x)), "|", color="k", markersize=10, label="data")
    ax.set(xlabel="x", ylabel="standard deviation of the line", ylim=(0, None))
    ax.set_title("what each says of the line")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_common(parser)
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    steps, copies = (800, 16) if args.smoke else (1500, 64)
    figures = {
        "line_posterior": draw_lines(args.seed),
        "mean_field": draw_mean_field(args.seed, steps, copies),
    }
    cli.save_figures(figures, args.output)


if __name__ == "__main__":
    main()
