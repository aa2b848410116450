"""Each picture shows the numbers that it was given."""

import runpy
import sys

import numpy as np
import pytest

from keras_bdl import plots

matplotlib = pytest.importorskip("matplotlib", reason="plots need matplotlib")


@pytest.fixture(autouse=True)
def no_windows():
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    yield
    plt.close("all")


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().subplots()


# Two bins: confidences .6 .7 .9 in the upper half, one row of each bin wrong.
PROBABILITIES = np.array(
    [
        [0.4, 0.35, 0.25],
        [0.3, 0.45, 0.25],
        [0.6, 0.2, 0.2],
        [0.1, 0.7, 0.2],
        [0, 0.1, 0.9],
    ]
)
LABELS = np.array([0, 2, 0, 0, 2])


def heights(bars):
    return [bar.get_height() for bar in bars]


def test_module_is_imported_without_matplotlib(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    assert "reliability_diagram" in runpy.run_path(plots.__file__)


def test_reliability_bars_are_the_accuracy_of_each_bin(ax):
    plots.reliability_diagram(LABELS, PROBABILITIES, num_bins=2, ax=ax)
    accuracy, gap = ax.containers
    assert heights(accuracy) == pytest.approx([1 / 2, 2 / 3])
    centres = [bar.get_x() + bar.get_width() / 2 for bar in accuracy]
    assert centres == pytest.approx([0.25, 0.75])
    confidence = np.array([(0.4 + 0.45) / 2, (0.6 + 0.7 + 0.9) / 3])
    assert heights(gap) == pytest.approx(confidence - [1 / 2, 2 / 3], abs=1e-6)


def test_reliability_title_has_the_calibration_error_and_counts_are_shown(ax):
    plots.reliability_diagram(LABELS, PROBABILITIES, num_bins=2, ax=ax, label="net")
    # 2/5 |.425 - .5| + 3/5 |.7333 - .6667| = .07
    assert ax.get_title() == "net\nECE 0.070, 2 bins"
    assert [text.get_text() for text in ax.texts] == ["2", "3"]


def test_reliability_leaves_out_empty_bins(ax):
    plots.reliability_diagram([0, 1], [[0.99, 0.01], [0.98, 0.02]], ax=ax)
    assert heights(ax.containers[0]) == pytest.approx([0.5])
    assert [text.get_text() for text in ax.texts] == ["2"]


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 3, 1)])
def test_image_sheet_shows_images_in_order(rng, shape):
    images = rng.uniform(size=shape)
    titles = list("abcde")
    axes = plots.image_sheet(images, titles, columns=3)
    assert axes.shape == (2, 3)
    for ax, image, title in zip(axes.flat, images, titles):
        np.testing.assert_allclose(ax.images[0].get_array(), image.reshape(4, 3))
        assert ax.images[0].get_clim() == (0, 1)
        assert ax.get_title() == title
    assert not axes[1, 2].images


def test_image_sheet_draws_on_the_figure_it_is_given(rng):
    from matplotlib.figure import Figure

    figure = Figure()
    axes = plots.image_sheet(rng.uniform(size=(2, 4, 4)), columns=2, figure=figure)
    assert list(axes.flat) == figure.axes


def test_depth_sheet_has_the_first_and_the_last(rng):
    images, depths = rng.uniform(size=(5, 4, 4, 1)), np.array([3, 1, 4, 2, 1])
    axes = plots.depth_sheet(images, depths, count=2, columns=2)
    shown = [np.asarray(ax.images[0].get_array()) for ax in axes.flat]
    for picture, index in zip(shown, (1, 4, 2, 0), strict=True):
        np.testing.assert_array_equal(picture, images[index, ..., 0])
    titles = [ax.get_title() for ax in axes.flat]
    assert titles == ["1 unit", "1 unit", "4 units", "3 units"]


def test_sparsity_by_layer_is_the_history_in_percent(ax):
    history = {"loss": [1.0, 0.5], "sparsity_a": [0.1, 0.9], "sparsity_b": [0.0, 0.5]}
    plots.sparsity_by_layer(history, ax)
    first, second = ax.get_lines()
    np.testing.assert_allclose(first.get_xydata(), [[1, 10], [2, 90]])
    np.testing.assert_allclose(second.get_ydata(), [0, 50])
    assert [first.get_label(), second.get_label()] == ["a", "b"]
    with pytest.raises(ValueError, match=r"Received: history with \['loss'\]"):
        plots.sparsity_by_layer({"loss": [1.0]})


