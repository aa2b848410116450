"""Yesterday's posterior as today's prior, against the closed form of doing so.

For a linear layer with known noise, the best factorised Gaussian under the prior
N(m0, diag(v0)) has variances 1 / P_ii and mean P^-1 (Phi^T t / noise + m0 / v0), with
P = Phi^T Phi / noise + diag(1 / v0) (Bishop, "Pattern recognition and machine
learning", 2006, 3.50 and 10.68). The second half of the data starts from what that
gives for the first.
"""

import keras
import numpy as np
import pytest
from contract import to_numpy

import keras_bdl
from keras_bdl.layers.bayesian import bayesian_layers

pytestmark = pytest.mark.portable

ROWS, UNITS, STEPS = 40, 64, 600
NOISE_STDDEV, PRIOR_STDDEV = 0.6, 0.5
PRIOR_PARTS = ("mean", "log_stddev")


def make_data():
    rng = np.random.default_rng(1)
    x = 0.9 * rng.normal(size=(2 * ROWS, 1)) + 0.45 * rng.normal(size=(2 * ROWS, 3))
    design = np.column_stack([x + 0.3, np.ones(2 * ROWS)]).astype("float32")
    noise = NOISE_STDDEV * rng.normal(size=2 * ROWS)
    return design.astype("float64"), design @ [0.9, -0.7, 0.5, 0.4] + noise


def best_mean_field(design, targets, mean, variance):
    precision = design.T @ design / NOISE_STDDEV**2 + np.diag(1 / variance)
    information = design.T @ targets / NOISE_STDDEV**2 + mean / variance
    return np.linalg.solve(precision, information), 1 / np.diag(precision)


def fit(model, design, targets):
    """Each step takes all rows; each unit draws its weights once, and all are alike."""
    rate = keras.optimizers.schedules.CosineDecay(0.03, STEPS)
    loss = keras_bdl.losses.GaussianNLL(stddev=NOISE_STDDEV)
    model.compile(keras.optimizers.Adam(rate), loss)
    x = np.tile(design[:, :-1], (STEPS, 1))
    y = np.tile(targets[:, None], (STEPS, UNITS))
    model.fit(x, y, batch_size=len(design), shuffle=False, verbose=0)


def posterior_of(layer):
    """Means and variances of kernel and bias, averaged over units."""
    pairs = layer.gaussians().values()
    mean, log_stddev = (np.vstack([to_numpy(v) for v in vs]) for vs in zip(*pairs))
    return mean.mean(axis=1), np.exp(2 * log_stddev).mean(axis=1)


def prior_of(layer):
    return [
        to_numpy(getattr(layer, f"prior_{name}_{part}"))
        for name in layer.gaussians()
        for part in PRIOR_PARTS
    ]


def moments_of(layer):
    return [to_numpy(v) for pair in layer.gaussians().values() for v in pair]


@pytest.mark.one_backend
def test_two_halves_reach_the_closed_form_of_two_updates():
    design, targets = make_data()
    first, second = (design[:ROWS], targets[:ROWS]), (design[ROWS:], targets[ROWS:])
    broad = np.zeros(4), np.full(4, PRIOR_STDDEV**2)
    after_first = best_mean_field(*first, *broad)
    mean, variance = best_mean_field(*second, *after_first)
    at_once = best_mean_field(design, targets, *broad)
    forgotten = best_mean_field(*second, *broad)
    np.testing.assert_allclose(variance, at_once[1])  # precisions add up
    scale = np.abs(mean).max()
    for other in (at_once[0], forgotten[0], after_first[0]):  # far from what is right
        assert np.abs(mean - other).max() > 0.1 * scale
    assert (forgotten[1] / variance).min() > 1.5

    layer = keras_bdl.VariationalDense(
        UNITS,
        prior=keras_bdl.priors.Normal(stddev=PRIOR_STDDEV),
        num_examples=ROWS,
        estimator="reparameterization",
        initial_log_stddev=-3.0,
    )
    model = keras.Sequential([keras.Input((3,)), layer])
    fit(model, *first)
    np.testing.assert_allclose(posterior_of(layer)[1], after_first[1], rtol=0.05)
    updated = keras_bdl.prior_from_posterior(model)
    keras_bdl.set_num_examples(updated, ROWS)
    fit(updated, *second)
    found_mean, found_variance = posterior_of(updated.layers[0])
    np.testing.assert_allclose(found_mean, mean, rtol=0, atol=0.02 * scale)
    np.testing.assert_allclose(found_variance, variance, rtol=0.05)


