"""Every way to a posterior beside the others: digits, and a regression with a gap.

    python benchmarks/which_posterior.py digits   # scikit-learn's, a 300-100 network
    KERAS_BACKEND=tensorflow python benchmarks/which_posterior.py gap

Digits: all methods have `EPOCHS` epochs and the same search, two settings each, by the
held-out rows of one training; then they train on all training rows, five seeds.

Gap: 151 weights with the prior N(0, 1) and known noise, of which `fit_hmc` has the
exact predictive; the others say how wide theirs is between the data. After Foong, Li,
Hernandez-Lobato and Turner, "'In-between' uncertainty in Bayesian neural networks",
2019.
"""

import argparse
import json
import time
import warnings

import common
import keras
import mnist_lenet5
import numpy as np
from keras import layers

import keras_bdl
from keras_bdl import callbacks, optimizers
from keras_bdl.ops import uncertainty

EPOCHS, BATCH_SIZE, SEEDS, NUM_SAMPLES = 100, 64, 5, 100
HELD_OUT, TESTED = 0.15, 0.3
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

# --- Digits ----------------------------------------------------------------------


def network(dense=layers.Dense, rate=0.0, decay=0.0, **options):
    if decay:
        options["kernel_regularizer"] = keras.regularizers.L2(decay)
    stack = [keras.Input((64,))]
    for units in (300, 100):
        stack.append(dense(units, activation="relu", **options))
        if rate:
            stack.append(layers.Dropout(rate))
    return keras.Sequential([*stack, dense(10, **options)])


def train(model, x, y, epochs=EPOCHS, optimizer=None, extra=()):
    model.compile(optimizer or keras.optimizers.Adam(1e-3), CROSS_ENTROPY)
    options = {"batch_size": BATCH_SIZE, "verbose": 0, "callbacks": list(extra)}
    model.fit(x, y, epochs=epochs, **options)
    return model


def probabilities(model):
    """The predictive of a Keras model, as a function of the inputs."""

    def predict(x, mc_dropout=False):
        options = {"outputs": "logits", "mc_dropout": mc_dropout, "seed": 0}
        return keras_bdl.predict(model, x, NUM_SAMPLES, verbose=0, **options)

    return predict


def plain(x, y, decay):
    model = train(network(decay=decay), x, y)
    return lambda x: keras.ops.convert_to_numpy(
        keras.ops.softmax(model.predict(x, verbose=0))
    )


def mc_dropout(x, y, rate):
    predict = probabilities(train(network(rate=rate), x, y))
    return lambda x: predict(x, mc_dropout=True)


def variational(x, y, kl_weight):
    options = {"kl_weight": kl_weight, "num_examples": len(x)}
    return probabilities(train(network(keras_bdl.VariationalDense, **options), x, y))


