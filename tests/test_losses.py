"""Losses against SciPy's densities and Keras's own cross-entropy."""

import json

import keras
import numpy as np
import pytest
from backend_tools import compiled, gradients
from contract import BACKEND, to_numpy
from keras import ops
from scipy import special, stats

import keras_bdl
from keras_bdl import losses
from keras_bdl.losses import CategoricalNLL
from keras_bdl.prediction import predict

pytestmark = pytest.mark.portable

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
        loss = CategoricalNLL(reduction="mean_with_sample_weight")
        mean = float(loss(labels, logits, sample_weight=weights.reshape(shape)))
        assert mean == pytest.approx(np.average(terms, weights=weights), rel=1e-5)


def test_weights_of_events_do_not_divide(rng):
    labels, logits = batch(rng, (6, 3))
    loss = CategoricalNLL(reduction="mean_with_sample_weight")
    with pytest.raises(ValueError, match="events.*Received: sample_weight"):
        loss(labels, logits, sample_weight=rng.random((6, 3)))


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


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "none", "mean"])
@pytest.mark.parametrize("ignore_class", [-1, 2, 255])
def test_ignored_labels_are_those_of_keras(reduction, ignore_class, rng):
    labels, logits = batch(rng, (20,))
    labels = np.where(rng.random(20) < 0.4, ignore_class, labels)
    options = {"reduction": reduction, "ignore_class": ignore_class}
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)
    for weights in (None, rng.random(20)):
        found = to_numpy(CategoricalNLL(**options)(labels, logits, weights))
        expected = to_numpy(keras_loss(labels, logits, weights))
        if reduction == "none":
            # Keras gives the mean's weight to rows of no reduction as well.
            expected = np.where(
                labels == ignore_class, 0, row_terms(labels % 5, logits)
            )
            expected = expected if weights is None else expected * weights
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_ignored_events_add_nothing_and_examples_without_a_class_do_not_count(rng):
    labels, logits = batch(rng, (6, 3))
    live = rng.random((6, 3)) < 0.6
    live[2] = False
    y = np.where(live, labels, -1)
    log_p = special.log_softmax(logits.astype("float64"), axis=-1)
    terms = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0] * live
    loss = CategoricalNLL(ignore_class=-1)
    rows = live.any(axis=1).sum()
    assert float(loss(y, logits)) == pytest.approx(terms.sum() / rows, rel=1e-5)
    weights = rng.random(6)
    expected = (terms.sum(axis=1) * weights).sum() / rows
    assert float(loss(y, logits, weights)) == pytest.approx(expected, rel=1e-5)
    weights = rng.random((6, 3))
    expected = (terms * weights).sum() / rows
    assert float(loss(y, logits, weights)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(np.full((6, 3), -1), logits)) == 0.0
    (gradient,) = gradients(lambda x: loss(y, x), [logits])
    assert np.isfinite(gradient).all() and (gradient[~live] == 0).all()
    with pytest.raises(ValueError, match="`ignore_class`.*Received: labels of shape"):
        loss(np.eye(CLASSES)[labels], logits)
    assert loss.get_config()["ignore_class"] == -1


