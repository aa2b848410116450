"""VAE: bounds against an exact model, gradients, likelihoods, use, errors."""

import io
import math

import keras
import numpy as np
import pytest
from contract import assert_moments, to_numpy
from keras import ops
from scipy import special, stats

import keras_bdl
from keras_bdl import losses
from keras_bdl.generative import observations

pytestmark = pytest.mark.portable

# A model whose evidence is known: x = z W + b + noise, z ~ N(0, I).

WIDTH, LATENT, NOISE = 4, 2, 0.7


def linear_vae(rng, spread=1.0, **options):
    """A linear-Gaussian VAE, with q near the posterior for `spread` 1."""
    encoder = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(2 * LATENT)])
    decoder = keras.Sequential([keras.Input((LATENT,)), keras.layers.Dense(WIDTH)])
    likelihood = losses.GaussianNLL(NOISE)
    vae = keras_bdl.VAE(encoder, decoder, likelihood, **options)
    kernel = rng.normal(size=(LATENT, WIDTH))
    bias = rng.normal(size=WIDTH)
    covariance = np.linalg.inv(np.eye(LATENT) + kernel @ kernel.T / NOISE**2)
    gain = kernel.T @ covariance / NOISE**2  # E[z | x] = (x - b) gain
    # The best diagonal q has the precisions of the posterior.
    log_stddev = -0.5 * np.log(np.diag(np.linalg.inv(covariance)))
    encoder.set_weights(
        [
            np.concatenate([gain, 0.0 * gain], axis=1),
            np.concatenate([-bias @ gain, log_stddev + math.log(spread)]),
        ]
    )
    decoder.set_weights([kernel, bias])
    x = rng.normal(size=(200, LATENT)) @ kernel + bias
    x = (x + NOISE * rng.normal(size=x.shape)).astype("float32")
    evidence = stats.multivariate_normal(
        bias, kernel.T @ kernel + NOISE**2 * np.eye(WIDTH)
    ).logpdf(x)
    return vae, x, evidence


def exact_elbo(vae, x):
    """E_q log p(x | z) - KL(q || p) in closed form, `(n,)`."""
    kernel, bias = vae.decoder.get_weights()
    encoder_kernel, encoder_bias = vae.encoder.get_weights()
    mean, log_stddev = np.split(x @ encoder_kernel + encoder_bias, 2, axis=1)
    stddev = np.exp(log_stddev)
    spread = (stddev**2) @ (kernel**2)
    likelihood = stats.norm(mean @ kernel + bias, NOISE).logpdf(x) - 0.5 * (
        spread / NOISE**2
    )
    kl = 0.5 * (stddev**2 + mean**2 - 1.0) - np.log(stddev)
    return likelihood.sum(axis=1) - kl.sum(axis=1)


def test_bounds_rise_to_the_evidence(rng):
    vae, x, evidence = linear_vae(rng, spread=1.6)
    samples = vae.elbo(x, num_samples=2000, seed=0, verbose=0)
    elbo = exact_elbo(vae, x)
    np.testing.assert_allclose(samples.mean(), elbo.mean(), atol=0.03)
    bounds = [vae.log_prob(x, k, seed=0, verbose=0).mean() for k in (5, 50, 5000)]
    chain = [elbo.mean(), *bounds[:2]]
    assert all(a + 0.02 < b for a, b in zip(chain, chain[1:]))
    assert bounds[1] < evidence.mean() + 0.02
    assert abs(bounds[2] - evidence.mean()) < 0.02


def test_log_prob_of_each_row_is_the_evidence(rng):
    vae, x, evidence = linear_vae(rng)
    values = vae.log_prob(x[:33], 5000, seed=1, batch_size=32, verbose=0)
    np.testing.assert_allclose(values, evidence[:33], atol=0.1)
    again = vae.log_prob(x[:33], 5000, seed=1, batch_size=32, verbose=0)
    np.testing.assert_array_equal(values, again)
    assert np.abs(vae.log_prob(x[:33], 5000, seed=2, verbose=0) - values).max() > 0
    # Blocks that do not divide the number of samples.
    few = vae.log_prob(x[:33], 131, seed=1, batch_size=32, verbose=0)
    assert abs((few - evidence[:33]).mean()) < 0.1


def test_batches_have_noise_of_their_own(rng):
    vae, x, _ = linear_vae(rng)
    same = np.tile(x[:1], (64, 1))
    values = vae.elbo(same, 1, batch_size=32, seed=0, verbose=0)
    assert len(np.unique(values)) == 64


@pytest.mark.parametrize("gradient, k", [("elbo", 1), ("iwae", 5), ("dreg", 5)])
@pytest.mark.eager
def test_evaluate_reports_a_bound(rng, gradient, k):
    vae, x, evidence = linear_vae(rng, 1.3, gradient=gradient, num_importance_samples=k)
    vae.compile("sgd")
    rows = np.tile(x, (50, 1))
    logs = vae.evaluate(rows, batch_size=len(rows), verbose=0, return_dict=True)
    assert set(logs) == {"loss", "reconstruction", "kl", "active_units"}
    assert logs["active_units"] == LATENT
    elbo = exact_elbo(vae, x).mean()
    assert -logs["reconstruction"] - logs["kl"] == pytest.approx(elbo, abs=0.1)
    if gradient == "elbo":
        assert -logs["loss"] == pytest.approx(elbo, abs=0.1)
    else:
        assert elbo + 0.05 < -logs["loss"] < evidence.mean() + 0.02
    # The mean code says more than the evidence: with it, the loss is no bound.
    mean, stddev = vae.encode(x, return_stddev=True)
    kernel, bias = vae.decoder.get_weights()
    likelihood = stats.norm(mean @ kernel + bias, NOISE).logpdf(x).sum(axis=1)
    kl = 0.5 * (stddev**2 + mean**2 - 1.0) - np.log(stddev)
    assert (likelihood - kl.sum(axis=1)).mean() > evidence.mean()


