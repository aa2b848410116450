"""Priors against SciPy's densities, quadrature and TensorFlow Probability."""

import json
import math

import keras
import numpy as np
import pytest
from backend_tools import gradients
from contract import BACKEND, to_numpy
from keras import ops
from scipy import integrate, special, stats

import keras_bdl
from keras_bdl import priors

POSTERIORS = [(0.0, 0.1), (0.4, 0.5), (-1.5, 0.02), (2.0, 3.0)]


def mixture_log_prob(w):
    components = [
        math.log(0.25) + stats.norm.logpdf(w, 0.0, 1.5),
        math.log(0.75) + stats.norm.logpdf(w, 0.0, 0.1),
    ]
    return special.logsumexp(components, axis=0)


def laplace_log_prob(w):
    return -np.abs(w + 0.2) / 0.6 - math.log(2.0 * 0.6)


PROPER = {
    "normal": (lambda: priors.Normal(0.3, 0.7), stats.norm(0.3, 0.7).logpdf),
    "learned": (lambda: priors.LearnedNormal(0.4), stats.norm(0.0, 0.4).logpdf),
    "mixture": (lambda: priors.ScaleMixture(0.25, 1.5, 0.1), mixture_log_prob),
    "laplace": (lambda: priors.Laplace(-0.2, 0.6), laplace_log_prob),
    "per weight": (lambda: priors.NormalPerWeight(0.6), stats.norm(0.0, 0.6).logpdf),
    "student": (lambda: priors.StudentT(3.0, 0.2, 0.8), stats.t(3.0, 0.2, 0.8).logpdf),
}
MAKERS = [*(make for make, _ in PROPER.values()), priors.LogUniform]
every_proper_prior = pytest.mark.parametrize("name", PROPER)
every_prior = pytest.mark.parametrize("make", MAKERS, ids=[*PROPER, "log uniform"])


def tensor(x, dtype="float32"):
    return ops.convert_to_tensor(np.asarray(x, dtype))


def variables_of(prior):
    variables = prior.build(keras.layers.Layer().add_weight, {"kernel": ()})
    return prior.of("kernel", variables)


def kl_of(prior, mean, stddev, count=1):
    """`count` values of the KL at one posterior."""
    return to_numpy(
        prior.kl(
            tensor(np.full(count, mean)),
            tensor(np.full(count, math.log(stddev))),
            variables_of(prior),
            keras.random.SeedGenerator(0),
        )
    ).astype("float64")


def kl_by_quadrature(mean, stddev, log_prob):
    q = stats.norm(mean, stddev)
    cuts = {mean, *np.clip([0.0, -0.2], mean - 11 * stddev, mean + 11 * stddev)}
    return integrate.quad(
        lambda w: q.pdf(w) * (q.logpdf(w) - log_prob(w)),
        mean - 12 * stddev,
        mean + 12 * stddev,
        points=sorted(cuts),
        limit=500,
    )[0]


# Densities


@every_proper_prior
def test_log_prob_is_that_of_scipy(name):
    make, log_prob = PROPER[name]
    prior = make()
    w = np.concatenate([np.linspace(-3.0, 3.0, 61), [-40.0, 1e-6, 25.0]])
    w = w.astype("float32")
    found = to_numpy(prior.log_prob(tensor(w), variables_of(prior)))
    np.testing.assert_allclose(
        found, log_prob(w.astype("float64")), rtol=2e-6, atol=2e-6
    )
    assert prior.proper


@every_proper_prior
def test_proper_density_integrates_to_1(name):
    prior = PROPER[name][0]()
    w = np.sinh(np.linspace(-9.0, 9.0, 20_001))
    density = np.exp(to_numpy(prior.log_prob(tensor(w), variables_of(prior))))
    assert integrate.trapezoid(density, w) == pytest.approx(1.0, abs=1e-4)


def test_log_uniform_density_is_that_of_scipy_up_to_a_constant():
    prior = priors.LogUniform()
    w = np.array([1e-3, 0.02, 0.5, 7.0])
    found = to_numpy(prior.log_prob(tensor(np.concatenate([w, -w]))))
    expected = np.tile(stats.loguniform(1e-4, 1e2).logpdf(w), 2)
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-5)
    assert np.isfinite(to_numpy(prior.log_prob(tensor([0.0])))).all()
    assert not prior.proper


def test_the_far_tail_of_a_mixture_is_finite():
    prior = priors.ScaleMixture(0.5, 1.0, 0.0025)
    log_prob = float(prior.log_prob(tensor(30.0)))
    expected = math.log(0.5) + stats.norm.logpdf(30.0)
    assert log_prob == pytest.approx(expected, rel=1e-6)


