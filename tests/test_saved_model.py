"""SavedModels with the posterior predictive, where there is no Keras."""

import concurrent.futures
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from contract import BACKEND, to_numpy
from keras import layers

import keras_bdl

needs_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="a SavedModel that samples needs TensorFlow"
)
FIELDS = {
    "probabilities",
    "predictive_entropy",
    "expected_entropy",
    "mutual_information",
}
rng = np.random.default_rng(0)


def make_network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(3, 3, activation="relu"),
            layers.Flatten(),
            keras_bdl.VariationalDense(6, activation="relu", initial_log_stddev=-1.0),
            keras_bdl.VariationalDense(3, initial_log_stddev=-1.0),
        ]
    )


@pytest.fixture(scope="module")
def x():
    return rng.normal(size=(5, 8, 8, 1)).astype("float32")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network, and the folder and module of its SavedModel of 16 samples."""
    import tensorflow as tf

    network = make_network()
    network.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    folder = str(tmp_path_factory.mktemp("served"))
    keras_bdl.export(network, folder, num_samples=16, verbose=False)
    return network, folder, tf.saved_model.load(folder)


@needs_tensorflow
def test_serve_is_the_mean_network(exported, x):
    network, _, served = exported
    for rows in (1, 5):
        expected = to_numpy(network(x[:rows]))
        np.testing.assert_allclose(served.serve(x[:rows]), expected, atol=1e-6)


@needs_tensorflow
def test_frozen_weights_give_the_same_answers_and_are_constants(exported, x, tmp_path):
    import tensorflow as tf

    network, _, served = exported
    seed = tf.constant(3)
    keras_bdl.export(network, tmp_path / "frozen", 16, freeze=True, verbose=False)
    frozen = tf.saved_model.load(tmp_path / "frozen")
    expected = served.predictive_seeded(x, seed)["probabilities"]
    answer = frozen.predictive_seeded(x, seed)["probabilities"]
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    np.testing.assert_allclose(frozen.serve(x), served.serve(x), atol=1e-6)
    assert served.signatures["serve"].variables
    assert not frozen.signatures["serve"].variables


@needs_tensorflow
def test_predictive_is_that_of_predict(exported, x):
    import tensorflow as tf

    network, _, served = exported
    many = keras_bdl.predict(network, x, 4000, seed=0, verbose=0)
    draws = [
        served.predictive_seeded(x, tf.constant(seed))["probabilities"].numpy()
        for seed in range(250)
    ]
    error = np.std(draws, axis=0) / np.sqrt(len(draws)) * np.sqrt(2.0)
    assert (np.abs(np.mean(draws, axis=0) - many) / error).max() < 5
    answer = {name: v.numpy() for name, v in served.predictive(x).items()}
    assert set(answer) == FIELDS
    p = answer["probabilities"]
    np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(
        answer["predictive_entropy"], -(p * np.log(p)).sum(-1), atol=1e-5
    )
    np.testing.assert_allclose(
        answer["mutual_information"],
        answer["predictive_entropy"] - answer["expected_entropy"],
        atol=1e-6,
    )


@needs_tensorflow
def test_seeds_repeat_and_fresh_noise_does_not(exported, x):
    import tensorflow as tf

    _, folder, served = exported

    def seeded(model, seed):
        return model.predictive_seeded(x, tf.constant(seed))["probabilities"].numpy()

    other = tf.saved_model.load(folder)
    np.testing.assert_array_equal(seeded(served, 3), seeded(other, 3))
    assert np.abs(seeded(served, 3) - seeded(served, 4)).min() > 0
    # Fresh loads differ, although the seed of the process was set when it was written.
    draws = [m.predictive(x)["probabilities"].numpy() for m in (served, other, other)]
    for first, second in ((0, 1), (1, 2)):
        assert np.abs(draws[first] - draws[second]).min() > 0


@needs_tensorflow
def test_eight_threads_at_once_get_draws_of_their_own(exported, x):
    _, _, served = exported

    def answer(_):
        return served.predictive(x)["probabilities"].numpy()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, range(64)))
    assert len({a.tobytes() for a in answers}) == 64
    np.testing.assert_allclose(np.sum(answers, axis=-1), 1.0, atol=1e-5)


@needs_tensorflow
def test_it_answers_without_keras(exported, x, tmp_path):
    import tensorflow as tf

    _, folder, served = exported
    np.save(tmp_path / "x.npy", x)
    script = f"""
        import sys
        for name in ("keras", "keras_bdl", "tf_keras"):
            sys.modules[name] = None  # an import fails
        import numpy as np
        import tensorflow as tf
        x = np.load({str(tmp_path / "x.npy")!r})
        served = tf.saved_model.load({folder!r})
        answer = served.predictive_seeded(tf.constant(x), tf.constant(7))
        np.save({str(tmp_path / "answer.npy")!r}, answer["probabilities"])
        from tensorflow.python.tools import saved_model_cli
        sys.argv = ["saved_model_cli", "run", "--dir", {folder!r}, "--tag_set", "serve",
                    "--signature_def", "predictive", "--inputs",
                    "x=" + {str(tmp_path / "x.npy")!r}, "--outdir", {str(tmp_path)!r}]
        saved_model_cli.main()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    expected = served.predictive_seeded(x, tf.constant(7))["probabilities"]
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), expected, atol=1e-6)
    assert np.load(tmp_path / "probabilities.npy").shape == (5, 3)


