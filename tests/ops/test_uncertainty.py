"""Uncertainty measures against SciPy, NumPy and a calibration error in a loop."""

import math

import keras
import numpy as np
import pytest
from backend_tools import compiled
from contract import BACKEND, to_numpy
from keras import ops
from scipy import stats

from keras_bdl.ops import uncertainty


def probabilities(rng, *shape, classes=4, concentration=0.5):
    return rng.dirichlet(np.full(classes, concentration), size=shape).astype("float32")


# Entropies


def test_entropy_is_that_of_scipy(rng):
    p = probabilities(rng, 5, 3)
    np.testing.assert_allclose(
        to_numpy(uncertainty.entropy(p)), stats.entropy(p, axis=-1), atol=1e-6
    )


def test_entropy_goes_from_0_to_log_classes():
    p = np.array([[0, 1, 0, 0], [0.5, 0, 0.5, 0], [0.25] * 4], "float32")
    entropy = to_numpy(uncertainty.entropy(p))
    np.testing.assert_allclose(entropy, [0.0, math.log(2), math.log(4)], atol=1e-6)


def test_entropies_of_samples_are_those_of_scipy(rng):
    samples = probabilities(rng, 7, 5, 3)
    total = uncertainty.predictive_entropy(samples)
    aleatoric = uncertainty.expected_entropy(samples)
    np.testing.assert_allclose(
        to_numpy(total), stats.entropy(samples.mean(axis=0), axis=-1), atol=1e-6
    )
    np.testing.assert_allclose(
        to_numpy(aleatoric), stats.entropy(samples, axis=-1).mean(axis=0), atol=1e-6
    )


@pytest.mark.parametrize("concentration", [0.05, 1.0, 1e4])
def test_mutual_information_is_the_mean_kl_to_the_mean(rng, concentration):
    samples = probabilities(rng, 6, 200, concentration=concentration)
    mean = np.broadcast_to(samples.mean(axis=0), samples.shape)
    expected = stats.entropy(samples, mean, axis=-1).mean(axis=0)
    information = to_numpy(uncertainty.mutual_information(samples))
    assert (information >= 0.0).all()
    np.testing.assert_allclose(information, expected, atol=2e-6)


def test_mutual_information_is_0_when_samples_agree_and_log_classes_when_certain(rng):
    agreeing = np.repeat(probabilities(rng, 1, 200), 9, axis=0)
    information = to_numpy(uncertainty.mutual_information(agreeing))
    assert (information >= 0.0).all() and information.max() < 1e-6
    disagreeing = np.eye(4, dtype="float32")[:, None]
    information = to_numpy(uncertainty.mutual_information(disagreeing))
    np.testing.assert_allclose(information, [math.log(4)], rtol=1e-6)


@pytest.mark.parametrize(
    "measure",
    [
        uncertainty.entropy,
        uncertainty.expected_entropy,
        lambda p: uncertainty.brier_score(np.zeros(p.shape[:-1], "int32"), p),
        lambda p: uncertainty.negative_log_likelihood(
            np.zeros(p.shape[:-1], "int32"), p
        ),
    ],
    ids=["entropy", "expected entropy", "brier", "nll"],
)
def test_half_precision_is_widened(rng, measure):
    half = probabilities(rng, 300, 2, concentration=5.0).astype("float16")
    value = measure(half)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    np.testing.assert_array_equal(
        to_numpy(value), to_numpy(measure(half.astype("float32")))
    )


# Labels


@pytest.mark.parametrize("shape", [(6,), (3, 4, 5)], ids=["rows", "segmentation"])
@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32"])
@pytest.mark.parametrize("classes", [2, 5])
def test_labels_come_in_three_forms(rng, shape, dtype, classes):
    indices = rng.integers(0, classes, size=shape)
    one_hot = np.eye(classes)[indices]
    for labels in (indices, indices[..., None], one_hot):
        found = uncertainty.class_indices(labels.astype(dtype), (*shape, classes))
        assert keras.backend.standardize_dtype(found.dtype) == "int32"
        np.testing.assert_array_equal(to_numpy(found), indices)


def test_one_row_and_as_many_rows_as_classes_are_no_special_cases():
    found = uncertainty.class_indices(np.array([[2]]), (1, 3))
    np.testing.assert_array_equal(to_numpy(found), [2])
    found = uncertainty.class_indices(np.array([2, 0, 1]), (3, 3))
    np.testing.assert_array_equal(to_numpy(found), [2, 0, 1])
    found = uncertainty.class_indices(np.eye(3)[[2, 0, 1]], (3, 3))
    np.testing.assert_array_equal(to_numpy(found), [2, 0, 1])


@pytest.mark.parametrize(
    "labels",
    [[0, -1], [0, 3], [0.5, 1.0], [[1, 0, 1], [1, 0, 0]], [[0.6, 0.4, 0.0], [1, 0, 0]]],
    ids=["below", "above", "fractional", "multi-hot", "soft"],
)
def test_what_has_no_index_is_refused_or_negative(labels):
    labels = np.array(labels)
    with pytest.raises(ValueError, match="Expected labels.*Received:"):
        uncertainty.class_indices(labels, (2, 3))
    if BACKEND != "torch":  # which traces nothing
        found = compiled(lambda y: uncertainty.class_indices(y, (2, 3)))(
            ops.convert_to_tensor(labels)
        )
        assert -1 in to_numpy(found).tolist()


