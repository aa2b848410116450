"""Training stopped in mid-epoch goes on exactly where its last epoch ended.

The run that resumes starts from other random numbers, so weights, optimizer, KL weight
and noise must all come from the backup; it validates, which must not show in the
weights. On demand, the first run is killed, and both are processes of their own.
"""

import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from contract import to_numpy

import keras_bdl
from keras_bdl import priors

TESTS = pathlib.Path(__file__).parent
ROWS, BATCH, EPOCHS = 48, 16, 5
KILLED_EPOCH, KILLED_BATCH = 2, 1
LAYERS = ("hidden", "out")

pytestmark = [
    pytest.mark.portable,
    pytest.mark.filterwarnings("ignore:The log has no `nll`"),
]


def make_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def make_model(seed):
    """Two estimators, and two priors: one's KL is drawn, the other is learned."""
    keras.utils.set_random_seed(seed)
    options = {"num_examples": ROWS, "initial_log_stddev": -2.0}
    mixture, learned = priors.ScaleMixture(0.5, 1.0, 0.1), priors.LearnedNormal(0.3)
    dense = keras_bdl.VariationalDense
    layers = [
        keras.Input((4,)),
        dense(3, activation="tanh", prior=mixture, name="hidden", **options),
        dense(1, prior=learned, estimator="flipout", seed=7, name="out", **options),
    ]
    model = keras.Sequential(layers, name="model")
    model.compile(keras.optimizers.Adam(0.05), "mse")
    return model


class Stop(keras.callbacks.Callback):
    """Ends training in the middle of an epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self._epoch, batch) == (KILLED_EPOCH, KILLED_BATCH):
            self.stop()

    def stop(self):
        raise KeyboardInterrupt


class Kill(Stop):
    """Ends the process, as a scheduler would."""

    def stop(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Record(keras.callbacks.Callback):
    """The share of the KL weight in every epoch that was run."""

    def __init__(self):
        super().__init__()
        self.shares = {}

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        share = self.model.get_layer("out").kl_warm_up
        self.shares[self._epoch] = float(to_numpy(share))


def train(model, *extra, validate=False):
    """Fits the model and returns the shares of the KL weight by epoch."""
    x, y = make_data()
    record = Record()
    model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[keras_bdl.callbacks.KLWarmup(epochs=4), record, *extra],
        validation_data=(x[:20] + 1.0, y[:20]) if validate else None,
    )
    return record.shares


def state_of(model):
    """Weights, optimizer variables and the state of the noise, by name."""
    state = {v.path: to_numpy(v) for v in model.weights}
    for index, variable in enumerate(model.optimizer.variables):
        state[f"optimizer/{index}/{variable.name}"] = to_numpy(variable)
    for name in LAYERS:
        state[f"{name}/noise"] = to_numpy(model.get_layer(name).noise.state)
    return state


def main(folder, task):
    """What the other processes run: `task` is "kill" or "resume"."""
    model = make_model(seed=0 if task == "kill" else 1)
    backup = keras.callbacks.BackupAndRestore(os.path.join(folder, "backup"))
    kill = [Kill()] if task == "kill" else []
    shares = train(model, backup, *kill, validate=True)
    found = {"epochs": list(shares), "shares": list(shares.values())}
    np.savez(os.path.join(folder, "resumed.npz"), **found, **state_of(model))


def run_process(*arguments):
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    backend = keras.backend.backend()
    code = "import sys, test_resume; test_resume.main(*sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def uninterrupted():
    """The state at the start and at the end."""
    model = make_model(seed=0)
    start = state_of(model)
    assert train(model) == {0: 0.0, 1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}
    return start, state_of(model)


def assert_equal_states(found, start, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)
    for name in ("model/hidden/kernel", "hidden/noise", "out/noise"):
        assert not np.array_equal(start[name], expected[name]), name


@pytest.mark.eager
def test_interrupted_training_resumes_exactly(tmp_path):
    start, expected = uninterrupted()
    backup = tmp_path / "backup"
    with pytest.raises(KeyboardInterrupt):
        train(make_model(seed=0), keras.callbacks.BackupAndRestore(backup), Stop())
    assert (backup / "latest.weights.h5").exists()
    resumed = make_model(seed=1)
    shares = train(resumed, keras.callbacks.BackupAndRestore(backup), validate=True)
    assert shares == {2: 0.5, 3: 0.75, 4: 1.0}
    assert_equal_states(state_of(resumed), start, expected)


@pytest.mark.slow
def test_killed_training_resumes_exactly(tmp_path):
    start, expected = uninterrupted()
    killed = run_process(tmp_path, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert (tmp_path / "backup" / "latest.weights.h5").exists()
    assert not (tmp_path / "resumed.npz").exists()
    resumed = run_process(tmp_path, "resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]

    found = dict(np.load(tmp_path / "resumed.npz"))
    epochs, shares = found.pop("epochs").tolist(), found.pop("shares").tolist()
    assert dict(zip(epochs, shares)) == {2: 0.5, 3: 0.75, 4: 1.0}
    assert_equal_states(found, start, expected)


def test_validation_does_not_move_the_training_noise():
    states = []
    for validate in (False, True):
        model = make_model(seed=0)
        train(model, validate=validate)
        states.append(state_of(model))
    plain, validated = states
    assert set(plain) == set(validated)
    for name, value in plain.items():
        np.testing.assert_array_equal(validated[name], value, err_msg=name)


@pytest.mark.eager
def test_classifier_validation_does_not_move_the_training_noise():
    x, y = make_data()
    labels = (y[:, 0] > 0).astype("int32")
    states = []
    for options in ({}, {"validation_data": (x[:20], labels[:20])}):
        keras.utils.set_random_seed(0)
        mixture = priors.ScaleMixture(0.5, 1.0, 0.1)
        layer = keras_bdl.VariationalDense(2, prior=mixture, name="out")
        network = keras.Sequential([keras.Input((4,)), layer])
        model = keras_bdl.BayesianClassifier(network, num_samples=3)
        model.compile(keras.optimizers.Adam(0.05))
        for _ in range(2):
            model.fit(x, labels, BATCH, epochs=2, shuffle=False, verbose=0, **options)
            if options:
                model.predict(x[:3], verbose=0)
        states.append([to_numpy(v) for v in (*network.weights, layer.noise.state)])
    for plain, validated in zip(*states):
        np.testing.assert_array_equal(plain, validated)
