"""Coin tossing: the exact posterior, and two point estimates that are too sure.

    python examples/coin_tossing.py
    python examples/coin_tossing.py --probability 0.3 --alpha 1 --beta 1
    python examples/coin_tossing.py --smoke                # seconds, to try it out

Of one coin, after 0, 1, 5, 50 and 500 tosses: the Beta posterior of its probability of
heads, and what three predictives say of the next toss: the full one (the posterior's
mean), that of the posterior's mode (MAP) and that of the likeliest value (MLE, the
share of heads). Posterior and evidence are checked against Bayes' rule on a grid.

Then of all coins that the prior holds possible, exactly, by a sum over the number of
heads: how far each predictive's confidence in the likelier side lies above the share of
tosses that fall on it. The full predictive is right at every number of tosses. The
point estimates are over-confident, by about one part in the number of tosses.

Pictures, in `--output`:

    coin_posterior.png         the posterior after each number of tosses
    coin_overconfidence.png    over-confidence against the number of tosses
"""

import argparse

import cli
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import keras_bdl
from keras_bdl import plots

COUNTS = (0, 1, 5, 50, 500)
POINTS = ("full", "MAP", "MLE")
GRID = (np.arange(20_000) + 0.5) / 20_000  # midpoints: for sums that are integrals


def statements(model):
    """Probability of heads by the full predictive, MAP and MLE."""
    full = float(model.posterior_predictive().probs_parameter())
    return dict(zip(POINTS, (full, model.map(), model.mle())))


def by_grid(model, tosses):
    """Posterior density on `GRID` and log evidence, by Bayes' rule."""
    heads = tosses.sum()
    log_joint = stats.beta.logpdf(GRID, model.alpha, model.beta)
    log_joint += heads * np.log(GRID) + (len(tosses) - heads) * np.log1p(-GRID)
    top = log_joint.max()
    evidence = np.exp(log_joint - top).mean()
    return np.exp(log_joint - top) / evidence, top + np.log(evidence)


def draw_posteriors(alpha, beta, probability, seed):
    """Prints the statements after each number of tosses and draws the posteriors."""
    coin = np.random.default_rng(seed)
    tosses = (coin.random(max(COUNTS)) < probability).astype(int)
    model = keras_bdl.BetaBernoulli(alpha, beta).fit([])
    figure, axes = plt.subplots(
        1, len(COUNTS), figsize=(13, 3.2), sharex=True, layout="constrained"
    )
    print(f"{'tosses':>6}{'heads':>7}{'full':>8}{'MAP':>8}{'MLE':>8}"
          f"{'90 % interval':>17}{'log evidence':>14}")  # fmt: skip
    density_gap, evidence_gap, seen = 0.0, 0.0, 0
    for ax, count in zip(axes, COUNTS):
        model.partial_fit(tosses[seen:count])  # the posterior so far is the prior now
        seen = count
        posterior, said = model.posterior(), statements(model)
        density = posterior.prob(GRID).numpy()
        low, high = posterior.quantile(np.array([0.05, 0.95])).numpy()
        row = "".join(f"{value:>8.3f}" for value in said.values())
        print(f"{count:>6}{model.num_ones_:>7}{row}{f'{low:.3f} to {high:.3f}':>17}"
              f"{model.log_evidence():>14.3f}")  # fmt: skip

        expected, log_evidence = by_grid(model, tosses[:count])
        gap = np.abs(density - expected).max() / expected.max()
        density_gap = max(density_gap, gap)
        evidence_gap = max(evidence_gap, abs(model.log_evidence() - log_evidence))
        draw_posterior(ax, density, said, probability)
        heads = "head" if model.num_ones_ == 1 else "heads"
        ax.set_title(f"{count} tosses, {model.num_ones_} {heads}".replace("1 tosses",
                     "1 toss"), fontsize="medium")  # fmt: skip
    axes[0].set_ylabel("posterior density")
    figure.supxlabel("probability of heads", fontsize="medium")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    print(f"against Bayes' rule on a grid: density {density_gap:.1e} of its peak, "
          f"log evidence {evidence_gap:.1e} nats")  # fmt: skip
    return figure


