"""What posteriors of plain networks cost in training: optimizers, and a Laplace fit.

    KERAS_BACKEND=jax python benchmarks/posterior_cost.py

Steps of LeNet-300-100 and LeNet-5 on batches of 128 by IVON, SGHMC and SGLD beside
Adam, in turns: medians of several rounds. And the passes of `fit_laplace` over the rows
of LeNet-5, without its start, in units of an epoch of Adam.
"""

import argparse
import functools
import time

import common
import keras
import numpy as np
from ensemble_step import lenet_300_100
from keras import layers

import keras_bdl

STEPS, ROUNDS, BATCH, N = 24, 9, 128, 60_000


def lenet_5():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(20, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(50, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(500, activation="relu"),
            layers.Dense(10),
        ]
    )


def optimizers():
    given = keras_bdl.optimizers
    return {
        "adam": keras.optimizers.Adam(1e-3),
        "ivon": given.IVON(0.1, N),
        "sghmc": given.SGHMC(0.01, N),
        "sgld": given.SGLD(0.01, N),
    }


def compiled(make, optimizer):
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def step_row(make, x, y, rounds):
    """Milliseconds of a step by optimizer, and medians of the ratios to Adam."""
    models = {name: compiled(make, o) for name, o in optimizers().items()}
    times = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            run = seconds(lambda m=model: m.fit(x, y, batch_size=BATCH, verbose=0))
            times[name].append(run / STEPS * 1e3)
    times = {name: np.array(values[1:]) for name, values in times.items()}
    row = {name: float(np.median(values)) for name, values in times.items()}
    adam = times.pop("adam")
    ratios = {f"{n} / adam": float(np.median(t / adam)) for n, t in times.items()}
    return row | ratios


def laplace_row(x, y, rounds):
    """Epochs that the passes of a Laplace fit take."""
    model = compiled(lenet_5, keras.optimizers.Adam(1e-3))
    model.fit(x, y, batch_size=BATCH, verbose=0)

    def fit(structure, rows):
        keras_bdl.fit_laplace(
            model,
            x[:rows],
            y[:rows],
            structure=structure,
            prior_precision=10.0,
            verbose=0,
        )

    row, few = {}, 640
    for structure in ("kronecker", "diagonal"):
        ratios = []
        for _ in range(rounds):
            epoch = seconds(lambda: model.fit(x, y, batch_size=BATCH, verbose=0))
            whole = seconds(functools.partial(fit, structure, len(x)))
            part = seconds(functools.partial(fit, structure, few))
            ratios.append((whole - part) / (1.0 - few / len(x)) / epoch)
        row[f"{structure}, epochs"] = float(np.median(ratios))
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, BATCH * STEPS)
    results = {}
    for make, shape in ((lenet_300_100, (784,)), (lenet_5, (28, 28, 1))):
        x = rng.random((BATCH * STEPS, *shape), dtype="float32")
        results[make.__name__] = step_row(make, x, y, rounds)
    results["laplace of lenet_5"] = laplace_row(x, y, max(1, rounds // 3))
    for name, row in results.items():
        print(name, *(f"{key} {value:.2f}" for key, value in row.items()), sep="  ")
    common.save(f"posterior_cost_{keras.backend.backend()}", results)


if __name__ == "__main__":
    main()
