"""One program for all calls: their seed travels with them, and few are kept."""

import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from contract import randomize, to_numpy

import keras_bdl
from keras_bdl.core import cache, finding, stochastic
from keras_bdl.prediction import seeded_data

pytestmark = pytest.mark.portable

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(10, 4)).astype("float32")


def network(*layers, units=2):
    model = keras.Sequential(
        [keras.Input((4,)), *layers, keras_bdl.VariationalDense(units)]
    )
    for index, layer in enumerate(stochastic.stochastic_layers(model)):
        if isinstance(layer, keras_bdl.VariationalDense):
            randomize(layer, seed=index)
    return model


def vae():
    model = keras_bdl.VAE.dense((4,), 2, hidden=(3,), likelihood="gaussian")
    model.build((None, 4))
    return model


def regressor():
    return keras_bdl.BayesianRegressor(network(), num_samples=4)


class Holder(keras.Model):
    """Dropout in a list of a model of the user's own."""

    def __init__(self):
        super().__init__()
        self.parts = [keras.layers.Dense(8), keras.layers.Dropout(0.5)]

    def call(self, inputs, training=None):
        return self.parts[1](self.parts[0](inputs), training=training)


def holder():
    model = Holder()
    model(X)
    return model


# Calls with a seed: of a model, one that takes it.
CALLS = {
    "predict": (
        network,
        lambda m, seed: keras_bdl.predict(
            m, X, 9, seed=seed, batch_size=3, return_samples=True, verbose=0
        ),
    ),
    "predict_uncertainty": (
        network,
        lambda m, seed: (
            keras_bdl.predict_uncertainty(
                m, X, 4, seed=seed, batch_size=3, outputs="mean", verbose=0
            ).epistemic_variance
        ),
    ),
    "quantiles": (
        regressor,
        lambda m, seed: (
            m.predict_uncertainty(X, seed=seed, batch_size=3, verbose=0).quantiles
        ),
    ),
    "log_likelihood": (
        lambda: keras_bdl.BayesianRegressor(network(), num_samples=4),
        lambda m, seed: m.log_likelihood(
            X, X[:, 0], seed=seed, batch_size=3, verbose=0
        ),
    ),
    "log_prob": (
        vae,
        lambda m, seed: m.log_prob(X, 4, batch_size=3, seed=seed, verbose=0),
    ),
    "sample": (vae, lambda m, seed: m.sample(5, seed=seed, with_noise=True)),
    "mc_dropout": (
        holder,
        lambda m, seed: keras_bdl.predict(
            m, X, 3, seed=seed, batch_size=3, mc_dropout=True, verbose=0
        ),
    ),
}
# One of `prediction`, and one of a model class, where programs are compiled.
COMPILED = ("predict", "log_prob")
EACH = [
    pytest.param(name, marks=[pytest.mark.every_backend] * (name in COMPILED))
    for name in CALLS
]


