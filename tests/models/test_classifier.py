"""BayesianClassifier: what fit, evaluate and predict report, and that it survives."""

import keras
import numpy as np
import pytest
from contract import randomize, to_numpy
from keras import ops
from scipy import special

import keras_bdl

pytestmark = pytest.mark.portable

BACKEND = keras.backend.backend()
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype("float32")
BATCH = 30  # of all batches, so that JAX compiles once
Y = (X[:, 0] > 0).astype("int32") + (X[:, 1] > 0.5)


def network(**options):
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras_bdl.VariationalDense(8, activation="relu", **options),
            keras_bdl.VariationalDense(3, **options),
        ]
    )


def classifier(**options):
    model = keras_bdl.BayesianClassifier(network(), num_samples=4, **options)
    model.compile(keras.optimizers.Adam(0.01))
    return model


def fitted(**options):
    model = classifier(**options)
    model.fit(X, Y, BATCH, epochs=2, verbose=0)
    return model


def randomized():
    """As after a training, for tests of what comes then."""
    model = classifier(num_examples=60)
    for layer in model.network.layers:
        randomize(layer)
    return model


def total_kl(model):
    return sum(float(to_numpy(layer.kl())) for layer in model.network.layers)


@pytest.mark.every_backend
def test_fit_reads_the_number_of_examples_and_learns():
    model = classifier()
    options = {"validation_split": 0.25, "batch_size": 15, "verbose": 0}
    history = model.fit(X, Y, epochs=20, **options).history
    assert [float(v._num_examples.value) for v in model.network.layers] == [45, 45]
    assert set(history) == {
        f"{prefix}{name}"
        for prefix in ("", "val_")
        for name in ("loss", "nll", "accuracy", "ece")
    }
    assert history["loss"][-1] < history["loss"][0]
    assert history["val_accuracy"][-1] > 0.5


def test_evaluate_is_the_sampled_bound_and_the_predictive_scores():
    model = randomized()
    big = keras_bdl.BayesianClassifier(model.network, num_samples=80, num_examples=60)
    big.compile()
    result = big.evaluate(X, Y, batch_size=20, verbose=0, return_dict=True)
    draws = keras_bdl.predict(
        big, X, 1000, outputs="logits", return_samples=True, verbose=0
    )
    chosen = np.log(draws[:, np.arange(60), Y])
    bound = -chosen.mean() + total_kl(model) / 60
    per_draw = chosen.mean(axis=1)
    error = per_draw.std() * np.sqrt(1 / 80 + 1 / 1000)
    assert abs(result["loss"] - bound) < 5 * error
    mean = draws.mean(0)
    assert result["nll"] == pytest.approx(
        -np.log(mean[np.arange(60), Y]).mean(), abs=0.04
    )
    assert result["accuracy"] == pytest.approx((mean.argmax(-1) == Y).mean(), abs=0.06)
    assert result["loss"] > result["nll"]  # Jensen, and the KL


@pytest.mark.eager
def test_evaluate_with_batches_of_unequal_size_and_weights():
    model = randomized()
    whole = model.evaluate(X, Y, batch_size=60, verbose=0, return_dict=True)
    parts = model.evaluate(X, Y, batch_size=40, verbose=0, return_dict=True)
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, abs=1e-4)
    weights = np.r_[np.ones(40), np.zeros(20)].astype("float32")
    weighted = model.evaluate(
        X, Y, sample_weight=weights, batch_size=60, verbose=0, return_dict=True
    )
    part = model.evaluate(X[:40], Y[:40], batch_size=60, verbose=0, return_dict=True)
    for name in ("nll", "accuracy", "ece"):
        assert weighted[name] == pytest.approx(part[name], abs=1e-4)


@pytest.mark.unbuilt
@pytest.mark.every_backend
def test_training_loss_is_nll_plus_kl():
    model = classifier()
    model.optimizer.learning_rate = 0.0
    logs = model.fit(X, Y, BATCH, verbose=0).history
    assert logs["loss"][0] == pytest.approx(
        logs["nll"][0] + total_kl(model) / 60, rel=1e-4
    )


