"""`CategoricalNLL` against SciPy's log-softmax and Keras's own cross-entropy."""

import json

import keras
import numpy as np
import pytest
from backend_tools import gradients
from contract import to_numpy
from keras import ops
from scipy import special

import keras_bdl
from keras_bdl.losses import CategoricalNLL

CLASSES = 5
SHAPES = [(6,), (6, 3), (6, 3, 4), (6, 1), (CLASSES, CLASSES)]
FORMS = {
    "indices": lambda labels: labels,
    "column": lambda labels: labels[..., None],
    "one-hot": lambda labels: np.eye(CLASSES)[labels],
}
every_form = pytest.mark.parametrize("form", FORMS)


def batch(rng, shape, scale=2.0):
    logits = scale * rng.normal(size=(*shape, CLASSES)).astype("float32")
    return rng.integers(0, CLASSES, size=shape), logits


def row_terms(labels, logits):
    """-log softmax(logits)[label] summed over all axes but the first."""
    log_p = special.log_softmax(logits.astype("float64"), axis=-1)
    truth = np.eye(logits.shape[-1])[labels]
    return -np.sum(truth * log_p, axis=tuple(range(1, logits.ndim)))


@every_form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_sums_over_positions_and_averages_over_rows(form, shape, rng):
    labels, logits = batch(rng, shape)
    loss = float(CategoricalNLL()(FORMS[form](labels), logits))
    assert loss == pytest.approx(row_terms(labels, logits).mean(), rel=1e-5)


def test_it_is_the_keras_loss_for_one_label_per_row(rng):
    labels, logits = batch(rng, (20,))
    expected = float(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    )
    assert float(CategoricalNLL()(labels, logits)) == pytest.approx(expected, rel=1e-6)
    one_hot = np.eye(CLASSES)[labels]
    assert float(CategoricalNLL()(one_hot, logits)) == pytest.approx(expected, rel=1e-6)


def test_it_is_the_keras_loss_times_positions_for_segmentation(rng):
    labels, logits = batch(rng, (6, 3, 4))
    mean = float(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    )
    loss = float(CategoricalNLL()(labels, logits))
    assert loss == pytest.approx(3 * 4 * mean, rel=1e-5)


@pytest.mark.parametrize("shape", [(6,), (6, 3)], ids=str)
def test_soft_labels_give_the_cross_entropy(shape, rng):
    _, logits = batch(rng, shape)
    soft = rng.dirichlet(np.ones(CLASSES), size=shape)
    terms = -np.sum(soft * special.log_softmax(logits, axis=-1), axis=-1)
    expected = terms.reshape(6, -1).sum(axis=-1).mean()
    assert float(CategoricalNLL()(soft, logits)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(6,), (6, 3, 4)], ids=str)
def test_sample_weights_and_reductions_are_per_row(shape, rng):
    labels, logits = batch(rng, shape)
    terms, weights = row_terms(labels, logits), rng.random(6)
    rows = to_numpy(CategoricalNLL(reduction="none")(labels, logits))
    np.testing.assert_allclose(rows, terms, rtol=1e-5)
    total = float(CategoricalNLL(reduction="sum")(labels, logits))
    assert total == pytest.approx(terms.sum(), rel=1e-5)
    for shape in ((6,), (6, 1)):
        loss = CategoricalNLL()(labels, logits, sample_weight=weights.reshape(shape))
        assert float(loss) == pytest.approx(np.mean(weights * terms), rel=1e-5)


