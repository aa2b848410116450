"""Pictures of predictive uncertainty. Each function draws and returns its axes.

The functions need matplotlib and import it when they are called. `ax=None` draws on a
new figure. Nothing is shown or saved. The colours are those of Okabe and Ito, which
colour-blind readers can distinguish.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from keras import ops

from keras_bdl.core.typing import ArrayLike
from keras_bdl.ops import uncertainty

__all__ = [
    "curve_with_band",
    "depth_sheet",
    "image_sheet",
    "latent_map",
    "predictive_band",
    "reliability_diagram",
    "score_histograms",
    "sparsity_by_layer",
    "uncertainty_histograms",
]

# Types of matplotlib, which this module does not import.
_Axes: TypeAlias = Any
_Figure: TypeAlias = Any

BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
COLORS = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", "#56B4E9")


def _new_axes():
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _plain(ax):
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _stairs(ax, share, edges, color, label):
    ax.stairs(share, edges, color=color, fill=True, alpha=0.2)
    ax.stairs(share, edges, color=color, linewidth=1.5, label=label)


def reliability_diagram(
    labels: ArrayLike,
    probabilities: ArrayLike,
    num_bins: int = 15,
    ax: _Axes | None = None,
    label: str | None = None,
) -> _Axes:
    """Draws accuracy in each bin of confidence, with its gap to the mean confidence.

    The gaps, weighted by the counts above the bars, sum to the expected calibration
    error (ECE) in the title. Bars below the diagonal are over-confident.

    Args:
        labels: class indices `(n,)`.
        probabilities: `(n, classes)`.
        num_bins: number of equal-width bins on [0, 1].
        ax: matplotlib axes, or None for a new figure.
        label: name of the model, for the title.

    Returns:
        The axes. `ax.containers[0]` holds the accuracy bars of the bins that are not
        empty.

    Reference: Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural
    networks", 2017, figure 1.
    """
    ax = _new_axes() if ax is None else ax
    bins = uncertainty.calibration_bins(labels, probabilities, num_bins)
    error = float(uncertainty.calibration_error(bins))
    bins = ops.convert_to_numpy(bins)
    full = bins[0] > 0
    counts, correct, confidence = bins[:, full]
    accuracy, confidence = correct / counts, confidence / counts
    centres = (np.flatnonzero(full) + 0.5) / num_bins
    width = 0.92 / num_bins

    ax.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, zorder=3)
    ax.bar(centres, accuracy, width, color=BLUE, label="accuracy")
    ax.bar(
        centres,
        confidence - accuracy,
        width,
        bottom=accuracy,
        color="none",
        edgecolor=VERMILLION,
        hatch="/////",
        linewidth=1,
        label="gap to mean confidence",
    )
    for centre, top, count in zip(centres, np.maximum(accuracy, confidence), counts):
        ax.annotate(
            f"{count:.0f}",
            (centre, top),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize="x-small",
        )
    title = f"ECE {error:.3f}, {num_bins} bins"
    ax.set_title(title if label is None else f"{label}\n{title}")
    ax.set(xlim=(0, 1), ylim=(0, 1.08), xlabel="confidence", ylabel="accuracy")
    ax.set_aspect("equal")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    _plain(ax)
    return ax


def image_sheet(
    images: ArrayLike,
    titles: Sequence[str] | None = None,
    columns: int = 10,
    figure: _Figure | None = None,
) -> np.ndarray:
    """Draws small grey pictures in rows, each below its title.

    Args:
        images: `(n, height, width)` or `(n, height, width, 1)`, in [0, 1].
        titles: n strings, or None.
        columns: number of pictures in a row.
        figure: matplotlib figure or subfigure, or None for a new one.

    Returns:
        Array of axes `(rows, columns)`; axes without a picture are empty.
    """
    import matplotlib.pyplot as plt

    images = np.asarray(images)
    images = images.reshape(images.shape[:3])
    rows = -(-len(images) // columns)
    if figure is None:
        height = 1.4 if titles is not None else 1.05
        figure = plt.figure(figsize=(columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for index, (ax, image) in enumerate(zip(axes.flat, images)):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        if titles is not None:
            ax.set_title(titles[index], fontsize="small")
    return axes


def depth_sheet(
    images: ArrayLike,
    depths: ArrayLike,
    count: int = 20,
    columns: int = 10,
    figure: _Figure | None = None,
) -> np.ndarray:
    """Draws the images that stop first, and below them those that stop last.

    Args:
        images: `(n, height, width)` or `(n, height, width, 1)`, in [0, 1].
        depths: number of units run, `(n,)`, such as `keras_bdl.depth` of one block.
        count: number of pictures of each kind; fewer if there are fewer images.
        columns: number of pictures in a row.
        figure: as in `image_sheet`.

    Returns:
        Array of axes `(rows, columns)`.
    """
    depths = np.asarray(depths)
    order = np.argsort(depths, kind="stable")
    count = min(count, len(order))
    chosen = np.concatenate([order[:count], order[::-1][:count]])
    titles = [f"{depth} unit{'s' if depth > 1 else ''}" for depth in depths[chosen]]
    return image_sheet(np.asarray(images)[chosen], titles, columns, figure)


def sparsity_by_layer(
    history: Mapping[str, Sequence[float]], ax: _Axes | None = None
) -> _Axes:
    """Draws the share of pruned weights of each layer by epoch.

    Args:
        history: dict of name to values by epoch, such as `fit(...).history` with
            `callbacks.SparsityLogger`. The values of `sparsity_<layer>` are drawn.
        ax: matplotlib axes, or None for a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: if the history has no sparsity.
    """
    curves = {k: v for k, v in history.items() if k.startswith("sparsity_")}
    if not curves:
        raise ValueError(
            "Expected a history of training with `callbacks.SparsityLogger`. "
            f"Received: history with {sorted(history)}"
        )
    ax = _new_axes() if ax is None else ax
    for index, (name, values) in enumerate(curves.items()):
        ax.plot(
            np.arange(1, len(values) + 1),
            100.0 * np.asarray(values),
            color=COLORS[index % len(COLORS)],
            label=name.removeprefix("sparsity_"),
        )
    ax.set(xlabel="epoch", ylabel="pruned weights (%)", ylim=(0, 101))
    ax.legend(frameon=False, title="layer")
    _plain(ax)
    return ax


def curve_with_band(
    x: ArrayLike,
    mean: ArrayLike,
    error: ArrayLike,
    ax: _Axes | None = None,
    label: str | None = None,
) -> _Axes:
    """Draws a curve with a band from `mean - error` to `mean + error`.

    Args:
        x, mean, error: `(n,)`; `error` is in the units of `mean`, such as its
            standard error.
        ax: matplotlib axes, or None for a new figure.
        label: name of the curve, for a legend.

    Returns:
        The axes. The caller sets the axis labels.
    """
    ax = _new_axes() if ax is None else ax
    x, mean, error = (np.asarray(v) for v in (x, mean, error))
    color = COLORS[len(ax.lines) % len(COLORS)]
    ax.plot(x, mean, color=color, marker="o", markersize=3.5, label=label)
    ax.fill_between(x, mean - error, mean + error, color=color, alpha=0.25, linewidth=0)
    _plain(ax)
    return ax


def predictive_band(
    x: ArrayLike,
    mean: ArrayLike,
    stddev: ArrayLike,
    ax: _Axes | None = None,
    label: str | None = None,
) -> _Axes:
    """Draws a predictive mean with bands of one and two standard deviations.

    Args:
        x, mean, stddev: `(n,)`; x is in rising order.
        ax: matplotlib axes, or None for a new figure.
        label: name of the mean, for a legend.

    Returns:
        The axes. The caller sets the axis labels.
    """
    ax = _new_axes() if ax is None else ax
    x, mean, stddev = (np.asarray(v) for v in (x, mean, stddev))
    color = COLORS[len(ax.lines) % len(COLORS)]
    for width in (2, 1):
        low, high = mean - width * stddev, mean + width * stddev
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    ax.plot(x, mean, color=color, label=label)
    _plain(ax)
    return ax


def uncertainty_histograms(
    in_domain: ArrayLike,
    out_of_domain: Mapping[str, ArrayLike],
    ax: _Axes | None = None,
    label: str = "uncertainty (nats)",
    floor: float = 1e-3,
) -> _Axes:
    """Draws histograms of an uncertainty in common bins, as shares of each data set.

    The axis is logarithmic, with ten bins per factor of ten, because the uncertainty of
    clear inputs spans many orders of magnitude. Values below `floor` count in the first
    bin.

    Args:
        in_domain: uncertainty of inputs like the training data, `(n,)`, in nats.
        out_of_domain: dict of name to the uncertainty of other inputs, `(m,)`, in nats.
        ax: matplotlib axes, or None for a new figure.
        label: label of the x axis, with the unit.
        floor: left end of the axis, in nats.

    Returns:
        The axes.
    """
    ax = _new_axes() if ax is None else ax
    given = {"in domain": in_domain, **out_of_domain}
    groups = {name: np.maximum(values, floor) for name, values in given.items()}
    top = max(float(values.max()) for values in groups.values())
    num_bins = max(1, int(np.ceil(10 * np.log10(top / floor))))
    edges = floor * 10 ** (np.arange(num_bins + 1) / 10)
    for color, (name, values) in zip(COLORS, groups.items()):
        index = np.floor(10 * np.log10(values / floor)).astype(int)
        counts = np.bincount(np.minimum(index, num_bins - 1), minlength=num_bins)
        share = counts / len(values)
        _stairs(ax, share, edges, color, name)
    ax.set_xscale("log")
    ax.set(xlim=(floor, edges[-1]), ylabel="share of inputs")
    ax.set_xlabel(f"{label}\nfirst bar: {edges[1]:.2g} and below")
    ax.legend(frameon=False)
    _plain(ax)
    return ax


def score_histograms(
    in_domain: ArrayLike,
    out_of_domain: Mapping[str, ArrayLike],
    ax: _Axes | None = None,
    label: str = "score",
    num_bins: int = 40,
) -> _Axes:
    """Draws histograms of a score in common bins, as shares of each data set.

    The bins have equal widths and hold 98 % of each data set. Values beyond them count
    in the outer bins.

    Args:
        in_domain: score of inputs like the training data, `(n,)`.
        out_of_domain: dict of name to the score of other inputs, `(m,)`.
        ax: matplotlib axes, or None for a new figure.
        label: label of the x axis, with the unit.
        num_bins: number of bins.

    Returns:
        The axes.
    """
    ax = _new_axes() if ax is None else ax
    given = {"in domain": in_domain, **out_of_domain}
    groups = {name: np.asarray(values) for name, values in given.items()}
    ends = [np.quantile(values, [0.01, 0.99]) for values in groups.values()]
    low, high = np.min(ends), np.max(ends)
    edges = np.linspace(low, high if high > low else low + 1.0, num_bins + 1)
    for color, (name, values) in zip(COLORS, groups.items()):
        values = np.clip(values, edges[0], edges[-1])
        share = np.histogram(values, edges)[0] / len(values)
        _stairs(ax, share, edges, color, name)
    ax.set(xlim=(edges[0], edges[-1]), xlabel=label, ylabel="share of inputs")
    ax.legend(frameon=False)
    _plain(ax)
    return ax


def latent_map(codes: ArrayLike, labels: ArrayLike, ax: _Axes | None = None) -> _Axes:
    """Draws codes of two numbers as points, coloured by class.

    Args:
        codes: `(n, 2)`.
        labels: class indices `(n,)`, at most 20 classes.
        ax: matplotlib axes, or None for a new figure.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    ax = _new_axes() if ax is None else ax
    codes, labels = np.asarray(codes), np.asarray(labels)
    # Both are a `ListedColormap`, which the type of `get_cmap` does not say.
    color_map: Any = plt.get_cmap("tab20" if labels.max() > 9 else "tab10")
    colors = color_map.colors
    for label in np.unique(labels):
        points = codes[labels == label]
        ax.scatter(*points.T, s=6, color=colors[label], linewidths=0, label=str(label))
    ax.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    ax.legend(
        frameon=False,
        markerscale=2.5,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        title="class",
    )
    _plain(ax)
    return ax
