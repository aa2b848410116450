"""KLWarmup: the weight by epoch, what is logged, what checkpoints keep."""

import keras
import numpy as np
import pytest

import keras_bdl
from keras_bdl.callbacks import KLWarmup

X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = np.arange(16) % 2


def classifier(kl_weight=1.0):
    network = keras.Sequential(
        [keras.Input((3,)), keras_bdl.VariationalDense(2, kl_weight=kl_weight)]
    )
    model = keras_bdl.BayesianClassifier(network, num_samples=2)
    model.compile("adam")
    return model


def weight(model):
    return float(model.network.layers[0].kl_weight.value)


class Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.weights, self.test_weights = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(weight(self.model))

    def on_test_begin(self, logs=None):
        self.test_weights.append(weight(self.model))


def test_factor_rises_linearly_from_the_start_epoch():
    warmup = KLWarmup(epochs=4, start_epoch=2)
    factors = [warmup.factor(epoch) for epoch in range(9)]
    assert factors == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]


def test_training_sees_the_warm_up_and_validation_the_full_weight():
    model, record = classifier(kl_weight=0.5), Record()
    history = model.fit(
        X,
        Y,
        epochs=4,
        batch_size=16,
        verbose=0,
        validation_data=(X, Y),
        callbacks=[KLWarmup(epochs=2), record],
    ).history
    np.testing.assert_allclose(record.weights, [0, 0.25, 0.5, 0.5])
    np.testing.assert_allclose(record.test_weights, [0.5] * 4)
    np.testing.assert_allclose(history["kl_weight"], [0, 0.5, 1, 1])
    assert weight(model) == 0.5
    kl = float(keras.ops.stop_gradient(model.network.layers[0].kl()))
    assert history["kl"][-1] == pytest.approx(kl, rel=1e-5)
    assert history["loss"][0] == pytest.approx(history["nll"][0], rel=1e-4)
    last = history["nll"][-1] + 0.5 * kl / 16
    assert history["loss"][-1] == pytest.approx(last, rel=0.02)


@pytest.mark.parametrize("first", [True, False])
def test_restored_weights_keep_the_full_weight_in_either_order(first):
    model = classifier()
    callbacks = [
        KLWarmup(epochs=10),
        keras.callbacks.EarlyStopping("loss", restore_best_weights=True, patience=0),
    ]
    model.fit(
        X, Y, epochs=5, verbose=0, callbacks=callbacks if first else callbacks[::-1]
    )
    assert weight(model) == 1.0


def test_load_weights_keeps_the_constructors_weight(tmp_path):
    source, target = classifier(kl_weight=0.3), classifier(kl_weight=0.7)
    for model in (source, target):
        model.fit(X, Y, verbose=0)
    source.save_weights(tmp_path / "w.weights.h5")
    target.load_weights(tmp_path / "w.weights.h5")
    assert weight(target) == pytest.approx(0.7)


def test_a_plain_model_without_nll_is_told_how_to_log_it():
    net = keras.Sequential(
        [keras.Input((3,)), keras_bdl.VariationalDense(2, num_examples=16)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile("sgd", loss)
    with pytest.warns(UserWarning, match="NegativeLogLikelihood"):
        history = net.fit(X, Y, verbose=0, callbacks=[KLWarmup(2)])
    assert "kl" in history.history
    nll = keras_bdl.metrics.NegativeLogLikelihood(from_logits=True)
    net.compile("sgd", loss, metrics=[nll])
    logs = net.fit(X, Y, verbose=0, callbacks=[KLWarmup(2)]).history
    assert logs["nll"][0] == pytest.approx(logs["loss"][0], rel=1e-4)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"epochs": 1, "start_epoch": -1}])
def test_bad_values(options):
    with pytest.raises(ValueError, match="Received"):
        KLWarmup(**options)


def test_bad_types():
    with pytest.raises(TypeError, match="epochs.*Received"):
        KLWarmup(epochs=1.5)


def test_a_model_without_bayesian_layers_is_refused():
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    net.compile("sgd", "mse")
    with pytest.raises(ValueError, match="KLWarmup.*Received"):
        net.fit(X, np.zeros((16, 2)), verbose=0, callbacks=[KLWarmup(1)])
