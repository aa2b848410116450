"""What the benchmarks share: data, the machine's description, JSON results."""

import json
import os
import pathlib
import platform
import time

import keras
import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results"


def load_mnist(npz=None, held_out=0):
    """MNIST as float32 `(n, 28, 28, 1)` in [0, 1] and int32 labels.

    Args:
        npz: file with x_train, y_train, x_test, y_test; None reads the TFDS copy
            under `TFDS_DATA_DIR`.
        held_out: number of the last training images that stand in place of the test
            set, for the choice of settings; 0 gives the test set.

    Returns:
        `(x_train, y_train), (x_test, y_test)`.
    """
    if npz is not None:
        data = np.load(npz)
        splits = [(data[f"x_{s}"], data[f"y_{s}"]) for s in ("train", "test")]
    else:
        import tensorflow_datasets as tfds

        splits = [
            tfds.as_numpy(
                tfds.load(
                    "mnist", split=s, batch_size=-1, as_supervised=True, download=False
                )
            )
            for s in ("train", "test")
        ]
    if held_out:
        x, y = splits[0]
        splits = [(x[:-held_out], y[:-held_out]), (x[-held_out:], y[-held_out:])]
    return [
        (x.reshape(-1, 28, 28, 1).astype("float32") / 255.0, y.astype("int32"))
        for x, y in splits
    ]


def machine():
    """The machine and the versions that a result was measured with."""
    description = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    module = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}
    backend = __import__(module[keras.backend.backend()])
    description[keras.backend.backend()] = backend.__version__
    if keras.backend.backend() == "jax":
        description["device"] = str(backend.devices()[0].device_kind)
    return description


def _processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def save(name, result):
    """Writes `results/<name>.json` and prints where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    print(f"wrote {path}")


def cosine_with_warmup(learning_rate, steps, warmup):
    """A rate that rises over `warmup` of the steps and then falls to zero."""
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=learning_rate, warmup_steps=warmup
    )


def fit_from_checkpoints(model, x, y, folder, batch_size, epochs, log_every):
    """`model.fit` that goes on from a folder, and prints the log now and then."""
    folder.mkdir(parents=True, exist_ok=True)

    def log(epoch, logs):
        if epoch % log_every == 0:
            print(epoch, {k: round(float(v), 2) for k, v in logs.items()}, flush=True)

    callbacks = [
        keras.callbacks.BackupAndRestore(folder, double_checkpoint=True),
        keras.callbacks.LambdaCallback(on_epoch_end=log),
    ]
    model.fit(x, y, batch_size, epochs, callbacks=callbacks, verbose=0)


def mean_and_error(values):
    """Mean and standard error of a list."""
    values = np.asarray(values, "float64")
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return {
        "mean": float(values.mean()),
        "standard_error": None if error is None else float(error),
        "values": values.tolist(),
    }
