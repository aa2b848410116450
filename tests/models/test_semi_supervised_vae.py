"""Few labels: the bound against an exact model, batches, learning, errors."""

import keras
import numpy as np
import pytest
from contract import to_numpy
from scipy import special, stats

import keras_bdl
from keras_bdl import losses
from keras_bdl.generative.mixed_batches import MixedBatches

pytestmark = pytest.mark.portable

# A model whose posteriors are of the networks' form: x = z W + b_y + noise, with
# orthogonal rows of W.

KERNEL = np.array([[1.2, 0.0, 0.0], [0.0, 0.8, 0.0]])
NOISE, CLASSES = 0.6, 4


def exact_model(rng, **options):
    """The model, data, and log p(x, y) of each row and class."""
    model = keras_bdl.SemiSupervisedVAE.dense(
        (3,), 2, CLASSES, hidden=(), likelihood=losses.GaussianNLL(NOISE), **options
    )
    biases = rng.normal(size=(CLASSES, 3))
    covariance = KERNEL.T @ KERNEL + NOISE**2 * np.eye(3)
    precision = np.linalg.inv(covariance)
    squares = np.einsum("ki,ij,kj->k", biases, precision, biases)
    model.classifier.set_weights([precision @ biases.T, -0.5 * squares])
    variance = 1.0 / (1.0 + np.diag(KERNEL @ KERNEL.T) / NOISE**2)
    gain = KERNEL.T * variance / NOISE**2
    kernel = np.concatenate([gain, -biases @ gain])
    model.encoder.set_weights(
        [
            np.concatenate([kernel, 0.0 * kernel], axis=1),
            np.concatenate([np.zeros(2), 0.5 * np.log(variance)]),
        ]
    )
    model.decoder.set_weights([np.concatenate([KERNEL, biases]), np.zeros(3)])
    labels = rng.integers(0, CLASSES, 300)
    x = rng.normal(size=(300, 2)) @ KERNEL + biases[labels]
    x = (x + NOISE * rng.normal(size=x.shape)).astype("float32")
    joint = np.stack(
        [stats.multivariate_normal(b, covariance).logpdf(x) for b in biases], axis=1
    ) - np.log(CLASSES)
    model.build((None, 3))
    return model, x, labels, joint


def logs_of(model, x, y):
    model.compile("sgd")
    rows, labels = np.tile(x, (30, 1)), np.tile(y, 30)
    return model.evaluate(
        rows, labels, batch_size=len(rows), verbose=0, return_dict=True
    )


@pytest.mark.eager
def test_without_labels_the_bound_of_the_exact_posterior_is_the_evidence(rng):
    model, x, labels, joint = exact_model(rng)
    logs = logs_of(model, x, np.full(len(x), -1))
    evidence = special.logsumexp(joint, axis=1)
    assert -logs["loss"] == pytest.approx(evidence.mean(), abs=0.02)
    assert logs["accuracy"] == 0.0  # of no row


def test_with_labels_it_is_the_joint_and_the_cross_entropy(rng):
    model, x, labels, joint = exact_model(rng, classifier_weight=0.7)
    log_q = joint - special.logsumexp(joint, axis=1, keepdims=True)
    rows = np.arange(len(x))
    cross_entropy = -log_q[rows, labels].mean()
    logs = logs_of(model, x, labels)
    expected = -joint[rows, labels].mean() + 0.7 * cross_entropy
    assert logs["loss"] == pytest.approx(expected, abs=0.02)
    accuracy = (joint.argmax(axis=1) == labels).mean()
    assert logs["accuracy"] == pytest.approx(accuracy, abs=0.01)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), np.exp(log_q), rtol=1e-3, atol=1e-5
    )


@pytest.mark.eager
def test_both_count_by_their_share(rng):
    model, x, labels, joint = exact_model(rng, classifier_weight=0.0)
    some = np.where(rng.random(len(x)) < 0.3, labels, -1)
    known = some >= 0
    evidence = special.logsumexp(joint, axis=1)
    expected = joint[known, labels[known]].sum() + evidence[~known].sum()
    logs = logs_of(model, x, some)
    assert -logs["loss"] == pytest.approx(expected / len(x), abs=0.02)


