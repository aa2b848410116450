"""The Bayesian workflow on one small data set, every step of it exact.

    python examples/bayesian_workflow.py
    python examples/bayesian_workflow.py --smoke      # seconds, to try it out

A trend and a cycle, from a truth that is known: y = 0.4 x + sin(2 pi x) / 2 + noise.
`BayesianLinearRegression` on bases of x explains them, step by step:

1. Prior predictive: what curves does the model hold possible before any data? Under a
   prior that is too wide they leave the range of what can be measured.
2. Fit: posterior lines and the predictive.
3. Posterior predictive check: data sets simulated from the fitted model are compared
   with the data by a statistic that was not fitted, the correlation of neighbouring
   residuals. A straight line fails, a basis that can turn passes.
4. More data: `partial_fit` continues where the posterior is.
5. Model comparison: evidence of polynomials and Fourier bases of rising order, beside
   the likelihood of rows that were held out. Evidence needs no such rows.

Posterior, predictive and evidence are checked against the closed form by plain dense
matrices (Bishop, "Pattern recognition and machine learning", 2006, 3.3 to 3.5).

Pictures, in `--output`:

    prior_predictive.png    curves of two priors
    workflow.png            fit and posterior predictive check of a line and of a curve
    more_data.png           the predictive as data come in
    model_comparison.png    evidence and held-out likelihood by order
"""

import argparse

import cli
import matplotlib.pyplot as plt
import numpy as np

import keras_bdl
from keras_bdl import plots

NOISE_STDDEV = 0.2
GRID = np.linspace(-1.2, 1.2, 241)
LINE, CURVE = ("polynomial", 1), ("fourier", 2)


def truth(x):
    return 0.4 * x + 0.5 * np.sin(2 * np.pi * x)


def make_data(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.0, 1.0, count)
    return x, truth(x) + NOISE_STDDEV * rng.normal(size=count)


def basis(x, kind, order):
    """Columns of functions of x `(n,)`: 1, x and powers, or sines and cosines.

    The column of ones gives the intercept a prior, without which a model says nothing
    before the first row.
    """
    if kind == "polynomial":
        return x[:, None] ** np.arange(order + 1)
    angles = np.pi * x[:, None] * np.arange(1, order + 1)
    return np.column_stack([np.ones(len(x)), x, np.sin(angles), np.cos(angles)])


def make_model(prior_precision="evidence"):
    """Known noise, as of an instrument; the prior by evidence if it is not given."""
    return keras_bdl.BayesianLinearRegression(
        prior_precision, NOISE_STDDEV**-2, fit_intercept=False
    )


def plain(ax):
    ax.spines[["top", "right"]].set_visible(False)


# --- Before any data -----------------------------------------------------------------


