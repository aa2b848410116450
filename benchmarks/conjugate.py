"""`BayesianLinearRegression` beside scikit-learn's `BayesianRidge`: 1e6 rows of 100.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/conjugate.py

Both choose both precisions by evidence, with an intercept by centring and no
hyper-priors. BayesianRidge iterates to a tolerance that leaves no digits to compare
(`tol=1e-10`; its time is that of a singular value decomposition, not of the
iterations). Times are of `fit`, the two in turns. Memory is the growth of the peak
resident set in `fit`, each in a process of its own, and ours also by batches of
10,000 rows that are made one at a time.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import common
import numpy as np

ROWS, COLUMNS, BATCH = 1_000_000, 100, 10_000


def batch(rows, columns, seed):
    """Correlated columns with means, targets of signal-to-noise ratio about 1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns))
    x[:, 1:] += 0.5 * x[:, :-1]
    x += np.linspace(-1.0, 1.0, columns)
    weights = np.random.default_rng(10**6).normal(size=columns) / 10.0
    return x, x @ weights + 3.0 + rng.normal(size=rows)


def ours():
    import keras_bdl

    return keras_bdl.BayesianLinearRegression()


def ridge():
    from sklearn.linear_model import BayesianRidge

    hyper = {name: 0.0 for name in ("alpha_1", "alpha_2", "lambda_1", "lambda_2")}
    return BayesianRidge(tol=1e-10, max_iter=1000, **hyper)


def seconds(model, x, y):
    start = time.perf_counter()
    model.fit(x, y)
    return time.perf_counter() - start


def resident_mib(which):
    """Resident memory now ("VmRSS") or its peak ("VmHWM"), of Linux."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if which in line) / 1024


def peak_growth(function):
    """How far the peak rises in a call above what is resident before it, MiB."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets older peaks
    before = resident_mib("VmRSS")
    function()
    return resident_mib("VmHWM") - before


def memory(what, rows, columns):
    """Growth of this process's peak memory, MiB."""
    model = ridge() if what == "ridge" else ours()
    model.fit(*batch(BATCH, columns, 0))  # what the first call loads
    if what == "stream":

        def stream():
            for seed in range(rows // BATCH):
                model.partial_fit(*batch(BATCH, columns, seed))

        return peak_growth(stream)
    x, y = np.empty((rows, columns)), np.empty(rows)
    for seed in range(rows // BATCH):
        part = slice(seed * BATCH, (seed + 1) * BATCH)
        x[part], y[part] = batch(BATCH, columns, seed)
    return peak_growth(lambda: model.fit(x, y))


def measured_memory(what, args):
    command = [sys.executable, __file__, "--memory", what]
    command += ["--rows", str(args.rows), "--columns", str(args.columns)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def compare(args):
    x, y = batch(args.rows, args.columns, 0)
    mine, theirs = ours(), ridge()
    times = {"keras_bdl": [], "BayesianRidge": []}
    for _ in range(args.rounds):
        times["keras_bdl"].append(seconds(mine, x, y))
        times["BayesianRidge"].append(seconds(theirs, x, y))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = np.divide(times["keras_bdl"], times["BayesianRidge"])
    return {
        "rows": args.rows,
        "columns": args.columns,
        "seconds": medians,
        "all_seconds": times,
        "median_ratio": float(np.median(ratios)),
        "largest_difference_of_coefficients": float(
            np.abs(mine.coef_ - theirs.coef_).max()
        ),
        "difference_of_intercepts": float(mine.intercept_ - theirs.intercept_),
        "prior_precision": [mine.prior_precision_, float(theirs.lambda_)],
        "noise_precision": [mine.noise_precision_, float(theirs.alpha_)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--columns", type=int, default=COLUMNS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=("ours", "stream", "ridge"))
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(memory(args.memory, args.rows, args.columns)))
        return
    result = compare(args)
    result["peak_growth_mib"] = {
        "keras_bdl": measured_memory("ours", args),
        "keras_bdl, batches of 10,000, the data included": measured_memory(
            "stream", args
        ),
        "BayesianRidge": measured_memory("ridge", args),
        "the rows themselves": args.rows * args.columns * 8 / 2**20,
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    common.save("conjugate", result)


if __name__ == "__main__":
    main()
