"""Generative models whose networks have posteriors over weights."""

import keras
import numpy as np
import pytest
from contract import to_numpy
from scipy import stats

import keras_bdl
from keras_bdl import losses

pytestmark = pytest.mark.portable

# x = b + noise with one b of all rows, whatever the code: what is expected over
# q(b) = N(MEAN, STDDEV^2) is known.

NOISE, MEAN, STDDEV, ROWS = 0.7, 0.3, 0.5, 10


def shared_bias(**options):
    """A VAE of one number, its q(z | x) the prior and q(b) given, and data."""
    encoder = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    layer = keras_bdl.VariationalDense(1, initial_log_stddev=-20.0)
    decoder = keras.Sequential([keras.Input((1,)), layer])
    options = {"num_examples": ROWS, "seed": 0, **options}
    vae = keras_bdl.VAE(encoder, decoder, losses.GaussianNLL(NOISE), **options)
    vae.compile(keras.optimizers.SGD(0.0))
    encoder.set_weights([np.zeros((1, 2)), np.zeros(2)])
    set_bias(layer)
    return vae, layer, data()


def set_bias(layer):
    layer.kernel.assign(np.zeros(layer.kernel.shape))
    layer.bias.assign(np.full(layer.bias.shape, MEAN))
    layer.bias_log_stddev.assign(np.full(layer.bias.shape, np.log(STDDEV)))


def data():
    x = np.random.default_rng(0).normal(MEAN, np.hypot(NOISE, STDDEV), (ROWS, 1))
    return x.astype("float32")


def expected_log_likelihood(x):
    """E_q(b) log N(x | b, NOISE^2) of each row."""
    values = stats.norm(MEAN, NOISE).logpdf(x) - 0.5 * (STDDEV / NOISE) ** 2
    return values.sum(axis=1)


def assert_mean(values, expected):
    error = np.std(values) / np.sqrt(len(values) - 1)
    assert abs(np.mean(values) - expected) < 5 * error, (np.mean(values), error)


@pytest.mark.parametrize(
    "gradient, k",
    [
        ("elbo", 2),
        pytest.param("iwae", 30, marks=pytest.mark.slow),
        pytest.param("dreg", 30, marks=pytest.mark.every_backend),
    ],
)
def test_the_bound_is_that_of_one_draw_of_weights(gradient, k):
    """With weights of their own the codes would say log E p(x | b) of every row."""
    keras.utils.set_random_seed(1)
    vae, layer, x = shared_bias(gradient=gradient, num_importance_samples=k)
    kl = float(to_numpy(layer.kl())) / ROWS
    expected = kl - expected_log_likelihood(x).mean()
    logs = [vae.train_on_batch(x, return_dict=True)["loss"] for _ in range(60)]
    assert_mean(logs, expected)
    logs = [vae.test_on_batch(x) for _ in range(30)]
    assert_mean([loss for loss, *_ in logs], expected)
    predictive = stats.norm(MEAN, np.hypot(NOISE, STDDEV)).logpdf(x).mean()
    assert kl - predictive < expected - 0.1