@pytest.mark.eager
def test_labels_in_every_form():
    model = randomized()
    expected = model.evaluate(X, Y, verbose=0, return_dict=True)
    for labels in (Y[:, None], np.eye(3)[Y]):
        result = model.evaluate(X, labels, verbose=0, return_dict=True)
        assert result == pytest.approx(expected, abs=1e-5)
    losses = []
    for labels in (Y, Y[:, None], np.eye(3)[Y]):
        losses += model.fit(X, labels, verbose=0).history["loss"]
    assert np.isfinite(losses).all()


@pytest.mark.eager
def test_calling_gives_mean_logits_and_predict_probabilities():
    model = randomized()
    logits = to_numpy(model(X))
    np.testing.assert_allclose(logits, model.network.predict(X, verbose=0), atol=1e-5)
    probabilities = model.predict(X, verbose=0, num_samples=8, seed=0)
    assert probabilities.shape == (60, 3)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(
        probabilities,
        keras_bdl.predict(model.network, X, 8, seed=0, outputs="logits", verbose=0),
        atol=1e-6,
    )
    result = model.predict_uncertainty(X, verbose=0)
    assert isinstance(result, tuple) and result._fields[0] == "probabilities"
    assert (result.mutual_information >= 0).all()


@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
@pytest.mark.eager
def test_save_load_fit_continues_with_the_optimizer(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    model = fitted()
    model.save(tmp_path / "c.keras")
    copy = keras.models.load_model(tmp_path / "c.keras")
    np.testing.assert_array_equal(
        model.predict(X, seed=0, verbose=0), copy.predict(X, seed=0, verbose=0)
    )
    assert int(copy.optimizer.iterations.value) == int(model.optimizer.iterations.value)
    assert copy.evaluate(X, Y, BATCH, verbose=0) == pytest.approx(
        model.evaluate(X, Y, BATCH, verbose=0), rel=1e-4
    )
    for m in (model, copy):
        m.fit(X, Y, BATCH, shuffle=False, verbose=0)
    for a, b in zip(model.weights, copy.weights):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-5)


def test_export_serves_mean_logits(tmp_path, only_tensorflow):
    import tensorflow as tf

    model = randomized()
    model.export(str(tmp_path / "e"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "e"))
    served = loaded.serve(X).numpy()
    np.testing.assert_allclose(served, to_numpy(model(X)), atol=1e-5)


def test_scikit_learn_wrapper():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    model = classifier()
    wrapped = keras.wrappers.SKLearnClassifier(model, fit_kwargs={"verbose": 0})
    wrapped.fit(X, np.array(["a", "b", "c"])[Y], epochs=10, batch_size=8)
    predicted = wrapped.predict(X)
    assert set(predicted.ravel()) <= {"a", "b", "c"}
    assert (predicted.ravel() == np.array(["a", "b", "c"])[Y]).mean() > 0.5


@pytest.mark.eager
def test_clone_model():
    model = randomized()
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(to_numpy(clone(X)), to_numpy(model(X)), atol=1e-6)


@pytest.mark.eager
def test_tf_data_and_pydataset():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(60).batch(16)
    model = classifier()
    model.fit(data, validation_data=data, verbose=0)
    assert float(model.network.layers[0]._num_examples.value) == 60


@pytest.mark.eager
def test_a_generator_needs_an_explicit_number():
    def batches():
        while True:
            yield X[:8], Y[:8]

    model = classifier()
    with pytest.raises(ValueError, match="num_examples.*Received"):
        model.fit(batches(), steps_per_epoch=2, verbose=0)
    explicit = classifier(num_examples=60)
    explicit.fit(batches(), steps_per_epoch=2, verbose=0)


def test_an_inferred_number_is_read_again_and_an_explicit_one_wins():
    model = classifier()
    model.fit(X, Y, verbose=0)
    model.fit(X[:20], Y[:20], verbose=0)
    assert float(model.network.layers[0]._num_examples.value) == 20
    explicit = classifier(num_examples=7)
    explicit.fit(X, Y, verbose=0)
    assert float(explicit.network.layers[0]._num_examples.value) == 7


