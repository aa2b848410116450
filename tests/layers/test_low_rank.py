"""The low-rank posterior, on every kind of layer."""

import dataclasses

import keras
import numpy as np
import pytest
from contract import Case, LayerContract, copy_means, fit_long, to_numpy
from scipy import stats

import keras_bdl
from keras_bdl import posteriors
from keras_bdl.posteriors import LowRank

pytestmark = pytest.mark.portable


def covariance(layer):
    """Mean and covariance of all weights, in one vector, kernel first."""
    variables = layer.posterior.variables()
    means = layer.weight_map.variables(layer)
    mean = np.concatenate([to_numpy(means[name]).ravel() for name in means])
    stddev = np.concatenate(
        [np.exp(to_numpy(variables[f"{n}_log_stddev"])).ravel() for n in means]
    )
    factor = np.concatenate(
        [to_numpy(variables[f"{n}_factor"]).reshape(2, -1) for n in means], axis=-1
    )
    factor = factor.astype("float64")
    return mean.astype("float64"), np.diag(stddev**2) + factor.T @ factor


def kl_of_joint_normal(layer):
    """KL to N(0, 1) of every weight, with the covariance as a whole."""
    mean, sigma = covariance(layer)
    _, log_det = np.linalg.slogdet(sigma)
    value = 0.5 * (np.trace(sigma) + mean @ mean - len(mean) - log_det)
    return value, 1e-5 * abs(value) + 1e-4


@dataclasses.dataclass
class LowRankCase(Case):
    def kernel_moments(self, layer):
        name = layer.weight_map.kernel
        variables = layer.posterior.variables()
        variance = np.exp(2 * to_numpy(variables[f"{name}_log_stddev"]))
        variance = variance + (to_numpy(variables[f"{name}_factor"]) ** 2).sum(axis=0)
        return to_numpy(layer.weight_map.variables(layer)[name]), variance

    def moments(self, layer, x):
        variables = layer.posterior.variables()
        plain = self.plain(activation=None)
        copy_means(layer, plain)
        mean, weights = to_numpy(plain(x)), layer.weight_map.variables(plain)
        for name, weight in weights.items():
            weight.assign(np.exp(2 * to_numpy(variables[f"{name}_log_stddev"])))
        variance = to_numpy(plain(self.square(x)))
        for direction in range(layer.posterior.rank):
            for name, weight in weights.items():
                weight.assign(to_numpy(variables[f"{name}_factor"])[direction])
            variance = variance + to_numpy(plain(x)) ** 2
        return mean, variance


@dataclasses.dataclass
class LowRankEmbedding(LowRankCase):
    def inputs(self, rows=4, seed=0, scale=1.0):
        rng = np.random.default_rng(seed)
        return rng.integers(0, 9, (rows, *self.input_shape)).astype("float32")

    def square(self, x):
        return x


DENSE = keras_bdl.VariationalDense


def case(bayesian, plain, args, shape, kind=LowRankCase, drop=(), **fixed):
    def make(cls, **options):
        options = {n: v for n, v in {**fixed, **options}.items() if n not in drop}
        return cls(*args, **options)

    return kind(
        name=bayesian.__name__,
        make=lambda **options: make(bayesian, **{"posterior": "low_rank", **options}),
        plain=lambda **options: make(plain, **options),
        input_shape=shape,
        oracle_kl=kl_of_joint_normal,
        proper_prior=False,  # it may be, but the contract knows Gaussians of no factor
        about=("layer", "noise") if bayesian is DENSE else ("layer",),
        thorough=bayesian is DENSE,
    )


