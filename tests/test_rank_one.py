"""Members that share a kernel: each part of a batch runs its own member."""

import keras
import numpy as np
import pytest
from contract import to_numpy
from keras import layers
from scipy import integrate, stats

import keras_bdl
from keras_bdl.posteriors import BatchEnsemble, RankOneGaussian

pytestmark = pytest.mark.portable

rng = np.random.default_rng(0)
# A layer by its posterior, and the shape of a row of its inputs.
LAYERS = {
    "dense": (lambda p: keras_bdl.VariationalDense(3, "relu", posterior=p), (5,)),
    "positions": (lambda p: keras_bdl.VariationalDense(3, posterior=p), (4, 5)),
    "conv": (
        lambda p: keras_bdl.VariationalConv2D(3, 2, posterior=p, padding="same"),
        (4, 4, 2),
    ),
    "transposed": (
        lambda p: keras_bdl.VariationalConv1DTranspose(3, 2, posterior=p),
        (4, 2),
    ),
    "depthwise": (
        lambda p: keras_bdl.VariationalDepthwiseConv1D(2, posterior=p),
        (4, 3),
    ),
    "einsum": (
        lambda p: keras_bdl.VariationalEinsumDense(
            "abc,cde->abde", (None, 2, 3), bias_axes="de", posterior=p
        ),
        (4, 5),
    ),
    "lstm": (lambda p: keras_bdl.VariationalLSTM(3, posterior=p), (4, 2)),
    "embedding": (lambda p: keras_bdl.VariationalEmbedding(7, 3, posterior=p), (4,)),
}


def inputs_of(name, rows):
    shape = (rows, *LAYERS[name][1])
    if name == "embedding":
        return rng.integers(0, 7, shape)
    return rng.normal(size=shape).astype("float32")


@pytest.mark.parametrize("rows", [6, 7, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_each_part_of_a_batch_runs_its_own_member(name, rows):
    x = inputs_of(name, rows)
    inputs = keras.Input(x.shape[1:], dtype="int32" if name == "embedding" else None)
    model = keras.Model(inputs, LAYERS[name][0](BatchEnsemble(3))(inputs))
    for variable in model.variables:
        if "bias_offsets" in variable.name:  # which start at 0
            variable.assign(rng.normal(size=variable.shape))
    outputs = to_numpy(model(x, training=True))
    bounds = np.arange(4) * rows // 3  # of parts that differ by one row at most
    members = [keras_bdl.to_keras(model, "sample", index=i) for i in range(3)]
    for row in range(rows):
        member = np.searchsorted(bounds, row, side="right") - 1
        expected = to_numpy(members[member](x))[row]
        np.testing.assert_allclose(outputs[row], expected, rtol=1e-4, atol=1e-5)
    for weights in zip(*(m.get_weights() for m in members)):
        assert np.ptp(weights, axis=0).max() > 0.01


def test_a_member_is_the_kernel_times_its_factors():
    layer = keras_bdl.VariationalConv1D(3, 2, posterior=BatchEnsemble(4))
    layer.build((None, 5, 2))
    values = {v.name: to_numpy(v) for v in layer.weights}
    member = {n: to_numpy(w) for n, w in layer.posterior.particle(1).items()}
    matrix = values["kernel"].reshape(4, 3)
    rows = values["kernel_rows"][1].reshape(4)
    expected = matrix * np.outer(rows, values["kernel_columns"][1])
    np.testing.assert_allclose(member["kernel"].reshape(4, 3), expected, rtol=1e-6)
    np.testing.assert_allclose(member["bias"], values["bias_offsets"][1])


def network(posterior):
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras_bdl.VariationalDense(6, "relu", posterior=posterior, num_examples=48),
            keras_bdl.VariationalDense(2, posterior=posterior, num_examples=48),
        ]
    )


def test_samples_are_the_members_in_turn(tmp_path):
    model = network(BatchEnsemble(3))
    x = rng.normal(size=(8, 5)).astype("float32")
    options = {"return_samples": True, "verbose": 0, "seed": 1}
    drawn = to_numpy(keras_bdl.predict(model, x, **options))
    assert drawn.shape == (3, 8, 2)
    for i in range(3):
        member = keras_bdl.to_keras(model, "sample", index=i)
        np.testing.assert_allclose(
            drawn[i], member.predict(x, verbose=0), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match="a multiple of 3"):
        keras_bdl.predict(model, x, 4, **options)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras_bdl.predict(loaded, x, **options), drawn)


@pytest.mark.every_backend
def test_the_members_learn_apart_and_share_a_kernel():
    model = network("batch_ensemble")
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x = rng.normal(size=(64, 5)).astype("float32")
    before = [to_numpy(v).copy() for v in model.trainable_weights]
    history = model.fit(x, x[:, :2], epochs=30, batch_size=16, verbose=0)
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    for old, new in zip(before, model.trainable_weights):
        assert np.abs(to_numpy(new) - old).max() > 1e-3, new.path


