"""The training recipe of sparse variational dropout."""

import keras
import numpy as np
import pytest
from contract import to_numpy

import keras_bdl
from keras_bdl import callbacks

pytestmark = pytest.mark.portable

X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = np.arange(16) % 2


def model(optimizer="adam"):
    net = keras.Sequential(
        [
            keras.Input((3,)),
            keras_bdl.SparseVDDense(4, activation="relu", name="a", num_examples=16),
            keras_bdl.SparseVDDense(2, name="b", num_examples=16),
        ]
    )
    net.compile(optimizer, keras_bdl.losses.CategoricalNLL())
    return net


class Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.rates, self.iterations = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.rates.append(float(to_numpy(self.model.optimizer.learning_rate)))
        self.iterations.append(int(to_numpy(self.model.optimizer.iterations)))


def test_schedule_warms_up_holds_decays_and_resets():
    net, record = model(), Record()
    recipe = callbacks.sparse_vd_schedule(
        8, learning_rate=0.01, hold=0.5, warmup=(1, 3)
    )
    history = net.fit(
        X, Y, batch_size=8, epochs=8, verbose=0, callbacks=[*recipe, record]
    ).history
    np.testing.assert_allclose(
        record.rates, 0.01 * np.array([1, 1, 1, 1, 1, 0.75, 0.5, 0.25]), rtol=1e-5
    )
    np.testing.assert_allclose(history["kl_weight"], [0, 0, 0.5, 1, 1, 1, 1, 1])
    assert record.iterations == [2, 4, 6, 2, 4, 6, 8, 10]


class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch:
            raise KeyboardInterrupt


def rate(net):
    return float(to_numpy(net.optimizer.learning_rate))


@pytest.mark.parametrize("epoch", [None, 0, 5])
@pytest.mark.eager
def test_later_training_has_the_optimizers_own_rate(epoch):
    net = model(keras.optimizers.SGD(0.125))
    recipe = callbacks.sparse_vd_schedule(6, learning_rate=0.01, warmup=(1, 3))
    options = {"batch_size": 8, "epochs": 6, "verbose": 0, "validation_data": (X, Y)}
    if epoch is None:
        logs = net.fit(X, Y, callbacks=recipe, **options).history
        np.testing.assert_allclose(
            logs["learning_rate"], 0.01 * np.array([1, 1, 1, 1, 2 / 3, 1 / 3]), 1e-5
        )
        assert rate(net) == 0.125
        return
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, callbacks=[*recipe, Interrupt(epoch)], **options)
    assert rate(net) == pytest.approx(0.01 if epoch == 0 else 0.01 / 3)
    net.train_on_batch(X, Y)
    assert rate(net) == 0.125
    assert all(float(x.kl_warm_up.value) == 1.0 for x in net.layers)


def test_a_rate_set_after_an_interruption_and_a_second_schedule():
    net = model(keras.optimizers.SGD(0.125))
    recipe = callbacks.sparse_vd_schedule(6, learning_rate=0.01, warmup=(1, 3))
    options = {"batch_size": 8, "epochs": 6, "verbose": 0}
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, callbacks=[*recipe, Interrupt(2)], **options)
    # Begun again, the schedule does not take its own rate for the optimizer's.
    net.fit(X, Y, callbacks=recipe, **options)
    assert rate(net) == 0.125
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, callbacks=[*recipe, Interrupt(2)], **options)
    net.optimizer.learning_rate = 0.25
    net.fit(X, Y, batch_size=8, verbose=0)
    assert rate(net) == 0.25


def test_evaluation_within_an_epoch_does_not_end_the_schedule():
    class Evaluate(keras.callbacks.Callback):
        rates = []

        def on_train_batch_end(self, batch, logs=None):
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            self.rates.append(rate(self.model))
            self.model.evaluate(X, Y, verbose=0)

    net = model(keras.optimizers.SGD(0.125))
    recipe = callbacks.sparse_vd_schedule(2, learning_rate=0.01, warmup=(0, 1), hold=0)
    evaluate = Evaluate()
    options = {"batch_size": 8, "epochs": 2, "verbose": 0}
    net.fit(X, Y, callbacks=[*recipe, evaluate], **options)
    np.testing.assert_allclose(evaluate.rates, [0.01, 0.01, 0.005, 0.005], rtol=1e-5)


@pytest.mark.eager
def test_reset_clears_moments_and_keeps_the_learning_rate():
    net = model(keras.optimizers.Adam(0.02))
    net.fit(X, Y, epochs=2, verbose=0)
    reset = callbacks.OptimizerReset(epoch=3)
    reset.set_model(net)
    reset.on_epoch_begin(2)
    moments = [v for v in net.optimizer.variables if "momentum" in v.path]
    assert any(np.abs(to_numpy(v)).max() > 0 for v in moments)
    reset.on_epoch_begin(3)
    assert moments and all(np.abs(to_numpy(v)).max() == 0 for v in moments)
    assert float(to_numpy(net.optimizer.learning_rate)) == pytest.approx(0.02)


