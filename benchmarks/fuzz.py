"""Wrong arguments and wrong data by the thousand: each is refused, and clearly.

    python benchmarks/fuzz.py constructors
    python benchmarks/fuzz.py data

A refusal is clear if it is a ValueError or TypeError raised in keras_bdl that says
`Received`, or one that Keras raises of its own accord (listed at the end, with how
often). Anything else is a fault: an error of a backend, or what was taken and is not
among the values that are right. Prints the faults, and leaves with their number.
"""

import argparse
import collections
import functools
import math
import os
import pathlib
import traceback
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np

import keras_bdl as kb
from keras_bdl import layers, losses, metrics, priors

PACKAGE = str(pathlib.Path(kb.__file__).parent)

JUNK = {
    "None": None,
    "object": object(),
    "bytes": b"x",
    "complex": 1j,
    "function": len,
    "ellipsis": ...,
    "class": dict,
    "empty string": "",
    "word": "nope",
    "number as text": "3",
    "empty list": [],
    "empty dict": {},
    "list": [1, "a"],
    "dict": {"a": 1},
    "set": {1, 2},
    "array": np.array([1.0, 2.0]),
    "True": True,
    "minus one": -1,
    "zero": 0,
    "half": 0.5,
    "minus half": -0.5,
    "two and a half": 2.5,
    "nan": math.nan,
    "inf": math.inf,
    "minus inf": -math.inf,
    "huge": 10**400,
    "1e39": 1e39,
    "1e-40": 1e-40,
    "layer": keras.layers.Dense(2),
    "tuple": (1, 2, 3),
}
INTEGERS = {"minus one", "zero"}
NUMBERS = {"minus one", "zero", "half", "minus half", "two and a half"}
AT_LEAST_0 = {"zero", "half", "two and a half"}
POSITIVE = {"half", "two and a half"}


def dense(**options):
    layer = kb.VariationalDense(2, **options)
    layer.build((None, 3))
    return layer


def sparse(**options):
    return kb.SparseVDDense(2, **options)


def network(units=2):
    return keras.Sequential([keras.Input((3,)), kb.VariationalDense(units)])


def plain(units=2):
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])


def early_exit(**options):
    units = [keras.layers.Dense(3), keras.layers.Dense(3)]
    layer = kb.EarlyExitResBlock(**{"units": units, "prior_rate": 1.0, **options})
    layer.build((None, 3))
    return layer


def vae(**options):
    return kb.VAE(**{"encoder": plain(4), "decoder": decoder(), **options})


def decoder():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])


def vae_dense(**options):
    return kb.VAE.dense(**{"input_shape": (3,), "latent_dim": 2, **options})


def vae_convolutional(**options):
    defaults = {"input_shape": (8, 8, 1), "latent_dim": 2, "filters": (2,)}
    return kb.VAE.convolutional(**{**defaults, **options})


def few_labels(**options):
    defaults = {"input_shape": (3,), "latent_dim": 2, "num_classes": 3}
    return kb.SemiSupervisedVAE.dense(**{**defaults, **options})


X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


def fit_last_layer(**options):
    model = plain(1)
    model.compile("sgd", "mse")
    return kb.fit_last_layer(model, X, X[:, :1], verbose=0, **options)


def to_bayesian(**options):
    return kb.to_bayesian(plain(), **options)


def to_keras(**options):
    return kb.to_keras(network(), **options)


def predict(**options):
    return kb.predict(network(), X, **{"num_samples": 2, "verbose": 0, **options})


def uncertainty(**options):
    options = {"outputs": "mean", "num_samples": 2, "verbose": 0, **options}
    return kb.predict_uncertainty(network(), X, **options)