def test_training_undoes_the_oversampling(rng):
    model, x, labels, joint = exact_model(rng, classifier_weight=0.0)
    some = np.where(np.arange(len(x)) < 30, labels, -1)
    evidence = special.logsumexp(joint, axis=1)
    expected = joint[np.arange(30), labels[:30]].sum() + evidence[30:].sum()
    model.compile(keras.optimizers.SGD(0.0))
    history = model.fit(x, some, batch_size=60, epochs=25, verbose=0).history
    assert -np.mean(history["loss"]) == pytest.approx(expected / len(x), abs=0.08)


def gradients_of(model, x, y, repeats):
    """Gradients of one batch, with new noise in each: `(repeats, weights)`."""
    rate = 1e-2
    model.compile(keras.optimizers.SGD(rate))
    before = model.get_weights()
    changes = []
    for _ in range(repeats):
        model.train_on_batch(x, y)
        after = model.get_weights()
        changes.append(np.concatenate([(b - a).ravel() for b, a in zip(before, after)]))
        model.set_weights(before)
    return np.array(changes) / rate


def test_of_few_summed_classes_loss_and_gradient_are_unbiased():
    repeats = 60
    gradients, losses_seen = [], []
    for summed_classes in (None, 1):
        # A classifier that is not sure, far from the posterior of the class.
        model, x, labels, _ = exact_model(
            np.random.default_rng(0), summed_classes=summed_classes, seed=1
        )
        kernel, bias = model.classifier.get_weights()
        model.classifier.set_weights([0.3 * kernel, 0.0 * bias])
        y = np.where(np.arange(len(x)) < 100, labels, -1)
        gradients.append(gradients_of(model, x, y, repeats))
        model.compile(keras.optimizers.SGD(0.0))
        losses_seen.append([model.train_on_batch(x, y)[0] for _ in range(repeats)])
    for exact, few in (gradients, losses_seen):
        error = np.sqrt((np.var(exact, axis=0) + np.var(few, axis=0)) / repeats)
        difference = np.mean(few, axis=0) - np.mean(exact, axis=0)
        assert (np.abs(difference) <= 5.0 * error + 1e-4).all()
    assert np.abs(gradients[0].mean(axis=0)).max() > 0.1  # there is one to be had


@pytest.mark.eager
def test_evaluation_sums_all_classes(rng):
    model, x, labels, joint = exact_model(rng, summed_classes=1)
    logs = logs_of(model, x, np.full(len(x), -1))
    evidence = special.logsumexp(joint, axis=1)
    assert -logs["loss"] == pytest.approx(evidence.mean(), abs=0.02)


# Evaluation


def expected_loss(joint, labels, some, weight):
    """The negative bound per row, and the mean cross-entropy of labelled rows."""
    known = some >= 0
    evidence = special.logsumexp(joint, axis=1)
    of_labels = joint[np.arange(len(joint)), labels]
    cross_entropy = (evidence - of_labels)[known].mean()
    return weight * cross_entropy - np.where(known, of_labels, evidence).mean()


def losses_of(model, x, y, **options):
    """The loss in batches of several sizes, of rows in several orders."""
    found = []
    for batch_size, order in ((900, 1), (64, 1), (7, -1)):
        rows = np.argsort(y, kind="stable")[::order]
        logs = model.evaluate(
            x[rows], y[rows], batch_size=batch_size, verbose=0, return_dict=True
        )
        assert set(logs) == {"loss", "reconstruction", "kl", "accuracy"}
        found.append(logs["loss"])
    return np.array(found)


def test_the_loss_does_not_depend_on_batches_or_order(rng):
    """Of a model that was only built, and of one trained on other labels."""
    model, x, labels, joint = exact_model(rng, classifier_weight=20.0)
    some = np.where(rng.random(len(x)) < 0.1, labels, -1)
    model.compile(keras.optimizers.SGD(0.0))
    rows, y = np.tile(x, (3, 1)), np.tile(some, 3)
    for _ in range(2):
        found = losses_of(model, rows, y)
        expected = expected_loss(joint, labels, some, 20.0)
        np.testing.assert_allclose(found, expected, atol=0.15)
        history = model.fit(
            x,
            np.where(np.arange(300) < 30, labels, -1),
            batch_size=50,
            verbose=0,
            validation_data=(rows, y),
            validation_batch_size=37,
        ).history
        assert history["val_loss"][0] == pytest.approx(expected, abs=0.15)