def test_an_unbuilt_network():
    model = keras_bdl.BayesianClassifier(
        keras.Sequential(
            [keras_bdl.VariationalDense(4), keras_bdl.VariationalDense(3)]
        ),
        num_samples=3,
    )
    model.compile()
    model.fit(X, Y, verbose=0)
    assert model.predict(X, verbose=0).shape == (60, 3)


@pytest.mark.eager
def test_a_subclassed_network_and_extra_metrics():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras_bdl.VariationalDense(3)

        def call(self, inputs, training=None):
            return self.layer(inputs, training=training)

    model = keras_bdl.BayesianClassifier(Net(), num_samples=3)
    model.compile(metrics=[keras_bdl.metrics.BrierScore(from_logits=True)])
    history = model.fit(X, Y, validation_data=(X, Y), verbose=0).history
    assert 0 < history["val_brier_score"][0] < 2
    assert model.predict(X, verbose=0).shape == (60, 3)


@pytest.mark.parametrize("num_samples", [4, 20])  # without and with a loop
def test_other_add_loss_terms_stay_in_the_evaluated_loss(num_samples):
    def loss(l2):
        net = keras.Sequential(
            [
                keras.Input((4,)),
                keras_bdl.VariationalDense(3, num_examples=60, seed=0, name="d"),
                keras.layers.ActivityRegularization(l2=l2),
            ]
        )
        net.layers[0].kernel.assign(np.arange(12.0).reshape(4, 3) / 10)
        model = keras_bdl.BayesianClassifier(net, num_samples=num_samples)
        model.compile()
        penalty = float((to_numpy(model(X)) ** 2).sum() / 60)
        return model.evaluate(X, Y, batch_size=60, verbose=0)[0], penalty

    (with_penalty, penalty), (without, _) = loss(1.0), loss(0.0)
    assert with_penalty - without == pytest.approx(penalty, rel=0.02)
    assert without > total_kl_of_a_layer() / 60


def total_kl_of_a_layer():
    layer = keras_bdl.VariationalDense(3)
    layer.build((None, 4))
    layer.kernel.assign(np.arange(12.0).reshape(4, 3) / 10)
    return float(to_numpy(layer.kl()))


def test_refusals():
    with pytest.raises(TypeError, match="network.*Received"):
        keras_bdl.BayesianClassifier(keras.layers.Dense(2))
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="keras_bdl layers.*Received"):
        keras_bdl.BayesianClassifier(plain)
    single = keras.Sequential([keras.Input((4,)), keras_bdl.VariationalDense(1)])
    with pytest.raises(ValueError, match="2 units.*Received"):
        keras_bdl.BayesianClassifier(single)
    with pytest.raises(ValueError, match="own likelihood.*Received"):
        keras_bdl.BayesianClassifier(network()).compile("adam", "mse")


def test_labels_outside_the_classes_are_refused():
    model = classifier()
    with pytest.raises(ValueError, match="labels.*Received"):
        model.fit(X, Y + 5, verbose=0)


def test_labels_that_are_no_whole_numbers_are_refused():
    model = classifier()
    with pytest.raises(TypeError, match="StringLookup.*Received"):
        model.fit(X, np.array(["a"] * 60), verbose=0)
    with pytest.raises(ValueError, match="whole numbers.*Received: labels such as 0.5"):
        model.fit(X, np.full(60, 0.5), verbose=0)


def test_networks_of_several_outputs_are_refused():
    inputs = keras.Input((4,))
    hidden = keras_bdl.VariationalDense(3)(inputs)
    outputs = {"a": hidden, "b": keras_bdl.VariationalDense(2)(hidden)}
    with pytest.raises(ValueError, match="one tensor of logits.*Received: 2 outputs"):
        keras_bdl.BayesianClassifier(keras.Model(inputs, outputs))


