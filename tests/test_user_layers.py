"""Conversion of models with layers of the user's own, all of `model_zoo`."""

import keras
import model_zoo
import numpy as np
import pytest
from contract import BACKEND, to_numpy
from keras import layers

import keras_bdl
from keras_bdl.core import finding, stochastic

ASSIGNS = "has weights that the layer around it assigns"
# What is replaced; by default the head alone.
REPLACED = {
    **dict.fromkeys(
        ("block", "shaped_block", "block_called_twice", "bare"), {"inner", "head"}
    ),
    "builds_in_build": {"squeeze", "excite", "head"},
    "few_keywords": {"hidden", "head"},
    "of_parts": {"code", "mid", "head"},
    **dict.fromkeys(("subclassed", "trained"), {"hidden", "inner", "head"}),
    "mixed": {"hidden", "head"},
    "popping": {"popped", "head"},
    "listed": {"first", "second", "head"},
    "tied": {"tied"},
}
# What is left besides layers of other classes.
LEFT = {
    "Normalised": {"v": ASSIGNS},
    **dict.fromkeys(("Masked", "MaskedWeights", "MaskedInTraining"), {"conv": ASSIGNS}),
    "frozen": {"frozen": "is frozen (`trainable=False`)"},
    "spectral": {
        "spectral_normalization": "assigns the weights of the layer inside of it"
    },
}
HAVE_NO_CONFIG = ("bare", "forgetful", "forgetful_weights", "of_parts")
METHODS = ("sparse_vd", "concrete_dropout", "mc_dropout", "drop_connect")
# The others are variations of these.
TYPICAL = ("block", "builds_in_build", "forgetful", "trained", "mixed", "frozen")
TYPICAL += ("tied", "Masked", "feed_forward", "popping")
every_model = pytest.mark.parametrize(
    "name",
    [
        name if name in TYPICAL else pytest.param(name, marks=pytest.mark.slow)
        for name in model_zoo.ZOO
    ],
)
pytestmark = [
    pytest.mark.portable,
    pytest.mark.filterwarnings("ignore:.*(cannot be made again|lambda)"),
]


def posteriors(model):
    return [type(layer) for layer in stochastic.stochastic_layers(model)]


def load(path):
    names = {k: v for k, v in vars(model_zoo).items() if isinstance(v, type)}
    return keras.models.load_model(path, custom_objects=names, safe_mode=False)


@every_model
@pytest.mark.eager
def test_models_are_converted_saved_and_cloned(name, tmp_path):
    model, x = model_zoo.make(name)
    expected = to_numpy(model(x))
    bayesian, report = keras_bdl.to_bayesian(
        model, 10, return_report=True, initial_log_stddev=-2.0
    )
    np.testing.assert_allclose(to_numpy(bayesian(x)), expected, atol=1e-5)
    if name not in ("containers", "feed_forward"):  # of which names are numbered
        assert set(report.replaced) == REPLACED.get(name, {"head"})
    for layer, reason in LEFT.get(name, {}).items():
        assert report.left[layer] == reason
    draws = keras_bdl.predict(bayesian, x, 4, return_samples=True, seed=0, verbose=0)
    assert draws.std(0).max() > 0
    plain = keras_bdl.to_keras(bayesian)
    np.testing.assert_allclose(to_numpy(plain(x)), expected, atol=1e-5)
    assert not posteriors(plain)
    if "forgetful" not in name:
        classes = [type(layer) for layer in finding.flatten_layers(plain)]
        assert classes == [type(layer) for layer in finding.flatten_layers(model)]

    if name == "Normalised":
        return  # its weights change whenever it is called
    for variable in bayesian.trainable_variables:
        variable.assign(1.1 * variable)
    trained = to_numpy(bayesian(x))
    bayesian.save_weights(tmp_path / "w.weights.h5")
    again = keras_bdl.to_bayesian(model, 10)
    again.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_allclose(to_numpy(again(x)), trained, atol=1e-5)
    if name in HAVE_NO_CONFIG:
        with pytest.raises(NotImplementedError, match="`get_config`.*Received: layer"):
            bayesian.save(tmp_path / "model.keras")
        return
    bayesian.save(tmp_path / "model.keras")
    copies = [load(tmp_path / "model.keras")]
    if name != "lambda":  # Keras clones no lambda
        copies.append(keras.models.clone_model(bayesian))
        assert len(posteriors(bayesian)) == len(report.replaced)
        copies[-1](x)
        copies[-1].set_weights(bayesian.get_weights())
    for copy in copies:
        assert posteriors(copy) == posteriors(bayesian)
        np.testing.assert_allclose(to_numpy(copy(x)), trained, atol=1e-5)


