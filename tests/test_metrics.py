"""Streaming metrics against SciPy and NumPy on the whole data set."""

import json

import keras
import numpy as np
import pytest
from backend_tools import compiled
from contract import BACKEND, to_numpy
from keras import ops
from scipy import special, stats

from keras_bdl import metrics

pytestmark = pytest.mark.portable

ROWS, CLASSES = 37, 4
BATCHES = (0, 1, 12, 37)  # bounds of uneven batches
FORMS = {
    "indices": lambda labels: labels,
    "column": lambda labels: labels[..., None],
    "one-hot": lambda labels: np.eye(CLASSES)[labels],
}


def nll(labels, p):
    return -np.log(np.take_along_axis(p, labels[..., None], axis=-1)[..., 0])


def brier(labels, p):
    return np.sum((p - np.eye(p.shape[-1])[labels]) ** 2, axis=-1)


def entropy(labels, p):
    return stats.entropy(p, axis=-1)


def weighted_mean(values):
    def of_rows(labels, p, weights):
        return np.average(values(labels, p), weights=weights)

    return of_rows


def calibration_error(labels, p, weights, num_bins=15):
    confidence, correct = p.max(axis=-1), p.argmax(axis=-1) == labels
    bins = np.digitize(confidence, np.linspace(0.0, 1.0, num_bins + 1), right=True)
    gaps = [
        np.sum((weights * (correct - confidence))[bins == b])
        for b in range(1, num_bins + 1)
    ]
    return np.sum(np.abs(gaps)) / np.sum(weights)


METRICS = {
    metrics.NegativeLogLikelihood: ("nll", weighted_mean(nll)),
    metrics.BrierScore: ("brier_score", weighted_mean(brier)),
    metrics.PredictiveEntropy: ("predictive_entropy", weighted_mean(entropy)),
    metrics.ExpectedCalibrationError: ("ece", calibration_error),
}
every_metric = pytest.mark.parametrize("cls", METRICS)
every_form = pytest.mark.parametrize("form", FORMS)


def batch(rng, *shape):
    """Labels that agree with the predictions more often than not, and logits."""
    logits = 2.0 * rng.normal(size=(*shape, CLASSES)).astype("float32")
    labels = rng.integers(0, CLASSES, size=shape)
    return np.where(rng.random(shape) < 0.5, logits.argmax(axis=-1), labels), logits


def predictions(logits, from_logits):
    return logits if from_logits else special.softmax(logits, axis=-1)


def expected(cls, labels, logits, weights=None):
    weights = np.ones(labels.shape) if weights is None else weights
    p = special.softmax(logits.astype("float64"), axis=-1)
    return METRICS[cls][1](labels, p, weights)


def result_of(metric):
    return float(to_numpy(metric.result()))


@every_metric
@every_form
@pytest.mark.parametrize("from_logits", [False, True], ids=["p", "logits"])
def test_uneven_batches_give_the_value_of_the_whole(cls, form, from_logits, rng):
    labels, logits = batch(rng, ROWS)
    y, y_pred = FORMS[form](labels), predictions(logits, from_logits)
    streamed, whole = cls(from_logits=from_logits), cls(from_logits=from_logits)
    for start, stop in zip(BATCHES, BATCHES[1:]):
        streamed.update_state(y[start:stop], y_pred[start:stop])
    whole.update_state(y, y_pred)
    value = expected(cls, labels, logits)
    assert result_of(whole) == pytest.approx(value, rel=1e-5)
    assert result_of(streamed) == pytest.approx(value, rel=1e-5)


@every_metric
@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)], ids=str)
def test_sample_weights(cls, shape, rng):
    labels, logits = batch(rng, ROWS)
    weights = rng.integers(0, 4, size=ROWS).astype("float32")
    metric = cls(from_logits=True)
    for start, stop in zip(BATCHES, BATCHES[1:]):
        metric.update_state(
            labels[start:stop],
            logits[start:stop],
            sample_weight=weights.reshape(shape)[start:stop],
        )
    value = expected(cls, labels, logits, weights)
    assert value != pytest.approx(expected(cls, labels, logits), rel=1e-3)
    assert result_of(metric) == pytest.approx(value, rel=1e-5)