def gradients(vae, x, repeats):
    """Gradients of the loss of batches, by steps of SGD: `(repeats, weights)`."""
    weights = vae.get_weights()
    vae.compile(keras.optimizers.SGD(1.0))
    steps = []
    for _ in range(repeats):
        vae.train_on_batch(x)
        steps.append(
            np.concatenate(
                [(a - b).ravel() for a, b in zip(weights, vae.get_weights())]
            )
        )
        vae.set_weights(weights)
    return np.stack(steps)


def test_dreg_has_the_gradient_of_iwae_and_less_variance(rng):
    found = {}
    for gradient in ("iwae", "dreg"):
        vae, x, _ = linear_vae(
            np.random.default_rng(0), gradient=gradient, num_importance_samples=5
        )
        rows = np.tile(x[:2], (1000, 1))
        found[gradient] = gradients(vae, rows, 20)
    iwae, dreg = found["iwae"], found["dreg"]
    error = np.sqrt((iwae.var(axis=0) + dreg.var(axis=0)) / (len(iwae) - 1))
    offset = iwae.mean(axis=0) - dreg.mean(axis=0)
    assert np.abs(offset / (error + 1e-7)).max() < 5
    size = vae.encoder.count_params()
    assert dreg[:, :size].var(axis=0).sum() < 0.5 * iwae[:, :size].var(axis=0).sum()
    # The decoder's gradient is the same one.
    assert dreg[:, size:].var(axis=0).sum() < 2 * iwae[:, size:].var(axis=0).sum()
    assert np.abs(iwae[:, size:].mean(axis=0)).max() > 10 * error[size:].max()


def bound_by_quadrature(weights, x, beta, k):
    """E log 1/k sum_i p(x | z_i) (p(z_i) / q(z_i))^beta, for codes of one number."""
    encoder_kernel, encoder_bias, kernel, bias = weights
    mean, log_stddev = x @ encoder_kernel + encoder_bias
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(24)
    codes = mean + np.exp(log_stddev) * nodes
    log_w = stats.norm(codes[:, None] * kernel[0] + bias, NOISE).logpdf(x).sum(axis=1)
    log_q = stats.norm(mean, np.exp(log_stddev)).logpdf(codes)
    log_w = log_w + beta * (stats.norm(0.0, 1.0).logpdf(codes) - log_q)
    all_log_w = np.stack(np.meshgrid(*[log_w] * k, indexing="ij"))
    values = special.logsumexp(all_log_w, axis=0) - np.log(k)
    for _ in range(k):
        values = values @ node_weights / node_weights.sum()
    return values


def vae_of_one_number(bias, kernel, **options):
    """A VAE of three numbers and a code of one, q(z | x) given by its last bias."""
    encoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    decoder = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    vae = keras_bdl.VAE(encoder, decoder, losses.GaussianNLL(NOISE), seed=1, **options)
    encoder.set_weights([np.zeros((3, 2)), np.array(bias)])
    decoder.set_weights([np.array([kernel]), np.zeros(3)])
    return vae


@pytest.mark.parametrize("beta, k", [(0.1, 3), (0.5, 2), (1.0, 2), (2.0, 3)])
def test_dreg_has_the_gradient_of_its_bound_at_every_beta(beta, k):
    vae = vae_of_one_number(
        [0.1, -0.3],
        [0.13, -0.13, 0.64],
        kl_weight=beta,
        num_importance_samples=k,
        gradient="dreg",
    )
    x = np.array([1.0, -0.5, 0.3])
    rows = np.tile(x.astype("float32"), (5000, 1))
    vae.compile(keras.optimizers.SGD(1.0))
    networks = (vae.encoder, vae.decoder)
    weights = [w for network in networks for w in network.get_weights()]
    steps = []
    for _ in range(12):
        vae.train_on_batch(rows)
        after = [w for network in networks for w in network.get_weights()]
        steps.append(np.concatenate([(b - a).ravel() for a, b in zip(after, weights)]))
        for network, start in zip(networks, (weights[:2], weights[2:])):
            network.set_weights(start)
    expected, step = [], 1e-4
    for index, array in enumerate(weights):
        for place in np.ndindex(array.shape):
            bounds = []
            for sign in (1, -1):
                shifted = [w.astype("float64") for w in weights]
                shifted[index][place] += sign * step
                bounds.append(bound_by_quadrature(shifted, x, beta, k))
            expected.append(-(bounds[0] - bounds[1]) / (2 * step))
    error = np.std(steps, axis=0) / math.sqrt(len(steps) - 1)
    assert (np.abs(np.mean(steps, axis=0) - expected) < 6 * error + 1e-4).all()
    assert np.abs(expected[6:8]).max() > 20 * error[6:8].max()  # of the encoder's bias