def test_a_block_with_lora_is_left_and_the_rest_converted():
    block = model_zoo.Block(8)
    model = model_zoo.functional((8,), block, model_zoo.head())
    block.dense.enable_lora(2)
    bayesian, report = keras_bdl.to_bayesian(model, 10, return_report=True)
    assert report.replaced == ["head"] and "LoRA" in report.left["inner"]
    x = model_zoo.floats(8)
    np.testing.assert_allclose(to_numpy(bayesian(x)), to_numpy(model(x)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_into_containers(method, tmp_path):
    model, x = model_zoo.make("containers")
    bayesian = keras_bdl.to_bayesian(model, 10, method=method)
    np.testing.assert_allclose(to_numpy(bayesian(x)), to_numpy(model(x)), atol=2e-3)
    assert len(posteriors(bayesian)) == (1 if method == "mc_dropout" else 9)
    bayesian.save(tmp_path / "model.keras")
    loaded = load(tmp_path / "model.keras")
    assert posteriors(loaded) == posteriors(bayesian)
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(bayesian(x)))


@pytest.mark.parametrize("name", ["containers", "subclassed", "builds_in_build"])
def test_weights_keep_their_order_and_a_second_round_adds(name):
    model, x = model_zoo.make(name)
    bayesian = keras_bdl.to_bayesian(model, 10, layers=["head"])
    assert len(posteriors(bayesian)) == 1
    second = keras_bdl.to_bayesian(bayesian, 10)
    assert len(posteriors(second)) == len(posteriors(keras_bdl.to_bayesian(model, 10)))
    back = keras_bdl.to_keras(second)
    for old, new in zip(model.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    updated = keras_bdl.prior_from_posterior(second)
    np.testing.assert_allclose(to_numpy(updated(x)), to_numpy(model(x)), atol=1e-5)
    kls = [float(layer.kl()) for layer in stochastic.stochastic_layers(updated)]
    assert max(map(abs, kls)) < 1e-4


def test_nobody_elses_layers_are_touched():
    model, _ = model_zoo.make("forgetful")
    keras_bdl.to_bayesian(model, 10)
    for layer in model.layers:
        assert layer.output is not None  # Keras refuses where a layer is in two graphs
    assert type(model.layers[1]) is model_zoo.Forgetful


def test_a_layer_in_both_models_is_told():
    model, _ = model_zoo.make("forgetful_weights")
    with pytest.warns(UserWarning, match="Forgetful.*trains the other"):
        bayesian, report = keras_bdl.to_bayesian(model, 10, return_report=True)
    held = next(x for x in model.layers if isinstance(x, model_zoo.Forgetful))
    assert held.name in report.replaced and report.share > 0.9
    wrapper = next(x for x in bayesian.layers if hasattr(x, "chosen"))
    assert wrapper.layer is held
    with pytest.warns(UserWarning, match="Forgetful.*trains the other"):
        _, report = keras_bdl.to_bayesian(
            model, 10, method="sparse_vd", return_report=True
        )
    reasons = " ".join(report.left.values())
    assert "inside a layer that cannot be copied" in reasons
    assert "is in both models" in reasons


@pytest.mark.eager
def test_draws_of_a_masked_network_are_masked():
    model = model_zoo.functional((8, 1), model_zoo.Masked(), layers.Conv1D(1, 1))
    bayesian = keras_bdl.to_bayesian(model, 10, initial_log_stddev=-1.0)
    x = np.zeros((1, 8, 1), "float32")
    future = x.copy()
    future[0, 5:] = 1
    options = {"return_samples": True, "seed": 0, "verbose": 0}
    first = keras_bdl.predict(bayesian, x, 4, **options)
    second = keras_bdl.predict(bayesian, future, 4, **options)
    np.testing.assert_allclose(first[:, 0, :5], second[:, 0, :5], atol=1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a SavedModel is of TensorFlow")
@pytest.mark.parametrize("name", ["subclassed", "builds_in_build", "mixed"])
def test_copies_are_exported(name, tmp_path):
    import tensorflow as tf

    model, x = model_zoo.make(name)
    bayesian = keras_bdl.to_bayesian(model, 10)
    bayesian.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(to_numpy(served.serve(x)), to_numpy(model(x)), atol=1e-5)