@every_metric
def test_rows_without_weight_do_not_count(cls, rng):
    labels, logits = batch(rng, ROWS)
    kept = np.arange(ROWS) % 3 == 0
    metric, only_kept = cls(from_logits=True), cls(from_logits=True)
    metric.update_state(labels, logits, sample_weight=kept.astype("float32"))
    only_kept.update_state(labels[kept], logits[kept])
    assert result_of(metric) == pytest.approx(result_of(only_kept), rel=1e-5)
    metric.reset_state()
    assert result_of(metric) == 0.0
    metric.update_state(labels, logits, sample_weight=np.zeros(ROWS))
    assert result_of(metric) == 0.0


@every_metric
@every_form
def test_positions_count_like_rows(cls, form, rng):
    labels, logits = batch(rng, 6, 3, 2)
    metric = cls(from_logits=True)
    metric.update_state(FORMS[form](labels), logits)
    value = expected(cls, labels.ravel(), logits.reshape(-1, CLASSES))
    assert result_of(metric) == pytest.approx(value, rel=1e-5)
    weights = rng.random((6, 3, 2))
    metric = cls(from_logits=True)
    metric.update_state(FORMS[form](labels), logits, sample_weight=weights)
    value = expected(cls, labels.ravel(), logits.reshape(-1, CLASSES), weights.ravel())
    assert result_of(metric) == pytest.approx(value, rel=1e-5)


@every_metric
@pytest.mark.parametrize("positions", [3, 6])
def test_row_weights_hold_for_all_positions_of_the_row(cls, positions, rng):
    labels, logits = batch(rng, 6, positions)
    weights = np.arange(1.0, 7.0)
    metric = cls(from_logits=True)
    metric.update_state(labels, logits, sample_weight=weights)
    value = expected(
        cls, labels.ravel(), logits.reshape(-1, CLASSES), np.repeat(weights, positions)
    )
    assert result_of(metric) == pytest.approx(value, rel=1e-5)


def test_the_example_of_the_docstring():
    metric = metrics.NegativeLogLikelihood()
    metric.update_state([0, 1], [[0.5, 0.5], [0.25, 0.75]])
    assert result_of(metric) == pytest.approx(0.4904, abs=5e-5)


def test_entropy_ignores_labels(rng):
    labels, logits = batch(rng, ROWS)
    metric = metrics.PredictiveEntropy(from_logits=True)
    metric.update_state(None, logits)
    value = expected(metrics.PredictiveEntropy, labels, logits)
    assert result_of(metric) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("num_bins", [1, 4, 15, 100])
def test_number_of_bins(num_bins, rng):
    labels, logits = batch(rng, 200)
    metric = metrics.ExpectedCalibrationError(num_bins, from_logits=True)
    metric.update_state(labels, logits)
    p = special.softmax(logits.astype("float64"), axis=-1)
    value = calibration_error(labels, p, np.ones(200), num_bins)
    assert result_of(metric) == pytest.approx(value, rel=1e-4)


# Numbers


@every_metric
def test_half_precision_predictions(cls, rng):
    labels, logits = batch(rng, ROWS)
    half = logits.astype("float16")
    metric = cls(from_logits=True)
    metric.update_state(labels, half)
    value = expected(cls, labels, half.astype("float32"))
    assert result_of(metric) == pytest.approx(value, rel=1e-5)


def test_extreme_logits():
    labels = np.array([0, 1, 1])
    logits = np.array([[3e4, -3e4, 0, 0], [3e4, -3e4, 0, 0], [0, 3e4, 0, 0]], "float32")
    values = {}
    for cls, (name, _) in METRICS.items():
        metric = cls(from_logits=True)
        metric.update_state(labels, logits)
        values[name] = result_of(metric)
    assert values == {
        "nll": pytest.approx(6e4 / 3),
        "brier_score": pytest.approx(2 / 3),
        "predictive_entropy": pytest.approx(0.0, abs=1e-6),
        "ece": pytest.approx(1 / 3),
    }


@every_metric
def test_certain_and_wrong_probabilities_are_finite(cls):
    metric = cls()
    metric.update_state(np.array([1]), np.array([[1.0, 0.0, 0.0, 0.0]], "float32"))
    assert np.isfinite(result_of(metric))