@pytest.mark.eager
def test_beta_beyond_one_bounds_the_elbo_alone():
    """The mean of several codes may exceed the evidence by far."""
    x = np.zeros((2000, 3), "float32")
    evidence = 3 * stats.norm(0.0, NOISE).logpdf(0.0)
    found = {}
    for gradient, k in (("elbo", 5), ("iwae", 1), ("iwae", 200)):
        options = {"kl_weight": 4.0, "gradient": gradient, "num_importance_samples": k}
        vae = vae_of_one_number([0.0, math.log(0.5)], [0.0, 0.0, 0.0], **options)
        vae.compile("sgd")
        loss = vae.evaluate(x, batch_size=2000, verbose=0)[0]
        found[gradient, k] = -loss - evidence
    kl = -math.log(0.5) + 0.5 * (0.25 - 1.0)
    assert found["elbo", 5] == pytest.approx(-4.0 * kl, abs=1e-3)
    assert found["iwae", 1] == pytest.approx(-4.0 * kl, abs=0.3)
    assert found["iwae", 200] > 1.0


def test_the_gradient_of_the_elbo_is_exact_in_expectation(rng):
    vae, x, _ = linear_vae(rng, spread=1.3)
    steps = gradients(vae, np.tile(x[:4], (1000, 1)), 20)
    weights = vae.get_weights()
    error = steps.std(axis=0) / math.sqrt(len(steps) - 1)
    numeric, step = [], 1e-3
    for index, array in enumerate(weights):
        for place in np.ndindex(array.shape):
            values = []
            for sign in (1, -1):
                shifted = [w.copy() for w in weights]
                shifted[index][place] += sign * step
                vae.set_weights(shifted)
                values.append(exact_elbo(vae, x[:4]).astype("float64").mean())
            numeric.append(-(values[0] - values[1]) / (2 * step))
    np.testing.assert_allclose(steps.mean(axis=0), numeric, atol=5 * error.max() + 5e-3)


@pytest.mark.every_backend
def test_training_finds_the_evidence(rng):
    """Started away from the exact model, the bound comes close to the evidence."""
    vae, x, evidence = linear_vae(rng)
    encoder, decoder = (keras.models.clone_model(m) for m in (vae.encoder, vae.decoder))
    fresh = keras_bdl.VAE(encoder, decoder, losses.GaussianNLL(NOISE))
    fresh.compile(keras.optimizers.Adam(0.02))
    long = np.tile(x, (30, 1))  # few epochs: their start and end cost most
    history = fresh.fit(long, epochs=2, batch_size=50, verbose=0).history
    assert history["loss"][0] > history["loss"][-1]
    assert fresh.log_prob(x, 500, seed=0, verbose=0).mean() > evidence.mean() - 0.3


# Likelihoods


LIKELIHOODS = {
    "bernoulli": (3, [0.0, 1.0]),
    "gaussian": (6, None),
    "categorical": (4, [0.0, 1.0, 2.0, 3.0]),
    "discretized_logistic": (6, None),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_draws_and_means_are_those_of_the_density(rng, name):
    observation = observations.get(name)
    width, levels = LIKELIHOODS[name]
    rows = 20_000
    one = (0.7 * rng.normal(size=(1, width))).astype("float32")
    if name == "discretized_logistic":
        observation = observations.get(losses.DiscretizedLogisticNLL(levels=5))
        one[:, :3], one[:, 3:] = 0.5 + 0.2 * one[:, :3], -1.5
        levels = np.linspace(0.0, 1.0, 5)
    if name == "categorical":  # one value of four levels
        one = one[:, None]
    outputs = ops.convert_to_tensor(np.repeat(one, rows, axis=0))
    draws = to_numpy(observation.draw(outputs, keras.random.SeedGenerator(0)))
    mean = to_numpy(observation.mean(outputs))[0]
    if name == "gaussian":
        np.testing.assert_allclose(mean, one[0, :3])
        return assert_moments(draws, mean, np.exp(2 * one[0, 3:]))
    assert set(np.round(np.unique(draws), 4)) <= set(np.round(levels, 4))
    for level in levels:
        x = np.full((1, draws.shape[1]), level, "float32")
        for column in range(draws.shape[1]):
            share = np.isclose(draws[:, column], level, atol=1e-3).mean()
            p = level_probability(observation, one, x, column)
            assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / rows) + 1e-6
    if name != "discretized_logistic":  # there it is the location
        assert_moments(draws, mean, draws.var(axis=0))


def level_probability(observation, outputs, x, column):
    """p of one value, by the loss's terms."""
    terms = to_numpy(observation.loss.terms(x, ops.convert_to_tensor(outputs)))
    return float(np.exp(-terms[0, column]))