class TestLowRank(LayerContract):
    cases = [
        case(
            keras_bdl.VariationalDense,
            keras.layers.Dense,
            (3,),
            (5,),
            activation="tanh",
        ),
        case(keras_bdl.VariationalConv2D, keras.layers.Conv2D, (3, 2), (4, 5, 2)),
        case(
            keras_bdl.VariationalEmbedding,
            keras.layers.Embedding,
            (400, 3),
            (4,),
            LowRankEmbedding,
            ("activation",),
        ),
        case(
            keras_bdl.VariationalEinsumDense,
            keras.layers.EinsumDense,
            ("abc,cd->abd", (None, 3)),
            (4, 5),
            bias_axes="d",
        ),
    ]


def built(**options):
    layer = keras_bdl.VariationalDense(3, num_examples=10, **options)
    layer.build((None, 4))
    TestLowRank.cases[0].randomize(layer)
    return layer


def test_draws_have_the_covariance_of_kernel_and_bias_together():
    layer = built(posterior="low_rank")
    mean, sigma = covariance(layer)
    drawn = layer.posterior.draw(keras.random.SeedGenerator(0), 40_000)
    draws = np.concatenate(
        [to_numpy(drawn[name]).reshape(40_000, -1) for name in ("kernel", "bias")], 1
    )
    scale = np.sqrt(np.outer(np.diag(sigma), np.diag(sigma)))
    error = (np.cov(draws.T) - sigma) / scale
    assert np.abs(error).max() < 5.0 * np.sqrt(2.0 / len(draws))
    z = (draws.mean(axis=0) - mean) / np.sqrt(np.diag(sigma) / len(draws))
    assert np.abs(z).max() < 5.0


def test_the_distribution_is_that_of_the_draws():
    layer = built(posterior="low_rank")
    mean, sigma = covariance(layer)
    distribution = layer.posterior_distribution()
    at = np.random.default_rng(0).normal(size=mean.shape)
    exact = stats.multivariate_normal(mean, sigma).logpdf(at)
    assert float(distribution.log_prob(at.astype("float32"))) == pytest.approx(
        exact, rel=1e-3
    )


def test_without_directions_the_kl_is_that_of_independent_gaussians():
    for prior in ("normal", "laplace", keras_bdl.priors.LearnedNormal(0.2)):
        low_rank, gaussian = (
            built(posterior="low_rank", prior=prior),
            built(prior=prior),
        )
        for name, variable in low_rank.posterior.variables().items():
            if name.endswith("_factor"):
                variable.assign(np.zeros(variable.shape))
            else:
                gaussian.posterior.variables()[name].assign(variable)
        for name, variable in low_rank.weight_map.variables(low_rank).items():
            gaussian.weight_map.variables(gaussian)[name].assign(variable)
        assert float(to_numpy(low_rank.kl())) == pytest.approx(
            float(to_numpy(gaussian.kl())), rel=1e-6
        )


@pytest.mark.one_backend
def test_it_learns_a_correlation_that_independent_gaussians_cannot():
    """Two equal inputs: the data know the sum of their weights, and no more."""
    rng = np.random.default_rng(0)
    rows, noise = 50, 0.3
    x = np.repeat(rng.normal(size=(rows, 1)), 2, axis=1).astype("float32")
    y = (x.sum(axis=1, keepdims=True) + noise * rng.normal(size=(rows, 1))).astype(
        "float32"
    )
    precision = x.T.astype("float64") @ x / noise**2 + np.eye(2)
    exact = np.linalg.inv(precision)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras_bdl.VariationalDense(
                1,
                use_bias=False,
                posterior=LowRank(rank=1, initial_log_stddev=-1.0),
                num_examples=rows,
                seed=0,
            ),
        ]
    )
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 1000)
    model.compile(keras.optimizers.Adam(schedule), keras_bdl.losses.GaussianNLL(noise))
    fit_long(model, x, y, epochs=1000)
    _, sigma = _of_kernel(model.layers[0])
    correlation = sigma[0, 1] / np.sqrt(sigma[0, 0] * sigma[1, 1])
    assert exact[0, 1] / exact[0, 0] < -0.99
    assert correlation < -0.9
    np.testing.assert_allclose(np.diag(sigma), np.diag(exact), rtol=0.35)


