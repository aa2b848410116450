"""What is written is read again: by pickle, by copying, from files, of old versions."""

import copy
import json
import pathlib
import pickle
import zipfile

import keras
import numpy as np
import pytest
import saved_models
from contract import BACKEND, FITTED, to_numpy

import keras_bdl
from keras_bdl import priors
from keras_bdl.core import stochastic

FIXTURES = pathlib.Path(__file__).with_name("fixtures")
NAMES = [
    *saved_models.MODELS,
    *(saved_models.TFP_MODELS if BACKEND == "tensorflow" else []),
]
FILES = [path for path in sorted(FIXTURES.glob("v*/*.keras")) if path.stem in NAMES]
TYPICAL = ("variational_dense", "classifier", "vae")
# To copy is Keras's own on every backend: a layer, a model and a VAE show it where
# programs are compiled.
every_model = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in TYPICAL else pytest.mark.portable)
        for name in NAMES
    ],
)


every_file = pytest.mark.parametrize(
    "path",
    [
        # Weights are read by the same code on every backend.
        pytest.param(path, marks=pytest.mark.slow)
        if BACKEND == "jax" and path.stem not in TYPICAL
        else path
        for path in FILES
    ],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)


def assert_equal_models(first, second, x):
    np.testing.assert_array_equal(to_numpy(first(x)), to_numpy(second(x)))
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@every_file
def test_a_file_of_an_older_version_loads(path):
    data = np.load(path.with_suffix(".npz"))
    model = keras.models.load_model(path, safe_mode=True)
    outputs = to_numpy(model(data["inputs"]))
    tolerance = 5e-3 if "float16" in path.stem else 1e-5
    np.testing.assert_allclose(outputs, data["outputs"], atol=tolerance)


def test_there_is_a_file_of_everything():
    found = set()
    for path in (FIXTURES / "v0.1").glob("*.keras"):
        found |= set(json_names(zipfile.ZipFile(path).read("config.json")))
    models = {
        name
        for name, value in vars(keras_bdl.models).items()
        if isinstance(value, type) and issubclass(value, keras.Model)
    }
    all_priors = {
        name
        for name, value in vars(priors).items()
        if isinstance(value, type) and issubclass(value, priors.Prior)
    } - {"Prior"}
    latent_priors = {"GaussianMixture", "VampPrior"}
    wanted = {*stochastic.REGISTRY, *models, *all_priors, *latent_priors}
    assert wanted - found == FITTED


def json_names(text):
    """Every class name in a config."""

    def walk(node):
        if isinstance(node, dict):
            if isinstance(node.get("class_name"), str):
                yield node["class_name"]
            node = list(node.values())
        if isinstance(node, list):
            for part in node:
                yield from walk(part)

    return walk(json.loads(text))


@every_model
def test_copies_are_equal_and_separate(name, tmp_path):
    model = saved_models.make(name)
    x = saved_models.inputs_of(model)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert_equal_models(model, other, x)
        assert not {id(v) for v in model.variables} & {id(v) for v in other.variables}
    clone = keras.models.clone_model(model)
    if not clone.built:
        clone.build(model.get_build_config()["input_shape"])
    clone.set_weights(model.get_weights())
    assert_equal_models(model, clone, x)
    model.save_weights(tmp_path / "model.weights.h5")
    for variable in clone.trainable_variables:
        variable.assign(0.0 * variable)
    clone.load_weights(tmp_path / "model.weights.h5")
    assert_equal_models(model, clone, x)


@pytest.mark.parametrize("name", TYPICAL)
def test_damaged_and_strange_files_end_in_one_clear_error(name, tmp_path):
    model = saved_models.make(name)
    path = tmp_path / "model.keras"
    model.save(path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"no archive", b""):
        path.write_bytes(damaged)
        with pytest.raises((ValueError, OSError, zipfile.BadZipFile)):
            keras.models.load_model(path)
    weights = tmp_path / "model.weights.h5"
    model.save_weights(weights)
    weights.write_bytes(weights.read_bytes()[:200])
    before = model.get_weights()
    with pytest.raises((ValueError, OSError)):
        model.load_weights(weights)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "model.weights.h5"
    saved_models.make("variational_dense").save_weights(path)
    wider = saved_models.sequential(
        keras_bdl.VariationalDense(5), keras_bdl.VariationalDense(5)
    )
    with pytest.raises(ValueError, match="shape"):
        wider.load_weights(path)
    plain = saved_models.sequential(keras.layers.Dense(3), keras.layers.Dense(3))
    with pytest.raises(ValueError):
        plain.load_weights(path)


def rewritten(path, change):
    """A `.keras` file with another config."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config)
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def test_unknown_classes_and_code_in_a_file_are_refused(tmp_path):
    path = tmp_path / "model.keras"
    model = saved_models.make("variational_dense")

    def layer(config):
        return config["config"]["layers"][1]

    def unknown(config):
        layer(config)["class_name"] = layer(config)["registered_name"] = "Nothing"

    def code(config):
        layer(config)["config"]["activation"] = {
            "class_name": "__lambda__",
            "config": {"value": "4wAAAA=="},
        }

    for change, match in ((unknown, "(?i)nothing|locate"), (code, "(?i)lambda|unsafe")):
        model.save(path)
        rewritten(path, change)
        with pytest.raises((ValueError, TypeError), match=match):
            keras.models.load_model(path)