def test_the_default_weight_is_of_the_training_data_or_of_these(rng):
    model, x, labels, joint = exact_model(rng)
    some = np.where(np.arange(300) % 10 == 0, labels, -1)
    model.compile(keras.optimizers.SGD(0.0))
    expected = expected_loss(joint, labels, some, 0.1 / 0.1)
    np.testing.assert_allclose(losses_of(model, x, some), expected, atol=0.25)
    model.fit(x, np.where(np.arange(300) < 6, labels, -1), verbose=0)
    expected = expected_loss(joint, labels, some, 0.1 / 0.02)
    np.testing.assert_allclose(losses_of(model, x, some), expected, atol=0.25)


def test_rows_are_weighted_one_by_one(rng):
    model, x, labels, joint = exact_model(rng, classifier_weight=20.0)
    some = np.where(rng.random(len(x)) < 0.3, labels, -1)
    model.compile(keras.optimizers.SGD(0.0))
    first = (np.arange(len(x)) < 100).astype("float32")

    def loss(weights, batch_size):
        options = {"sample_weight": weights, "batch_size": batch_size, "verbose": 0}
        return np.mean([model.evaluate(x, some, **options)[0] for _ in range(4)])

    parts = loss(first, 300) + loss(1.0 - first, 11)
    whole = expected_loss(joint, labels, some, 20.0)
    assert parts == pytest.approx(whole, abs=0.25)
    assert loss(0.0 * first, 50) == 0.0


def test_data_sets_are_evaluated_and_trained_alike(rng, only_tensorflow):
    import tensorflow as tf

    model, x, labels, joint = exact_model(rng)
    some = np.where(np.arange(300) < 60, labels, -1)
    model.compile(keras.optimizers.SGD(0.0))
    data = tf.data.Dataset.from_tensor_slices((x, some)).batch(7)
    # One labelled row in five, wherever they are: the weight is .1 times 5.
    expected = expected_loss(joint, labels, some, 0.5)
    logs = model.fit(data, epochs=5, verbose=0, validation_data=data).history
    assert np.mean(logs["loss"]) == pytest.approx(expected, abs=0.2)
    assert np.mean(logs["val_loss"]) == pytest.approx(expected, abs=0.2)
    with pytest.raises(ValueError, match="labels.*Received: y=None"):
        model.fit(data.map(lambda x, y: x), verbose=0)


# Resumption