@pytest.mark.parametrize(
    "build, name",
    [
        ("dense", "bernoulli"),
        ("dense", "gaussian"),
        ("dense", "discretized_logistic"),
        ("convolutional", "discretized_logistic"),
        pytest.param("convolutional", "bernoulli", marks=pytest.mark.slow),
        pytest.param("convolutional", "gaussian", marks=pytest.mark.slow),
    ],
)
@pytest.mark.eager
def test_the_last_bias_starts_at_the_mean_of_the_data(rng, name, build):
    vae = getattr(keras_bdl.VAE, build)((4, 4, 2), 2, (8,), likelihood=name)
    levels = rng.integers(0, 2, size=(50, 4, 4, 2)) * np.array([1.0, 0.5])
    x = levels.astype("float32")
    vae.compile(keras.optimizers.SGD(0.0))
    vae.decoder.layers[0].kernel.assign(0.0 * vae.decoder.layers[0].kernel)
    vae.fit(x, epochs=1, verbose=0)
    means = vae.decode(np.zeros((1, 2), "float32"))[0]
    expected = x.mean(axis=0 if build == "dense" else (0, 1, 2))
    expected = np.broadcast_to(expected, means.shape)
    expected = np.clip(expected, 1e-3, 1 - 1e-3)
    np.testing.assert_allclose(means, expected, atol=1e-5)
    bias = vae_start_bias(vae)
    vae.fit(x, epochs=1, verbose=0)  # not again
    np.testing.assert_array_equal(bias, vae_start_bias(vae))


@pytest.mark.parametrize("levels, low, high", [(256, 0.0, 1.0), (5, -1.0, 3.0)])
def test_means_of_levels_are_those_of_the_density(rng, levels, low, high):
    """Summed over the levels by SciPy; the location is another number."""
    loss = losses.DiscretizedLogisticNLL(levels=levels, low=low, high=high)
    observation = observations.get(loss)
    location = np.array([0.0, 0.2, 0.5, 0.97, 3.0, -4.0, 0.503, 0.3, 0.3])
    log_scale = np.array([-1.0, -3.0, -2.0, -1.5, 0.0, 0.5, -200.0, 20.0, -6.0])
    outputs = np.concatenate([location, log_scale])[None].astype("float32")
    width, grid = (high - low) / (levels - 1), np.linspace(low, high, levels)
    edges = np.concatenate([[-np.inf], grid[:-1] + 0.5 * width, [np.inf]])
    scale = np.exp(np.maximum(log_scale, -60.0))[:, None]
    mass = np.diff(stats.logistic(location[:, None], scale).cdf(edges), axis=1)
    np.testing.assert_allclose(mass.sum(axis=1), 1.0)
    means = to_numpy(observation.mean(ops.convert_to_tensor(outputs)))[0]
    expected = mass @ grid
    np.testing.assert_allclose(means, expected, atol=2e-5 * (high - low))
    assert np.abs(expected - np.clip(location, low, high)).max() > 0.1


def test_means_of_very_many_levels_are_near():
    loss = losses.DiscretizedLogisticNLL(levels=100_001)
    outputs = np.array([[0.2, 0.9, 0.0, -2.0, -12.0, 9.0]], "float32")
    means = to_numpy(observations.get(loss).mean(ops.convert_to_tensor(outputs)))[0]
    grid = np.linspace(0.0, 1.0, 100_001)
    edges = np.concatenate([[-np.inf], 0.5 * (grid[1:] + grid[:-1]), [np.inf]])
    scale = np.exp(outputs[0, 3:, None].astype("float64"))
    mass = np.diff(stats.logistic(outputs[0, :3, None], scale).cdf(edges), axis=1)
    np.testing.assert_allclose(means, mass @ grid, atol=2e-4)


def test_decoded_levels_are_means():
    decoder = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    encoder = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    vae = keras_bdl.VAE(encoder, decoder, "discretized_logistic")
    decoder.set_weights([np.zeros((1, 2)), np.array([0.0, -1.0])])
    x = np.zeros((2, 1), "float32")
    draws = vae.sample(20_000, seed=0, with_noise=True)
    for means in (vae.decode(x), vae.reconstruct(x), vae.predict(x, verbose=0)):
        np.testing.assert_allclose(means, 0.2315, atol=1e-3)
        assert abs(draws.mean() - means[0, 0]) < 5 * draws.std() / math.sqrt(20_000)


@pytest.mark.eager
def test_a_distribution_without_a_mean_says_so(rng, only_tensorflow):
    for name in ("Cauchy", "LogitNormal"):  # none, and none that is known
        vae = keras_bdl.VAE.dense(
            (3,), 2, (4,), likelihood=losses.TFPNLL(name, ["loc", "scale"])
        )
        vae.compile("adam")
        x = rng.uniform(0.1, 0.9, size=(8, 3)).astype("float32")
        assert np.isfinite(vae.fit(x, verbose=0).history["loss"]).all()
        with pytest.raises(ValueError, match="no mean.*Received"):
            vae.reconstruct(x)
        assert vae.sample(2, seed=0, with_noise=True).shape == (2, 3)


def vae_start_bias(vae):
    return [to_numpy(v) for v in vae.decoder.weights if v.name == "bias"][-1]