# Divergences


@pytest.mark.parametrize("mean, stddev", POSTERIORS)
@every_proper_prior
def test_kl_is_the_integral(name, mean, stddev):
    make, log_prob = PROPER[name]
    prior, expected = make(), kl_by_quadrature(mean, stddev, PROPER[name][1])
    if prior.closed_form:
        (found,) = kl_of(prior, mean, stddev)
        assert found == pytest.approx(expected, rel=3e-6, abs=2e-6)
    else:
        draws = kl_of(prior, mean, stddev, count=40_000)
        spread = stats.norm(mean, stddev).expect(lambda w: log_prob(w) ** 2)
        spread -= stats.norm(mean, stddev).expect(log_prob) ** 2
        assert abs(draws.mean() - expected) < 5.0 * math.sqrt(spread / 40_000) + 1e-5
        assert draws.var() > 0.5 * spread  # every weight has its own draw


@pytest.mark.parametrize("name", ["normal", "learned"])
def test_kl_is_zero_at_the_prior_only(name):
    prior = PROPER[name][0]()
    mean, stddev = (0.3, 0.7) if name == "normal" else (0.0, 0.4)
    assert abs(kl_of(prior, mean, stddev)[0]) < 1e-6
    for other in ((mean + 0.1, stddev), (mean, 0.8 * stddev), (mean, 1.2 * stddev)):
        assert kl_of(prior, *other)[0] > 1e-3


@pytest.mark.parametrize("mean, stddev", [(1.0, 0.05), (0.3, 0.4), (-2.0, 6.0)])
def test_log_uniform_kl_is_the_integral_up_to_its_constant(mean, stddev):
    q = stats.norm(mean, stddev)
    expected_log = integrate.quad(
        lambda w: q.pdf(w) * math.log(abs(w)),
        mean - 12 * stddev,
        mean + 12 * stddev,
        points=[0.0, mean] if abs(mean) < 11 * stddev else [mean],
        limit=500,
    )[0]
    # The limit as stddev / mean grows, where the KL is 0 by definition.
    constant = -0.5 * (math.log(4.0 * math.pi * math.e) + np.euler_gamma)
    expected = expected_log - q.entropy() - constant
    (found,) = kl_of(priors.LogUniform(), mean, stddev)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_log_uniform_kl_does_not_see_the_scale():
    small, large = (kl_of(priors.LogUniform(), s, 0.1 * s)[0] for s in (0.05, 50.0))
    assert small == pytest.approx(large, rel=1e-5)
    tiny, small = (kl_of(priors.LogUniform(), s, s)[0] for s in (1e-12, 1e-6))
    assert tiny == pytest.approx(0.426686, rel=1e-5) == small  # alpha = 1
    assert kl_of(priors.LogUniform(), 0.0, 0.1) == 0.0


@every_prior
def test_gradients_are_finite_at_a_mean_of_0_and_a_tiny_stddev(make):
    prior = make()
    variables = variables_of(prior)

    def total(mean, log_stddev):
        return ops.sum(prior.kl(mean, log_stddev, variables, seed=1))

    means = np.array([0.0, 0.0, 1.0, 1e-12])
    log_stddevs = np.array([-30.0, 0.0, -30.0, -9.0])
    for gradient in gradients(total, (means, log_stddevs)):
        assert np.isfinite(gradient).all()


@every_prior
@pytest.mark.parametrize("log_stddev", [-40.0, -15.0, 0.0, 10.0])
def test_extreme_posteriors_have_a_slope(make, log_stddev):
    prior = make()
    variables = variables_of(prior)

    def total(mean, log_stddev):
        return ops.sum(prior.kl(mean, log_stddev, variables, seed=1))

    means = np.array([1e-12, 1e-3, -1.0, 1e3, -1e15])
    d_mean, d_log_stddev = gradients(total, (means, np.full(5, log_stddev)))
    assert np.isfinite(d_mean).all() and np.isfinite(d_log_stddev).all()
    if log_stddev < 0:
        # That of the entropy alone, until the noise is as large as the mean.
        sizes = np.abs(means)
        narrow = (np.log(sizes) > log_stddev + 8) & (sizes < 1e6)
        np.testing.assert_allclose(d_log_stddev[narrow], -1.0, rtol=1e-2)
        assert (d_mean[narrow] != 0).all()