@pytest.mark.parametrize("shuffle", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.eager
def test_saved_training_goes_on_in_the_same_order(rng, tmp_path, shuffle):
    """Weights, noise and order of the batches come from the file alone."""
    x, labels, some = clusters(rng, 40)
    grey = 0.8 * x + 0.1
    options = {"batch_size": 16, "verbose": 0, "shuffle": shuffle}

    def make():
        bits = keras_bdl.layers.DynamicBinarization(name="bits")
        model = keras_bdl.SemiSupervisedVAE.dense(
            (12,), 2, 2, hidden=(4,), preprocessing=bits, summed_classes=1
        )
        model.build((None, 12))
        model.compile(keras.optimizers.Adam(0.01))
        return model

    keras.utils.set_random_seed(0)
    whole = make()
    whole.fit(grey, some, epochs=2, **options)
    keras.utils.set_random_seed(0)
    first = make()
    first.fit(grey, some, epochs=1, **options)
    first.save(tmp_path / "model.keras")
    first.save_weights(tmp_path / "model.weights.h5")
    keras.utils.set_random_seed(5)  # of another process
    second = keras.models.load_model(tmp_path / "model.keras")
    second.fit(grey, some, epochs=1, **options)
    third = make()
    third.optimizer.build(third.trainable_variables)
    third.load_weights(tmp_path / "model.weights.h5")
    third.fit(grey, some, initial_epoch=1, epochs=2, **options)
    for copy in (second, third):
        for a, b in zip(whole.get_weights(), copy.get_weights()):
            np.testing.assert_allclose(a, b, atol=1e-6)
    moved = [
        np.abs(a - b).max() for a, b in zip(first.get_weights(), whole.get_weights())
    ]
    assert max(moved) > 1e-3


# Batches


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_have_every_unlabelled_row_once(shuffle):
    x = np.arange(103)[:, None]
    labels = np.where(np.arange(103) % 10 == 0, 1, -1)  # 11 of 103
    seeds = [5, 4]
    batches = MixedBatches(x, labels, 20, 0.25, shuffle, seeds.pop)
    seen = []
    for _ in range(2):
        batches.on_epoch_begin()
        parts = [batches[index] for index in range(len(batches))]
        rows = np.concatenate([part for part, _, _ in parts])[:, 0]
        seen.append(rows)
        for part, given, weights in parts:
            of_labels = weights[given >= 0].sum() / len(part)
            assert of_labels == pytest.approx(11 / 103, rel=1e-5)
            assert weights.sum() == pytest.approx(len(part), rel=1e-5)
            assert (given >= 0).sum() == 5
            np.testing.assert_array_equal(given, labels[part[:, 0]])
        counts = np.bincount(rows, minlength=103)
        assert (counts[labels < 0] == 1).all()
        repeats = counts[labels >= 0]
        assert repeats.min() >= 1 and np.ptp(repeats) <= 1
    assert np.array_equal(*seen) != shuffle
    again = MixedBatches(x, labels, 20, 0.25, shuffle, lambda: 4)
    again.on_epoch_begin()
    np.testing.assert_array_equal(again[0][0], seen[0][:20, None])


def test_batches_of_labelled_rows_alone():
    x = np.arange(7)[:, None]
    batches = MixedBatches(x, np.zeros(7, int), 3, 0.5, True, lambda: 0)
    rows = np.concatenate([batches[index][0] for index in range(len(batches))])
    assert sorted(rows[:, 0]) == list(range(7))


# Use


def clusters(rng, rows=400):
    """Two groups of bits, of which few rows are labelled."""
    labels = rng.integers(0, 2, rows)
    centres = np.array([[0.9] * 6 + [0.1] * 6, [0.1] * 6 + [0.9] * 6])
    x = (rng.random((rows, 12)) < centres[labels]).astype("float32")
    return x, labels, np.where(np.arange(rows) < 6, labels, -1)


@pytest.mark.parametrize(
    "summed_classes", [None, pytest.param(1, marks=pytest.mark.slow)]
)
def test_few_labels_are_enough(rng, tmp_path, summed_classes):
    x, labels, some = clusters(rng)
    model = keras_bdl.SemiSupervisedVAE.dense(
        (12,), 2, 2, hidden=(16,), summed_classes=summed_classes, seed=0
    )
    model.compile(keras.optimizers.Adam(0.01))
    history = model.fit(x, some, batch_size=50, epochs=15, verbose=0).history
    assert set(history) == {"loss", "reconstruction", "kl", "accuracy"}
    probabilities = model.predict(x, verbose=0)
    assert (probabilities.argmax(axis=1) == labels).mean() > 0.95
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    for label in (0, 1):
        means = model.sample(50, label=label, seed=0).mean(axis=0)
        assert (means[:6].mean() > 0.5) == (label == 0)
    bits = model.sample(20, seed=1, with_noise=True)
    assert set(np.unique(bits)) == {0.0, 1.0}
    np.testing.assert_array_equal(bits, model.sample(20, seed=1, with_noise=True))

    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(probabilities, copy.predict(x, verbose=0))
    copy.fit(x, some, batch_size=50, verbose=0, validation_data=(x, labels))


def test_on_the_codes_of_a_vae(rng, tmp_path):
    x, labels, some = clusters(rng)
    vae = keras_bdl.VAE.dense((12,), 3, (16,), seed=0)
    vae.compile(keras.optimizers.Adam(0.01))
    vae.fit(x, epochs=5, batch_size=50, verbose=0)
    frozen = vae.get_weights()
    model = keras_bdl.SemiSupervisedVAE.on_codes(vae, 2, 2, hidden=(16,))
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(x, some, batch_size=50, epochs=8, verbose=0)
    for before, after in zip(frozen, vae.get_weights()):
        np.testing.assert_array_equal(before, after)
    assert (model.predict(x, verbose=0).argmax(axis=1) == labels).mean() > 0.9
    images = model.sample(5, label=[0, 1, 0, 1, 1], seed=0)
    assert images.shape == (5, 12) and images.min() >= 0.0 and images.max() <= 1.0
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), copy.predict(x, verbose=0)
    )