@pytest.mark.eager
def test_a_likelihood_of_tfp(rng, only_tensorflow):
    from tensorflow_probability import distributions as tfd

    parameters = ["concentration1", "concentration0"]
    loss = losses.TFPNLL("Beta", parameters)
    y = rng.uniform(0.1, 0.9, size=(6, 3)).astype("float32")
    raw = rng.normal(size=(6, 6)).astype("float32")
    first, second = np.split(special.log1p(np.exp(raw)), 2, axis=-1)
    expected = -tfd.Beta(first, second).log_prob(y).numpy().sum(axis=1)
    np.testing.assert_allclose(loss.row_losses(y, raw), expected, rtol=1e-3)
    observation = observations.get(loss)
    outputs = np.repeat(raw[:1], 20_000, axis=0)
    draws = to_numpy(observation.draw(ops.convert_to_tensor(outputs), 3))
    exact = tfd.Beta(first[0], second[0])
    assert_moments(draws, exact.mean().numpy(), exact.variance().numpy())
    vae = keras_bdl.VAE.dense((3,), 2, (8,), likelihood=loss)
    vae.compile("adam")
    vae.fit(y, verbose=0)
    assert vae.reconstruct(y).shape == y.shape
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert copy.get_config() == loss.get_config()
    for wrong in (("Bta", parameters), ("Beta", ["concentration"])):
        with pytest.raises(ValueError, match="Received"):
            losses.TFPNLL(*wrong)


# Use


def bits(rng, rows=64, shape=(4, 4, 1)):
    return (rng.random((rows, *shape)) < 0.3).astype("float32")


def trained(rng, prior="standard_normal", **options):
    vae = keras_bdl.VAE.dense((4, 4, 1), 3, (8,), prior=prior, seed=1, **options)
    vae.compile(keras.optimizers.Adam(0.01))
    x = bits(rng)
    vae.fit(x, epochs=2, batch_size=24, verbose=0)
    return vae, x


PRIORS = {
    "standard_normal": lambda: "standard_normal",
    "mixture": lambda: keras_bdl.layers.GaussianMixture(4),
    "vamp": lambda: keras_bdl.layers.VampPrior(5),
}


@pytest.mark.parametrize(
    "prior",
    [
        prior if prior == "vamp" else pytest.param(prior, marks=pytest.mark.slow)
        for prior in PRIORS  # their own files are read in `test_persistence`
    ],
)
@pytest.mark.eager
def test_saved_models_continue_exactly(rng, prior, tmp_path):
    vae, x = trained(rng, PRIORS[prior](), gradient="dreg", num_importance_samples=2)
    vae.save(tmp_path / "vae.keras")
    copy = keras.models.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(
        vae.log_prob(x, 20, seed=0, verbose=0), copy.log_prob(x, 20, seed=0, verbose=0)
    )
    np.testing.assert_array_equal(vae.sample(3, seed=0), copy.sample(3, seed=0))
    for model in (vae, copy):
        model.fit(x, epochs=1, batch_size=24, shuffle=False, verbose=0)
    for a, b in zip(vae.get_weights(), copy.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_exported_endpoints(rng, tmp_path, only_tensorflow):
    import tensorflow as tf

    vae, x, evidence = linear_vae(rng)
    vae.export(str(tmp_path / "vae"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "vae"))
    np.testing.assert_allclose(served.serve(x), vae.predict(x, verbose=0), atol=1e-5)
    mean, stddev = vae.encode(x, return_stddev=True)
    codes = served.encode(x)
    np.testing.assert_allclose(codes["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(codes["stddev"], stddev, atol=1e-5)
    np.testing.assert_allclose(served.decode(mean), vae.decode(mean), atol=1e-5)
    number = tf.constant
    first, again, other = (served.sample(number(5), number(s)) for s in (0, 0, 1))
    assert first.shape == (5, WIDTH)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    values = served.log_prob(x, number(3000), number(0)).numpy()
    np.testing.assert_allclose(values, evidence, atol=0.15)
    for network, inputs in ((vae.encoder, x), (vae.decoder, mean)):
        network.export(str(tmp_path / network.name), verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / network.name))
        expected = network.predict(inputs, verbose=0)
        np.testing.assert_allclose(loaded.serve(inputs), expected, atol=1e-5)


@pytest.mark.every_backend
def test_samples_are_of_the_prior_and_repeat(rng):
    vae, x, _ = linear_vae(rng)
    kernel, bias = vae.decoder.get_weights()
    draws = vae.sample(20_000, seed=0, with_noise=True)
    variance = np.diag(kernel.T @ kernel) + NOISE**2
    assert_moments(draws, bias, variance)
    means = vae.sample(20_000, seed=0)
    assert_moments(means, bias, np.diag(kernel.T @ kernel))
    np.testing.assert_array_equal(means[:5], vae.sample(20_000, seed=0)[:5])
    assert np.abs(vae.sample(5, seed=1) - means[:5]).max() > 0
    assert np.abs(vae.sample(5) - vae.sample(5)).max() > 0


def test_codes_and_back(rng):
    vae, x, _ = linear_vae(rng)
    codes, stddev = vae.encode(x, return_stddev=True)
    kernel, bias = vae.encoder.get_weights()
    mean, log_stddev = np.split(x @ kernel + bias, 2, axis=1)
    np.testing.assert_allclose(codes, mean, atol=1e-5)
    np.testing.assert_allclose(stddev, np.exp(log_stddev), atol=1e-5)
    kernel, bias = vae.decoder.get_weights()
    np.testing.assert_allclose(vae.decode(codes), codes @ kernel + bias, atol=1e-4)
    np.testing.assert_allclose(vae.reconstruct(x), vae.predict(x, verbose=0), atol=1e-5)
    path = vae.interpolate(x[:2], x[2:4], steps=5)
    assert path.shape == (2, 5, WIDTH)
    np.testing.assert_allclose(path[:, 0], vae.reconstruct(x[:2]), atol=1e-4)
    np.testing.assert_allclose(path[:, -1], vae.reconstruct(x[2:4]), atol=1e-4)
    np.testing.assert_allclose(path[:, 2], 0.5 * (path[:, 0] + path[:, -1]), atol=1e-4)


@pytest.mark.eager
def test_data_sets_weights_and_odd_batches(rng, only_tensorflow):
    import tensorflow as tf

    vae = keras_bdl.VAE.dense((4, 4, 1), 3, (8,))
    vae.compile("adam")
    x = bits(rng, 33)
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(33))).batch(16)
    history = vae.fit(data, epochs=2, verbose=0, validation_data=x).history
    assert np.isfinite(history["loss"]).all() and np.isfinite(history["val_loss"]).all()
    first = vae.evaluate(x, verbose=0, sample_weight=np.zeros(33), return_dict=True)
    assert first["loss"] == 0.0
    assert vae.log_prob(x[:1], 7, verbose=0).shape == (1,)