def test_the_kl_is_the_mean_over_components():
    posterior = RankOneGaussian(2, spread=0.3, prior_stddev=0.2)
    layer = keras_bdl.VariationalDense(3, posterior=posterior, num_examples=1)
    layer.build((None, 2))
    values = {v.name: to_numpy(v) for v in layer.weights}
    prior = stats.norm(1.0, 0.2)
    expected = 0.0
    for part in ("kernel_rows", "kernel_columns"):
        means, stddevs = values[part], np.exp(values[f"{part}_log_stddev"])
        for mean, stddev in zip(means.ravel(), stddevs.ravel()):
            q = stats.norm(mean, stddev)
            expected += integrate.quad(
                lambda t, q=q: q.pdf(t) * (q.logpdf(t) - prior.logpdf(t)),
                mean - 10 * stddev,
                mean + 10 * stddev,
            )[0]
    np.testing.assert_allclose(float(to_numpy(layer.kl())), expected / 2, rtol=1e-4)


def test_draws_of_gaussian_factors_have_their_moments():
    posterior = RankOneGaussian(2, spread=0.3, initial_log_stddev=-1.0)
    model = keras.Sequential(
        [keras.Input((2,)), keras_bdl.VariationalDense(1, posterior=posterior)]
    )
    keras_bdl.set_num_examples(model, 10)
    values = {v.name: to_numpy(v) for v in model.layers[0].weights}
    x = np.ones((1, 2), "float32")
    drawn = keras_bdl.predict(model, x, 4000, return_samples=True, verbose=0, seed=0)
    drawn = to_numpy(drawn)[:, 0, 0]
    variance = np.exp(-2.0)
    for member in range(2):
        r, s = values["kernel_rows"][member][:, 0], values["kernel_columns"][member][0]
        w = values["kernel"][:, 0]
        mean = np.sum(w * r) * s
        second = (np.sum(w * r) ** 2 + variance * np.sum(w**2)) * (s**2 + variance)
        own = drawn[member::2]
        error = np.sqrt((second - mean**2) / len(own))
        assert abs(own.mean() - mean) < 5 * error
        np.testing.assert_allclose(own.var(), second - mean**2, rtol=0.2)


def test_a_plain_model_is_converted():
    plain = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, activation="relu"), layers.Dense(2)]
    )
    model = keras_bdl.to_bayesian(plain, posterior=BatchEnsemble(2))
    assert model.layers[0].posterior.size == 2
    for seed in range(8):  # both layers have the same member
        sample = keras_bdl.to_keras(model, "sample", seed=seed).get_weights()
        matches = [
            all(
                np.allclose(w, to_numpy(own["kernel"]), rtol=1e-5)
                for w, own in zip(
                    sample[::2], (x.posterior.particle(i) for x in model.layers)
                )
            )
            for i in range(2)
        ]
        assert sum(matches) == 1


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: BatchEnsemble(0), "size"),
        (lambda: BatchEnsemble(2, spread=0.0), "spread"),
        (lambda: RankOneGaussian(prior_stddev=-1.0), "prior_stddev"),
        (
            lambda: keras_bdl.Bayesian(layers.Dense(2), posterior=BatchEnsemble(2)),
            "use `keras_bdl.Ensemble`",
        ),
        (
            lambda: keras_bdl.to_keras(network("gaussian"), "sample", index=1),
            "Only an ensemble has members with numbers",
        ),
        (
            lambda: keras_bdl.Ensemble(network("batch_ensemble"), 2),
            "has members itself",
        ),
    ],
)
def test_bad_arguments_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_models_around_a_network_take_all_members_alike():
    x = rng.normal(size=(9, 5)).astype("float32")
    model = keras_bdl.BayesianClassifier(network(BatchEnsemble(3)))
    assert model.num_samples == 33
    model.compile("adam")
    model.fit(x, rng.integers(0, 2, 9), verbose=0)
    assert model.predict(x, verbose=0).shape == (9, 2)
    regressor = keras_bdl.BayesianRegressor(network("rank_one"), num_examples=9)
    assert regressor.num_samples == 100


def test_layers_of_different_sizes_are_refused():
    options = {"activation": "relu", "num_examples": 1}
    model = keras.Sequential(
        [keras.Input((5,))]
        + [
            keras_bdl.VariationalDense(2, posterior=BatchEnsemble(size), **options)
            for size in (2, 3)
        ]
    )
    with pytest.raises(ValueError, match="the same number of members in all layers"):
        keras_bdl.predict(model, np.ones((4, 5)), verbose=0)


def test_samples_of_gaussian_members_come_in_whole_cycles():
    model = network(RankOneGaussian(3))
    x = np.ones((2, 5), "float32")
    options = {"return_samples": True, "verbose": 0}
    assert to_numpy(keras_bdl.predict(model, x, **options)).shape[0] == 33
    with pytest.raises(ValueError, match="a multiple of 3"):
        keras_bdl.predict(model, x, 1, **options)


def test_dropout_inside_of_a_recurrent_layer_trains():
    model = keras.Sequential(
        [
            keras.Input((4, 2)),
            keras_bdl.VariationalLSTM(3, dropout=0.3, posterior=BatchEnsemble(2)),
        ]
    )
    model.compile("adam", "mse")
    x = rng.normal(size=(8, 4, 2)).astype("float32")
    history = model.fit(x, np.zeros((8, 3)), batch_size=3, verbose=0).history
    assert np.isfinite(history["loss"][0])