WRONG_LABELS = {
    "below": np.array([0, -1, 2]),
    "above": np.array([0, CLASSES, 2]),
    "fractional": np.array([0.0, 1.5, 2.0]),
    "missing": np.array([0.0, np.nan, 2.0]),
    "multi-hot": np.eye(CLASSES)[[0, 1, 2]] + np.eye(CLASSES)[[0, 3, 2]],
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_what_is_no_label_is_refused_or_nan_or_without_weight(name, rng):
    y, logits = WRONG_LABELS[name], batch(rng, (3,))[1]
    with pytest.raises(ValueError, match="Expected labels.*Received: labels such as"):
        CategoricalNLL()(y, logits)
    if BACKEND != "torch":  # which traces nothing
        y_tensor = ops.convert_to_tensor(y)
        assert np.isnan(float(compiled(CategoricalNLL())(y_tensor, logits)))
    if name == "multi-hot":
        return
    weights = np.array([1.0, 0.0, 0.5])
    expected = (row_terms(y[::2].astype(int), logits[::2]) * weights[::2]).sum() / 3
    for shape in ((3,), (3, 1)):
        w = weights.reshape(shape)
        assert float(CategoricalNLL()(y, logits, w)) == pytest.approx(
            expected, rel=1e-5
        )
    (gradient,) = gradients(lambda x: CategoricalNLL()(y, x, weights), [logits])
    assert np.isfinite(gradient).all() and (gradient[1] == 0).all()
    events = CategoricalNLL()(y[None], logits[None], weights[None])
    assert float(events) == pytest.approx(3 * expected, rel=1e-5)


def test_missing_targets_without_weight_do_not_count(rng):
    y, mean = rng.normal(size=(2, 6, 3)).astype("float32")
    live = rng.random((6, 3)) < 0.6
    loss = losses.GaussianNLL(stddev=0.7)
    expected = loss(y, mean, sample_weight=live.astype("float32"))
    y[~live] = np.nan
    found = loss(y, mean, sample_weight=live.astype("float32"))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    (gradient,) = gradients(
        lambda m: loss(y, m, sample_weight=live.astype("float32")), [mean]
    )
    assert np.isfinite(gradient).all() and (gradient[~live] == 0).all()
    assert np.isnan(float(loss(y, mean)))  # nobody said that they are missing


def test_bits_are_probabilities(rng):
    logits = rng.normal(size=(4, 3)).astype("float32")
    for wrong in (-1.0, 2.0, 255.0):
        y = np.zeros((4, 3), "float32")
        y[1, 1] = wrong
        with pytest.raises(ValueError, match="from 0 to 1.*Received: y_true"):
            losses.BernoulliNLL()(y, logits)
        if BACKEND != "torch":
            loss = compiled(losses.BernoulliNLL())(ops.convert_to_tensor(y), logits)
            assert np.isnan(float(loss))
        live = np.ones((4, 3), "float32")
        live[1, 1] = 0.0
        found = float(losses.BernoulliNLL()(y, logits, sample_weight=live))
        expected = np.where(live > 0, np.logaddexp(0, logits), 0).sum() / 4
        assert found == pytest.approx(expected, rel=1e-5)


def test_lists_take_weights():
    loss = losses.GaussianNLL()
    found = loss([[0.0], [1.0]], [[1.0, 0.0], [0.0, 0.0]], [1.0, 0.0])
    assert float(found) == pytest.approx((0.5 * np.log(2 * np.pi) + 0.5) / 2, rel=1e-6)


def test_weights_of_another_shape_are_refused(rng):
    labels, logits = batch(rng, (6, 3))
    for shape in ((5,), (6, 2), (6, 3, 2)):
        with pytest.raises(ValueError, match="one weight.*Received: sample_weight"):
            CategoricalNLL(reduction="none")(labels, logits, np.ones(shape))


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


@pytest.mark.eager
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


# Likelihoods of numbers: each case gives targets, predictions, and SciPy's log density


def gaussian(rng):
    y, mean, log_stddev = rng.normal(size=(3, 6, 4, 2)).astype("float32")
    log_p = stats.norm(mean, np.exp(log_stddev)).logpdf(y)
    return losses.GaussianNLL(), y, np.concatenate([mean, log_stddev], -1), log_p


def gaussian_of_known_noise(rng):
    y, mean = rng.normal(size=(2, 6, 4, 2)).astype("float32")
    return losses.GaussianNLL(stddev=0.7), y, mean, stats.norm(mean, 0.7).logpdf(y)


def student_t(rng):
    y, location, *logs = rng.normal(size=(4, 6, 4, 2)).astype("float32")
    log_p = stats.t(np.exp(logs[1]), location, np.exp(logs[0])).logpdf(y)
    return losses.StudentTNLL(), y, np.concatenate([location, *logs], -1), log_p


def student_t_of_known_df(rng):
    y, location, log_scale = rng.normal(size=(3, 6, 4, 2)).astype("float32")
    log_p = stats.t(4.0, location, np.exp(log_scale)).logpdf(y)
    return losses.StudentTNLL(4), y, np.concatenate([location, log_scale], -1), log_p


def bernoulli(rng):
    logits = rng.normal(size=(6, 4, 2)).astype("float32")
    y = rng.integers(0, 2, size=logits.shape)
    return (
        losses.BernoulliNLL(),
        y,
        logits,
        stats.bernoulli.logpmf(y, special.expit(logits)),
    )


def discretized_logistic(rng):
    mean, log_scale = rng.normal(size=(2, 6, 4, 2)).astype("float32")
    y = rng.integers(-3, 4, size=mean.shape).astype("float32")
    logistic = stats.logistic(mean, np.exp(log_scale))
    upper = np.where(y == 3, 1.0, logistic.cdf(y + 0.5))
    lower = np.where(y == -3, 0.0, logistic.cdf(y - 0.5))
    loss = losses.DiscretizedLogisticNLL(levels=7, low=-3, high=3)
    return loss, y, np.concatenate([mean, log_scale], -1), np.log(upper - lower)


every_likelihood = pytest.mark.parametrize(
    "make",
    [
        gaussian,
        gaussian_of_known_noise,
        student_t,
        student_t_of_known_df,
        bernoulli,
        discretized_logistic,
    ],
)


@every_likelihood
def test_likelihoods_are_those_of_scipy(make, rng):
    loss, y, y_pred, log_p = make(rng)
    rows = -log_p.sum(axis=(1, 2))
    assert float(loss(y, y_pred)) == pytest.approx(rows.mean(), rel=1e-5)
    weights = rng.random(6)
    weighted = float(loss(y, y_pred, sample_weight=weights))
    assert weighted == pytest.approx((weights * rows).mean(), rel=1e-5)
    live = rng.random((6, 4)) < 0.6
    expected = -(log_p * live[..., None]).sum(axis=(1, 2)).mean()
    masked = float(loss(y, y_pred, sample_weight=live.astype("float32")))
    assert masked == pytest.approx(expected, rel=1e-5)


@every_likelihood
def test_likelihoods_take_targets_of_one_axis(make, rng):
    loss, y, y_pred, log_p = make(rng)
    first = [..., slice(None, None, 2)]
    y, y_pred, log_p = y[:, 0, 0], y_pred[:, 0][tuple(first)], log_p[:, 0, 0]
    assert float(loss(y, y_pred)) == pytest.approx(-log_p.mean(), rel=1e-5)
    assert float(loss(y[:, None], y_pred)) == pytest.approx(-log_p.mean(), rel=1e-5)


@every_likelihood
def test_likelihoods_refuse_predictions_of_another_width(make, rng):
    loss, y, y_pred, _ = make(rng)
    with pytest.raises(ValueError, match="Expected predictions.*Received: y_true"):
        loss(y, y_pred[..., :-1])
    with pytest.raises(ValueError, match="Received"):
        loss(y[:, :3], y_pred)


@every_likelihood
@pytest.mark.eager
def test_likelihoods_serialise_and_train(make, rng, tmp_path):
    loss, y, y_pred, _ = make(rng)
    config = json.loads(json.dumps(keras.losses.serialize(loss)))
    copy = keras.losses.deserialize(config)
    assert float(copy(y, y_pred)) == float(loss(y, y_pred))
    width = y_pred.shape[-1]
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Dense(width)])
    model.compile(keras.optimizers.SGD(0.01), loss)
    x = rng.normal(size=(6, 4, 3)).astype("float32")
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, epochs=3, verbose=0)
    after = model.evaluate(x, y, verbose=0)
    assert after < before
    model.save(tmp_path / "m.keras")
    copy = keras.models.load_model(tmp_path / "m.keras")
    assert copy.evaluate(x, y, verbose=0) == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: losses.GaussianNLL(stddev=0.0), ValueError),
        (lambda: losses.BetaNLL(1.5), ValueError),
        (lambda: losses.GaussianNLL(stddev="1"), TypeError),
        (lambda: losses.StudentTNLL(df=-1.0), ValueError),
        (lambda: losses.DiscretizedLogisticNLL(levels=1), ValueError),
        (lambda: losses.DiscretizedLogisticNLL(low=1.0, high=1.0), ValueError),
    ],
)
def test_wrong_arguments_are_refused(make, error):
    with pytest.raises(error, match="Received: (stddev|beta|df|levels|low)="):
        make()