def test_binary_probabilities_are_those_of_two_classes(rng):
    p, labels = rng.random((20, 1)).astype("float32"), rng.integers(0, 2, size=20)
    both = np.concatenate([1 - p, p], axis=-1)
    for score in (
        lambda y, p: uncertainty.entropy(p),
        lambda y, p: uncertainty.mutual_information(np.stack([p, p[::-1]])),
        uncertainty.negative_log_likelihood,
        uncertainty.brier_score,
        uncertainty.calibration_bins,
    ):
        expected = to_numpy(score(labels, both))
        np.testing.assert_allclose(to_numpy(score(labels, p)), expected, atol=1e-5)
    for score in (uncertainty.negative_log_likelihood, uncertainty.brier_score):
        expected = to_numpy(score(labels, both))
        np.testing.assert_allclose(
            to_numpy(score(labels, p[:, 0])), expected, atol=1e-5
        )


def test_rows_that_are_no_distribution_are_refused():
    for wrong in ([0.9, 0.2, 0.7], [[0.4, 0.4], [0.5, 0.5]], [[3.0, -2.0]]):
        with pytest.raises(ValueError, match="sum 1.*Received: probabilities"):
            uncertainty.entropy(np.array(wrong, "float32"))


# Scores


@pytest.mark.parametrize("shape", [(20,), (5, 3, 2)])
def test_scores_are_those_of_numpy(rng, shape):
    p = probabilities(rng, *shape, concentration=2.0)
    labels = rng.integers(0, 4, size=shape)
    flat, flat_labels = p.reshape(-1, 4), labels.ravel()
    brier, nll = np.zeros(len(flat)), np.zeros(len(flat))
    for row, (q, label) in enumerate(zip(flat, flat_labels)):
        truth = [1.0 if k == label else 0.0 for k in range(4)]
        brier[row] = sum((q[k] - truth[k]) ** 2 for k in range(4))
        nll[row] = -math.log(q[label])
    np.testing.assert_allclose(
        to_numpy(uncertainty.brier_score(labels, p)), brier.reshape(shape), atol=1e-6
    )
    np.testing.assert_allclose(
        to_numpy(uncertainty.negative_log_likelihood(labels, p)),
        nll.reshape(shape),
        atol=1e-5,
    )


def test_scores_of_certain_predictions():
    p = np.array([[1.0, 0.0, 0.0]] * 2, "float32")
    labels = np.array([0, 2])
    brier = to_numpy(uncertainty.brier_score(labels, p))
    np.testing.assert_allclose(brier, [0.0, 2.0])
    nll = to_numpy(uncertainty.negative_log_likelihood(labels, p))
    assert nll[0] == 0.0 and 60.0 < nll[1] < 100.0


# Calibration


def bins_in_a_loop(labels, p, num_bins, weights):
    """Weight, correct weight and confidence per bin, closed on the right."""
    edges = [np.float32(b) / np.float32(num_bins) for b in range(num_bins + 1)]
    bins = np.zeros((3, num_bins))
    for label, row, weight in zip(labels, p, weights):
        confidence = max(row)
        correct = list(row).index(confidence) == label
        for b in range(num_bins):
            if edges[b] < confidence <= edges[b + 1]:
                bins[:, b] += weight, weight * correct, weight * confidence
    return bins


def error_in_a_loop(labels, p, num_bins, weights):
    count, correct, confidence = bins_in_a_loop(labels, p, num_bins, weights)
    error = 0.0
    for b in range(num_bins):
        if count[b] > 0.0:
            gap = abs(correct[b] / count[b] - confidence[b] / count[b])
            error += count[b] / count.sum() * gap
    return error


def rows_of_confidence(confidences, classes=40):
    confidences = np.asarray(confidences, "float32")
    p = np.repeat((1.0 - confidences)[:, None] / (classes - 1), classes, axis=1)
    p[:, 3] = confidences
    return p.astype("float32")


def assert_calibration(labels, p, num_bins, weights=None):
    loop_weights = np.ones(len(p)) if weights is None else weights
    bins = uncertainty.calibration_bins(labels, p, num_bins, weights)
    expected = bins_in_a_loop(labels, p, num_bins, loop_weights)
    np.testing.assert_allclose(to_numpy(bins), expected, rtol=1e-5, atol=1e-5)
    error = float(to_numpy(uncertainty.calibration_error(bins)))
    assert error == pytest.approx(
        error_in_a_loop(labels, p, num_bins, loop_weights), abs=1e-6
    )
    return error


@pytest.mark.parametrize("num_bins", [1, 5, 10, 15])
@pytest.mark.parametrize("weighting", ["none", "uniform", "some zero"])
def test_calibration_error_is_that_of_a_loop(rng, num_bins, weighting):
    p = probabilities(rng, 400)
    labels = np.where(rng.random(400) < 0.6, p.argmax(axis=-1), rng.integers(0, 4, 400))
    weights = {
        "none": None,
        "uniform": rng.random(400).astype("float32"),
        "some zero": rng.integers(0, 3, 400).astype("float32"),
    }[weighting]
    assert assert_calibration(labels, p, num_bins, weights) > 0.0