def moped(x, y, delta):
    trained = train(network(), x, y, EPOCHS // 2)
    model = keras_bdl.to_bayesian(trained, moped=delta, num_examples=len(x))
    return probabilities(train(model, x, y, EPOCHS // 2))


def last_layer(x, y, decay):
    trained = train(network(decay=decay), x, y)
    bayesian = keras_bdl.fit_last_layer(trained, x, y, verbose=0)
    return lambda x: bayesian.predict(x, num_samples=NUM_SAMPLES, seed=0, verbose=0)


def laplace(x, y, decay):
    rows = int(HELD_OUT * len(x))  # of its training rows, for the prior precision
    trained = train(network(decay=decay), x[rows:], y[rows:])
    bayesian = keras_bdl.fit_laplace(
        trained, x[rows:], y[rows:], validation_data=(x[:rows], y[:rows]), verbose=0
    )
    return lambda x: bayesian.predict(x, num_samples=NUM_SAMPLES, seed=0, verbose=0)


def swag(x, y, rate):
    keeper = callbacks.SWAG(start=EPOCHS // 2)
    train(network(), x, y, optimizer=keras.optimizers.SGD(rate, 0.9), extra=[keeper])
    return probabilities(keeper.bayesian_model())


def sghmc(x, y, prior_stddev):
    optimizer = optimizers.SGHMC(0.05, len(x), prior_stddev=prior_stddev)
    keeper = callbacks.PosteriorSamples(keep=20, cycles=4)
    train(network(), x, y, optimizer=optimizer, extra=[keeper])
    return probabilities(keeper.bayesian_model())


def ivon(x, y, prior_stddev):
    steps = EPOCHS * -(-len(x) // BATCH_SIZE)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, steps)
    optimizer = optimizers.IVON(schedule, len(x), prior_stddev=prior_stddev)
    keeper = callbacks.GaussianPosterior()
    train(network(), x, y, optimizer=optimizer, extra=[keeper])
    return probabilities(keeper.bayesian_model())


def ensemble(x, y, decay):
    return probabilities(train(keras_bdl.Ensemble(network(decay=decay), 5), x, y))


METHODS = {
    "plain": (plain, (0.0, 1e-3)),
    "mc_dropout": (mc_dropout, (0.1, 0.3)),
    "variational": (variational, (1.0, 0.1)),
    "moped": (moped, (0.1, 0.3)),
    "fit_last_layer": (last_layer, (0.0, 1e-3)),
    "fit_laplace": (laplace, (0.0, 1e-3)),
    "SWAG": (swag, (0.02, 0.1)),
    "SGHMC": (sghmc, (0.1, 0.3)),
    "IVON": (ivon, (0.1, 0.3)),
    "Ensemble": (ensemble, (0.0, 1e-3)),
}


def scores(predict, x, y, turned):
    predict(x)  # compiles
    start = time.perf_counter()
    p = predict(x)
    seconds = time.perf_counter() - start
    entropies = [
        keras.ops.convert_to_numpy(uncertainty.entropy(q)) for q in (p, predict(turned))
    ]
    return {
        **mnist_lenet5.scores(p, y),
        "auroc_turned": uncertainty.auroc(*entropies),
        "predict_seconds": seconds,
    }


def digits(names):
    from sklearn.datasets import load_digits

    content = load_digits()
    images, labels = content.images.astype("float32") / 16.0, content.target
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order]
    tested = int(TESTED * len(labels))
    flat = images.reshape(len(images), -1)
    turned = np.rot90(images[:tested], axes=(1, 2)).reshape(tested, -1)
    x, y = flat[tested:], labels[tested:]
    rows = int(HELD_OUT * len(x))
    path = common.RESULTS / "which_posterior_digits.json"
    results = json.loads(path.read_text())["methods"] if path.exists() else {}
    for name in names:
        method, settings = METHODS[name]
        held_out = []
        for setting in settings:
            keras.utils.set_random_seed(1000)
            predict = method(x[rows:], y[rows:], setting)
            held_out.append(scores(predict, x[:rows], y[:rows], turned[:5])["nll"])
        best, runs = settings[int(np.argmin(held_out))], []
        for seed in range(SEEDS):
            keras.utils.set_random_seed(seed)
            start = time.perf_counter()
            predict = method(x, y, best)
            seconds = time.perf_counter() - start
            found = scores(predict, flat[:tested], labels[:tested], turned)
            runs.append({**found, "train_seconds": seconds})
        row = {
            key: common.mean_and_error([run[key] for run in runs]) for key in runs[0]
        }
        results[name] = {"setting": best, "held_out_nll": held_out, **row}
        cells = (f"{row[k]['mean']:.4f} ± {row[k]['standard_error']:.4f}" for k in row)
        print(f"{name:16}{str(best):8}{'  '.join(cells)}", flush=True)
        common.save("which_posterior_digits", {"epochs": EPOCHS, "methods": results})


# --- A gap -----------------------------------------------------------------------

NOISE, UNITS, STEPS = 0.1, 50, 3000


def gap_data():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-1, -0.6, 30), rng.uniform(0.6, 1, 30)])
    y = np.cos(4 * x + 0.8) + NOISE * rng.normal(size=60)
    return x[:, None].astype("float32"), y[:, None].astype("float32")


def curve(dense=layers.Dense, rate=0.0, **options):
    hidden = [layers.Dropout(rate)] if rate else []
    hidden = [dense(UNITS, activation="tanh", **options), *hidden]
    return keras.Sequential([keras.Input((1,)), *hidden, dense(1, **options)])


def fit_curve(model, x, y, optimizer=None, extra=(), steps=STEPS):
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, steps)
    loss = keras_bdl.losses.GaussianNLL(stddev=NOISE)
    model.compile(optimizer or keras.optimizers.Adam(schedule), loss)
    x, y = (np.tile(part, (10, 1)) for part in (x, y))  # ten steps an epoch
    options = {"batch_size": len(x) // 10, "shuffle": False, "verbose": 0}
    model.fit(x, y, epochs=steps // 10, callbacks=list(extra), **options)
    return model


def at_the_mode(rows):
    """The network of highest posterior density under N(0, 1)."""
    decay = keras.regularizers.L2(0.5 / rows)
    return {"kernel_regularizer": decay, "bias_regularizer": decay}


def gap_methods(x, y):
    """Pairs of a name and draws of the outputs, functions of inputs."""
    rows = len(x)

    def draws_of(model, **options):
        options = {"num_samples": 400, "seed": 0, "verbose": 0} | options
        return lambda z: keras_bdl.predict(
            model, z, outputs="mean", return_samples=True, **options
        )

    start = fit_curve(curve(**at_the_mode(rows)), x, y)
    bare = curve()
    bare.set_weights(start.get_weights())
    bare.compile(loss=keras_bdl.losses.GaussianNLL(stddev=NOISE))
    hmc = keras_bdl.fit_hmc(
        bare, x, y, num_samples=400, num_warmup_steps=500, thinning=3, seed=0
    )
    print(hmc.diagnostics)
    yield "fit_hmc", draws_of(hmc, num_samples=None), hmc.diagnostics
    for structure, prediction in (
        ("full", "linearized"),
        ("kronecker", "linearized"),
        ("diagonal", "linearized"),
        ("full", "weights"),
    ):
        fit = keras_bdl.fit_laplace(
            bare, x, y, structure=structure, prediction=prediction, kind="regression",
            prior_precision=1.0, noise_precision=NOISE**-2, verbose=0,
        )  # fmt: skip
        yield f"fit_laplace {structure} {prediction}", draws_of(fit.network), {}
    fit = keras_bdl.fit_last_layer(
        bare, x, y, kind="regression", prior_precision=1.0,
        noise_precision=NOISE**-2, verbose=0,
    )  # fmt: skip
    yield "fit_last_layer", draws_of(fit.network), {}
    members = keras_bdl.Ensemble(curve(**at_the_mode(rows)), 10, seed=0)
    fit_curve(members, x, y)
    yield "Ensemble of ten", draws_of(members, num_samples=None), {}
    model = fit_curve(
        curve(keras_bdl.VariationalDense, prior="normal", num_examples=rows), x, y
    )
    yield "variational", draws_of(model), {}
    model = fit_curve(curve(rate=0.1, **at_the_mode(rows)), x, y)
    yield "mc_dropout .1", draws_of(model, mc_dropout=True), {}
    keeper = callbacks.GaussianPosterior()
    schedule = keras.optimizers.schedules.CosineDecay(0.1, STEPS)
    optimizer = optimizers.IVON(schedule, rows, beta_2=0.999, seed=0)
    fit_curve(curve(), x, y, optimizer, [keeper])
    yield "IVON", draws_of(keeper.bayesian_model()), {}
    keeper = callbacks.PosteriorSamples(keep=400, start=100)
    optimizer = optimizers.SGHMC(5e-4, rows, seed=0)
    model = curve()
    model.set_weights(start.get_weights())
    fit_curve(model, x, y, optimizer, [keeper], steps=10 * STEPS // 6)
    yield "SGHMC", draws_of(keeper.bayesian_model(), num_samples=None), {}
    keeper = callbacks.SWAG(start=STEPS // 20)
    model = curve(**at_the_mode(rows))
    model.set_weights(start.get_weights())
    fit_curve(model, x, y, keras.optimizers.SGD(1e-3), [keeper])
    yield "SWAG", draws_of(keeper.bayesian_model()), {}


def gap():
    x, y = gap_data()
    inside, among = (
        np.linspace(-0.3, 0.3, 31)[:, None].astype("float32"),
        np.linspace(0.65, 0.95, 31)[:, None].astype("float32"),
    )
    keras.utils.set_random_seed(0)
    results, start = {}, time.perf_counter()
    for name, draws, about in gap_methods(x, y):
        row = {
            "gap": float(np.std(draws(inside), axis=0).mean()),
            "data": float(np.std(draws(among), axis=0).mean()),
            "seconds": time.perf_counter() - start,
            **about,
        }
        results[name] = row
        print(f"{name:32}gap {row['gap']:.3f}  data {row['data']:.3f}  "
              f"{row['seconds']:.0f} s", flush=True)  # fmt: skip
        start = time.perf_counter()
        common.save("which_posterior_gap", {"noise": NOISE, "methods": results})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=("digits", "gap"))
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), help="of digits; others stay"
    )
    warnings.simplefilter("ignore", UserWarning)
    args = parser.parse_args()
    if args.task == "digits":
        digits(args.methods)
    else:
        gap()


if __name__ == "__main__":
    main()