@pytest.mark.eager
def test_weights_by_position_and_of_rows_held_out(rng):
    vae, x = trained(rng)
    weights = np.where(np.arange(len(x)) < 48, 1.0, 0.0)
    assert vae.evaluate(x, None, 16, 0, np.zeros(len(x)))[0] == 0.0
    split = {"sample_weight": weights, "validation_split": 0.25, "verbose": 0}
    history = vae.fit(x, **split).history
    assert history["val_loss"] == [0.0] and history["loss"][0] > 0.0
    held_out = (x, None, np.zeros(len(x)))
    history = vae.fit(x, validation_data=held_out, verbose=0).history
    assert history["val_loss"] == [0.0] and history["loss"][0] > 0.0


@pytest.mark.eager
def test_a_categorical_vae(rng):
    vae = keras_bdl.VAE.dense((5,), 2, (8,), likelihood="categorical", num_levels=4)
    x = rng.integers(0, 4, size=(40, 5))
    vae.compile("adam")
    history = vae.fit(x, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert set(np.unique(vae.sample(9, seed=0, with_noise=True))) <= {
        0.0,
        1.0,
        2.0,
        3.0,
    }
    assert (vae.log_prob(x, 10, verbose=0) < 0).all()
    with pytest.raises(ValueError, match="values from 0 to 3.*Received"):
        vae.fit(x + 1, verbose=0)
    with pytest.raises(ValueError, match="integers from 0.*Received"):
        vae.fit(x + 0.5, verbose=0)


@pytest.mark.eager
def test_bits_are_drawn_for_input_and_target(rng):
    layer = keras_bdl.layers.DynamicBinarization(seed=0)
    vae = keras_bdl.VAE.dense((6,), 2, (8,), preprocessing=layer)
    grey = rng.uniform(size=(32, 6)).astype("float32")
    vae.compile(keras.optimizers.SGD(0.0))
    history = vae.fit(grey, epochs=3, verbose=0).history
    assert len(set(history["reconstruction"])) == 3
    assert set(np.unique(to_numpy(vae.preprocess(grey, training=True)))) == {0.0, 1.0}


@pytest.mark.eager
def test_weights_with_a_posterior(rng):
    encoder = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    decoder = keras.Sequential([keras.Input((2,)), keras_bdl.VariationalDense(6)])
    vae = keras_bdl.VAE(encoder, decoder, seed=0)
    vae.compile(keras.optimizers.SGD(0.0))
    x = bits(rng, 40, (6,))
    logs = vae.fit(x, batch_size=40, verbose=0).history
    layer = decoder.layers[-1]
    assert layer.num_examples is None
    kl = float(to_numpy(layer.kl())) / 40
    expected = logs["reconstruction"][0] + logs["kl"][0] + kl
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.eager
def test_beta_and_warm_up(rng):
    vae, x, _ = linear_vae(rng, kl_weight=4.0)
    vae.compile(keras.optimizers.SGD(0.0))
    logs = vae.fit(x, batch_size=200, verbose=0).history
    expected = logs["reconstruction"][0] + 4.0 * logs["kl"][0]
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-4)
    warmup = keras_bdl.callbacks.KLWarmup(epochs=2)
    logs = vae.fit(x, batch_size=200, epochs=2, callbacks=[warmup], verbose=0).history
    assert logs["loss"][0] == pytest.approx(logs["reconstruction"][0], rel=1e-4)


@pytest.mark.eager
def test_half_precision_trains(rng):
    keras.config.set_dtype_policy("mixed_float16")
    vae, x = trained(rng)
    assert np.isfinite(vae.log_prob(x, 10, verbose=0)).all()
    assert np.isfinite(vae.evaluate(x, verbose=0)).all()


# Out of domain