def test_curve_and_band_follow_the_numbers(ax):
    x, mean, error = np.arange(3), np.array([1.0, 3.0, 2.0]), np.array([0.1, 0.2, 0.3])
    assert plots.curve_with_band(x, mean, error, ax, label="entropy") is ax
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xydata(), np.stack([x, mean], axis=1))
    assert line.get_label() == "entropy"
    corners = {tuple(np.round(v, 6)) for v in ax.collections[0].get_paths()[0].vertices}
    expected = [*zip(x, mean - error), *zip(x, mean + error)]
    assert {tuple(np.round(v, 6)) for v in expected} <= corners


def test_curves_of_one_picture_differ_in_color(ax):
    for _ in range(3):
        plots.curve_with_band([0, 1], [0, 1], [0.1, 0.1], ax)
    assert len({line.get_color() for line in ax.lines}) == 3


def test_predictive_bands_are_of_one_and_two_standard_deviations(ax):
    x, mean, stddev = np.arange(3), np.array([1.0, 3.0, 2.0]), np.array([0.1, 0.2, 0.3])
    assert plots.predictive_band(x, mean, stddev, ax, label="exact") is ax
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xydata(), np.stack([x, mean], axis=1))
    assert line.get_label() == "exact"
    for band, width in zip(ax.collections, (2, 1)):
        corners = {tuple(np.round(v, 6)) for v in band.get_paths()[0].vertices}
        expected = [*zip(x, mean - width * stddev), *zip(x, mean + width * stddev)]
        assert {tuple(np.round(v, 6)) for v in expected} <= corners
    assert plots.predictive_band(x, mean, stddev).lines  # on a new figure


def test_histograms_share_bins_and_count_every_value(ax):
    inside, outside = [0.0, 0.001, 0.0015, 0.09], {"letters": [0.5, 0.9]}
    plots.uncertainty_histograms(inside, outside, ax, label="entropy (nats)")
    outlines = [patch for patch in ax.patches if not patch.get_fill()]
    first, second = (patch.get_data() for patch in outlines)
    np.testing.assert_array_equal(first.edges, second.edges)
    assert first.edges[0] == pytest.approx(1e-3)
    assert first.edges[-1] >= 0.9
    # 0 counts in the first bin; bins are a tenth of a factor of ten.
    expected = np.zeros(len(first.values))
    expected[[0, 1, 19]] = 0.5, 0.25, 0.25
    np.testing.assert_allclose(first.values, expected)
    expected = np.zeros(len(first.values))
    expected[[26, 29]] = 0.5
    np.testing.assert_allclose(second.values, expected)
    assert ax.get_xlabel() == "entropy (nats)\nfirst bar: 0.0013 and below"
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["in domain", "letters"]


def test_histograms_of_values_below_the_floor(ax):
    plots.uncertainty_histograms(np.zeros(3), {"other": np.zeros(2)}, ax)
    for patch in ax.patches:
        np.testing.assert_allclose(patch.get_data().values, [1.0])


def test_new_figure_without_axes():
    x = np.arange(2)
    assert plots.reliability_diagram(LABELS, PROBABILITIES).containers
    assert plots.curve_with_band(x, x, x).lines
    assert plots.uncertainty_histograms(x, {"other": x}).patches


def test_histograms_of_scores_share_bins_and_count_every_value(ax):
    inside = [-1.0] * 50 + [0.1] * 50
    outside = {"letters": [2.0] * 50 + [3.0] * 49 + [1e6]}
    plots.score_histograms(inside, outside, ax, label="nats", num_bins=4)
    first, second = (p.get_data() for p in ax.patches if not p.get_fill())
    np.testing.assert_allclose(first.edges[0], -1.0)
    assert first.edges[-1] >= 3.0
    for data in (first, second):
        assert data.values.sum() == pytest.approx(1.0)
    plots.score_histograms([1.0, 1.0], {"same": [1.0]}, ax)
    assert ax.get_legend().get_texts()[-1].get_text() == "same"


def test_a_map_has_every_code_in_the_colour_of_its_class(ax):
    codes = np.arange(8.0).reshape(4, 2)
    plots.latent_map(codes, [0, 2, 2, 0], ax)
    points = [c.get_offsets().data for c in ax.collections]
    np.testing.assert_array_equal(points[0], codes[[0, 3]])
    np.testing.assert_array_equal(points[1], codes[[1, 2]])
    colors = {tuple(c.get_facecolor()[0]) for c in ax.collections}
    assert len(colors) == 2