@pytest.mark.parametrize("step", [-1, 0, 1], ids=["below", "on", "above"])
def test_confidences_at_the_edges_of_15_bins(rng, step):
    edges = np.arange(1, 16, dtype="float32") / np.float32(15)
    if step:
        edges = np.nextafter(edges, np.float32(step * np.inf))
    edges = edges[edges <= 1.0]
    p = rows_of_confidence(edges)
    np.testing.assert_array_equal(p.max(axis=-1), edges)
    assert_calibration(rng.integers(2, 5, size=len(p)), p, 15)
    count = to_numpy(uncertainty.calibration_bins(np.zeros(len(p)), p, 15))[0]
    np.testing.assert_array_equal(count, ([0.0] if step > 0 else []) + [1.0] * len(p))


def test_default_is_15_bins(rng):
    p, labels = probabilities(rng, 50), rng.integers(0, 4, size=50)
    bins = to_numpy(uncertainty.calibration_bins(labels, p))
    np.testing.assert_allclose(
        bins, bins_in_a_loop(labels, p, 15, np.ones(50)), rtol=1e-5
    )


def test_calibration_counts_every_position(rng):
    p, labels = probabilities(rng, 6, 3, 2), rng.integers(0, 4, size=(6, 3, 2))
    weights = rng.random((6, 3, 2)).astype("float32")
    bins = uncertainty.calibration_bins(labels, p, 15, weights)
    expected = bins_in_a_loop(labels.ravel(), p.reshape(-1, 4), 15, weights.ravel())
    np.testing.assert_allclose(to_numpy(bins), expected, rtol=1e-5, atol=1e-6)


def test_calibrated_predictions_have_no_error_and_wrong_ones_their_confidence():
    p = np.array([[0.75, 0.25]] * 4, "float32")
    bins = uncertainty.calibration_bins(np.array([0, 0, 1, 0]), p)
    assert float(uncertainty.calibration_error(bins)) == pytest.approx(0.0, abs=1e-7)
    bins = uncertainty.calibration_bins(np.ones(4, "int32"), p)
    assert float(uncertainty.calibration_error(bins)) == pytest.approx(0.75)


def test_calibration_error_without_data_is_0():
    assert float(uncertainty.calibration_error(np.zeros((3, 15), "float32"))) == 0.0
    p = np.array([[0.75, 0.25]], "float32")
    bins = uncertainty.calibration_bins(np.array([1]), p, 15, np.zeros(1))
    assert float(uncertainty.calibration_error(bins)) == 0.0


def test_auroc_is_that_of_scikit_learn(rng):
    from sklearn.metrics import roc_auc_score

    inside = np.round(rng.normal(size=50), 1)
    outside = np.round(rng.normal(0.5, size=70), 1)  # with ties
    labels = np.concatenate([np.zeros(50), np.ones(70)])
    expected = roc_auc_score(labels, np.concatenate([inside, outside]))
    assert uncertainty.auroc(inside, outside) == pytest.approx(expected)
    assert uncertainty.auroc(inside, inside) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="Received"):
        uncertainty.auroc([], outside)
    with pytest.raises(ValueError, match="Received: NaN for 0 of 50.* 2 of 4"):
        uncertainty.auroc(inside, [1.0, np.nan, 0.0, np.nan])
    assert uncertainty.auroc([0.0, 1.0], [np.inf, -np.inf]) == 0.5


def test_bins_of_soft_labels_and_of_rows_without_weight(rng):
    p = probabilities(rng, 30)
    soft = rng.dirichlet(np.ones(4), size=30)
    bins = to_numpy(uncertainty.calibration_bins(soft, p))
    hits = np.take_along_axis(soft, p.argmax(-1)[:, None], -1)[:, 0]
    index = np.ceil(p.max(-1) * 15).astype(int) - 1
    np.testing.assert_allclose(bins[1], np.bincount(index, hits, 15), rtol=1e-5)
    labels, weights = rng.integers(0, 4, size=30), np.ones(30)
    expected = to_numpy(uncertainty.calibration_bins(labels[3:], p[3:]))
    labels[:3], weights[:3], p[:3] = -1, 0, np.nan
    bins = to_numpy(uncertainty.calibration_bins(labels, p, weights=weights))
    np.testing.assert_allclose(bins, expected, rtol=1e-6)


def test_wrong_bins_and_weights_are_refused():
    p, labels = np.array([[0.75, 0.25]] * 3, "float32"), np.zeros(3, "int32")
    with pytest.raises(ValueError, match="Received: num_bins=0"):
        uncertainty.calibration_bins(labels, p, 0)
    with pytest.raises(ValueError, match="one weight per row.*Received: weights"):
        uncertainty.calibration_bins(labels, p, weights=np.ones(2))
    with pytest.raises(ValueError, match="Received: bins.shape"):
        uncertainty.calibration_error(np.zeros((15, 3)))