@every_form
def test_gradient_is_softmax_minus_label(form, rng):
    labels, logits = batch(rng, (6, 3))
    y = FORMS[form](labels)
    (gradient,) = gradients(lambda x: CategoricalNLL()(y, x), [logits])
    expected = (special.softmax(logits, axis=-1) - np.eye(CLASSES)[labels]) / 6
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@every_form
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_extreme_logits_are_finite(form, dtype):
    labels = np.array([0, 1, 2])
    logits = np.array([[3e4, -3e4, 0, 0, 0], [3e4, -3e4, 0, 0, 0], [-3e4] * 5], dtype)
    y = FORMS[form](labels)
    rows = to_numpy(CategoricalNLL(reduction="none")(y, logits))
    expected = row_terms(labels, logits)
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    (gradient,) = gradients(lambda x: CategoricalNLL()(y, x), [logits])
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("labels", [np.zeros(4), np.zeros((4, 1)), np.ones((4, 1))])
def test_a_single_logit_is_refused(labels):
    with pytest.raises(ValueError, match="2 units. Received: classes=1"):
        CategoricalNLL()(labels, np.zeros((4, 1), "float32"))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", CategoricalNLL())
    with pytest.raises(ValueError, match="Received: classes=1"):
        model.fit(np.zeros((4, 2)), labels, verbose=0)


def test_labels_of_too_few_axes_are_refused(rng):
    labels, logits = batch(rng, (6, 3))
    with pytest.raises(ValueError, match="Received|shape"):
        CategoricalNLL()(labels[:, 0], logits)


@pytest.mark.parametrize("positions", [3, 6])
@pytest.mark.parametrize("how", ["weights", "mask"])
def test_masked_positions_do_not_count(positions, how, rng):
    labels, logits = batch(rng, (6, positions))
    live = rng.random((6, positions)) < 0.6
    terms = [
        row_terms(label[keep], x[keep]).sum()
        for label, x, keep in zip(labels, logits, live)
    ]
    y_pred, options = ops.convert_to_tensor(logits), {}
    if how == "mask":
        y_pred._keras_mask = ops.convert_to_tensor(live)
    else:
        options["sample_weight"] = live.astype("float32")
    loss = float(CategoricalNLL()(labels, y_pred, **options))
    assert loss == pytest.approx(np.mean(terms), rel=1e-5)


# Serialisation and training


def test_config_round_trips():
    loss = CategoricalNLL(reduction="sum", name="nats", dtype="float32")
    config = json.loads(json.dumps(keras.losses.serialize(loss)))
    copy = keras.losses.deserialize(config)
    assert type(copy) is CategoricalNLL
    assert copy.get_config() == loss.get_config()
    assert (copy.reduction, copy.name) == ("sum", "nats")
    copy = CategoricalNLL.from_config(CategoricalNLL().get_config())
    assert copy.reduction == "sum_over_batch_size"


def segmenter():
    model = keras.Sequential(
        [keras.Input((8, 2)), keras.layers.Conv1D(CLASSES, 3, padding="same")]
    )
    model.compile(keras.optimizers.SGD(0.1), keras_bdl.losses.CategoricalNLL())
    return model


@every_form
def test_a_model_trains_and_evaluates_with_it(form, rng):
    model, x = segmenter(), rng.normal(size=(12, 8, 2)).astype("float32")
    labels = rng.integers(0, CLASSES, size=(12, 8))
    expected = row_terms(labels, model.predict(x, verbose=0)).mean()
    y = FORMS[form](labels)
    loss = model.evaluate(x, y, batch_size=6, verbose=0)
    assert loss == pytest.approx(expected, rel=1e-5)
    model.fit(x, y, epochs=2, verbose=0)
    assert model.evaluate(x, y, verbose=0) < loss


def test_a_loaded_model_keeps_it(rng, tmp_path):
    model, x = segmenter(), rng.normal(size=(12, 8, 2)).astype("float32")
    labels = rng.integers(0, CLASSES, size=(12, 8))
    model.fit(x, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert type(copy.loss) is CategoricalNLL
    expected = row_terms(labels, model.predict(x, verbose=0)).mean()
    assert copy.evaluate(x, labels, verbose=0) == pytest.approx(expected, rel=1e-5)
    copy.fit(x, labels, verbose=0)