def draw_prior_predictive(seed):
    """Curves under a prior that is too wide, and under a sensible one."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    phi = basis(GRID, *CURVE)
    print(f"{'prior stddev':>12}{'stddev of y at 0':>18}{'|y| above 3':>13}")
    for ax, stddev, limit in zip(axes, (5.0, 0.5), (20, 4)):
        model = make_model(stddev**-2).fit(phi[:0], [])
        _, spread = model.predict(phi, return_std=True)
        draws = model.sample(500, seed=seed) @ phi.T
        share = (np.abs(draws) > 3).mean()
        print(f"{stddev:>12}{spread[len(GRID) // 2]:>18.2f}{100 * share:>11.1f} %")
        plots.predictive_band(GRID, np.zeros(len(GRID)), spread, ax)
        ax.plot(GRID, draws[:12].T, color=plots.BLUE, alpha=0.6, linewidth=1)
        ax.axhspan(-3, 3, color="0.5", alpha=0.15, linewidth=0)
        ax.set(xlabel="x", xlim=(GRID[0], GRID[-1]), ylim=(-limit, limit))
        ax.set_title(f"weights of standard deviation {stddev:g}")
    axes[0].set_ylabel("y before any data")
    axes[1].annotate("can be measured", (-1.15, 3), xytext=(0, 3), va="bottom",
                     textcoords="offset points", color="0.4")  # fmt: skip
    return figure


# --- Fit and check -------------------------------------------------------------------


def neighbour_correlation(x, residuals):
    """Correlation of residuals that are neighbours in x, along the last axis."""
    ordered = residuals[..., np.argsort(x)]
    ordered = ordered - ordered.mean(axis=-1, keepdims=True)
    products = (ordered[..., 1:] * ordered[..., :-1]).sum(axis=-1)
    return products / np.square(ordered).sum(axis=-1)


def check(model, phi, x, y, num_replicas, seed):
    """The statistic of the data and of replicas, and the share of replicas above.

    Residuals of data and replicas alike are about the same draw of the weights
    (Gelman, Meng and Stern, "Posterior predictive assessment of model fitness via
    realized discrepancies", 1996).
    """
    curves = model.sample(num_replicas, seed=seed) @ phi.T
    rng = np.random.default_rng(seed)
    noise = NOISE_STDDEV * rng.normal(size=curves.shape)
    observed = neighbour_correlation(x, y - curves)
    replicated = neighbour_correlation(x, noise)
    return observed, replicated, (replicated >= observed).mean()


def draw_fits(x, y, num_replicas, seed):
    """Predictive above, posterior predictive check below, of a line and a curve."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    print(f"\n{'model':<16}{'log evidence':>13}{'neighbours':>12}{'p value':>9}")
    for (above, below), (kind, order) in zip(axes.T, (LINE, CURVE)):
        phi = basis(x, kind, order)
        model = make_model().fit(phi, y)
        observed, replicated, p_value = check(model, phi, x, y, num_replicas, seed)
        name = f"{kind} {order}"
        print(f"{name:<16}{model.log_evidence():>13.2f}"
              f"{observed.mean():>12.2f}{p_value:>9.3f}")  # fmt: skip
        draw_predictive(above, model, (kind, order), x, y)
        above.set_title(name)
        edges = np.linspace(-1, 1, 41)
        for values, color, label in ((replicated, plots.BLUE, "replicas"),
                                     (observed, plots.VERMILLION, "data")):  # fmt: skip
            share = np.histogram(values, edges)[0] / len(values)
            below.stairs(share, edges, color=color, fill=True, alpha=0.25)
            below.stairs(share, edges, color=color, linewidth=1.5, label=label)
        below.set(xlabel="correlation of neighbouring residuals", ylim=(0, None))
        shown = f"p value {p_value:.3f}" if p_value >= 0.001 else "p value < 0.001"
        below.set_title(shown, fontsize="medium")
        plain(below)
    axes[0, 0].set_ylabel("y, predictive")
    axes[1, 0].set_ylabel("share of draws")
    axes[0, 1].legend(frameon=False, loc="lower right")
    axes[1, 1].legend(frameon=False)
    return figure


def draw_predictive(ax, model, of_basis, x, y):
    mean, stddev = model.predict(basis(GRID, *of_basis), return_std=True)
    plots.predictive_band(GRID, mean, stddev, ax)
    ax.plot(GRID, truth(GRID), "k--", linewidth=1, label="truth")
    ax.plot(x, y, "o", color=plots.VERMILLION, markersize=4, label="data", zorder=4)
    ax.set(xlim=(GRID[0], GRID[-1]), ylim=(-2.2, 2.2), xlabel="x")
    plain(ax)


# --- More data -----------------------------------------------------------------------


def draw_more_data(x, y, counts):
    """The predictive after more and more rows, each from the posterior before."""
    figure, axes = plt.subplots(
        1, len(counts), figsize=(12, 3.4), sharey=True, layout="constrained"
    )
    model, seen = make_model(4.0), 0
    print(f"\n{'rows':>6}{'log evidence':>14}{'mean stddev of the curve':>26}")
    for ax, count in zip(axes, counts):
        model.partial_fit(basis(x[seen:count], *CURVE), y[seen:count])
        seen = count
        spread = model.predict(basis(x, *CURVE), return_std=True)[1]
        curve = np.sqrt(np.maximum(np.square(spread) - NOISE_STDDEV**2, 0)).mean()
        print(f"{count:>6}{model.log_evidence():>14.2f}{curve:>26.3f}")
        draw_predictive(ax, model, CURVE, x[:count], y[:count])
        ax.set_title(f"{count} rows")
    axes[0].set_ylabel("y, predictive")
    axes[-1].legend(frameon=False, loc="upper left")
    compare_with_dense(model, basis(x[:seen], *CURVE), y[:seen])
    return figure


def compare_with_dense(model, phi, y):
    """The closed form by inverses and the marginal Gaussian of all rows at once."""
    precision, alpha = NOISE_STDDEV**-2, model.prior_precision_
    covariance = np.linalg.inv(alpha * np.eye(phi.shape[1]) + precision * phi.T @ phi)
    mean = precision * covariance @ phi.T @ y
    marginal = NOISE_STDDEV**2 * np.eye(len(y)) + phi @ phi.T / alpha
    log_evidence = -0.5 * (
        y @ np.linalg.solve(marginal, y) + np.linalg.slogdet(2 * np.pi * marginal)[1]
    )
    at = basis(GRID, *CURVE)
    stddev = np.sqrt(NOISE_STDDEV**2 + np.einsum("ni,ij,nj->n", at, covariance, at))
    gaps = (
        np.abs(model.coef_ - mean).max(),
        np.abs(model.predict(at, return_std=True)[1] - stddev).max(),
        abs(model.log_evidence() - log_evidence),
    )
    print(
        "against the closed form: mean {:.1e}, predictive stddev {:.1e}, "
        "log evidence {:.1e}".format(*gaps)
    )


# --- Which model ---------------------------------------------------------------------


def log_likelihood(model, phi, y):
    """Log density of each held-out row under the predictive, by itself, in nats."""
    mean, stddev = model.predict(phi, return_std=True)
    z = (y - mean) / stddev
    return -0.5 * np.square(z) - np.log(stddev) - 0.5 * np.log(2 * np.pi)


def draw_comparison(x, y, num_held_out, orders, seed):
    """Evidence of the rows, and likelihood of many others, by kind and order."""
    x_new, y_new = make_data(num_held_out, seed + 1)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    print(f"\n{'model':<16}{'log evidence':>13}{'held out, nats a row':>22}")
    scores = {}
    for kind in ("polynomial", "fourier"):
        for order in orders:
            model = make_model().fit(basis(x, kind, order), y)
            held_out = log_likelihood(model, basis(x_new, kind, order), y_new).mean()
            scores[kind, order] = model.log_evidence(), held_out
            print(f"{f'{kind} {order}':<16}{scores[kind, order][0]:>13.2f}"
                  f"{held_out:>22.3f}")  # fmt: skip
    labels = ("log evidence of the rows (nats)", "held-out log likelihood (nats a row)")
    for index, (ax, label) in enumerate(zip(axes, labels)):
        for kind, color, marker in zip(("polynomial", "fourier"), plots.COLORS, "os"):
            curve = [scores[kind, order][index] for order in orders]
            ax.plot(orders, curve, color=color, marker=marker, markersize=4, label=kind)
        best = max(scores, key=lambda key: scores[key][index])
        ax.plot(best[1], scores[best][index], "k*", markersize=11, label="best",
                zorder=4)  # fmt: skip
        ax.set(xlabel="order", ylabel=label)
        plain(ax)
    axes[0].legend(frameon=False, loc="center right")
    best = [max(scores, key=lambda key: scores[key][i]) for i in (0, 1)]
    names = [f"{kind} {order}" for kind, order in best]
    print(f"best by evidence: {names[0]}; best on held-out rows: {names[1]}")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_common(parser)
    args = parser.parse_args()
    x, y = make_data(30, args.seed)
    num_replicas, num_held_out, last = (200, 200, 4) if args.smoke else (5000, 5000, 10)
    figures = {
        "prior_predictive": draw_prior_predictive(args.seed),
        "workflow": draw_fits(x, y, num_replicas, args.seed),
        "more_data": draw_more_data(*make_data(100, args.seed), (0, 3, 10, 30, 100)),
        "model_comparison": draw_comparison(
            x, y, num_held_out, range(1, last + 1), args.seed
        ),
    }
    cli.save_figures(figures, args.output)


if __name__ == "__main__":
    main()
