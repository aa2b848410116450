"""Discrete latent variables in the model classes, and the joint with the depth."""

import math

import keras
import numpy as np
import pytest
from contract import to_numpy
from early_exit_tools import numeric_gradients, numpy_network, randomize_heads
from keras import ops
from scipy import special

import keras_bdl

pytestmark = pytest.mark.portable


class Switch(keras_bdl.layers.LatentLayer, keras.layers.Layer):
    """A user's layer: one of three scales for each row, by a Dense gate."""

    num_states = 3

    def __init__(self, estimator, **kwargs):
        super().__init__(**kwargs)
        self.estimator = estimator
        self.gate = keras.layers.Dense(3)

    def build(self, input_shape):
        self.gate.build(input_shape)
        self.built = True

    def get_config(self):
        return {**super().get_config(), "estimator": self.estimator}

    def call(self, inputs, training=None):
        log_q = ops.log_softmax(self.gate(inputs))
        state = self.choose(log_q, training)
        self.add_term(ops.sum(ops.exp(log_q) * log_q, axis=-1) + math.log(3.0))
        scale = ops.cast(state, inputs.dtype) - 1.0
        return inputs * ops.expand_dims(scale, -1)


def switch_network(estimator):
    network = keras.Sequential(
        [keras.Input((2,)), Switch(estimator), Switch(estimator), keras.layers.Dense(2)]
    )
    rng = np.random.default_rng(0)
    network.set_weights([rng.normal(size=w.shape) for w in network.get_weights()])
    return network


def switch_loss(weights, x, y):
    """The exact loss: both switches, all nine combinations of their states."""
    first, second, last = zip(weights[::2], weights[1::2])
    total = 0.0
    log_q1 = special.log_softmax(x @ first[0] + first[1], axis=1)
    for i in range(3):
        h = x * (i - 1.0)
        log_q2 = special.log_softmax(h @ second[0] + second[1], axis=1)
        kl2 = (np.exp(log_q2) * log_q2).sum(axis=1) + np.log(3)
        total = total + np.exp(log_q1[:, i]) * kl2
        for j in range(3):
            log_p = special.log_softmax(h * (j - 1.0) @ last[0] + last[1], axis=1)
            nll = -log_p[np.arange(len(y)), y]
            total = total + np.exp(log_q1[:, i] + log_q2[:, j]) * nll
    kl1 = (np.exp(log_q1) * log_q1).sum(axis=1) + np.log(3)
    return (total + kl1).mean()


def data(rows=4):
    x = np.random.default_rng(1).normal(size=(rows, 2)).astype("float32")
    return x, (x[:, 0] > 0).astype("int64")


def switch_classifier(estimator):
    network = switch_network(estimator)
    classifier = keras_bdl.BayesianClassifier(network, num_latent_samples=3)
    classifier.compile(keras.optimizers.SGD(1.0))
    return classifier


def gradient_of_a_step(classifier, x, y, weights=None):
    """Loss and gradients of one step, which is taken back."""
    before = classifier.network.get_weights()
    loss = classifier.train_on_batch(x, y, sample_weight=weights, return_dict=True)
    gradients = [a - b for a, b in zip(before, classifier.network.get_weights())]
    classifier.network.set_weights(before)
    return loss["loss"], gradients


def exact(x, y):
    weights = [w.astype("float64") for w in switch_network("enumerate").get_weights()]
    value = switch_loss(weights, x.astype("float64"), y)
    return value, numeric_gradients(lambda w: switch_loss(w, x, y), weights)


def test_enumeration_of_two_layers_is_exact():
    x, y = data()
    loss, got = gradient_of_a_step(switch_classifier("enumerate"), x, y)
    value, expected = exact(x, y)
    assert loss == pytest.approx(value, rel=1e-5)
    for g, e in zip(got, expected):
        np.testing.assert_allclose(g, e, atol=2e-5)


def test_score_function_of_two_layers_is_unbiased():
    x, y = data()
    many = np.tile(x, (800, 1)), np.tile(y, 800)
    classifier = switch_classifier("score_function")
    draws = [gradient_of_a_step(classifier, *many)[1] for _ in range(12)]
    _, expected = exact(x, y)
    for got, e in zip(zip(*draws), expected):
        got = np.stack(got)
        error = got.std(axis=0, ddof=1) / np.sqrt(len(got)) + 1e-6
        assert np.abs((got.mean(axis=0) - e) / error).max() < 6  # Student, 11 d.o.f.