def _of_kernel(layer):
    variables = layer.posterior.variables()
    stddev = np.exp(to_numpy(variables["kernel_log_stddev"])).ravel()
    factor = to_numpy(variables["kernel_factor"]).reshape(layer.posterior.rank, -1)
    return to_numpy(layer.kernel), np.diag(stddev**2) + factor.T @ factor


@pytest.mark.parametrize(
    "options, error",
    [
        ({"posterior": "no such posterior"}, ValueError),
        ({"posterior": 3}, TypeError),
        ({"posterior": LowRank(), "initial_log_stddev": -3.0}, ValueError),
        ({"posterior": "weight_mask"}, ValueError),
        ({"posterior": posteriors.WeightMask()}, ValueError),
        ({"posterior": posteriors.SparseVD()}, ValueError),
        ({"posterior": posteriors.FullCovariance()}, ValueError),
    ],
)
def test_bad_posteriors_are_refused(options, error):
    with pytest.raises(error, match="Received"):
        keras_bdl.VariationalDense(3, **options)


@pytest.mark.parametrize("rank", [0, 1.5, "2"])
def test_bad_ranks_are_refused(rank):
    with pytest.raises((TypeError, ValueError), match="`rank`.*Received"):
        LowRank(rank=rank)


def test_layers_have_posteriors_of_their_own():
    posterior = LowRank(rank=1)
    layers = [built(posterior=posterior) for _ in range(2)]
    assert layers[0].posterior is not layers[1].posterior
    assert not posterior.built
    config = layers[0].get_config()
    again = keras_bdl.VariationalDense.from_config(config)
    assert again.posterior.rank == 1 and again.get_config() == config


def test_the_method_of_old_says_its_new_name():
    layer = built()
    with pytest.warns(DeprecationWarning, match="posterior_distribution"):
        old = layer.posterior()
    assert old.model["kernel"].batch_shape == (4, 3) or old.model["kernel"].event_shape


@pytest.mark.parametrize("log_stddev", [-2.0, -7.0, -12.0])
@pytest.mark.parametrize("closeness", [1.0, 1e-4])
def test_the_kl_holds_for_directions_that_are_nearly_one(log_stddev, closeness):
    layer = keras_bdl.VariationalDense(20, posterior="low_rank", use_bias=False)
    layer.build((None, 10))
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(1, 10, 20)) * (
        1 + closeness * rng.normal(size=(2, 10, 20))
    )
    factor = (0.5 * factor).astype("float32")
    layer.kernel_factor.assign(factor)
    layer.kernel_log_stddev.assign(np.full((10, 20), log_stddev))
    layer.kernel.assign(np.zeros((10, 20)))
    factor = factor.reshape(2, -1).astype("float64")
    variance = np.exp(2 * log_stddev)
    trace = 200 * variance + (factor**2).sum()
    _, log_det = np.linalg.slogdet(np.eye(2) + factor @ factor.T / variance)
    exact = 0.5 * (trace - 200 - 200 * 2 * log_stddev - log_det)
    assert float(to_numpy(layer.kl())) == pytest.approx(exact, rel=1e-5, abs=0.02)


def test_weights_of_another_posterior_are_refused(tmp_path):
    def model(**options):
        layer = keras_bdl.VariationalDense(3, num_examples=10, **options)
        return keras.Sequential([keras.Input((4,)), layer])

    path = tmp_path / "low_rank.weights.h5"
    model(posterior="low_rank").save_weights(path)
    with pytest.raises(ValueError, match="another posterior.*Received.*kernel_factor"):
        model().load_weights(path)


def test_a_posterior_that_cannot_be_the_prior_says_so():
    model = keras.Sequential(
        [keras.Input((4,)), keras_bdl.VariationalDense(3, posterior="low_rank")]
    )
    with pytest.raises(ValueError, match="independent weights.*posterior=Low"):
        keras_bdl.prior_from_posterior(model)
