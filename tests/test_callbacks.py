"""KLWarmup: the weight by epoch, what is logged, what checkpoints keep."""

import warnings

import keras
import numpy as np
import pytest

import keras_bdl
from keras_bdl.callbacks import KLWarmup
from keras_bdl.layers.kl_weight import weighted_layers

pytestmark = pytest.mark.portable

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = np.arange(16) % 2


def classifier(kl_weight=1.0):
    network = keras.Sequential(
        [keras.Input((3,)), keras_bdl.VariationalDense(2, kl_weight=kl_weight)]
    )
    model = keras_bdl.BayesianClassifier(network, num_samples=2)
    model.compile("adam")
    return model


def weight(model, training=False):
    """What the first layer multiplies its KL by."""
    layer = weighted_layers(model)[0]
    return float(keras.ops.convert_to_numpy(layer.current_kl_weight(training)))


class Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.weights, self.test_weights = [], []

    def on_train_batch_end(self, batch, logs=None):
        if BACKEND == "jax":
            self.model.jax_state_sync()
        self.weights.append(weight(self.model, training=True))
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
    assert "epoch_settings" not in history
    np.testing.assert_allclose(history["kl_weight"], [0, 0.5, 1, 1])
    assert weight(model) == 0.5
    kl = float(keras.ops.stop_gradient(model.network.layers[0].kl()))
    assert history["kl"][-1] == pytest.approx(kl, rel=1e-5)
    assert history["loss"][0] == pytest.approx(history["nll"][0], rel=1e-4)
    last = history["nll"][-1] + 0.5 * kl / 16
    assert history["loss"][-1] == pytest.approx(last, rel=0.02)


class Stop(keras.callbacks.Callback):
    """Raises an error in the second epoch."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.stop("on_epoch_begin")

    def stop(self, where):
        if self.epoch == 1 and where == self.where:
            raise KeyboardInterrupt

    def on_train_batch_begin(self, batch, logs=None):
        self.stop("on_train_batch_begin")

    def on_train_batch_end(self, batch, logs=None):
        self.stop("on_train_batch_end")

    def on_test_begin(self, logs=None):
        self.stop("on_test_begin")


def interrupt(model, where, *fit_arguments):
    """A `fit` under KLWarmup that stops in an epoch without KL."""
    warmup = KLWarmup(epochs=9, start_epoch=1)
    data, options = fit_arguments[:2], {"batch_size": 8, "epochs": 5, "verbose": 0}
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            *data, validation_data=data, callbacks=[warmup, Stop(where)], **options
        )


@pytest.mark.parametrize(
    "where",
    ["on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_test_begin"],
)
@pytest.mark.eager
def test_an_interrupted_warm_up_is_not_left_behind(where, tmp_path):
    model = classifier(kl_weight=0.5)
    model.compile(keras.optimizers.SGD(0.0))
    interrupt(model, where, X, Y)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert weight(again, training=True) == 0.5
    layer = model.network.layers[0]
    assert float(keras.ops.convert_to_numpy(layer.kl_weight)) == 0.5
    assert weight(model) == 0.5
    kl = float(keras.ops.stop_gradient(layer.kl())) / 16
    logs = model.fit(X, Y, verbose=0).history
    assert logs["loss"][0] - logs["nll"][0] == pytest.approx(0.5 * kl, rel=1e-3)
    assert weight(model, training=True) == 0.5


def test_training_by_batch_after_an_interruption_sees_the_full_weight():
    model = classifier()
    interrupt(model, "on_train_batch_end", X, Y)
    model.train_on_batch(X, Y)
    assert weight(model, training=True) == 1.0


@pytest.mark.eager
def test_layers_with_latent_variables_forget_an_interrupted_warm_up():
    units = [keras.layers.Dense(3) for _ in range(2)]
    network = keras.Sequential(
        [
            keras.Input((3,)),
            keras_bdl.GaussianLatent(3),
            keras_bdl.EarlyExitResBlock(units, prior_rate=100.0, kl_weight=0.25),
        ]
    )
    network.compile(keras.optimizers.SGD(0.0), "mse")
    interrupt(network, "on_train_batch_end", X, X)
    before = [float(layer.kl_warm_up.value) for layer in network.layers]
    # A row runs from 1 to 2 units of 25 nats each.
    assert before == [0.0, 0.0]
    assert network.fit(X, X, verbose=0).history["loss"][0] > 25.0
    assert [float(layer.kl_warm_up.value) for layer in network.layers] == [1.0, 1.0]


def test_evaluation_within_an_epoch_does_not_end_the_warm_up():
    class Evaluate(Record):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            self.model.evaluate(X, Y, verbose=0)

    model, record = classifier(), Evaluate()
    warmup = KLWarmup(epochs=2)
    model.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[warmup, record])
    np.testing.assert_allclose(record.weights, [0, 0, 0.5, 0.5, 1, 1])
    np.testing.assert_allclose(record.test_weights, [1.0] * 6)


def test_a_weight_that_the_user_sets_is_the_full_one():
    model, record = classifier(), Record()
    model.network.layers[0].kl_weight.assign(0.4)
    model.fit(X, Y, epochs=3, verbose=0, callbacks=[KLWarmup(epochs=2), record])
    np.testing.assert_allclose(record.weights, [0, 0.2, 0.4], rtol=1e-6)
    assert weight(model, training=True) == pytest.approx(0.4)


@pytest.mark.eager
def test_no_file_and_no_weights_of_an_epoch_keep_its_warm_up(tmp_path):
    model = classifier()
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}.weights.h5", save_weights_only=True, save_freq=1
    )
    num_weights = len(model.get_weights())
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[KLWarmup(epochs=9), checkpoint])
    assert num_weights == len(model.get_weights()) == 4
    for epoch in (1, 2):
        again = classifier(kl_weight=0.7)
        again.build((None, 3))
        again.load_weights(tmp_path / f"{epoch}.weights.h5")
        assert weight(again, training=True) == pytest.approx(0.7)


class OwnMetrics(keras.Model):
    """Like many examples of Keras: it says what its metrics are."""

    def __init__(self, extended):
        super().__init__()
        self.extended = extended
        self.dense = keras_bdl.VariationalDense(2, num_examples=16)
        self.tracker = keras.metrics.Mean(name="loss")

    def call(self, inputs, training=None):
        return self.dense(inputs, training=training)

    @property
    def metrics(self):
        return [self.tracker, *(super().metrics if self.extended else [])]


@pytest.mark.filterwarnings("ignore:The log has no `nll`")
@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.eager
def test_a_model_that_leaves_out_the_metrics_of_its_layers_is_warned_of(extended):
    model = OwnMetrics(extended)
    model.compile("sgd", keras_bdl.losses.CategoricalNLL())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        record = Record()
        model.fit(X, Y, epochs=3, verbose=0, callbacks=[KLWarmup(epochs=2), record])
    messages = [str(w.message) for w in caught if "reset_metrics" in str(w.message)]
    assert len(messages) == (0 if extended else 1)
    np.testing.assert_allclose(record.weights, [0, 0.5, 1])
    assert weight(model, training=True) == 1.0


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.eager
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


@pytest.mark.eager
def test_load_weights_keeps_the_constructors_weight(tmp_path):
    source, target = classifier(kl_weight=0.3), classifier(kl_weight=0.7)
    for model in (source, target):
        model.fit(X, Y, verbose=0)
    source.save_weights(tmp_path / "w.weights.h5")
    target.load_weights(tmp_path / "w.weights.h5")
    assert weight(target) == pytest.approx(0.7)


@pytest.mark.eager
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