# Arguments


# Forms of predictions and labels


def test_probabilities_of_class_1_are_those_of_a_binary_model():
    p, y = np.array([0.9, 0.2, 0.7, 0.6, 0.1], "float32"), np.array([1, 0, 1, 1, 0])
    metric = metrics.NegativeLogLikelihood()
    assert float(metric(y, p)) == pytest.approx(0.260, abs=5e-4)


@every_metric
@pytest.mark.parametrize("from_logits", [False, True], ids=["p", "logits"])
@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1), (6, 5, 1)], ids=str)
def test_one_number_of_a_binary_model_scores_like_two_classes(
    cls, from_logits, shape, rng
):
    z = 2.0 * rng.normal(size=shape).astype("float32")
    labels = rng.integers(0, 2, size=shape)
    y_pred = z if from_logits else special.expit(z)
    flat = z.reshape(-1)
    both = np.stack([np.zeros_like(flat), flat], axis=-1)
    value = expected(cls, labels.reshape(-1), both)
    for y in (labels, labels.reshape(z[..., 0].shape if z.ndim > 1 else (ROWS, 1))):
        metric = cls(from_logits=from_logits)
        metric.update_state(y, y_pred)
        assert result_of(metric) == pytest.approx(value, rel=1e-5)


def drawn_score(cls, soft, logits, rng, draws=4_000):
    """The metric of labels drawn from soft ones, all draws as one data set."""
    labels = (rng.random((draws, *soft.shape[:-1], 1)) > soft.cumsum(-1)).sum(-1)
    stacked = np.broadcast_to(logits, (draws, *logits.shape))
    return expected(cls, labels.reshape(-1), stacked.reshape(-1, logits.shape[-1]))


@pytest.mark.parametrize(
    "cls",
    [
        metrics.NegativeLogLikelihood,
        metrics.BrierScore,
        metrics.ExpectedCalibrationError,
    ],
)
@pytest.mark.parametrize("classes", [1, CLASSES])
def test_soft_labels_score_like_labels_drawn_from_them(cls, classes, rng):
    soft = rng.dirichlet(np.ones(max(classes, 2)), size=12)
    logits = rng.normal(size=soft.shape).astype("float32")
    value = drawn_score(cls, soft, logits, rng)
    metric = cls(from_logits=True)
    if classes == 1:
        metric.update_state(soft[:, 1], logits[:, 1] - logits[:, 0])
    else:
        metric.update_state(soft, logits)
    assert result_of(metric) == pytest.approx(value, rel=0.02)
    hard = cls(from_logits=True)
    hard.update_state(soft.argmax(axis=-1), logits)
    assert result_of(hard) != pytest.approx(value, rel=0.03)


def test_the_likelihood_of_soft_labels_is_the_cross_entropy():
    metric = metrics.NegativeLogLikelihood()
    value = float(metric([[0.4, 0.35, 0.25]], [[0.7, 0.2, 0.1]]))
    assert value == pytest.approx(1.282, abs=5e-4)
    logits = np.array([[0.0, -np.inf, 0.0]], "float32")
    metric = metrics.NegativeLogLikelihood(from_logits=True)
    value = float(metric([[0.5, 0.0, 0.5]], logits))
    assert value == pytest.approx(np.log(2.0), rel=1e-6)


WRONG_LABELS = {
    "below": np.array([0, -1, 2]),
    "above": np.array([0, 4, 2]),
    "uint8": np.array([0, 255, 2], "uint8"),
    "fractional": np.array([0.0, 1.5, 2.0]),
    "missing": np.array([0.0, np.nan, 2.0]),
    "multi-hot": np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]]),
    "none": np.array([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]),
    "negative": np.array([[1, 0, 0, 0], [2, -1, 0, 0], [0, 0, 0, 1.0]]),
}
every_wrong_label = pytest.mark.parametrize("name", WRONG_LABELS)
of_labels = pytest.mark.parametrize(
    "cls", [c for c in METRICS if c is not metrics.PredictiveEntropy]
)