def test_scores_of_a_known_model(rng, tmp_path):
    vae, x, evidence = linear_vae(rng)
    far = x + 10.0
    options = {"num_samples": 1000, "seed": 0, "verbose": 0}
    np.testing.assert_allclose(
        vae.ood_score(x, "log_prob", **options), -evidence, atol=0.6
    )
    with pytest.raises(ValueError, match="fit_ood.*Received"):
        vae.ood_score(x)
    vae.fit_ood(x, **options)
    np.testing.assert_allclose(
        vae.ood_score(x, **options), np.abs(evidence.mean() - evidence), atol=0.6
    )
    auroc = keras_bdl.ops.uncertainty.auroc
    assert auroc(vae.ood_score(x, **options), vae.ood_score(far, **options)) == 1.0
    vae.save(tmp_path / "vae.keras")
    copy = keras.models.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(
        vae.ood_score(x, **options), copy.ood_score(x, **options)
    )
    with pytest.raises(ValueError, match="256 levels.*Received"):
        vae.ood_score(x, "complexity")
    with pytest.raises(ValueError, match="typicality.*Received"):
        vae.ood_score(x, "likelihood")


@pytest.mark.eager
def test_complexity_is_the_length_beyond_a_png(rng):
    likelihood = losses.DiscretizedLogisticNLL()
    vae = keras_bdl.VAE.dense((8, 8, 1), 2, (8,), likelihood=likelihood)
    levels = rng.integers(0, 256, size=(2, 8, 8, 1))
    levels[1] = 77
    x = (levels / 255).astype("float32")
    options = {"num_samples": 5, "seed": 0, "verbose": 0}
    bits = -vae.log_prob(x, **options) / math.log(2) - vae.ood_score(
        x, "complexity", **options
    )
    # Noise has its 64 bytes at least; one grey value is shorter.
    assert bits[0] > 8 * 64 > bits[1] - 8 * 70
    assert bits[0] > bits[1] + 8 * 50
    from PIL import Image

    path = io.BytesIO()
    Image.fromarray(levels[0, ..., 0].astype("uint8")).save(path, "PNG", optimize=True)
    assert bits[0] == pytest.approx(8 * len(path.getvalue()), abs=1e-2)


def test_grey_training_data_and_drawn_bits_are_scored_alike(rng):
    """Rounded images are likelier than drawn ones: scores draw, as training does."""
    bits = keras_bdl.layers.DynamicBinarization()
    vae = keras_bdl.VAE.dense((20,), 2, (8,), preprocessing=bits)
    vae.compile(keras.optimizers.Adam(0.02))
    grey = np.broadcast_to(rng.uniform(size=20), (500, 20)).astype("float32")
    vae.fit(grey, epochs=10, batch_size=50, verbose=0)
    options = {"num_samples": 50, "verbose": 0}
    drawn = vae.log_prob(bits.binarize(grey, seed=7), **options)
    vae.fit_ood(grey, seed=1, **options)
    typical = to_numpy(vae.typical_log_prob)[0]
    error = 5 * np.std(drawn) / math.sqrt(250)
    assert abs(typical - drawn.mean()) < error
    assert vae.log_prob(grey, **options).mean() - typical > 2 * error  # of rounded ones
    scores = vae.ood_score(grey, "log_prob", seed=2, **options)
    assert abs(scores.mean() + typical) < error
    np.testing.assert_array_equal(bits.binarize(np.round(grey), 3), np.round(grey))


# Refusals


@pytest.mark.eager
def test_wrong_data_is_refused(rng):
    vae, x = trained(rng)
    calls = (vae.fit, vae.evaluate, vae.encode, vae.log_prob, vae.elbo)
    for call in calls:
        with pytest.raises(ValueError, match="from 0 to 1.*divide.*Received"):
            call(255.0 * x)
        for value in (np.nan, np.inf):
            wrong = x.copy()
            wrong[3, 1, 1] = value
            with pytest.raises(ValueError, match="finite.*Received"):
                call(wrong)
        with pytest.raises(ValueError, match=r"shape \('n', 4, 4, 1\).*Received"):
            call(x[:, :3])
    with pytest.raises(ValueError, match="no targets.*Received"):
        vae.fit(x, x)
    with pytest.raises(ValueError, match="validation_data=x.*Received"):
        vae.fit(x, validation_data=(x, x))
    with pytest.raises(ValueError, match="classes.*Received: class_weight"):
        vae.fit(x, class_weight={0: 1.0})
    with pytest.raises(ValueError, match="from 0 to 1.*Received"):
        vae.fit(x, validation_data=2 * x, verbose=0)
    with pytest.raises(TypeError, match="array.*Received"):
        vae.fit([x, x])
    with pytest.raises(ValueError, match=r"codes `\(n, 3\)`.*Received"):
        vae.decode(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="num_samples.*Received"):
        vae.log_prob(x, 0)
    with pytest.raises(ValueError, match="steps.*Received"):
        vae.interpolate(x, x, 1)
    with pytest.raises(ValueError, match="as many rows.*Received"):
        vae.interpolate(x[:2], x[:3])