ANY_SEED = INTEGERS | {"None"}
LAYER = {
    "prior": set(),
    "num_examples": {"None"},
    "kl_weight": AT_LEAST_0 | {"1e-40"},
    "sample_at_inference": {"True"},
    "seed": ANY_SEED,
}
BOOLEAN = {"True"}
# Of each constructor or function: its arguments, and the junk that is right for each.
TARGETS = {
    "VariationalDense": (
        dense,
        {
            **LAYER,
            "estimator": {"None"},
            "initial_log_stddev": NUMBERS | {"1e-40"},
            "bias_posterior": BOOLEAN,
        },
    ),
    "SparseVDDense": (
        sparse,
        {
            "kl_form": set(),
            "threshold": NUMBERS | {"1e-40"},
            "prune_in_training": BOOLEAN,
            "estimator": {"None"},
        },
    ),
    "ConcreteDropout": (
        kb.ConcreteDropout,
        {
            "layer": {"None", "layer"},
            "length_scale": POSITIVE,
            "initial_rate": {"half"},
            "temperature": POSITIVE | {"None"},
        },
    ),
    "VariationalGaussianDropout": (
        kb.VariationalGaussianDropout,
        {"layer": {"None", "layer"}, "alpha_per": set()},
    ),
    "MCDropout": (kb.MCDropout, {"rate": {"zero", "half", "1e-40"}}),
    "GaussianLatent": (
        kb.GaussianLatent,
        {"latent_dim": {"None"}, "prior": set(), "kl_weight": AT_LEAST_0 | {"1e-40"}},
    ),
    "BayesianLastLayer": (
        lambda **options: kb.BayesianLastLayer(**{"units": 2, **options}),
        {
            "units": set(),
            "covariance": set(),
            "probit": BOOLEAN,
            "sample_at_inference": BOOLEAN,
            "seed": ANY_SEED,
        },
    ),
    "EarlyExitResBlock": (
        early_exit,
        {
            "units": set(),
            "prior_rate": AT_LEAST_0 | {"1e-40"},
            "estimator": set(),
            "objective": set(),
            "temperature": POSITIVE,
            "exit_threshold": {"half"},
            "skip": BOOLEAN,
        },
    ),
    "Normal": (
        lambda **options: dense(prior=priors.Normal(**options)),
        {"mean": NUMBERS | {"1e-40"}, "stddev": POSITIVE},
    ),
    "ScaleMixture": (
        priors.ScaleMixture,
        {"weight": {"half"}, "stddev1": POSITIVE, "stddev2": POSITIVE},
    ),
    "StudentT": (
        priors.StudentT,
        {"df": POSITIVE, "mean": NUMBERS | {"1e-40"}, "scale": POSITIVE},
    ),
    "Laplace": (
        priors.Laplace,
        {"mean": NUMBERS | {"1e-40"}, "scale": POSITIVE},
    ),
    "BayesianClassifier": (
        lambda **options: kb.BayesianClassifier(**{"network": network(), **options}),
        {"network": set(), "num_samples": set(), "num_examples": {"None"}},
    ),
    "BayesianRegressor": (
        lambda **options: kb.BayesianRegressor(**{"network": network(), **options}),
        {
            "network": set(),
            "noise": set(),
            "num_samples": set(),
            "num_examples": {"None"},
            "normalize": BOOLEAN,
            "mc_dropout": BOOLEAN,
        },
    ),
    "VAE": (
        vae,
        {
            "encoder": set(),
            "decoder": set(),
            "likelihood": set(),
            "prior": set(),
            "beta": AT_LEAST_0 | {"1e-40"},
            "num_importance_samples": set(),
            "gradient": set(),
            "preprocessing": {"None", "layer"},
            "num_examples": {"None"},
            "seed": ANY_SEED,
        },
    ),
    "VAE.dense": (
        vae_dense,
        {
            "input_shape": {"tuple"},
            "latent_dim": set(),
            "hidden": {"empty list", "tuple"},
            "activation": {"None", "function", "class", "layer"},  # any callable
            "likelihood": set(),
        },
    ),
    "VAE.convolutional": (
        vae_convolutional,
        {
            "input_shape": {"tuple"},
            "latent_dim": set(),
            "filters": {"tuple"},
            "activation": {"None", "function", "class", "layer"},  # any callable
        },
    ),
    "SemiSupervisedVAE.dense": (
        few_labels,
        {
            "input_shape": {"tuple"},
            "latent_dim": set(),
            "num_classes": set(),
            "hidden": {"empty list", "tuple"},
            "classifier_weight": AT_LEAST_0 | {"None", "1e-40"},
            "labeled_share": {"half"},
            "summed_classes": {"None"},
            "features": {"None"},
        },
    ),
    "fit_last_layer": (
        fit_last_layer,
        {
            "kind": set(),
            "prior_precision": POSITIVE,
            "noise_precision": POSITIVE,
            "probit": set(),
            "num_samples": set(),
            "batch_size": set(),
        },
    ),
    "to_bayesian": (
        to_bayesian,
        {
            "num_examples": {"None"},
            "layers": set(),
            "method": set(),
            "estimator": {"None"},
            "prior": {"None"},
            "moped": POSITIVE | {"None"},
        },
    ),
    "to_keras": (to_keras, {"weights": set(), "seed": ANY_SEED}),
    "set_num_examples": (
        lambda **options: kb.set_num_examples(network(), **options),
        {"num_examples": set()},
    ),
    "predict": (
        predict,
        {
            "num_samples": set(),
            "seed": ANY_SEED,
            "batch_size": {"None"},
            "steps": {"None"},
            "outputs": set(),
            "return_samples": BOOLEAN,
            "mc_dropout": BOOLEAN,
        },
    ),
    "predict_uncertainty": (
        uncertainty,
        {"num_samples": set(), "seed": ANY_SEED, "outputs": set()},
    ),
    "ExpectedCalibrationError": (
        metrics.ExpectedCalibrationError,
        {"num_bins": set(), "from_logits": BOOLEAN},
    ),
    "GaussianNLL": (losses.GaussianNLL, {"stddev": POSITIVE | {"None"}}),
    "StudentTNLL": (losses.StudentTNLL, {"df": POSITIVE | {"None"}}),
    "DiscretizedLogisticNLL": (
        losses.DiscretizedLogisticNLL,
        {
            "levels": set(),
            "low": NUMBERS - {"two and a half"} | {"1e-40"},
            "high": POSITIVE | {"1e-40"},
        },
    ),
    "KLWarmup": (
        lambda **options: kb.callbacks.KLWarmup(**{"epochs": 2, **options}),
        {"epochs": set(), "start_epoch": {"zero"}},
    ),
    "sparse_vd_schedule": (
        lambda **options: kb.callbacks.sparse_vd_schedule(**{"epochs": 50, **options}),
        {
            "epochs": set(),
            "learning_rate": POSITIVE,
            "hold": {"zero", "half", "1e-40"},
            "warmup": set(),
        },
    ),
    "GaussianMixture": (
        lambda **options: layers.GaussianMixture(**options),
        {"num_components": set()},
    ),
    "sparsity_report": (lambda model: kb.sparsity_report(model), {"model": set()}),
    "compress": (lambda model: kb.compress(model), {"model": set()}),
    "prior_from_posterior": (
        lambda model: kb.prior_from_posterior(model),
        {"model": set()},
    ),
}