@of_labels
@every_wrong_label
@pytest.mark.parametrize("from_logits", [False, True], ids=["p", "logits"])
def test_what_is_no_label_is_refused_or_nan(cls, name, from_logits, rng):
    y, y_pred = WRONG_LABELS[name], predictions(batch(rng, 3)[1], from_logits)
    with pytest.raises(ValueError, match="Expected labels.*Received: labels such as"):
        cls(from_logits=from_logits).update_state(y, y_pred)
    # Without weight nobody asks.
    weights = np.array([1.0, 0.0, 2.0])
    metric, right = cls(from_logits=from_logits), cls(from_logits=from_logits)
    metric.update_state(y, y_pred, weights)
    right.update_state(y[::2], y_pred[::2], weights[::2])
    assert result_of(metric) == pytest.approx(result_of(right), rel=1e-6)
    if BACKEND != "torch":  # which traces nothing
        assert np.isnan(traced_result(cls(from_logits=from_logits), y, y_pred))
        metric = cls(from_logits=from_logits)
        value = traced_result(metric, y, y_pred, weights)
        assert value == pytest.approx(result_of(right), rel=1e-6)


def traced_result(metric, *batch):
    """The result of a metric that is updated in traced code."""
    batch = [ops.convert_to_tensor(x) for x in batch]
    start = [v.value for v in metric.variables]

    def update(*batch):
        updated = metric.stateless_update_state(start, *batch)
        return metric.stateless_result(updated)

    return float(to_numpy(compiled(update)(*batch)))


@every_metric
def test_independent_labels_and_logits_are_no_probabilities(cls):
    y = np.array([[1, 0, 0], [0, 1, 0]])
    for wrong in ([[0.9, 0.8, 0.1]] * 2, [[2.0, -3.0, 2.0]] * 2, [1.5, 0.2], [-2, 0.1]):
        wrong = np.array(wrong, "float32")
        labels = y if wrong.ndim == 2 else y[:, 0]
        with pytest.raises(ValueError, match="from_logits.*Received: probabilities"):
            cls().update_state(labels, wrong)
        if BACKEND != "torch":
            assert np.isnan(traced_result(cls(), labels, wrong))
    # The way that the message says.
    metric = cls()
    metric.update_state(y, np.array([[0.9, 0.8, 0.1]] * 2, "float32")[..., None])
    assert np.isfinite(result_of(metric))


@every_metric
@pytest.mark.parametrize("ignore_class", [-1, 2, 255])
@pytest.mark.parametrize("shape", [(ROWS,), (8, 5)], ids=str)
def test_ignored_labels_do_not_count(cls, ignore_class, shape, rng):
    labels, logits = batch(rng, *shape)
    weights = rng.random(shape)
    dtype = "uint8" if ignore_class == 255 else "int64"
    y = np.where(rng.random(shape) < 0.3, ignore_class, labels).astype(dtype)
    kept = y != ignore_class
    for w in (None, weights):
        value = expected(
            cls, y[kept].astype(int), logits[kept], None if w is None else w[kept]
        )
        for form in (y, y[..., None]):
            metric = cls(from_logits=True, ignore_class=ignore_class)
            metric.update_state(form, logits, w)
            assert result_of(metric) == pytest.approx(value, rel=1e-5)
    metric = cls(ignore_class=ignore_class)
    metric.update_state(np.full(3, ignore_class), np.full((3, CLASSES), np.nan))
    assert result_of(metric) == 0.0
    with pytest.raises(ValueError, match="`ignore_class`.*Received: labels of shape"):
        metric.update_state(np.eye(CLASSES), np.full((CLASSES, CLASSES), 0.25))
    binary = cls(from_logits=True, ignore_class=-1)
    binary.update_state([1, -1, 0], [2.0, 5.0, -1.0])
    value = expected(cls, np.array([1, 0]), np.array([[0.0, 2.0], [0.0, -1.0]]))
    assert result_of(binary) == pytest.approx(value, rel=1e-5)


@every_metric
def test_ignore_class_is_an_integer(cls):
    for value in (1.5, "-1", True):
        with pytest.raises(TypeError, match="Received: ignore_class="):
            cls(ignore_class=value)