def test_exported_it_serves_probabilities(rng, tmp_path, only_tensorflow):
    import tensorflow as tf

    model, x, _, _ = exact_model(rng)
    expected = model.predict(x, verbose=0)
    model.export(str(tmp_path / "model"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    np.testing.assert_allclose(loaded.serve(x), expected, atol=1e-5)


# Refusals


def test_wrong_labels_and_arguments_are_refused(rng):
    model, x, labels, _ = exact_model(rng)
    model.compile("sgd")
    for y in (
        labels + 1,
        labels - 2,
        labels + 0.5,
        labels[:-1],
        np.full(len(x), -1),
        np.full(len(x), "a"),
        None,
    ):
        with pytest.raises(ValueError, match="label.*Received"):
            model.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="labels.*Received: y=None"):
        model.train_on_batch(x)
    with pytest.raises(ValueError, match="validation_split.*Received"):
        model.fit(x, labels, validation_split=0.1)
    for name, value in (("sample_weight", np.ones(len(x))), ("class_weight", {0: 2.0})):
        with pytest.raises(ValueError, match=f"{name}.*Received"):
            model.fit(x, labels, **{name: value})
    with pytest.raises(ValueError, match="shape.*Received"):
        model.fit(x[:, :-1], labels)
    with pytest.raises(ValueError, match="finite.*Received"):
        model.fit(np.nan * x, labels)
    with pytest.raises(ValueError, match="label.*Received"):
        model.sample(3, label=CLASSES)
    networks = (model.classifier, model.encoder, model.decoder)
    for options in ({"hidden": 64}, {"hidden": b"x"}, {"hidden": (2.5,)}):
        with pytest.raises(TypeError, match="hidden.*Received"):
            keras_bdl.SemiSupervisedVAE.dense((3,), 2, CLASSES, **options)
    with pytest.raises(ValueError, match="trained.*Received: vae=3"):
        keras_bdl.SemiSupervisedVAE.on_codes(3, 2, CLASSES)
    one, two = model.classifier, model.encoder
    for wrong in ((two, two, two), (one, one, two), (one, two, one)):
        with pytest.raises(ValueError, match="inputs.*Received"):
            keras_bdl.SemiSupervisedVAE(*wrong)
    for index, message in enumerate(("classifier", "encoder", "decoder")):
        parts = list(networks)
        inputs = parts[index].inputs
        outputs = [parts[index].output] * 3
        parts[index] = keras.Model(inputs if index else inputs[0], outputs)
        wrong = keras_bdl.SemiSupervisedVAE(*parts, losses.GaussianNLL(NOISE))
        with pytest.raises(ValueError, match=f"{message} with one output.*Received"):
            wrong.build((None, 3))
    with pytest.raises(TypeError, match="features.*Received"):
        keras_bdl.SemiSupervisedVAE(*networks, features=3)
    with pytest.raises(ValueError, match="labeled_share.*Received"):
        keras_bdl.SemiSupervisedVAE(*networks, labeled_share=1.0)
    with pytest.raises(ValueError, match="classifier_weight.*Received"):
        keras_bdl.SemiSupervisedVAE(*networks, classifier_weight=-1.0)
    for number in (0, 1.5, True):
        with pytest.raises((TypeError, ValueError), match="summed_classes.*Received"):
            keras_bdl.SemiSupervisedVAE(*networks, summed_classes=number)
    few = keras_bdl.SemiSupervisedVAE(
        *networks, losses.GaussianNLL(NOISE), summed_classes=CLASSES
    )
    with pytest.raises(ValueError, match="summed_classes.*Received"):
        few.build((None, 3))
    with pytest.raises(ValueError, match="own loss.*Received"):
        model.compile("sgd", loss="mse")
    assert np.isfinite(to_numpy(model.predict(x[:1], verbose=0))).all()