def test_the_density_of_student_t_is_known_where_squares_overflow():
    prior = priors.StudentT(3.0, mean=1e15, scale=1e-10)
    w = np.array([-1e15, 0.0, 1.0], "float32")
    expected = stats.t(3.0, 1e15, 1e-10).logpdf(w.astype("float64"))
    np.testing.assert_allclose(to_numpy(prior.log_prob(tensor(w))), expected, rtol=1e-5)
    (slope,) = gradients(lambda w: ops.sum(prior.log_prob(w)), [w])
    np.testing.assert_allclose(slope, 4.0 / (1e15 - w.astype("float64")), rtol=1e-5)


@every_prior
def test_float64_is_not_narrowed(make):
    if BACKEND == "jax":
        pytest.skip("JAX has no float64 unless it is enabled for the process")
    prior = make()
    variables = variables_of(prior)
    mean, log_stddev = tensor([0.3], "float64"), tensor([-1.0], "float64")
    for value in (
        prior.kl(mean, log_stddev, variables, keras.random.SeedGenerator(0)),
        prior.log_prob(mean, variables),
    ):
        assert keras.backend.standardize_dtype(value.dtype) == "float64"


# Learned normal


def test_learned_normal_starts_at_its_initial_stddev():
    variables = variables_of(priors.LearnedNormal(0.4))
    assert list(variables) == ["prior_log_stddev"]
    (log_stddev,) = variables.values()
    assert log_stddev.trainable and log_stddev.shape == ()
    assert float(to_numpy(log_stddev)) == pytest.approx(math.log(0.4), rel=1e-6)


def test_learned_normal_is_flat_at_the_second_moment_of_the_weights(rng):
    prior = priors.LearnedNormal()
    mean, log_stddev = rng.normal(size=50), rng.normal(-1.0, 0.5, size=50)
    second_moment = np.mean(mean**2 + np.exp(2.0 * log_stddev))
    best = 0.5 * math.log(second_moment)

    def total(prior_log_stddev):
        variables = {"prior_log_stddev": prior_log_stddev}
        return ops.sum(prior.kl(tensor(mean), tensor(log_stddev), variables, seed=1))

    def slope(prior_log_stddev):
        return float(gradients(total, [prior_log_stddev])[0])

    assert abs(slope(best)) < 50 * 1e-5
    # n (1 - second moment / s^2) elsewhere
    for shift in (-0.5, 0.5):
        expected = 50 * (1.0 - math.exp(-2.0 * shift))
        assert slope(best + shift) == pytest.approx(expected, rel=1e-4)


# Serialisation


@every_prior
def test_serialisation_round_trips(make):
    prior = make()
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(prior)))
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(prior) and copy.get_config() == prior.get_config()
    w = tensor(np.linspace(-2.0, 2.0, 9))
    np.testing.assert_array_equal(
        to_numpy(prior.log_prob(w, variables_of(prior))),
        to_numpy(copy.log_prob(w, variables_of(copy))),
    )


@every_prior
def test_a_saved_layer_keeps_its_prior(make, tmp_path):
    prior = make()
    inputs = keras.Input((2,))
    layer = keras_bdl.VariationalDense(1, prior=prior, num_examples=10)
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras").layers[-1].prior
    assert type(copy) is type(prior) and copy.get_config() == prior.get_config()


@every_prior
def test_repr_can_be_evaluated(make):
    prior = make()
    copy = eval(repr(prior), vars(priors).copy())
    assert type(copy) is type(prior) and copy.get_config() == prior.get_config()


@pytest.mark.parametrize(
    "name, cls",
    [
        ("normal", priors.Normal),
        ("learned_normal", priors.LearnedNormal),
        ("scale_mixture", priors.ScaleMixture),
        ("laplace", priors.Laplace),
        ("student_t", priors.StudentT),
        ("log_uniform", priors.LogUniform),
    ],
)
def test_get_by_name_instance_and_config(name, cls):
    prior = priors.get(name)
    assert type(prior) is cls
    assert priors.get(prior) is prior
    copy = priors.get(keras.saving.serialize_keras_object(prior))
    assert type(copy) is cls and copy.get_config() == prior.get_config()


@pytest.mark.parametrize(
    "identifier",
    [
        "gaussian",
        None,
        3,
        {},
        priors.Normal,
        keras.saving.serialize_keras_object(keras.initializers.Zeros()),
    ],
    ids=["name", "none", "number", "empty", "class", "other object"],
)
def test_get_refuses_what_is_no_prior(identifier):
    with pytest.raises(ValueError, match="Received: prior="):
        priors.get(identifier)


# Arguments