@every_metric
def test_shapes_that_do_not_fit_are_named(cls, rng):
    labels, logits = batch(rng, 6)
    with pytest.raises(ValueError, match=r"one weight.*Received.*shape \(5,\)"):
        cls(from_logits=True).update_state(labels, logits, np.ones(5))
    if cls is metrics.PredictiveEntropy:
        return
    for wrong in (labels[:5], labels[:1], np.eye(3)[[0] * 6], logits[..., None]):
        with pytest.raises(ValueError, match="Received: labels of shape"):
            cls(from_logits=True).update_state(wrong, logits)
    with pytest.raises(TypeError, match="StringLookup.*Received: labels of dtype"):
        cls(from_logits=True).update_state(np.array(["a"] * 6), logits)


@every_metric
def test_nan_predictions_give_nan(cls):
    metric = cls()
    metric.update_state([0, 1], np.array([[np.nan, 0.5], [0.5, 0.5]], "float32"))
    assert np.isnan(result_of(metric))


def test_active_units_count_codes_of_their_size(rng):
    metric = metrics.ActiveUnits(3)
    metric.update_state(rng.normal(size=(50, 3)) * [1.0, 0.01, 2.0])
    assert result_of(metric) == 2
    with pytest.raises(ValueError, match=r"3 units.*Received: means of shape \(6, 4\)"):
        metric.update_state(np.zeros((6, 4)))
    metric.update_state(np.full((2, 3), np.nan))
    assert np.isnan(result_of(metric))


@every_metric
@pytest.mark.parametrize("from_logits", [1, None, "yes"])
def test_from_logits_is_a_bool(cls, from_logits):
    with pytest.raises(TypeError, match="Received: from_logits="):
        cls(from_logits=from_logits)


def test_num_bins_is_a_positive_integer():
    for value in (0, -3):
        with pytest.raises(ValueError, match=f"Received: num_bins={value}"):
            metrics.ExpectedCalibrationError(num_bins=value)
    for value in (1.5, "15", True, None):
        with pytest.raises(TypeError, match="Received: num_bins="):
            metrics.ExpectedCalibrationError(num_bins=value)


# Serialisation and models


@every_metric
def test_config_round_trips(cls):
    options = {"from_logits": True, "name": "mine", "dtype": "float32"}
    options["ignore_class"] = -1
    if cls is metrics.ExpectedCalibrationError:
        options["num_bins"] = 7
    metric = cls(**options)
    config = json.loads(json.dumps(keras.metrics.serialize(metric)))
    for copy in (keras.metrics.deserialize(config), cls.from_config(options)):
        assert type(copy) is cls
        assert copy.get_config() == metric.get_config() == options
    assert cls().name == METRICS[cls][0]


def classifier(metrics_of, weighted=False):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(CLASSES)])
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **{
            "weighted_metrics" if weighted else "metrics": [
                cls(from_logits=True) for cls in metrics_of
            ]
        },
    )
    return model


def assert_evaluates(model, x, labels, weights=None):
    """`evaluate` over uneven batches against the oracle on `predict`."""
    found = model.evaluate(
        x, labels, sample_weight=weights, batch_size=10, return_dict=True, verbose=0
    )
    logits = model.predict(x, verbose=0)
    for cls, (name, _) in METRICS.items():
        value = expected(cls, labels, logits, weights)
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6)


@pytest.mark.eager
def test_a_saved_model_keeps_its_metrics(rng, tmp_path):
    model = classifier(METRICS)
    x = rng.normal(size=(ROWS, 3)).astype("float32")
    labels = rng.integers(0, CLASSES, size=ROWS)
    model.fit(x, labels, batch_size=10, verbose=0)
    assert_evaluates(model, x, labels)
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert_evaluates(copy, x, labels)
    copy.fit(x, labels, verbose=0)


@pytest.mark.eager
def test_weighted_metrics_of_a_model_see_the_weights(rng):
    model = classifier(METRICS, weighted=True)
    x = rng.normal(size=(ROWS, 3)).astype("float32")
    labels, weights = rng.integers(0, CLASSES, size=ROWS), rng.random(ROWS)
    assert_evaluates(model, x, labels, weights)
