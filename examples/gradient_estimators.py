"""How noisy unbiased estimates of one gradient are: measured, and exactly.

    python examples/gradient_estimators.py

The gradient is that of E z^2 in mu, z ~ N(mu, 1), which is 2 mu. It is estimated by the
reparameterisation z = mu + noise, and by the score function with several baselines:
`keras_bdl.ops.estimators.score_function`. Variances are of one estimate from K draws.

Picture, in `--output`:

    gradient_variance.png    variance against mu, and against the number of draws
"""

import argparse

import cli
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops
from matplotlib import ticker

from keras_bdl import plots
from keras_bdl.ops import estimators

NAMES = ("score function", "best constant", "leave-one-out", "reparameterisation")


def exact_variance(name, mu, draws):
    """By moments of a Gaussian; leave-one-out is a sample covariance."""
    if name == "reparameterisation":
        return 4.0 / draws
    if name == "score function":
        return (mu**4 + 14.0 * mu**2 + 15.0) / draws
    if name == "best constant":
        return (8.0 * mu**2 + 6.0) / draws
    fourth = 12.0 * mu**2 + 10.0  # E (f - E f)^2 noise^2
    covariance, variance = 2.0 * mu, 4.0 * mu**2 + 2.0
    return (fourth - ((draws - 2) * covariance**2 - variance) / (draws - 1)) / draws


class Objective(keras.layers.Layer):
    """E z^2 with a mean of its own for each column of the noise, `(draws, columns)`."""

    def __init__(self, estimator, mu):
        super().__init__()
        self.estimator = estimator
        self.initial_mu = mu

    def build(self, input_shape):
        start = keras.initializers.Constant(self.initial_mu)
        self.mu = self.add_weight(shape=(input_shape[-1],), initializer=start)

    def call(self, noise):
        z = self.mu + noise
        if self.estimator == "reparameterisation":
            loss = ops.mean(ops.square(z), axis=0)
        else:
            z = ops.stop_gradient(z)
            log_q = -0.5 * ops.square(z - self.mu)
            baseline = {
                "score function": 0.0,
                "best constant": self.initial_mu**2 + 3.0,  # E f (d log q / d mu)^2
                "leave-one-out": "leave_one_out",
            }[self.estimator]
            loss = estimators.score_function(ops.square(z), log_q, baseline)
        self.add_loss(ops.sum(loss))
        return loss


def estimates(name, mu, noise):
    """One estimate of the gradient per column: the step of gradient descent."""
    objective = Objective(name, mu)
    model = keras.Sequential([keras.Input(batch_shape=noise.shape), objective])
    model.compile(keras.optimizers.SGD(1.0))
    model.fit(noise, batch_size=len(noise), verbose=0)
    return mu - ops.convert_to_numpy(objective.mu)


def measured_variance(name, mu, draws, count, rng):
    noise = rng.normal(size=(draws, count)).astype("float32")
    return float(estimates(name, mu, noise).astype("float64").var())


def draw(count, rng):
    """Prints and draws measured (points) and exact (lines) variances."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = (
        (left, "mu, with 2 draws", [(mu, 2) for mu in (0.0, 0.5, 1.0, 1.5, 2.0)], 0),
        (right, "number of draws, at mu = 1", [(1.0, k) for k in (2, 3, 4, 8, 16)], 1),
    )
    for ax, label, settings, which in panels:
        print(f"\n{'variance of the estimate':<26}{'mu':>6}{'draws':>7}"
              f"{'measured':>11}{'exact':>9}")  # fmt: skip
        for name, color in zip(NAMES, plots.COLORS):
            measured = [measured_variance(name, *s, count, rng) for s in settings]
            exact = [exact_variance(name, *s) for s in settings]
            for (mu, draws), got, true in zip(settings, measured, exact):
                print(f"{name:<26}{mu:>6.1f}{draws:>7}{got:>11.3f}{true:>9.3f}")
            x = [setting[which] for setting in settings]
            ax.plot(x, exact, color=color, label=name)
            ax.plot(x, measured, "o", color=color, markersize=4)
        ax.set(xlabel=label, yscale="log")
        ax.spines[["top", "right"]].set_visible(False)
        ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
    right.set_xscale("log", base=2)
    right.set_xticks([2, 4, 8, 16], [2, 4, 8, 16])
    for ax in (left, right):
        ax.minorticks_off()
    left.set_ylabel("variance of one estimate")
    left.legend(frameon=False, title="lines exact, points measured")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_common(parser)
    args = parser.parse_args()
    count = 2_000 if args.smoke else 100_000
    figure = draw(count, np.random.default_rng(args.seed))
    cli.save_figures({"gradient_variance": figure}, args.output)


if __name__ == "__main__":
    main()
