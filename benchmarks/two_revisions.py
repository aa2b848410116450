"""Times of two checkouts of the package, measured in turns on one machine.

    git worktree add --detach ../before v0.1
    KERAS_BACKEND=jax python benchmarks/two_revisions.py ../before

Each checkout runs in a process of its own. The processes take turns: one measures a
row once, then the other measures the same row, so that drift of the machine meets
both alike. A row is a few training steps of `training_step.py` or one prediction of
`predict_speed.py`. Its figure is the median, over the rounds, of the ratio of the
new time to the old one of the same round.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROUNDS = 15
STEPS = (60, 20, 8)  # of each of `training_step.NETS`


def training_rows():
    """A function that trains for a few steps, by the name of its row."""
    import training_step

    rows = {}
    for (net, models, shape, batch_size), steps in zip(training_step.NETS, STEPS):
        rng = np.random.default_rng(0)
        x = rng.random((batch_size * steps, *shape), dtype="float32")
        y = rng.integers(0, 10, len(x))
        for name, model in models().items():
            rows[f"{net} {batch_size} {name}"] = (
                lambda model=model, x=x, y=y, b=(batch_size): model.fit(
                    x, y, batch_size=b, shuffle=False, verbose=0
                )
            )
    return rows


def prediction_rows():
    """A function that predicts once, by the name of its row."""
    import predict_speed

    import keras_bdl

    model, x = predict_speed.network(), predict_speed.data()
    rows = {}
    for batch_size in (256, len(x)):
        rows[f"predict 100 samples {batch_size}"] = lambda b=batch_size: (
            keras_bdl.predict(model, x, 100, outputs="logits", batch_size=b, verbose=0)
        )
    rows["model.predict"] = lambda: model.predict(x, batch_size=256, verbose=0)
    return rows


def serve():
    """Measures the row that each line of the input names; prints seconds."""
    rows = training_rows() | prediction_rows()
    for run in rows.values():
        run()
    print(json.dumps(list(rows)), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        rows[line.strip()]()
        print(time.perf_counter() - start, flush=True)


def start(checkout):
    """A process that measures the package of one checkout."""
    return subprocess.Popen(
        [sys.executable, __file__, "--serve"],
        env={**os.environ, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process, line=None):
    """What a process prints next, after it was told a line."""
    if line is not None:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    while True:
        text = process.stdout.readline()
        if not text:
            raise RuntimeError("A measuring process stopped.")
        try:
            return json.loads(text)
        except json.JSONDecodeError:  # what a library prints
            continue


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", nargs="?", help="a checkout of the older code")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(HERE))
    if args.serve:
        return serve()
    processes = [start(Path(args.before).resolve()), start(HERE.parent)]
    names = [answer(process) for process in processes]
    table = {}
    for name in names[1]:
        if name not in names[0] or args.only not in name:
            continue
        times = np.array(
            [
                [answer(process, name) for process in processes]
                for _ in range(args.rounds)
            ]
        )
        old, new = np.median(times, axis=0)
        ratio = float(np.median(times[:, 1] / times[:, 0]))
        table[name] = {"before_s": old, "after_s": new, "ratio": ratio}
        print(
            f"{name:50s} {old * 1e3:9.1f} {new * 1e3:9.1f} ms {ratio:6.3f}", flush=True
        )
    for process in processes:
        process.stdin.close()
        process.wait()
    import common
    import keras

    common.save(f"two_revisions_{keras.backend.backend()}", {"rows": table})


if __name__ == "__main__":
    main()