class Tally:
    """Counts outcomes; keeps the faults and Keras's own errors."""

    def __init__(self):
        self.count = 0
        self.faults = []
        self.of_keras = collections.Counter()

    def run(self, name, call, *args, right=False, **kwargs):
        """Calls with what is wrong, unless it is said to be right."""
        self.count += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(*args, **kwargs)
        except (ValueError, TypeError) as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = frames[-1].filename.startswith(PACKAGE)
            message = " ".join(str(error).split())
            if right:
                self.faults.append(f"{name}: refused: {message[:150]}")
            elif "Received" in message and (ours or "keras_bdl" in message):
                return
            elif "/keras/" in frames[-1].filename or "Exception encountered" in message:
                self.of_keras[f"{type(error).__name__}: {message[:44]}"] += 1
            else:
                self.faults.append(f"{name}: {type(error).__name__}: {message[:150]}")
        except Exception as error:
            message = " ".join(str(error).split())
            self.faults.append(f"{name}: {type(error).__name__}: {message[:150]}")
        else:
            if not right:
                self.faults.append(f"{name}: taken")

    def report(self):
        for fault in self.faults:
            print(fault)
        print(f"\nErrors of Keras's own ({sum(self.of_keras.values())}):")
        for message, count in self.of_keras.most_common():
            print(f"{count:5} {message}")
        print(f"\n{self.count} inputs, {len(self.faults)} faults")
        return len(self.faults)


def constructors(tally):
    for target, (call, arguments) in TARGETS.items():
        for argument, right in arguments.items():
            for kind, value in JUNK.items():
                name = f"{target}({argument}={kind})"
                tally.run(
                    name,
                    lambda c=call, o={argument: value}: c(**o),
                    right=kind in right,
                )


# --- Data ---------------------------------------------------------------------------

N = 8


def wrong_inputs():
    """Wrong data for a model of 3 columns, by name."""
    nan, inf = X.copy(), X.copy()
    nan[1, 1], inf[1, 1] = math.nan, math.inf
    return {
        "NaN": nan,
        "infinity": inf,
        "one column": X[:, :1],
        "two columns": X[:, :2],
        "four columns": np.ones((N, 4), "float32"),
        "another axis": np.ones((N, 3, 3), "float32"),
        "no axis": X[:, 0],
        "no rows": X[:0],
        "text": np.full((N, 3), "a"),
        "objects": np.full((N, 3), None, dtype=object),
        "complex": X.astype("complex64"),
        "dates": np.full((N, 3), np.datetime64("2020-01-01")),
        "a list": X.tolist(),
        "a word": "data",
        "nothing": None,
        "a number": 3.0,
        "a set": {1, 2},
        "fewer rows": X[:5],
        "two arrays": [X, X],
        "a dict": {"a": X},
    }


