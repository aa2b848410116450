"""A training step of an ensemble beside steps of its members apart.

    KERAS_BACKEND=jax python benchmarks/ensemble_step.py

LeNet-300-100 on batches of 128, five members: `fit` of the ensemble and of the five
networks one after the other, in turns. Medians of several rounds.
"""

import argparse
import time

import common
import keras
import numpy as np
from keras import layers

import keras_bdl

STEPS, ROUNDS, BATCH, SIZE = 60, 15, 128, 5


def lenet_300_100():
    return keras.Sequential(
        [
            keras.Input((784,)),
            layers.Dense(300, activation="relu"),
            layers.Dense(100, activation="relu"),
            layers.Dense(10),
        ]
    )


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * STEPS, 784)).astype("float32")
    y = rng.integers(0, 10, BATCH * STEPS)
    ensemble = compiled(keras_bdl.Ensemble(lenet_300_100(), SIZE))
    alone = [compiled(lenet_300_100()) for _ in range(SIZE)]
    runs = {"ensemble": [ensemble], "apart": alone}
    times = {name: [] for name in runs}
    for _ in range(args.rounds + 1):
        for name, models in runs.items():
            start = time.perf_counter()
            for model in models:
                model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
            times[name].append((time.perf_counter() - start) / STEPS * 1e3)
    times = {name: values[1:] for name, values in times.items()}  # not the first
    row = {name: float(np.median(values)) for name, values in times.items()}
    row["ratio"] = float(np.median(np.divide(times["ensemble"], times["apart"])))
    print(*(f"{name} {value:.2f}" for name, value in row.items()))
    common.save(f"ensemble_step_{keras.backend.backend()}", {"milliseconds": row})


if __name__ == "__main__":
    main()