def draw_posterior(ax, density, said, probability):
    ax.fill_between(GRID, density, color="0.85", linewidth=0)
    ax.plot(GRID, density, color="0.4", linewidth=1)
    styles = zip(said.items(), plots.COLORS, ("-", "--", ":"))
    for (name, value), color, style in styles:
        ax.axvline(value, color=color, linestyle=style, linewidth=2, label=name,
                   clip_on=False)  # fmt: skip
    ax.plot(probability, 0, "k^", clip_on=False, zorder=4, label="truth")
    ax.set(xlim=(0, 1), ylim=(0, 1.08 * density.max()), yticks=[])
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.spines[["top", "right", "left"]].set_visible(False)


def overconfidence(alpha, beta, count):
    """Mean confidence less mean accuracy of each predictive, over all coins.

    Given the number of heads, the next toss is heads with the full predictive's
    probability: that is the accuracy of saying so, whoever says it.
    """
    heads = np.arange(count + 1)
    chance = stats.betabinom.pmf(heads, count, alpha, beta)
    tosses = (np.repeat([1, 0], [k, count - k]) for k in heads)
    model = keras_bdl.BetaBernoulli(alpha, beta)
    said = [statements(model.fit(sequence)) for sequence in tosses]
    full = np.array([values["full"] for values in said])
    result = {}
    for name in POINTS:
        heads_said = np.array([values[name] for values in said])
        likelier = np.where(heads_said > 0.5, full, 1.0 - full)
        likelier = np.where(heads_said == 0.5, 0.5, likelier)
        confidence = np.maximum(heads_said, 1.0 - heads_said)
        result[name] = float(chance @ (confidence - likelier))
    return result


def draw_overconfidence(alpha, beta, counts):
    """Prints and draws over-confidence in percentage points."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    values = [overconfidence(alpha, beta, count) for count in counts]
    print("\nover-confidence in the likelier side, percentage points, over all coins")
    print(f"{'tosses':>6}" + "".join(f"{name:>9}" for name in POINTS))
    for count, row in zip(counts, values):
        cells = "".join(f"{100 * row[name] + 0.0:>9.3f}" for name in POINTS)
        print(f"{count:>6}{cells}")
    for name, color, marker in zip(POINTS, plots.COLORS, "osD"):
        curve = 100 * np.array([row[name] for row in values])
        left.plot(counts, curve, color=color, marker=marker, markersize=4, label=name)
        if name != "full":
            right.plot(counts, curve, color=color, marker=marker, markersize=4)
    left.set(ylabel="confidence - accuracy (percentage points)")
    right.set(yscale="log")
    guide = np.array([counts[-1] / 30, counts[-1]])
    last = 100 * values[-1]["MAP"] * counts[-1]
    right.plot(guide, 0.5 * last / guide, color="0.5", linestyle="--", linewidth=1)
    right.annotate(
        "1 / tosses",
        (guide[0], 0.5 * last / guide[0]),
        xytext=(-4, 0),
        textcoords="offset points",
        color="0.4",
        ha="right",
        va="top",
    )
    for ax in (left, right):
        ax.set(xscale="log", xlabel="tosses")
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_formatter("{x:g}")
    left.legend(frameon=False)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--probability", type=float, default=0.7, help="of heads")
    parser.add_argument("--alpha", type=float, default=2.0, help="of the Beta prior")
    parser.add_argument("--beta", type=float, default=2.0, help="of the Beta prior")
    cli.add_common(parser)
    args = parser.parse_args()
    prior = args.alpha, args.beta
    counts = (1, 2, 5, 10, 20) if args.smoke else (1, 2, 5, 10, 20, 50, 100, 200, 500)
    figures = {
        "coin_posterior": draw_posteriors(*prior, args.probability, args.seed),
        "coin_overconfidence": draw_overconfidence(*prior, counts),
    }
    cli.save_figures(figures, args.output)


if __name__ == "__main__":
    main()