def test_the_kind_of_outputs_is_read_off_the_loss():
    def kind(loss):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        model.compile("sgd", loss)
        return predict.resolve_outputs(model, "auto")

    assert kind(losses.GaussianNLL()) == "mean_and_log_stddev"
    assert kind(losses.GaussianNLL(stddev=1.0)) == "mean"
    assert kind(losses.CategoricalNLL()) == "logits"
    assert kind(losses.BernoulliNLL()) is None


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_beta_nll_has_the_gradient_of_weighted_terms(beta, rng):
    y = rng.normal(size=(5, 2)).astype("float32")
    outputs = rng.normal(size=(5, 4)).astype("float32")
    mean, log_stddev = np.split(outputs.astype("float64"), 2, axis=-1)
    weight = np.exp(2.0 * beta * log_stddev)
    loss = losses.BetaNLL(beta)
    terms = -stats.norm(mean, np.exp(log_stddev)).logpdf(y) * weight
    assert float(loss(y, outputs)) == pytest.approx(terms.sum(axis=-1).mean(), rel=1e-5)
    (found,) = gradients(lambda outputs: loss(y, outputs), [outputs])
    variance = np.exp(2.0 * log_stddev)
    of_mean = weight * (mean - y) / variance / 5
    of_deviation = weight * (1.0 - np.square(y - mean) / variance) / 5
    expected = np.concatenate([of_mean, of_deviation], axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    again = losses.BetaNLL.from_config(loss.get_config())
    assert again.beta == beta and again.outputs_kind == "mean_and_log_stddev"