def test_reset_refuses_a_schedule_that_counts_steps():
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 100)
    net = model(keras.optimizers.Adam(schedule))
    with pytest.raises(ValueError, match="LearningRateScheduler.*Received"):
        net.fit(X, Y, verbose=0, callbacks=[callbacks.OptimizerReset(2)])


@pytest.mark.parametrize("name", ["ftrl", "nadam", "adagrad", "lion"])
@pytest.mark.eager
def test_reset_gives_the_initial_state_of_any_optimizer(name):
    net = model(name)
    net.fit(X, Y, epochs=2, verbose=0)
    reset = callbacks.OptimizerReset(epoch=0)
    reset.set_model(net)
    reset.on_epoch_begin(0)
    fresh = keras.optimizers.get(name)
    fresh.build(net.trainable_variables)
    for old, new in zip(net.optimizer.variables, fresh.variables):
        np.testing.assert_array_equal(to_numpy(old), to_numpy(new))


@pytest.mark.eager
def test_logger_reports_layers_and_compression():
    net = model()
    log_stddev = np.full((4, 2), -6.0)
    log_stddev[1:] = 6.0
    net.build((None, 3))
    net.layers[1].kernel.assign(np.ones((4, 2)))
    net.layers[1].kernel_log_stddev.assign(log_stddev)
    net.optimizer.learning_rate = 0.0
    logs = net.fit(X, Y, verbose=0, callbacks=[callbacks.SparsityLogger()]).history
    assert logs["sparsity_a"] == [0.0]
    assert logs["sparsity_b"] == [0.75]
    # Of the 12 weights of the first layer, 9 feed units that nobody reads.
    assert logs["compression"] == [pytest.approx((12 + 8) / (3 + 2))]


@pytest.mark.parametrize("subclassed", [False, True])
@pytest.mark.eager
def test_logger_of_a_model_that_is_built_in_fit(subclassed):
    names = ["a", "a"] if subclassed else ["a", "b"]
    layers = [keras_bdl.SparseVDDense(3, num_examples=16, name=name) for name in names]
    net = Subclassed(layers) if subclassed else keras.Sequential(layers)
    net.compile("sgd", "mse")
    y = np.zeros((16, 3))
    logs = net.fit(X, y, verbose=0, callbacks=[callbacks.SparsityLogger()]).history
    assert len([name for name in logs if name.startswith("sparsity_")]) == 2
    assert ("compression" in logs) == (not subclassed)


class Subclassed(keras.Model):
    def __init__(self, parts):
        super().__init__()
        self.first, self.second = parts

    def call(self, inputs):
        return self.second(self.first(inputs))


@pytest.mark.eager
def test_the_schedule_refuses_a_longer_fit():
    recipe = callbacks.sparse_vd_schedule(epochs=3, warmup=(0, 1))
    with pytest.raises(ValueError, match="sparse_vd_schedule.*Received: epochs=4"):
        model().fit(X, Y, epochs=4, verbose=0, callbacks=recipe)
    recipe = callbacks.sparse_vd_schedule(epochs=3, warmup=(0, 1))
    model().fit(X, Y, epochs=2, verbose=0, callbacks=recipe)


@pytest.mark.eager
def test_later_callbacks_such_as_tensorboard_see_the_entries():
    seen = {}

    class Later(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.update(logs)

    model().fit(X, Y, verbose=0, callbacks=[callbacks.SparsityLogger(), Later()])
    assert {"sparsity_a", "sparsity_b", "compression"} <= set(seen)


def test_logger_refuses_a_model_without_sparse_layers():
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    net.compile("sgd", "mse")
    with pytest.raises(ValueError, match="SparseVD.*Received"):
        net.fit(X, np.zeros((16, 2)), callbacks=[callbacks.SparsityLogger()])


@pytest.mark.parametrize(
    "options, error",
    [
        ({"epochs": 0}, ValueError),
        ({"epochs": 9, "learning_rate": -1.0}, ValueError),
        ({"epochs": 9, "hold": 1.5}, ValueError),
        ({"epochs": 9, "warmup": (5, 20)}, ValueError),
        ({"epochs": 9, "warmup": (3, 3)}, ValueError),
        ({"epochs": 9, "warmup": (3, 9)}, ValueError),
        ({"epochs": 9, "warmup": 3}, ValueError),
        ({"epochs": 9, "warmup": (1.5, 3)}, TypeError),
        ({"epochs": 2.5}, TypeError),
    ],
    ids=str,
)
def test_bad_schedules_are_named(options, error):
    with pytest.raises(error, match=f"{list(options)[-1]}.*Received"):
        callbacks.sparse_vd_schedule(**options)