@pytest.mark.parametrize("name", EACH)
def test_calls_of_several_threads_keep_their_seeds(name):
    if BACKEND == "jax":
        pytest.skip("Keras has no threads on JAX")
    make, call = CALLS[name]
    model = make()
    right = {seed: call(model, seed) for seed in range(3)}
    assert np.abs(right[0] - right[1]).max() > 1e-4
    answers = {seed: [] for seed in right}

    def work(seed):
        for _ in range(4):
            answers[seed].append(call(model, seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in right]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, expected in right.items():
        assert len(answers[seed]) == 4
        for answer in answers[seed]:
            np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.eager
def test_a_seed_repeats_whatever_the_noise_of_the_layers_began_with(name):
    make, call = CALLS[name]
    keras.utils.set_random_seed(1)
    first = make()
    keras.utils.set_random_seed(2)
    second = make()  # other names, other keys of the layers
    second.set_weights(first.get_weights())
    np.testing.assert_allclose(call(first, 0), call(second, 0), rtol=1e-5, atol=1e-6)
    assert np.abs(call(first, 0) - call(first, 1)).max() > 1e-4


_PROCESS = """
import keras, numpy as np, keras_bdl
keras.utils.set_random_seed({seed})
layer = keras_bdl.VariationalDense(2, kernel_initializer="ones")
model = keras.Sequential([keras.Input((3,)), layer])
draws = keras_bdl.predict(model, np.ones((1, 3)), 2, seed=0, return_samples=True)
print(" ".join(f"{{value:.6f}}" for value in draws.ravel()))
"""


DRAWS_OF_ANOTHER_PROCESS = {
    "tensorflow": "2.996770 3.001650 2.988642 2.998500",
    "jax": "3.008827 2.978460 3.014566 3.011139",
    "torch": "2.991334 3.014699 3.016449 3.015778",
}


@pytest.mark.every_backend
def test_a_seed_repeats_what_another_process_drew(capsys):
    for seed in (1, 2):
        exec(_PROCESS.format(seed=seed), {})
        found = capsys.readouterr().out.split()[-4:]
        expected = DRAWS_OF_ANOTHER_PROCESS[BACKEND].split()
        np.testing.assert_allclose(
            np.array(found, float), np.array(expected, float), atol=2e-6
        )


@pytest.mark.slow
def test_a_seed_repeats_in_another_process():
    lines = [
        subprocess.run(
            [sys.executable, "-c", _PROCESS.format(seed=seed)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
        for seed in (1, 2)
    ]
    assert lines[0] == lines[1]


def test_draws_depend_on_no_batch_size():
    model = network(keras_bdl.VariationalDense(5, activation="tanh"))
    x = np.random.default_rng(0).normal(size=(1500, 4)).astype("float32")
    for options in ({}, {"return_samples": True}):
        answers = [
            keras_bdl.predict(
                model, x, 9, seed=0, batch_size=size, verbose=0, **options
            )
            for size in (64, 699, 700, 1500)
        ]
        for answer in answers[1:]:
            np.testing.assert_allclose(answers[0], answer, rtol=1e-4, atol=1e-5)


# What is kept


@pytest.mark.eager
def test_few_programs_are_kept_and_the_layers_gain_no_calls():
    model = network(keras.layers.Dropout(0.3))
    for mc_dropout in (False, True):
        for joint in (False, True):
            keras_bdl.predict(
                model, X, 2, mc_dropout=mc_dropout, return_samples=joint, verbose=0
            )
    layer = model.layers[-1]
    calls = len(layer._inbound_nodes)
    for num_samples in range(3, 3 + 2 * cache._MOST_KEPT):
        keras_bdl.predict(model, X, num_samples, batch_size=num_samples, verbose=0)
    assert len(layer._inbound_nodes) == calls
    assert len(model._keras_bdl_kept.samplers) == cache._MOST_KEPT
    assert len(model._keras_bdl_kept.cuts) == 4


@pytest.mark.eager
def test_a_regressor_and_a_vae_keep_few_programs():
    model, generative = regressor(), vae()
    for count in range(1, 3 + cache._MOST_KEPT):
        model.predict_uncertainty(X, count, batch_size=count, verbose=0)
        generative.log_prob(X, count, batch_size=count, verbose=0)
    for holder_ in (model, model.sampled_network, generative):
        kept = vars(holder_._keras_bdl_kept).values()
        assert max(map(len, kept)) <= cache._MOST_KEPT


def test_what_was_last_asked_for_is_kept():
    model = network()
    made = []
    for key in [0, 1, 2, *range(cache._MOST_KEPT), 0]:
        cache.kept_with(model, "things", key, lambda key=key: made.append(key))
    # 0 came back after 7 others, none of which pushed it out.
    assert made == list(range(cache._MOST_KEPT))
    for key in (cache._MOST_KEPT, 1):
        cache.kept_with(model, "things", key, lambda key=key: made.append(key))
    assert made[-2:] == [cache._MOST_KEPT, 1]


# Data of every kind


def test_the_users_layers_are_not_touched():
    model = holder()
    before = [dict(vars(layer)) for layer in finding.flatten_layers(model)]
    seen = []

    class Look(keras.callbacks.Callback):
        def on_predict_batch_begin(self, batch, logs=None):
            seen.extend("call" in vars(x) for x in finding.flatten_layers(model))

    keras_bdl.predict(model, X, 3, mc_dropout=True, callbacks=[Look()], verbose=0)
    assert seen and not any(seen)
    for layer, old in zip(finding.flatten_layers(model), before):
        for name in ("parts", "_layers", "_inbound_nodes", "_losses"):
            assert vars(layer).get(name) is old.get(name)
    assert type(model.parts[1]) is keras.layers.Dropout


def test_doubles_see_weights_that_change():
    model = holder()
    call = CALLS["mc_dropout"][1]
    before = call(model, 0)
    model.parts[0].kernel.assign(2.0 * to_numpy(model.parts[0].kernel))
    np.testing.assert_allclose(call(model, 0), 2.0 * before, rtol=1e-5)


class Hiding(keras.Model):
    """Calls a layer that it holds, by another way than the attribute."""

    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dropout(0.5)
        self.second = keras.layers.Dropout(0.5)
        self.helper = Helper()
        self.helper.drop = self.second

    def call(self, inputs, training=None):
        return self.helper.drop(self.first(inputs, training=training))


class Helper:
    pass


class OwnCall(keras.Model):
    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


def test_a_graph_with_a_call_of_its_own_is_refused():
    inputs = keras.Input((4,))
    model = OwnCall(inputs, keras.layers.Dropout(0.5)(inputs))
    with pytest.raises(ValueError, match="mc_dropout.*Received"):
        keras_bdl.predict(model, X, 2, mc_dropout=True, verbose=0)


def test_dropout_that_is_called_past_its_attribute_is_told():
    model = Hiding()
    model(X)
    with pytest.warns(UserWarning, match=f"'{model.second.name}'.*no noise"):
        keras_bdl.predict(model, X, 2, mc_dropout=True, verbose=0)


@pytest.mark.parametrize(
    "x, error",
    [
        ("abc", TypeError),
        (None, TypeError),
        ([[1.0, 2.0, 3.0, 4.0]], TypeError),
        ({}, TypeError),
        (5, TypeError),
        (np.float32(5), ValueError),
    ],
)
def test_what_is_no_data_is_refused(x, error):
    with pytest.raises(error, match="Expected.*Received"):
        keras_bdl.predict(network(), x, 2, verbose=0)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "8"])
def test_wrong_batch_sizes(batch_size):
    with pytest.raises((ValueError, TypeError), match="batch_size.*Received"):
        keras_bdl.predict(network(), X, 2, batch_size=batch_size, verbose=0)


class Batches(keras.utils.PyDataset):
    def __init__(self):
        super().__init__(workers=2, max_queue_size=3)
        self.ended = 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[4 * index : 4 * index + 4], np.zeros(len(X[4 * index : 4 * index + 4]))

    def on_epoch_end(self):
        self.ended += 1


def test_a_py_dataset_is_passed_on():
    data = Batches()
    seeded, steps = seeded_data.with_seed(data, 7)
    assert steps is None and seeded.num_batches == 3
    assert (seeded.workers, seeded.max_queue_size) == (2, 3)
    ((batch,),) = [seeded[2]]
    np.testing.assert_array_equal(batch["x"], X[8:])
    np.testing.assert_array_equal(batch["seed"], [[7, 2], [7, 2]])
    seeded.on_epoch_end()
    assert data.ended == 1


def test_a_data_loader_tells_its_length(capsys):
    data = pytest.importorskip("torch.utils.data", reason="a DataLoader is of torch")
    import torch

    loader = data.DataLoader(
        data.TensorDataset(torch.tensor(X), torch.zeros(10)), batch_size=4
    )
    model = network()
    result = keras_bdl.predict(model, loader, 3, seed=0, verbose=1)
    assert "3/3" in capsys.readouterr().out
    expected = keras_bdl.predict(model, X, 3, seed=0, batch_size=4, verbose=0)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_tf_data_set_is_batched(only_tensorflow):
    import tensorflow as tf

    ragged = tf.ragged.constant([[1.0], [2.0, 3.0], [4.0]])
    for x in (X, {"a": X, "b": X[:, :1]}, tf.sparse.from_dense(X)):
        data = tf.data.Dataset.from_tensor_slices(x).batch(4)
        seeds = [batch["seed"].numpy() for batch in seeded_data.with_seed(data, 7)[0]]
        numbers = [[7, 0]] * 4 + [[7, 1]] * 4 + [[7, 2]] * 2
        np.testing.assert_array_equal(np.concatenate(seeds), numbers)
        assert int(seeded_data.with_seed(data, 7)[0].cardinality()) == 3
    data = tf.data.Dataset.from_tensors(ragged)
    (batch,) = seeded_data.with_seed(data, 7)[0]
    np.testing.assert_array_equal(batch["seed"], [[7, 0]] * 3)
    with pytest.raises(ValueError, match="batch.*Received"):
        scalars = tf.data.Dataset.from_tensor_slices(X[:, 0])
        keras_bdl.predict(network(), scalars, 2, verbose=0)


def test_one_tensor_may_be_several_outputs():
    inputs = keras.Input((4,))
    sampled = keras_bdl.VariationalDense(2)(inputs)
    model = keras.Model(inputs, {"a": sampled, "b": [sampled, inputs], "c": inputs})
    for joint in (False, True):
        result = keras_bdl.predict(model, X, 3, seed=0, return_samples=joint, verbose=0)
        np.testing.assert_array_equal(result["a"], result["b"][0])
        np.testing.assert_allclose(result["b"][1], result["c"])
        expected = np.broadcast_to(X, result["c"].shape)
        np.testing.assert_allclose(result["c"], expected, rtol=1e-6)


def test_outputs_keep_their_digits_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input((4,))
    hidden = keras_bdl.VariationalDense(2, initial_log_stddev=-20.0)(inputs)
    outputs = keras.layers.Rescaling(1e-9, dtype="float32")(hidden)
    model = keras.Model(inputs, outputs)
    result = keras_bdl.predict(model, X, 3, outputs="mean", verbose=0)
    np.testing.assert_allclose(result, model.predict(X, verbose=0), rtol=2e-2)