@needs_tensorflow
@pytest.mark.parametrize(
    "normalize", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_a_regressor_serves_what_it_predicts(normalize, tmp_path):
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    layer = keras_bdl.VariationalDense(2, initial_log_stddev=-3.0, seed=0)
    network = keras.Sequential([keras.Input((2,)), layer])
    model = keras_bdl.BayesianRegressor(network, normalize=normalize)
    data = np.random.default_rng(0).normal(3.0, 2.0, size=(64, 2)).astype("float32")
    model.compile("adam")
    model.fit(data, 50.0 + 10.0 * data[:, 0], verbose=0)
    keras_bdl.export(model, tmp_path, num_samples=2000, verbose=False)
    served = tf.saved_model.load(str(tmp_path))
    answer = served.predictive_seeded(data[:3], tf.constant(0))
    expected = model.predict_uncertainty(data[:3], 2000, seed=0, verbose=0)
    for name in ("mean", "aleatoric_stddev", "epistemic_stddev"):
        scale = np.abs(expected.epistemic_stddev).max()
        np.testing.assert_allclose(
            answer[name], getattr(expected, name), rtol=0.1, atol=0.1 * scale
        )
    quantiles = np.swapaxes(answer["quantiles"], 0, 1)
    spread = np.abs(expected.quantiles).max()
    np.testing.assert_allclose(quantiles, expected.quantiles, atol=0.1 * spread)


@needs_tensorflow
def test_dropout_and_several_inputs(tmp_path):
    import tensorflow as tf

    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((2,), name="b")}
    x = layers.Dropout(0.5)(layers.Concatenate()(list(inputs.values())))
    x = layers.Dense(2)(x)
    model = keras.Model(inputs, {"y": x, "z": 2.0 * x})
    keras_bdl.export(model, tmp_path, 4, mc_dropout=True, verbose=False)
    served = tf.saved_model.load(str(tmp_path))
    data = {"a": np.ones((2, 3), "float32"), "b": np.ones((2, 2), "float32")}
    first, second = (served.predictive(data) for _ in range(2))
    assert set(first) == {"mean_y", "mean_z"}
    np.testing.assert_allclose(first["mean_z"], 2.0 * first["mean_y"], rtol=1e-6)
    assert np.abs(first["mean_y"] - second["mean_y"]).max() > 0


@needs_tensorflow
@pytest.mark.parametrize("kind", ["classifier", "regressor", "vae", "semi_supervised"])
def test_a_loaded_model_exports(kind, tmp_path):
    import tensorflow as tf

    make = {
        "classifier": lambda: keras_bdl.BayesianClassifier(make_network()),
        "regressor": lambda: keras_bdl.BayesianRegressor(
            keras.Sequential([keras.Input((6,)), keras_bdl.VariationalDense(2)])
        ),
        "vae": lambda: keras_bdl.VAE.dense((6,), 2, hidden=(4,)),
        "semi_supervised": lambda: keras_bdl.SemiSupervisedVAE.dense(
            (6,), 2, num_classes=3, hidden=(4,)
        ),
    }
    model = make[kind]()
    if not model.built:
        model.build((None, 8, 8, 1) if kind == "classifier" else (None, 6))
    data = rng.uniform(size=(2, 8, 8, 1) if kind == "classifier" else (2, 6))
    data = data.astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    loaded.export(str(tmp_path / "served"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(data), to_numpy(model(data)), atol=1e-5)


@needs_tensorflow
def test_bad_arguments_are_refused(tmp_path):
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    unbuilt = keras.Sequential([keras_bdl.VariationalDense(2)])
    for model, options, error, match in (
        (plain, {}, ValueError, "Nothing in model"),
        (unbuilt, {}, ValueError, "shape of its inputs"),
        (3, {}, TypeError, "model=3"),
        (make_network(), {"num_samples": 0}, ValueError, "num_samples=0"),
        (make_network(), {"outputs": "labels"}, ValueError, "outputs='labels'"),
        (make_network(), {"mc_dropout": 1}, TypeError, "mc_dropout=1"),
    ):
        with pytest.raises(error, match=f"(?s){match}"):
            keras_bdl.export(model, tmp_path / "folder", **options)
    assert not (tmp_path / "folder").exists()


@pytest.mark.skipif(BACKEND == "tensorflow", reason="of the other backends")
def test_other_backends_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="TensorFlow.*Received: backend="):
        keras_bdl.export(make_network(), tmp_path)


@needs_tensorflow
@pytest.mark.parametrize(
    "kind", ["text", pytest.param("words", marks=pytest.mark.slow), "integers"]
)
def test_vocabularies_are_exported(kind, tmp_path):
    import tensorflow as tf

    first, other, dtype = (
        ("a", "z", "string") if kind != "integers" else (5, 9, "int64")
    )
    inputs = keras.Input((1,), dtype=dtype)
    lookup = {
        "text": lambda: layers.TextVectorization(
            vocabulary=["a", "b"], output_sequence_length=2
        ),
        "words": lambda: layers.StringLookup(vocabulary=["a", "b"]),
        "integers": lambda: layers.IntegerLookup(vocabulary=[5, 7]),
    }[kind]()
    codes = layers.Flatten()(layers.Embedding(4, 3)(lookup(inputs)))
    model = keras.Model(inputs, keras_bdl.VariationalDense(2)(codes))
    x = tf.constant([[first], [other]], dtype)
    for freeze in (False, True):
        folder = str(tmp_path / str(freeze))
        keras_bdl.export(model, folder, 4, outputs="mean", freeze=freeze, verbose=False)
        served = tf.saved_model.load(folder)
        np.testing.assert_allclose(served.serve(x), to_numpy(model(x)), atol=1e-6)
        alone = tf.saved_model.load(folder).serve  # its object is held by nothing else
        np.testing.assert_allclose(alone(x), to_numpy(model(x)), atol=1e-6)
        answer = served.predictive_seeded(x, tf.constant(1))
        assert set(answer) == {"mean", "epistemic_stddev"}
        assert float(answer["epistemic_stddev"][0, 0]) > 0.0
