"""Latent codes: the contract, the KL, priors, bits."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from contract import BACKEND, Case, LayerContract, assert_moments, to_numpy
from keras import ops
from scipy import stats

import keras_bdl
from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.priors import codes as latent_priors

pytestmark = pytest.mark.portable

# The contract


@dataclasses.dataclass
class LatentCase(Case):
    width: int = 3

    def parameters(self, layer):
        return layer._dense

    def randomize(self, layer, seed=0):
        rng = np.random.default_rng(seed)
        dense = self.parameters(layer)
        dense.kernel.assign(0.3 * rng.normal(size=dense.kernel.shape))
        dense.bias.assign(0.3 * rng.normal(size=dense.bias.shape))

    def set_stddev(self, layer, stddev):
        kernel, bias = self.parameters(layer).get_weights()
        kernel[:, self.width :], bias[self.width :] = 0.0, math.log(stddev)
        self.parameters(layer).set_weights([kernel, bias])

    def copy_means(self, layer, plain, kernel=None):
        plain.build((None, *self.input_shape))
        kernel, bias = self.parameters(layer).get_weights()
        plain.set_weights([kernel[:, : self.width], bias[: self.width]])

    def moments(self, layer, x):
        kernel, bias = self.parameters(layer).get_weights()
        mean, log_stddev = np.split(x @ kernel + bias, 2, axis=-1)
        return mean, np.exp(2 * log_stddev)


def case(name, input_shape, thorough=False):
    return LatentCase(
        name=name,
        make=lambda activation=None, **options: keras_bdl.GaussianLatent(3, **options),
        plain=lambda activation=None: keras.layers.Dense(3),
        input_shape=input_shape,
        oracle_kl=None,
        has_kl=False,
        drop_in=False,
        about=("layer", "noise") if thorough else ("layer",),
        also=("noise",),
        thorough=thorough,
        family=thorough,
        every_backend=thorough,
    )


class TestGaussianLatent(LayerContract):
    cases = [case("vector", (5,), thorough=True), case("sequence", (4, 5))]


# The KL

MEAN, STDDEV = [-1.0, 1.0], [1.1, 1.3]
SCALE_TRIL = np.array([[1.1, 0.0], [0.2, 1.3]], "float32")


def term(layer, inputs, **fit):
    """The term of the layer in the loss of a model."""
    shapes = keras.tree.map_structure(lambda x: keras.Input(x.shape[1:]), inputs)
    model = keras.Model(shapes, layer(shapes))
    model.compile("sgd", lambda y, p: 0.0 * ops.sum(p, axis=-1))
    y = np.zeros((len(keras.tree.flatten(inputs)[0]), 1), "float32")
    return float(model.evaluate(inputs, y, batch_size=len(y), verbose=0))


def test_kl_of_a_diagonal_code():
    pair = [np.array([MEAN], "float32"), np.log([STDDEV]).astype("float32")]
    assert term(keras_bdl.GaussianLatent(), pair) == pytest.approx(1.092326, abs=1e-5)
    one = np.concatenate(pair, axis=-1)
    assert term(keras_bdl.GaussianLatent(), one) == pytest.approx(1.092326, abs=1e-5)


def test_kl_of_a_full_covariance():
    kl = keras_bdl.ops.divergences.kl_multivariate_normal
    value = kl(MEAN, SCALE_TRIL, [0.0, 0.0], np.eye(2, dtype="float32"))
    assert float(to_numpy(value)) == pytest.approx(1.112326, abs=1e-5)


def test_kl_of_full_covariances_is_that_of_tfp(rng, only_tensorflow):
    from tensorflow_probability import distributions as tfd

    scales = np.tril(rng.normal(size=(2, 5, 3, 3))).astype("float32")
    for index in range(3):
        scales[..., index, index] = rng.uniform(0.5, 2.0, size=(2, 5))
    means = rng.normal(size=(2, 5, 3)).astype("float32")
    q, p = (tfd.MultivariateNormalTriL(m, s) for m, s in zip(means, scales))
    kl = keras_bdl.ops.divergences.kl_multivariate_normal
    values = to_numpy(kl(means[0], scales[0], means[1], scales[1]))
    np.testing.assert_allclose(values, tfd.kl_divergence(q, p), rtol=1e-4)
    diagonal = [np.eye(3, dtype="float32") * np.array([0.5, 1.0, 2.0], "float32")] * 2
    same = kl(means[0, 0], diagonal[0], means[0, 0], diagonal[1])
    assert abs(float(to_numpy(same))) < 1e-5


def test_the_term_is_weighted_and_frozen():
    pair = [np.array([MEAN], "float32"), np.log([STDDEV]).astype("float32")]
    weighted = keras_bdl.GaussianLatent(kl_weight=0.25)
    assert term(weighted, pair) == pytest.approx(0.25 * 1.092326, abs=1e-5)
    frozen = keras_bdl.GaussianLatent(trainable=False)
    assert term(frozen, pair) == 0.0


def test_masked_positions_have_no_kl(rng):
    layer = keras_bdl.GaussianLatent()
    x = rng.normal(size=(2, 3, 4)).astype("float32")
    mean, log_stddev = layer.parameters(x)
    layer.build(x.shape)
    mask = np.array([[True, True, False], [True, False, False]])
    whole, left = (to_numpy(layer.kl(mean, log_stddev, mask=m)) for m in (None, mask))
    m, s = np.split(x, 2, axis=-1)
    by_position = (0.5 * (np.exp(2 * s) + m**2 - 1) - s).sum(axis=-1)
    np.testing.assert_allclose(whole, by_position.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(left, (by_position * mask).sum(axis=1), rtol=1e-5)


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="even width.*Received"):
        keras_bdl.GaussianLatent()(np.zeros((2, 3), "float32"))
    with pytest.raises(ValueError, match="one shape.*Received"):
        keras_bdl.GaussianLatent()([np.zeros((2, 3)), np.zeros((2, 4))])
    with pytest.raises(ValueError, match="standard_normal.*Received"):
        keras_bdl.GaussianLatent(2, prior="normal")
    with pytest.raises(TypeError, match="latent_dim.*Received"):
        keras_bdl.GaussianLatent(2.5)


# Priors


def mixture_log_prob(codes, weights, means, stddevs):
    terms = [
        np.log(w) + stats.norm(m, s).logpdf(codes).sum(axis=-1)
        for w, m, s in zip(weights, means, stddevs)
    ]
    return np.logaddexp.reduce(terms, axis=0)


def make_mixture(rng):
    prior = keras_bdl.layers.GaussianMixture(3)
    prior.build((None, 2))
    logits, means, log_stddevs = (
        rng.normal(size=v.shape).astype("float32") for v in prior.weights
    )
    prior.set_weights([logits, means, 0.5 * log_stddevs])
    weights = np.exp(logits) / np.exp(logits).sum()
    return prior, (weights, means, np.exp(0.5 * log_stddevs))


def make_vamp(rng):
    kernel = rng.normal(size=(4, 4)).astype("float32")
    prior = keras_bdl.layers.VampPrior(5)
    prior.connect(lambda x: ops.split(ops.matmul(x, kernel), 2, axis=-1), (4,))
    prior.build((None, 2))
    means, log_stddevs = np.split(to_numpy(prior.pseudo_inputs) @ kernel, 2, axis=-1)
    return prior, (np.full(5, 0.2), means, np.exp(log_stddevs))


@pytest.mark.parametrize("make", [make_mixture, make_vamp])
def test_mixtures_have_the_density_and_the_draws(rng, make):
    prior, (weights, means, stddevs) = make(rng)
    codes = rng.normal(size=(2, 7, 2)).astype("float32")
    np.testing.assert_allclose(
        to_numpy(prior.log_prob(codes)),
        mixture_log_prob(codes, weights, means, stddevs),
        rtol=1e-4,
    )
    draws = to_numpy(prior.draw(20_000, NoiseGenerator(0)))
    mean = weights @ means
    assert_moments(draws, mean, weights @ (stddevs**2 + means**2) - mean**2)
    assert prior.kl(codes, codes) is None


def test_the_standard_normal_has_the_density_and_the_draws(rng):
    prior = keras_bdl.layers.StandardNormal()
    prior.build((None, 3))
    codes = ops.convert_to_tensor(rng.normal(size=(7, 3)).astype("float32"))
    expected = stats.norm.logpdf(to_numpy(codes)).sum(axis=-1)
    np.testing.assert_allclose(to_numpy(prior.log_prob(codes)), expected, rtol=1e-5)
    draws = to_numpy(prior.draw(20_000, NoiseGenerator(0)))
    assert_moments(draws, np.zeros(3), np.ones(3))


def test_a_kl_without_closed_form_is_unbiased(rng):
    """A mixture of equal components is a Gaussian, whose KL is known."""
    prior = keras_bdl.layers.GaussianMixture(3)
    layer = keras_bdl.GaussianLatent(prior=prior)
    layer.build((None, 4))
    prior.set_weights([np.zeros(3), np.zeros((3, 2)), np.zeros((3, 2))])
    rows = 20_000
    mean = np.tile(np.array([MEAN], "float32"), (rows, 1))
    log_stddev = np.tile(np.log([STDDEV]).astype("float32"), (rows, 1))
    mean, log_stddev = map(ops.convert_to_tensor, (mean, log_stddev))
    values = to_numpy(layer.kl(mean, log_stddev))
    error = values.std() / math.sqrt(rows)
    assert abs(values.mean() - 1.092326) < 5 * error
    # The estimate is of the code that goes on to the decoder.
    codes = to_numpy(layer.draw(mean[:4], log_stddev[:4], 1)[0])
    fresh = keras_bdl.GaussianLatent(prior=prior, name=layer.name, seed=layer.seed)
    fresh.noise.state.assign(layer.noise.state)
    estimated = to_numpy(fresh.kl(mean[:4], log_stddev[:4]))
    drawn = to_numpy(fresh.draw(mean[:4], log_stddev[:4], 1)[0])
    entropy = (np.log(STDDEV) + 0.5 * np.log(2 * np.pi * np.e)).sum()
    expected = -entropy - stats.norm.logpdf(drawn).sum(axis=-1)
    np.testing.assert_allclose(estimated, expected, rtol=1e-4)
    assert np.abs(codes - drawn).max() > 0


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("Laplace", {"loc": 0.5, "scale": 2.0}),
        (
            "MultivariateNormalTriL",
            {"loc": [0.5, -1.0], "scale_tril": [[1.0, 0.0], [0.5, 2.0]]},
        ),
    ],
)
def test_a_prior_of_tfp(rng, only_tensorflow, name, parameters):
    from tensorflow_probability import distributions as tfd

    prior = keras_bdl.layers.TFPLatentPrior(name, parameters)
    prior.build((None, 2))
    codes = rng.normal(size=(7, 2)).astype("float32")
    expected = getattr(tfd, name)(**parameters).log_prob(codes).numpy()
    expected = expected if expected.ndim == 1 else expected.sum(axis=-1)
    np.testing.assert_allclose(to_numpy(prior.log_prob(codes)), expected, rtol=1e-5)
    draws = to_numpy(prior.draw(20_000, NoiseGenerator(0)))
    exact = getattr(tfd, name)(**parameters)
    assert_moments(
        draws,
        np.broadcast_to(exact.mean(), 2),
        np.broadcast_to(exact.variance(), 2),
    )
    copy = latent_priors.get(keras.saving.serialize_keras_object(prior))
    assert copy.get_config() == prior.get_config()


def test_a_prior_of_tfp_is_refused_with_a_reason():
    make = keras_bdl.layers.TFPLatentPrior
    if BACKEND != "tensorflow":
        with pytest.raises(ValueError, match="TensorFlow backend only.*Received"):
            make("Normal", {"loc": 0.0, "scale": 1.0})
        return
    with pytest.raises(ValueError, match="Received: distribution='Norml'"):
        make("Norml", {"loc": 0.0, "scale": 1.0})
    with pytest.raises(ValueError, match="(?s)refuses these parameters.*Received"):
        make("Normal", {"loc": 0.0, "scale": -1.0})
    with pytest.raises(TypeError, match="parameters.*Received"):
        make("Normal", [0.0, 1.0])
    prior = make("MultivariateNormalDiag", {"loc": [0.0] * 3, "scale_diag": [1.0] * 3})
    with pytest.raises(ValueError, match="distribution of 2 numbers.*Received"):
        keras_bdl.GaussianLatent(2, prior=prior).build((None, 4))


def test_a_vamp_prior_without_encoder_says_so():
    layer = keras_bdl.GaussianLatent(2, prior=keras_bdl.layers.VampPrior(3))
    with pytest.raises(ValueError, match="no encoder.*Received"):
        layer(np.zeros((2, 4), "float32"))


# Bits


def test_bits_have_the_grey_values_as_probabilities(rng):
    layer = keras_bdl.layers.DynamicBinarization()
    grey = rng.uniform(0.1, 0.9, size=(1, 5)).astype("float32")
    rows = np.tile(grey, (20_000, 1))
    first, second = (to_numpy(layer(rows, training=True)) for _ in range(2))
    assert set(np.unique(first)) == {0.0, 1.0}
    assert_moments(first, grey[0], grey[0] * (1 - grey[0]))
    assert np.abs(first - second).max() == 1.0
    np.testing.assert_array_equal(to_numpy(layer(rows)), np.round(rows))
    once = layer.binarize(rows, seed=3)
    np.testing.assert_array_equal(once, layer.binarize(rows, seed=3))
    assert_moments(once, grey[0], grey[0] * (1 - grey[0]))
    np.testing.assert_array_equal(to_numpy(layer(once, training=True)), once)
