"""Fails when sampled training or prediction has become much slower than its twin.

    python benchmarks/speed_gate.py

Two ratios of one run, each a median over rounds that take turns: a training step of
LeNet-300-100 with posteriors to that of the deterministic network, and the posterior
predictive of 100 samples to one `model.predict`. The bounds are about three times what
is measured, so that they hold on a busy machine and break when a fast path is lost: a
loop over samples makes the second ratio about 100. Exits with 1 beyond a bound.
"""

import sys
import time

import keras
import numpy as np
import predict_speed
import training_step

import keras_bdl

ROUNDS = 5
BOUNDS = {"training step": 8.0, "predictive of 100 samples": 30.0}


def ratio(slow, fast):
    """Median over rounds of the time of one function to that of another."""
    ratios = []
    for warm in [False] + [True] * ROUNDS:
        times = []
        for function in (slow, fast):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        if warm:
            ratios.append(times[0] / times[1])
    return float(np.median(ratios))


def training_ratio():
    models = training_step.dense_models()
    rng = np.random.default_rng(0)
    x = rng.random((128 * 20, 784), dtype="float32")
    y = rng.integers(0, 10, len(x))

    def fit(name):
        models[name].fit(x, y, batch_size=128, shuffle=False, verbose=0)

    return ratio(lambda: fit("local_reparameterization"), lambda: fit("deterministic"))


def prediction_ratio():
    model, x = predict_speed.network(), predict_speed.data()
    options = {"batch_size": 256, "verbose": 0}
    return ratio(
        lambda: keras_bdl.predict(model, x, 100, outputs="logits", **options),
        lambda: model.predict(x, **options),
    )


def main():
    measured = {
        "training step": training_ratio(),
        "predictive of 100 samples": prediction_ratio(),
    }
    backend = keras.backend.backend()
    for name, value in measured.items():
        bound = BOUNDS[name]
        verdict = "ok" if value <= bound else "TOO SLOW"
        print(f"{backend}: {name}: {value:.2f}x its twin, bound {bound:.0f}: {verdict}")
    return int(any(measured[name] > BOUNDS[name] for name in BOUNDS))


if __name__ == "__main__":
    sys.exit(main())