def wrong_labels():
    """Wrong labels for two classes."""
    return {
        "fractions": np.linspace(0, 1, N),
        "too large": np.arange(N),
        "below": Y - 1,
        "NaN": np.where(Y, math.nan, 0.0),
        "infinity": np.where(Y, math.inf, 0.0),
        "multi-hot": np.ones((N, 2)),
        "rows of 0": np.zeros((N, 2)),
        "negative rows": np.tile([[2.0, -1.0]], (N, 1)),
        "three classes": np.eye(3)[np.arange(N) % 3],
        "another axis": np.zeros((N, 2, 2)),
        "text": np.full(N, "a"),
        "objects": np.full(N, None, dtype=object),
        "complex": Y.astype("complex64"),
        "dates": np.full(N, np.datetime64("2020-01-01")),
        "fewer rows": Y[:5],
        "nothing": None,
        "a word": "labels",
        "a number": 1,
    }


def wrong_targets():
    """Wrong targets for one column."""
    return {
        "NaN": np.where(Y, math.nan, 0.0),
        "infinity": np.where(Y, math.inf, 0.0),
        "two columns": X[:, :2],
        "another axis": X[:, :1, None],
        "text": np.full(N, "a"),
        "objects": np.full(N, None, dtype=object),
        "complex": Y.astype("complex64"),
        "dates": np.full(N, np.datetime64("2020-01-01")),
        "fewer rows": X[:5, 0],
        "nothing": None,
        "a word": "targets",
        "a number": 1.0,
    }


def wrong_weights():
    return {
        "NaN": np.full(N, math.nan, "float32"),
        "infinity": np.full(N, math.inf, "float32"),
        "negative": -np.ones(N, "float32"),
        "fewer rows": np.ones(5, "float32"),
        "text": np.full(N, "a"),
        "another axis": np.ones((N, 2, 2), "float32"),
        "a word": "weights",
    }


def classifier():
    model = kb.BayesianClassifier(network(), num_samples=2, num_examples=N)
    model.compile("sgd")
    return model


def regressor(normalize):
    model = kb.BayesianRegressor(
        network(), num_samples=2, num_examples=N, normalize=normalize
    )
    model.compile("sgd")
    if normalize:
        model.fit(X, X[:, 0], verbose=0)
    return model


def generative():
    model = vae_dense(likelihood="gaussian")
    model.compile("sgd")
    model.build((None, 3))
    return model


def semi_supervised():
    model = few_labels(likelihood="gaussian", num_classes=2)
    model.compile("sgd")
    model.build((None, 3))
    return model


def data(tally):
    classes = wrong_labels()
    unlabelled = {k: v for k, v in classes.items() if k != "below"}  # -1 is right
    families(tally, "classifier", classifier(), Y, classes)
    for normalize in (False, True):
        name = "normalizing" if normalize else "regressor"
        families(tally, name, regressor(normalize), X[:, 0], wrong_targets())
    some = np.where(np.arange(N) < 4, Y, -1)
    families(tally, "few labels", semi_supervised(), some, unlabelled)
    generative_data(tally, generative())
    functions(tally)
    exact_models(tally)


