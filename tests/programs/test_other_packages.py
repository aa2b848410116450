"""Models of KerasHub, keras-tcn and keras_rs, with random weights, where installed.

`pip install '.[programs]'`; keras-tcn needs `pip install --no-deps keras-tcn`.
"""

import keras
import numpy as np
import pytest
from keras import layers

import keras_bdl

pytestmark = pytest.mark.portable
ROWS = 32
# Sizes of a backbone of KerasHub.
OF_TEXT = {
    "vocabulary_size": 50,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "max_sequence_length": 8,
}


def tokens(rng, length, words):
    ids = rng.integers(1, words, (ROWS, length))
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}


def bert(rng):
    keras_hub = pytest.importorskip("keras_hub", reason="KerasHub is not installed")
    backbone = keras_hub.models.BertBackbone(**OF_TEXT)
    model = keras_hub.models.BertTextClassifier(backbone, 3, preprocessor=None)
    return model, {**tokens(rng, 8, 50), "segment_ids": np.zeros((ROWS, 8), "int32")}


def gpt2(rng):
    keras_hub = pytest.importorskip("keras_hub", reason="KerasHub is not installed")
    backbone = keras_hub.models.GPT2Backbone(**OF_TEXT)
    return backbone, tokens(rng, 8, 50)


def vit(rng):
    keras_hub = pytest.importorskip("keras_hub", reason="KerasHub is not installed")
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    model = keras_hub.models.ViTImageClassifier(backbone, 3, preprocessor=None)
    return model, rng.normal(size=(ROWS, 16, 16, 3)).astype("float32")


def temporal_convolution(rng):
    tcn = pytest.importorskip("tcn", reason="keras-tcn is not installed")
    inputs = keras.Input((12, 3))
    hidden = tcn.TCN(8, kernel_size=2, dilations=(1, 2))(inputs)
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    return model, rng.normal(size=(ROWS, 12, 3)).astype("float32")


def cross_network(rng):
    keras_rs = pytest.importorskip("keras_rs", reason="keras_rs is not installed")
    inputs = keras.Input((6,))
    hidden = keras_rs.layers.FeatureCross(projection_dim=4)(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    return model, rng.normal(size=(ROWS, 6)).astype("float32")


@pytest.mark.parametrize("method", ["variational", "lora"])
@pytest.mark.parametrize("make", [bert, gpt2, vit, temporal_convolution, cross_network])
def test_it_converts_trains_predicts_saves_and_returns(make, method, rng, tmp_path):
    plain, x = make(rng)
    model, report = keras_bdl.to_bayesian(
        plain, ROWS, method=method, return_report=True
    )
    assert report.share > 0.85  # of few weights, many are biases
    before = plain.predict(x, verbose=0)
    np.testing.assert_allclose(model.predict(x, verbose=0), before, atol=1e-5)
    trained = [v.name for v in model.trainable_variables]
    if method == "lora":
        assert all("_lora_" in name for name in trained)
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(x, np.zeros_like(before), batch_size=16, verbose=0)
    mean = model.predict(x, verbose=0)
    assert np.abs(mean - before).max() > 0.0
    draws = keras_bdl.predict(
        model, x, 4, outputs="mean", return_samples=True, seed=0, verbose=0
    )
    assert draws.shape == (4, *mean.shape)
    assert draws.std(axis=0).max() > 0.0
    back = keras_bdl.to_keras(model)
    np.testing.assert_allclose(back.predict(x, verbose=0), mean, atol=1e-5)
    assert len(back.weights) == len(plain.weights)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), mean, atol=1e-5)
    assert [v.name for v in loaded.trainable_variables] == trained