def test_wrong_arguments_are_refused():
    encoder = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(6)])
    vae = keras_bdl.VAE(encoder, decoder)
    for options in (
        {"likelihood": "poisson"},
        {"prior": "flat"},
        {"gradient": "stl"},
        {"num_importance_samples": 0},
        {"kl_weight": -1.0},
        {"likelihood": "gaussian"},  # needs twice as many outputs
    ):
        with pytest.raises(ValueError, match="Received"):
            keras_bdl.VAE(encoder, decoder, **options)
    for options in ({"encoder": 3}, {"decoder": None}, {"preprocessing": "bits"}):
        with pytest.raises(TypeError, match="Received"):
            keras_bdl.VAE(**{"encoder": encoder, "decoder": decoder, **options})
    for options in ({"loss": "mse"}, {"metrics": ["mae"]}):
        with pytest.raises(ValueError, match="own loss.*Received"):
            vae.compile("adam", **options)
    with pytest.raises(ValueError, match="num_levels.*Received"):
        keras_bdl.VAE.dense((6,), 2, likelihood="categorical")
    with pytest.raises(ValueError, match="height, width, channels.*Received"):
        keras_bdl.VAE.convolutional((6,), 2)
    build = keras_bdl.VAE.dense
    for name, values in {
        "hidden": (64, b"x", "x", None, {8: 8}, (2.5,)),
        "latent_dim": ("a", 2.5),
        "input_shape": (6, "abc", (None,), (6.0,)),
    }.items():
        for value in values:
            options = {"input_shape": (6,), "latent_dim": 2, name: value}
            with pytest.raises(TypeError, match=f"{name}.*Received"):
                build(**options)
    for value in (3, b"relu", "rellu", ["relu"]):
        with pytest.raises(ValueError, match="activation.*Received"):
            build((6,), 2, activation=value)
    with pytest.raises(TypeError, match="filters.*Received: filters=32"):
        keras_bdl.VAE.convolutional((8, 8, 1), 2, filters=32)
    with pytest.raises(ValueError, match="filters.*Received"):
        keras_bdl.VAE.convolutional((8, 8, 1), 2, filters=())
    build((6,), 2, hidden=np.array([4, 5]), activation=keras.ops.tanh)
    codes, data = keras.Input((2,)), keras.Input((6,))
    two = keras.Model(codes, [keras.layers.Dense(6)(codes) for _ in range(2)])
    with pytest.raises(ValueError, match="decoder with one output.*Received: 2"):
        keras_bdl.VAE(encoder, two, "gaussian")
    parts = [keras.layers.Dense(2)(data) for _ in range(3)]
    deep = keras.layers.Reshape((2, 2))(keras.layers.Dense(4)(data))
    for outputs in (parts, {"mean": parts[0], "log_stddev": parts[1]}, deep):
        with pytest.raises(ValueError, match="encoder with one output.*Received"):
            keras_bdl.VAE(keras.Model(data, outputs), decoder)
    with pytest.raises(ValueError, match="inputs.*Received: a model of 2"):
        keras_bdl.VAE(keras.Model([data, codes], parts[0]), decoder)
    odd = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)])
    with pytest.raises(ValueError, match="even width.*Received"):
        keras_bdl.VAE(odd, decoder)
    unbuilt = keras_bdl.VAE(
        keras.Sequential([keras.layers.Dense(4)]),
        keras.Sequential([keras.layers.Dense(6)]),
    )
    with pytest.raises(ValueError, match="built.*Received"):
        unbuilt.sample(3)


def test_unbuilt_networks_are_built_by_fit(rng):
    vae = keras_bdl.VAE(
        keras.Sequential([keras.layers.Dense(4)]),
        keras.Sequential([keras.layers.Dense(6)]),
    )
    vae.compile("adam")
    x = bits(rng, 20, (6,))
    vae.fit(x, verbose=0)
    assert vae.encode(x).shape == (20, 2)


def test_images_of_odd_size(rng):
    vae = keras_bdl.VAE.convolutional((7, 9, 2), 3, (4, 8))
    x = bits(rng, 8, (7, 9, 2))
    vae.compile("adam")
    vae.fit(x, verbose=0)
    assert vae.reconstruct(x).shape == x.shape


def test_active_units_are_those_whose_means_vary(rng):
    metric = keras_bdl.metrics.ActiveUnits(3)
    means = rng.normal(size=(101, 3)) * [1.0, 0.05, 0.2] + [5.0, -100.0, 3.0]
    for part in np.array_split(means.astype("float32"), 4):
        metric.update_state(part)
    assert float(metric.result()) == 2
    variances = to_numpy(metric.squares) / 101
    np.testing.assert_allclose(variances, means.var(axis=0), rtol=1e-2)


def test_the_layer_in_a_plain_model_has_the_same_loss(rng):
    vae, x, _ = linear_vae(rng)
    inputs = keras.Input((WIDTH,))
    codes = keras_bdl.GaussianLatent()(vae.encoder(inputs))
    model = keras.Model(inputs, vae.decoder(codes))
    model.compile(keras.optimizers.SGD(0.0), losses.GaussianNLL(NOISE))
    rows = np.tile(x, (50, 1))
    logs = model.fit(rows, rows, batch_size=len(rows), verbose=0).history
    assert -logs["loss"][0] == pytest.approx(exact_elbo(vae, x).mean(), abs=0.1)


@pytest.mark.one_backend
def test_sampled_predictions_use_sampled_codes(rng):
    vae, x, _ = linear_vae(rng)
    uncertainty = keras_bdl.predict_uncertainty(vae, x, 200, seed=0, verbose=0)
    kernel, _ = vae.decoder.get_weights()
    stddev = vae.encode(x, return_stddev=True)[1]
    expected = (stddev**2) @ (kernel**2)
    np.testing.assert_allclose(
        uncertainty.epistemic_variance.mean(0), expected.mean(0), rtol=0.3
    )