def perturb(model):
    """Weights as if trained, also those of plain layers."""
    rng = np.random.default_rng(2)
    for variable in model.weights:
        change = 0.1 * rng.normal(size=variable.shape)
        variable.assign(to_numpy(variable) + np.abs(change))
    return model


def network():
    """Convolutions of all ranks' common code, a nested model, a plain layer."""
    inner = keras.Sequential(
        [keras.Input((9,)), keras_bdl.VariationalDense(4, "relu", name="hidden")],
        name="inner",
    )
    inputs = keras.Input((6, 6, 1))
    x = keras_bdl.VariationalConv2D(
        1, 3, strides=2, padding="same", prior="laplace", name="conv"
    )(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = inner(keras.layers.Flatten()(x))
    outputs = keras_bdl.VariationalDense(
        3, bias_posterior=False, num_examples=50, name="head"
    )(x)
    return perturb(keras.Model(inputs, outputs))


@pytest.mark.eager
def test_prior_and_posterior_are_the_posterior():
    model = network()
    before = [to_numpy(w).copy() for w in model.weights]
    updated = keras_bdl.prior_from_posterior(model)
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 1)).astype("float32")
    np.testing.assert_array_equal(to_numpy(updated(x)), to_numpy(model(x)))
    found = bayesian_layers(updated)
    assert [layer.name for layer in found] == ["conv", "hidden", "head"]
    for old, new in zip(bayesian_layers(model), found):
        assert type(new) is type(old)
        assert new.num_examples is None
        assert float(new.kl()) == pytest.approx(0.0, abs=1e-5)
        for expected, prior in zip(moments_of(old), prior_of(new), strict=True):
            np.testing.assert_array_equal(prior, expected)
        assert not any(
            v is w for v in new.trainable_variables for w in new._prior_variables
        )
    assert len(prior_of(found[-1])) == 2  # no prior of a bias without posterior

    # The copy's variables are its own, and the prior stays when the posterior moves.
    perturb(updated.get_layer("inner"))
    for array, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(array, to_numpy(variable))
    with pytest.raises(ValueError, match="number of training examples"):
        updated.compile("sgd", "mse")
        updated.fit(x, np.zeros((5, 3)), verbose=0)
    keras_bdl.set_num_examples(updated, 5)
    prior = prior_of(found[0])
    updated.fit(x, np.zeros((5, 3)), verbose=0)
    assert all(float(layer.kl()) > 0 for layer in found)
    for expected, variable in zip(prior, prior_of(found[0]), strict=True):
        np.testing.assert_array_equal(variable, expected)


def test_a_file_keeps_the_priors(tmp_path):
    updated = keras_bdl.prior_from_posterior(network())
    head = updated.get_layer("head")
    head.kernel.assign(to_numpy(head.kernel) + 0.5)
    updated.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    for old, new in zip(*map(bayesian_layers, (updated, loaded)), strict=True):
        for first, second in zip(prior_of(old), prior_of(new), strict=True):
            np.testing.assert_array_equal(first, second)
        assert float(new.kl()) == float(old.kl())
    assert float(loaded.get_layer("head").kl()) > 0


def test_weights_with_priors_of_their_own_need_a_place_for_them(tmp_path):
    model = model_of(keras_bdl.VariationalDense(2, name="head"))
    file = tmp_path / "updated.weights.h5"
    keras_bdl.prior_from_posterior(model).save_weights(file)
    with pytest.raises(ValueError, match="'head'.*made anew.*Received: prior=Normal"):
        model.load_weights(file)


@pytest.mark.every_backend
def test_a_third_day():
    """The posterior of an updated model is the prior of the next."""
    second = perturb(keras_bdl.prior_from_posterior(network()))
    third = keras_bdl.prior_from_posterior(second)
    old, new = second.get_layer("head"), third.get_layer("head")
    np.testing.assert_array_equal(to_numpy(new.prior_kernel_mean), to_numpy(old.kernel))
    assert float(old.kl()) > 0.1 > 1e-5 > abs(float(new.kl()))


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras_bdl.VariationalDense(2)

    def call(self, x):
        return self.dense(x)