@pytest.mark.eager
def test_sample_weights_weigh_the_losses_of_rows():
    x, y = data(6)
    weights = np.array([1.0, 0.0, 2.0, 0.0, 1.0, 0.0])
    classifier = switch_classifier("enumerate")
    loss, _ = gradient_of_a_step(classifier, x, y, weights)

    def losses_of_rows(weight):
        return np.array(
            [
                gradient_of_a_step(classifier, x[i : i + 1], y[i : i + 1], weight)[0]
                for i in range(6)
            ]
        )

    terms = losses_of_rows(np.zeros(1))
    nll = losses_of_rows(np.ones(1)) - terms
    assert loss == pytest.approx((weights * nll + terms).mean(), rel=1e-4)


@pytest.mark.parametrize("estimator", ["score_function", "enumerate"])
@pytest.mark.eager
def test_fit_evaluate_predict_and_reload(estimator, tmp_path):
    x, y = data(64)
    classifier = keras_bdl.BayesianClassifier(switch_network(estimator), num_samples=4)
    classifier.compile("adam", metrics=["sparse_categorical_accuracy"])
    history = classifier.fit(x, y, epochs=1, validation_split=0.25, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert "val_sparse_categorical_accuracy" in history
    np.testing.assert_allclose(
        classifier.predict(x, verbose=0).sum(axis=1), 1, rtol=1e-5
    )
    classifier.save(tmp_path / "model.keras")
    copy = keras.models.load_model(
        tmp_path / "model.keras", custom_objects={"Switch": Switch}
    )
    copy.fit(x, y, verbose=0)


def test_a_switch_takes_the_likeliest_state_at_inference():
    network = switch_network("enumerate")
    x, _ = data(20)
    kernel, bias = network.layers[0].get_weights()
    state = (x @ kernel + bias).argmax(axis=1)
    np.testing.assert_allclose(
        to_numpy(network.layers[0](x)), x * (state[:, None] - 1.0), rtol=1e-6
    )


def test_training_of_a_plain_model_is_refused():
    network = switch_network("score_function")
    network.compile("sgd", "mse")
    x, _ = data()
    with pytest.raises(ValueError, match="loss of every row.*Received"):
        network.fit(x, x, verbose=0)


def test_estimators_that_do_not_go_together_are_refused():
    network = keras.Sequential(
        [keras.Input((2,)), Switch("enumerate"), Switch("score_function"),
         keras.layers.Dense(2)]
    )  # fmt: skip
    with pytest.raises(ValueError, match="one estimator.*Received"):
        keras_bdl.BayesianClassifier(network)
    network = keras.Sequential(
        [keras.Input((2,)), *[Switch("enumerate") for _ in range(4)],
         keras.layers.Dense(2)]
    )  # fmt: skip
    with pytest.raises(ValueError, match="score_function.*Received: 81"):
        keras_bdl.BayesianClassifier(network)


# Early exit in the model classes


def early_exit_network(estimator="concrete", last=keras.layers.Dense, **options):
    units = [keras.layers.Dense(3, activation="tanh") for _ in range(3)]
    block = keras_bdl.EarlyExitResBlock(units, 0.3, estimator=estimator, **options)
    network = keras.Sequential([keras.Input((3,)), block, last(2)])
    rng = np.random.default_rng(5)
    network.set_weights([rng.normal(size=w.shape) for w in network.get_weights()])
    return network, block


def numpy_outputs(network, block, x):
    layers = [*block.units, *block.halting_heads, network.layers[-1]]
    weights = [to_numpy(v) for layer in layers for v in layer.trainable_variables]
    return numpy_network(weights, x, 3)


def rows(count=40):
    x = np.random.default_rng(2).normal(size=(count, 3)).astype("float32")
    return x, (x[:, 0] > x[:, 1]).astype("int64")


def test_depth_posterior_against_enumeration():
    network, block = early_exit_network()
    classifier = keras_bdl.BayesianClassifier(network)
    classifier.compile("adam")
    x, _ = rows()
    result = classifier.predict_depth_posterior(x, verbose=0)
    outputs, q = numpy_outputs(network, block, x)
    prior = special.softmax(-0.3 * np.arange(1, 4))
    joint = special.softmax(outputs, axis=-1).swapaxes(0, 1) * prior[:, None]
    np.testing.assert_allclose(result.joint, joint, rtol=1e-4)
    np.testing.assert_allclose(result.joint.sum(axis=(1, 2)), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(result.depths, [[1], [2], [3]])
    for row in range(len(x)):
        z, label = np.unravel_index(joint[row].argmax(), joint[row].shape)
        assert result.label[row] == label
        assert result.depth[row, 0] == z + 1
        # Unit by unit: what is left cannot beat the best so far.
        stop = next(
            unit
            for unit in (1, 2, 3)
            if unit == 3 or joint[row, :unit].max() >= prior[unit]
        )
        assert result.exact_stop[row] == stop
        assert result.exact_stop[row] >= result.depth[row, 0]
    np.testing.assert_array_equal(
        result.amortized_depth, keras_bdl.depth(network, x, verbose=0)
    )


@pytest.mark.eager
def test_depth_posterior_of_two_blocks_and_of_weights():
    def block(count):
        units = [keras.layers.Dense(3, activation="tanh") for _ in range(count)]
        return keras_bdl.EarlyExitResBlock(units, 0.3)

    network = keras.Sequential(
        [keras.Input((3,)), block(2), block(3),
         keras_bdl.VariationalDense(2, num_examples=9)]
    )  # fmt: skip
    classifier = keras_bdl.BayesianClassifier(network)
    x, _ = rows(7)
    results = [
        classifier.predict_depth_posterior(x, num_samples=5, seed=seed, verbose=0)
        for seed in (0, 0, 1)
    ]
    assert results[0].joint.shape == (7, 6, 2)
    np.testing.assert_allclose(results[0].joint.sum(axis=(1, 2)), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(results[0].joint, results[1].joint)
    assert np.abs(results[0].joint - results[2].joint).max() > 0
    assert results[0].exact_stop is None
    assert sorted(map(tuple, results[0].depths)) == [
        (a, b) for a in (1, 2) for b in (1, 2, 3)
    ]


@pytest.mark.parametrize("estimator", ["concrete", "score_function", "enumerate"])
@pytest.mark.eager
def test_depth_is_in_the_log(estimator):
    network, block = early_exit_network(estimator)
    classifier = keras_bdl.BayesianClassifier(network, num_samples=3)
    classifier.compile(keras.optimizers.SGD(0.0))
    x, y = rows()
    history = classifier.fit(
        x, y, validation_data=(x, y), batch_size=40, verbose=0,
        callbacks=[keras_bdl.callbacks.DepthLogger()],
    ).history  # fmt: skip
    _, q = numpy_outputs(network, block, x)
    expected = (q @ np.arange(1, 4)).mean()
    assert history["depth"][0] == pytest.approx(expected, rel=1e-4)
    assert history[f"depth_{block.name}"][0] == pytest.approx(expected, rel=1e-4)
    ran = keras_bdl.depth(classifier, x, verbose=0).mean()
    assert history["val_depth"][0] == pytest.approx(ran, rel=1e-5)


@pytest.mark.parametrize("objective", ["map", "elbo"])
def test_evaluate_reports_the_sampled_bound(objective):
    network, block = early_exit_network(objective=objective)
    classifier = keras_bdl.BayesianClassifier(network, num_samples=400)
    classifier.compile("sgd")
    x, y = rows()
    outputs, q = numpy_outputs(network, block, x)
    nll = -special.log_softmax(outputs, axis=-1)[:, np.arange(len(y)), y].T
    depth = np.arange(1, 4)
    if objective == "map":
        term = 0.3 * q @ depth
    else:
        term = (q * np.log(q / special.softmax(-0.3 * depth))).sum(axis=1)
    expected = ((q * nll).sum(axis=1) + term).mean()
    loss = classifier.evaluate(x, y, batch_size=40, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(expected, rel=0.05)


@pytest.mark.eager
def test_a_regressor_with_early_exit():
    network, _ = early_exit_network("score_function")
    regressor = keras_bdl.BayesianRegressor(network, normalize=True, num_samples=5)
    regressor.compile("adam", metrics=["mae"])
    x, _ = rows(64)
    y = 3.0 * x[:, :1] + 100.0
    history = regressor.fit(x, y, epochs=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert "depth" in history
    assert regressor.predict(x, verbose=0).shape == (64, 1)
    assert keras_bdl.depth(regressor, x, verbose=0).shape == (64, 1)


def test_flops_report_against_a_count_by_hand():
    def conv(filters, **options):
        return keras.layers.Conv2D(filters, 3, padding="same", **options)

    block = keras_bdl.EarlyExitResBlock(
        [keras.Sequential([conv(4), conv(4)]), conv(4)], 0.1
    )
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.DepthwiseConv2D(3)(inputs)  # 6 x 6
    x = keras.layers.SeparableConv2D(4, 3, padding="same")(x)
    x = block(x)
    x = keras.layers.Conv2DTranspose(2, 3, strides=2)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Reshape((13, 26))(x)
    x = keras.layers.EinsumDense("abc,cd->abd", (13, 5))(x)
    outputs = keras.layers.Dense(3)(keras.layers.LSTM(2)(x))
    model = keras.Model(inputs, outputs)
    randomize_heads(block, scale=30.0)
    images = np.random.default_rng(0).normal(size=(20, 8, 8, 1)).astype("float32")
    report = keras_bdl.flops_report(model, images, verbose=0)
    unit1, unit2 = 36 * (2 * 9 * 4 * 4) + 4, 36 * 9 * 4 * 4
    outside = 36 * 9 + 36 * (9 + 4) + 36 * 9 * 4 * 2 + 13 * 26 * 5 + 2 * 3
    assert [row["multiply_adds"] for row in report.rows] == [outside, unit1, unit2]
    assert report.full == outside + unit1 + unit2
    share = (keras_bdl.depth(model, images, verbose=0) == 2).mean()
    assert 0 < share < 1
    assert report.executed == pytest.approx(outside + unit1 + share * unit2)
    assert report.not_counted
    assert "unit 2" in str(report)
    assert report.to_dict()["share"] == report.share


@pytest.mark.parametrize("outside", [False, True])
def test_flops_of_a_layer_in_several_parts(outside):
    inner = keras.layers.Dense(4)
    block = keras_bdl.EarlyExitResBlock(
        [keras.Sequential([inner] * calls) for calls in (2, 1, 1)], 0.1
    )
    model = keras.Sequential([keras.Input((4,)), *([inner] * outside), block])
    report = keras_bdl.flops_report(model, np.zeros((5, 4), "float32"), verbose=0)
    flops = [16 * outside, 32 + 4, 16 + 4, 16]
    assert [row["multiply_adds"] for row in report.rows] == flops
    assert report.full == sum(flops)


def test_depth_posterior_of_labels_by_position_is_refused():
    model = keras_bdl.BayesianClassifier(masked_network("enumerate"))
    with pytest.raises(ValueError, match="(?s)logits.*Received: outputs of shape"):
        model.predict_depth_posterior(np.ones((2, 5)), verbose=0)


def masked_network(estimator):
    units = [keras.layers.Dense(3, activation="tanh") for _ in range(2)]
    block = keras_bdl.EarlyExitResBlock(units, 0.1, estimator=estimator)
    embedding = keras.layers.Embedding(7, 3, mask_zero=True)
    last = keras.layers.Dense(4)
    return keras.Sequential([keras.Input((5,)), embedding, block, last])


def masked_loss(weights, tokens, labels, row_weights):
    """The exact loss of that network: both depths, positions that are not masked."""
    embedding, *rest = weights
    unit1, unit2, head, last = zip(rest[::2], rest[1::2])
    first = embedding[tokens] + np.tanh(embedding[tokens] @ unit1[0] + unit1[1])
    second = first + np.tanh(first @ unit2[0] + unit2[1])
    mask = tokens > 0
    pooled = (first * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    stop = special.expit(pooled @ head[0] + head[1])[:, 0]
    total = 0.1 * (2 - stop)
    for outputs, q in ((first, stop), (second, 1 - stop)):
        log_probs = special.log_softmax(outputs @ last[0] + last[1], axis=-1)
        nll = -np.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
        total = total + q * row_weights * (mask * nll).sum(axis=1)
    return total.mean()


@pytest.mark.parametrize("estimator", ["score_function", "enumerate"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.eager
def test_masked_positions_count_for_nothing(estimator, weighted):
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(1, 7, (6, 5)), rng.integers(0, 4, (6, 5))
    tokens[:, 3:] = 0
    row_weights = rng.uniform(0.5, 2.0, 6).astype("float32") if weighted else None
    logs = []
    for y in (labels, np.where(tokens > 0, labels, 3 - labels)):
        keras.utils.set_random_seed(0)
        network = masked_network(estimator)
        weights = [to_numpy(w).astype("float64") for w in network.trainable_weights]
        model = keras_bdl.BayesianClassifier(network)
        model.compile("sgd", weighted_metrics=["accuracy"])
        history = model.fit(tokens, y, sample_weight=row_weights, verbose=0).history
        logs.append(history)
    assert logs[0] == logs[1]
    if estimator == "enumerate":
        ones = np.ones(6) if row_weights is None else row_weights
        exact = masked_loss(weights, tokens, labels, ones)
        assert logs[0]["loss"][0] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("estimator", ["score_function", "enumerate"])
@pytest.mark.eager
def test_losses_of_rows_are_wide_in_mixed_precision(estimator):
    keras.config.set_dtype_policy("mixed_float16")
    network, _ = early_exit_network(estimator)
    classifier = keras_bdl.BayesianClassifier(network)
    classifier.compile("adam")
    assert np.isfinite(classifier.fit(*rows(), verbose=0).history["loss"]).all()
    # A sum over 20,000 positions is beyond float16.
    labels, logits = np.zeros((1, 20_000)), ops.zeros((1, 20_000, 100), "float16")
    loss = keras_bdl.losses.CategoricalNLL().row_losses(labels, logits)
    np.testing.assert_allclose(to_numpy(loss), 20_000 * np.log(100), rtol=1e-5)