def families(tally, family, model, y, wrong_y):
    """Every route of data into a model with targets."""
    before = model.get_weights()
    silent = {"verbose": 0}
    routes = {
        "fit": functools.partial(model.fit, **silent),
        "evaluate": functools.partial(model.evaluate, **silent),
        "train_on_batch": model.train_on_batch,
        "test_on_batch": model.test_on_batch,
    }
    for route, call in routes.items():
        for kind, x in wrong_inputs().items():
            tally.run(f"{family}.{route}(x={kind})", call, x, y)
        for kind, value in wrong_y.items():
            tally.run(f"{family}.{route}(y={kind})", call, X, value)
        for kind, weights in wrong_weights().items():
            name = f"{family}.{route}(sample_weight={kind})"
            tally.run(name, call, X, y, sample_weight=weights)
    for kind, value in wrong_y.items():
        if not hasattr(value, "shape"):
            continue
        name = f"{family}.fit(validation_data, y={kind})"
        tally.run(name, routes["fit"], X, y, validation_data=(X, value))
        batches = iter([(X, value)])
        tally.run(f"{family}.fit(generator, y={kind})", routes["fit"], batches)
    for route in ("predict", "predict_uncertainty"):
        if hasattr(model, route):
            call = functools.partial(getattr(model, route), **silent)
            for kind, x in wrong_inputs().items():
                # Fewer rows are right; NaN in is NaN out, as in Keras.
                right = kind in ("fewer rows", "NaN", "infinity")
                tally.run(f"{family}.{route}({kind})", call, x, right=right)
    if hasattr(model, "log_likelihood"):
        call = functools.partial(model.log_likelihood, **silent)
        for kind, x in wrong_inputs().items():
            right = kind in ("NaN", "infinity")
            tally.run(f"{family}.log_likelihood(x={kind})", call, x, y, right=right)
        for kind, value in wrong_y.items():
            tally.run(f"{family}.log_likelihood(y={kind})", call, X, value)
    # What was refused must not have cost the weights.
    shapes = [w.shape for w in model.get_weights() if not np.isfinite(w).all()]
    if shapes or len(before) != len(model.get_weights()):
        tally.faults.append(f"{family}: weights are no longer finite: {shapes}")


def generative_data(tally, model):
    routes = ("fit", "evaluate", "predict", "encode", "reconstruct", "log_prob")
    for kind, x in wrong_inputs().items():
        for route in routes:
            call = functools.partial(getattr(model, route), verbose=0)
            right = kind == "fewer rows"
            right = right or (route == "predict" and kind in ("NaN", "infinity"))
            tally.run(f"VAE.{route}({kind})", call, x, right=right)
        right = kind == "fewer rows"
        tally.run(f"VAE.train_on_batch({kind})", model.train_on_batch, x, right=right)
    for kind, z in wrong_inputs().items():
        tally.run(f"VAE.decode({kind})", model.decode, z, right=kind == "two columns")


def functions(tally):
    model = network()
    silent = {"num_samples": 2, "verbose": 0}
    for kind, x in wrong_inputs().items():
        right = kind in ("fewer rows", "NaN", "infinity")
        for joint in (False, True):
            call = functools.partial(kb.predict, return_samples=joint, **silent)
            tally.run(f"predict({kind}, joint={joint})", call, model, x, right=right)
        call = functools.partial(kb.predict_uncertainty, outputs="logits", **silent)
        tally.run(f"predict_uncertainty({kind})", call, model, x, right=right)

    trained = plain()
    trained.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    for kind, x in wrong_inputs().items():
        name = f"fit_last_layer(x={kind})"
        tally.run(name, kb.fit_last_layer, trained, x, Y, verbose=0)
    for kind, y in wrong_labels().items():
        name = f"fit_last_layer(y={kind})"
        tally.run(name, kb.fit_last_layer, trained, X, y, verbose=0)

    probabilities = np.full((N, 2), 0.5, "float32")
    for metric in ("NegativeLogLikelihood", "BrierScore", "ExpectedCalibrationError"):
        for kind, y in wrong_labels().items():
            score = getattr(metrics, metric)()

            def call(y, p, score=score, kind=kind):
                value = score(y, p)  # compiled: an error cannot be raised there
                assert kind != "multi-hot" or math.isnan(float(value))

            right = kind == "multi-hot"
            tally.run(
                f"metrics.{metric}(y={kind})", call, y, probabilities, right=right
            )


def exact_models(tally):
    fitted = kb.BayesianLinearRegression().fit(X, X[:, 0])
    for kind, x in wrong_inputs().items():
        right = kind in ("a list", "one column", "two columns", "four columns")
        call = kb.BayesianLinearRegression().fit
        name = f"BayesianLinearRegression.fit(x={kind})"
        tally.run(name, call, x, X[:, 0], right=right)
        right = kind in ("a list", "no rows", "fewer rows")
        name = f"BayesianLinearRegression.predict({kind})"
        tally.run(name, fitted.predict, x, right=right)
    for kind, y in wrong_targets().items():
        call = kb.BayesianLinearRegression().fit
        name = f"BayesianLinearRegression.fit(y={kind})"
        tally.run(name, call, X, y, right=kind == "two columns")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["constructors", "data"])
    tally = Tally()
    {"constructors": constructors, "data": data}[parser.parse_args().what](tally)
    raise SystemExit(min(tally.report(), 125))


if __name__ == "__main__":
    main()