@pytest.mark.eager
def test_metrics_of_the_users_see_one_hot_labels():
    labels = np.eye(3)[Y]
    model = keras_bdl.BayesianClassifier(network())
    others = [
        keras.metrics.CategoricalAccuracy(),
        keras.metrics.TopKCategoricalAccuracy(k=2),
        keras.metrics.F1Score(average="micro"),
    ]
    model.compile("adam", metrics=others)
    model.fit(X, labels, validation_data=(X, labels), verbose=0)
    result = model.evaluate(X, labels, verbose=0, return_dict=True)
    logits = to_numpy(model(X))
    hits = logits.argmax(axis=-1) == Y
    assert result["categorical_accuracy"] == pytest.approx(hits.mean())
    assert result["f1_score"] == pytest.approx(hits.mean())
    least = logits.argmin(axis=-1)
    top = result["top_k_categorical_accuracy"]
    assert top == pytest.approx((least != Y).mean())


def test_losses_are_finite_for_extreme_logits():
    logits = ops.convert_to_tensor(np.array([[1e4, -1e4, 0.0]], "float32"))
    loss = keras_bdl.losses.CategoricalNLL()
    assert float(to_numpy(loss(np.array([1]), logits))) == pytest.approx(2e4)


@pytest.mark.eager
def test_positional_epochs_and_prediction_of_a_batch():
    model = classifier()
    history = model.fit(X, Y, 32, 2, verbose=0)
    assert len(history.epoch) == 2
    p = model.predict_on_batch(X[:5])
    np.testing.assert_allclose(p.sum(axis=-1), 1.0, atol=1e-5)


def test_one_hot_labels_of_another_width_are_refused():
    model = classifier()
    with pytest.raises(ValueError, match="one-hot over .*Received: labels of shape"):
        model.fit(X, np.eye(9)[Y], verbose=0)


@pytest.mark.eager
def test_what_the_classifier_reports_needs_no_asking():
    model = classifier()
    model.compile("adam", metrics=["accuracy"])
    history = model.fit(X, Y, verbose=0).history
    assert set(history) == {"loss", "nll", "accuracy", "ece"}
    with pytest.raises(ValueError, match="itself.*Received: metric='ece'"):
        model.compile("adam", metrics=[keras.metrics.Mean(name="ece")])


def test_arguments_of_compile_that_would_change_the_bound():
    total = keras_bdl.losses.CategoricalNLL(reduction="sum")
    with pytest.raises(ValueError, match="loss.reduction='sum'"):
        classifier().compile("adam", total)
    with pytest.raises(ValueError, match="loss_weights.*Received"):
        classifier().compile("adam", loss_weights=[2.0])


def test_masked_positions_count_nowhere():
    """A recurrent tagger: padded steps are in neither loss nor metrics."""
    inputs = keras.Input((6,), dtype="int32")
    hidden = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    hidden = keras.layers.GRU(5, return_sequences=True)(hidden)
    model = keras_bdl.BayesianClassifier(
        keras.Model(inputs, keras_bdl.VariationalDense(3)(hidden)),
        num_samples=4,
        num_examples=10**9,
    )
    model.compile("sgd")
    rng = np.random.default_rng(0)
    x = rng.integers(1, 9, size=(10, 6))
    x[:, 4:] = 0
    y = rng.integers(0, 3, size=(10, 6))
    result = model.evaluate(x, y, verbose=0, return_dict=True)
    y[:, 4:] = (y[:, 4:] + 1) % 3
    assert model.evaluate(x, y, verbose=0, return_dict=True) == result
    y[:, 0] = (y[:, 0] + 1) % 3
    assert model.evaluate(x, y, verbose=0, return_dict=True) != result
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()


@pytest.mark.eager
def test_a_repeated_data_set_is_counted_with_a_warning():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).repeat(2).batch(20)
    with pytest.warns(UserWarning, match="repeats its rows"):
        classifier().fit(data, verbose=0)