def test_files_of_a_subclassed_copy_do_not_lose_the_priors(tmp_path):
    model = Subclassed()
    x = np.ones((4, 3), "float32")
    model(x)
    updated = keras_bdl.prior_from_posterior(perturb(model))
    prior = prior_of(updated.dense)
    updated.dense.kernel.assign(to_numpy(updated.dense.kernel) + 1.0)
    updated.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = keras_bdl.prior_from_posterior(model)
    again.dense.prior_kernel_mean.assign(np.zeros((3, 2)))
    again.load_weights(tmp_path / "model.keras")
    for other in (loaded, again):
        for expected, found in zip(prior, prior_of(other.dense), strict=True):
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(to_numpy(other(x)), to_numpy(updated(x)))


@pytest.mark.eager
def test_a_classifier_is_updated_as_a_whole():
    layers = [keras_bdl.VariationalDense(3, name="head")]
    network = perturb(keras.Sequential([keras.Input((4,)), *layers]))
    classifier = keras_bdl.BayesianClassifier(network, num_samples=7, num_examples=9)
    updated = keras_bdl.prior_from_posterior(classifier)
    assert type(updated) is keras_bdl.BayesianClassifier
    assert updated.num_samples == 7 and updated.num_examples is None
    updated.compile("adam")
    updated.fit(np.ones((12, 4)), np.zeros(12, int), verbose=0)
    assert int(updated.network.layers[0]._num_examples) == 12
    assert to_numpy(layers[0].kernel).shape == (4, 3)


@pytest.mark.parametrize("noise", ["heteroscedastic", "homoscedastic", "student_t"])
@pytest.mark.eager
def test_a_regressor_keeps_scales_and_noise(noise):
    rng = np.random.default_rng(0)
    x = (5 * rng.normal(size=(30, 2)) + 3).astype("float32")
    outputs = 2 if noise == "heteroscedastic" else 1
    network = keras.Sequential(
        [keras.Input((2,)), keras_bdl.VariationalDense(outputs, name="head")]
    )
    model = keras_bdl.BayesianRegressor(network, noise, normalize=True)
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(x, 7 * x[:, 0] - 40, epochs=2, verbose=0)
    updated = keras_bdl.prior_from_posterior(model)
    np.testing.assert_array_equal(to_numpy(updated(x)), to_numpy(model(x)))
    scales = to_numpy(updated.targets_standardization.mean)
    updated.compile("adam")
    updated.fit(x[:8] + 1, x[:8, 1], verbose=0)
    np.testing.assert_array_equal(
        scales, to_numpy(updated.targets_standardization.mean)
    )
    assert int(updated.network.layers[0]._num_examples) == 8


def model_of(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras_bdl.SparseVDDense(3, name="odd"),
        lambda: keras_bdl.MCDropout(0.5, name="odd"),
        lambda: keras_bdl.DropConnectDense(3, name="odd"),
        lambda: keras_bdl.ConcreteDropout(keras.layers.Dense(3), name="odd"),
        lambda: keras_bdl.BayesianLastLayer(3, name="odd"),
        lambda: keras_bdl.GaussianLatent(name="odd"),
    ],
)
def test_other_posteriors_are_refused(layer):
    model = model_of(keras_bdl.VariationalDense(4), layer())
    with pytest.raises(ValueError, match="VariationalDense.*Received: layer='odd'"):
        keras_bdl.prior_from_posterior(model)


def test_bad_models_are_refused():
    vae = keras_bdl.VAE.dense((4,), latent_dim=2)
    vae(np.ones((1, 4), "float32"))
    plain = model_of(keras.layers.Dense(2))
    unbuilt = keras.Sequential([keras_bdl.VariationalDense(2)])
    for model, match in (
        (plain, "to_bayesian.*Received: model="),
        (unbuilt, "built model.*Received: model="),
        (vae, "model.network.*Received: model="),
    ):
        with pytest.raises(ValueError, match=match):
            keras_bdl.prior_from_posterior(model)
    for value in (None, "model", keras_bdl.VariationalDense(2)):
        with pytest.raises(TypeError, match="Keras model. Received: model="):
            keras_bdl.prior_from_posterior(value)