@pytest.mark.parametrize(
    "cls, argument",
    [
        (priors.Normal, "stddev"),
        (priors.LearnedNormal, "initial_stddev"),
        (priors.ScaleMixture, "weight"),
        (priors.ScaleMixture, "stddev1"),
        (priors.ScaleMixture, "stddev2"),
        (priors.Laplace, "scale"),
        (priors.StudentT, "df"),
        (priors.StudentT, "scale"),
    ],
)
def test_scales_are_positive_numbers(cls, argument):
    for value in (0.0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"`{argument}`.* Received: {argument}="):
            cls(**{argument: value})
    for value in ("1", None, True, [1.0]):
        with pytest.raises(TypeError, match=f"`{argument}`.* Received: {argument}="):
            cls(**{argument: value})


@pytest.mark.parametrize("cls", [priors.Normal, priors.Laplace, priors.StudentT])
def test_means_are_finite_numbers(cls):
    for value in (math.nan, -math.inf):
        with pytest.raises(ValueError, match="`mean`.* Received: mean="):
            cls(mean=value)
    for value in ("0", None, False):
        with pytest.raises(TypeError, match="`mean`.* Received: mean="):
            cls(mean=value)


@pytest.mark.parametrize("weight", [1, 1.5])
def test_a_mixture_weight_is_below_1(weight):
    with pytest.raises(ValueError, match=f"Received: weight={weight}"):
        priors.ScaleMixture(weight=weight)


# TensorFlow Probability


def horseshoe_log_prob(w):
    """log int N(w | 0, r^2) HalfCauchy(r) dr, an exponential integral."""
    half = 0.5 * np.square(w)
    scaled = np.where(half < 100, special.exp1(half) * np.exp(half), 1 / (half + 1))
    return np.log(scaled) - 0.5 * math.log(2.0 * math.pi**3)


def test_tfp_prior_is_refused_elsewhere():
    if BACKEND == "tensorflow":
        pytest.skip("it is there on TensorFlow")
    with pytest.raises(ValueError, match=f"TensorFlow.* Received: backend='{BACKEND}'"):
        priors.TFPPrior("Horseshoe", scale=1.0)


@pytest.mark.parametrize(
    "distribution, parameters, log_prob, tolerance",
    [
        ("Normal", {"loc": 0.2, "scale": 0.5}, stats.norm(0.2, 0.5).logpdf, 1e-5),
        ("Cauchy", {"loc": 0.2, "scale": 0.5}, stats.cauchy(0.2, 0.5).logpdf, 1e-5),
        # TFP approximates the exponential integral.
        ("Horseshoe", {"scale": 1.0}, horseshoe_log_prob, 2e-3),
    ],
    ids=["normal", "cauchy", "horseshoe"],
)
def test_tfp_prior_has_the_density_and_its_kl(
    distribution, parameters, log_prob, tolerance, only_tensorflow
):
    prior = priors.TFPPrior(distribution, **parameters)
    w = np.array([-4.0, -1.0, -0.1, 0.01, 0.3, 2.0])
    np.testing.assert_allclose(
        to_numpy(prior.log_prob(tensor(w))), log_prob(w), atol=tolerance
    )
    expected = kl_by_quadrature(0.5, 0.3, log_prob)
    draws = kl_of(prior, 0.5, 0.3, count=40_000)
    assert abs(draws.mean() - expected) < 5.0 * draws.std() / 200.0 + tolerance


@pytest.mark.eager
def test_tfp_prior_round_trips_and_trains(only_tensorflow, tmp_path):
    prior = priors.TFPPrior("Horseshoe", scale=0.5)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(prior)))
    copy = priors.get(config)
    assert copy.get_config() == {"distribution": "Horseshoe", "scale": 0.5}
    inputs = keras.Input((2,))
    layer = keras_bdl.VariationalDense(1, prior=copy, num_examples=10)
    model = keras.Model(inputs, layer(inputs))
    model.compile("adam", "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").layers[-1].prior
    assert loaded.get_config() == prior.get_config()


@pytest.mark.parametrize(
    "distribution, parameters",
    [
        ("NoSuchDistribution", {}),
        ("kl_divergence", {}),
        ("Normal", {"loc": 0.0}),
        ("Normal", {"loc": 0.0, "scale": 1.0, "df": 2.0}),
    ],
)
def test_tfp_prior_refuses_wrong_names_and_parameters(
    distribution, parameters, only_tensorflow
):
    with pytest.raises(ValueError, match="Received: "):
        priors.TFPPrior(distribution, **parameters)