LAYERS = {
    "local_reparameterization": lambda: keras_bdl.VariationalDense(
        3, initial_log_stddev=0.0
    ),
    "flipout": lambda: keras_bdl.VariationalDense(
        3, initial_log_stddev=0.0, estimator="flipout"
    ),
    "sparse": lambda: keras_bdl.SparseVDDense(3, initial_log_stddev=0.0),
    "drop_connect": lambda: keras_bdl.DropConnectDense(3),
    "gaussian_dropout": lambda: keras_bdl.VariationalGaussianDropout(
        0.5, keras.layers.Dense(3), alpha_per="weight"
    ),
    "concrete_dropout": lambda: keras_bdl.ConcreteDropout(
        keras.layers.Dense(3), initial_rate=0.5
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.eager
def test_codes_of_a_row_share_weights_of_every_kind(rng, name):
    """With one code k times and beta 0, the logarithm of a mean is that of one."""
    encoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    layer = LAYERS[name]()
    decoder = keras.Sequential(
        [keras.Input((2,)), layer, keras.layers.Activation("tanh")]
    )
    decoder.add(keras.layers.Dense(3))
    options = {"kl_weight": 0.0, "num_importance_samples": 6, "num_examples": 8}
    vae = keras_bdl.VAE(
        encoder, decoder, losses.GaussianNLL(0.3), gradient="iwae", seed=0, **options
    )
    vae.compile(keras.optimizers.SGD(0.0))
    kernel = np.concatenate([rng.normal(size=(3, 2)), np.zeros((3, 2))], axis=1)
    encoder.set_weights([kernel, np.array([0.0, 0.0, -20.0, -20.0])])
    layer.kl_weight.assign(0.0)
    x = rng.normal(size=(8, 3)).astype("float32")
    seen = []
    for step in (vae.train_on_batch, vae.test_on_batch):
        logs = step(x, return_dict=True)
        assert logs["loss"] == pytest.approx(logs["reconstruction"], rel=1e-4)
        seen.append(logs["loss"])
    assert seen[0] != pytest.approx(vae.train_on_batch(x, return_dict=True)["loss"])


@pytest.mark.eager
def test_both_runs_of_the_decoder_have_the_same_weights():
    """So DReG's gradient of the decoder is that of the bound, draw by draw."""
    found = []
    for gradient in ("iwae", "dreg"):
        keras.utils.set_random_seed(0)
        vae, layer, x = shared_bias(gradient=gradient, num_importance_samples=4)
        layer.kernel.assign([[0.8]])
        vae.compile(keras.optimizers.SGD(1.0))
        before = vae.decoder.get_weights()
        vae.train_on_batch(x)
        found.append([b - a for a, b in zip(before, vae.decoder.get_weights())])
    for iwae, dreg in zip(*found):
        np.testing.assert_allclose(dreg, iwae, rtol=1e-3, atol=1e-5)


@pytest.mark.one_backend
def test_log_prob_is_the_posterior_predictive():
    vae, _, x = shared_bias()
    expected = stats.norm(MEAN, np.hypot(NOISE, STDDEV)).logpdf(x)[:, 0]
    options = {"num_samples": 5000, "seed": 0, "verbose": 0}
    values = vae.log_prob(x, **options)
    np.testing.assert_allclose(values, expected, atol=0.1)
    np.testing.assert_array_equal(values, vae.log_prob(x, **options))
    elbo = vae.elbo(x, **options)
    np.testing.assert_allclose(elbo, expected_log_likelihood(x), atol=0.2)


def few_labels(**options):
    """Three classes that say nothing of x, q(z | x, y) the prior, and q(b) given."""
    bias = keras_bdl.VariationalDense(1, initial_log_stddev=-20.0)
    x, y, z = keras.Input((1,)), keras.Input((3,)), keras.Input((1,))
    join = keras.layers.Concatenate
    classifier = keras.Model(x, keras_bdl.VariationalDense(3)(x))
    encoder = keras.Model([x, y], keras.layers.Dense(2)(join()([x, y])))
    decoder = keras.Model([z, y], bias(join()([z, y])))
    model = keras_bdl.SemiSupervisedVAE(
        classifier, encoder, decoder, losses.GaussianNLL(NOISE), seed=0, **options
    )
    model.compile(keras.optimizers.SGD(0.0))
    return model, bias


@pytest.mark.slow
def test_few_labels_with_posteriors_over_weights():
    keras.utils.set_random_seed(1)
    model, bias = few_labels(classifier_weight=0.0)
    x = data()
    labels = np.where(np.arange(ROWS) < 4, np.arange(ROWS) % 3, -1)
    model.fit(x, labels, batch_size=ROWS, verbose=0)  # reads N off the data
    layers = (model.classifier.layers[-1], bias)
    for layer in layers:
        assert layer.num_examples is None
        assert float(to_numpy(layer.told_variables()["num_examples"])) == ROWS
    encoder = model.encoder.layers[-1]
    encoder.set_weights([np.zeros(encoder.kernel.shape), np.zeros(2)])
    classifier = layers[0]
    classifier.kernel.assign(np.zeros((1, 3)))
    classifier.bias.assign(np.zeros(3))
    for log_stddev in (classifier.kernel_log_stddev, classifier.bias_log_stddev):
        log_stddev.assign(np.full(log_stddev.shape, -20.0))
    set_bias(bias)
    kl = sum(float(to_numpy(layer.kl())) for layer in layers) / ROWS
    # Of an unlabelled row the classes cancel: log 3 of them against log p(y).
    expected = kl - expected_log_likelihood(x).mean() + 0.4 * np.log(3.0)
    logs = [model.train_on_batch(x, labels)[0] for _ in range(60)]
    assert_mean(logs, expected)
    logs = [model.evaluate(x, labels, verbose=0)[0] for _ in range(30)]
    assert_mean(logs, expected)


def test_few_labels_of_a_known_number_of_examples():
    model, bias = few_labels(num_examples=77)
    model.build((None, 1))
    assert bias.num_examples == 77
    copy = type(model).from_config(model.get_config())
    assert copy.num_examples == 77
    with pytest.raises(ValueError, match="num_examples.*Received"):
        few_labels(num_examples=0)