@pytest.mark.eager
def test_soft_labels_train_and_independent_ones_are_refused():
    soft = 0.9 * np.eye(3)[Y] + 0.1 / 3
    assert np.isfinite(classifier().fit(X, soft, verbose=0).history["loss"]).all()
    multi_hot = np.eye(3)[Y]
    multi_hot[0] = 1
    with pytest.raises(ValueError, match="sum 1.*Received: labels"):
        classifier().fit(X, multi_hot, verbose=0)
    with pytest.raises(ValueError, match="Received: labels"):
        classifier().fit(X, 2 * np.eye(3)[Y] - 1, verbose=0)


def test_soft_labels_are_scored_as_what_they_are():
    model = classifier(num_examples=60)
    for layer in model.network.layers:  # all samples are the mean
        layer.kernel_log_stddev.assign(np.full(layer.kernel.shape, -20.0))
        layer.bias_log_stddev.assign(np.full(layer.bias.shape, -20.0))
    soft = np.random.default_rng(1).dirichlet(np.ones(3), size=60).astype("float32")
    p = special.softmax(to_numpy(model(X)), axis=-1)
    confidence, hits = p.max(-1), soft[np.arange(60), p.argmax(-1)]
    bins = np.ceil(15 * confidence)
    gaps = [(hits - confidence)[bins == b].sum() for b in range(1, 16)]
    for found in (
        model.evaluate(X, soft, return_dict=True, verbose=0),
        model.evaluate(SoftBatches(soft), return_dict=True, verbose=0),
    ):
        nll = -(soft * np.log(p)).sum(axis=-1).mean()
        assert found["nll"] == pytest.approx(nll, rel=1e-4)
        assert found["ece"] == pytest.approx(np.abs(gaps).sum() / 60, rel=1e-3)
        accuracy = (soft.argmax(-1) == p.argmax(-1)).mean()
        assert found["accuracy"] == pytest.approx(accuracy)


class SoftBatches(keras.utils.PyDataset):
    def __init__(self, soft):
        super().__init__()
        self.soft = soft

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = slice(20 * index, 20 * index + 20)
        return X[rows], self.soft[rows]


def test_a_loss_with_ignored_labels_is_refused():
    model = keras_bdl.BayesianClassifier(network())
    with pytest.raises(ValueError, match="weight 0.*Received: loss.ignore_class=-1"):
        model.compile(loss=keras_bdl.losses.CategoricalNLL(ignore_class=-1))


def test_around_a_graph_it_is_built_at_once(tmp_path):
    def make():
        inputs = keras.Input((4,))
        outputs = keras_bdl.VariationalDense(3)(inputs)
        return keras_bdl.BayesianClassifier(keras.Model(inputs, outputs))

    classifier, copy = make(), make()
    classifier.save_weights(tmp_path / "model.weights.h5")
    copy.load_weights(tmp_path / "model.weights.h5")
    for ours, theirs in zip(classifier.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert copy.count_params() == 2 * 5 * 3


@pytest.mark.parametrize("posterior", ["gaussian", keras_bdl.posteriors.LowRank(1)])
def test_a_plain_network_gets_a_posterior(posterior, tmp_path):
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    classifier = keras_bdl.BayesianClassifier(network, posterior=posterior)
    regressor = keras_bdl.BayesianRegressor(
        network, noise="homoscedastic", posterior=posterior
    )
    expected = ops.convert_to_numpy(ops.stop_gradient(network(x)))
    got = ops.convert_to_numpy(ops.stop_gradient(classifier(x)))
    np.testing.assert_array_equal(got, expected)
    for model in (classifier, regressor):
        layer = model.network.layers[-1]
        assert type(layer) is keras_bdl.VariationalDense
        kind = "Gaussian" if posterior == "gaussian" else "LowRank"
        assert type(layer.posterior).__name__ == kind
    classifier.compile("adam")
    classifier.fit(x, np.arange(12) % 3, verbose=0)
    classifier.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.predict(x, seed=0, verbose=0),
        classifier.predict(x, seed=0, verbose=0),
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="plain network.*Received: posterior"):
        keras_bdl.BayesianClassifier(classifier.network, posterior="gaussian")
    with pytest.raises(ValueError, match='posterior="gaussian".*Received: network'):
        keras_bdl.BayesianClassifier(network)
