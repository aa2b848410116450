"""Prints a line for every program: what works, and the share with a posterior.

    python tests/programs/table.py [names]

The backend is the one in KERAS_BACKEND.
"""

import logging
import os
import pathlib
import statistics
import sys

if __name__ == "__main__":  # its own folder is a package
    sys.path[0] = str(pathlib.Path(__file__).parents[1])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)

import keras

from programs.columns import BACKEND, columns
from programs.registry import PROGRAMS


def line(run):
    """Returns what is printed of a finished run."""
    share = "   -" if run.share is None else f"{run.share:.2f}"
    failed = {name: e for name, e in run.errors.items() if e is not None}
    lines = [f"{run.name:28} {share}  {' '.join(failed) or 'ok'}"]
    for name, error in failed.items():
        message = " ".join(str(error).split()) or "no message"
        lines.append(f"    {name}: {type(error).__name__}: {message[:160]}")
    return "\n".join(lines)


def main(names):
    unknown = sorted(set(names) - set(PROGRAMS))
    if unknown:
        raise SystemExit(f"Expected names of programs. Received: {' '.join(unknown)}")
    names = names or list(PROGRAMS)
    good, shares = 0, []
    for name in names:
        if BACKEND not in PROGRAMS[name].backends:
            print(f"{name:28}    -  not on {BACKEND}", flush=True)
            continue
        run = columns(name)
        print(line(run), flush=True)
        good += not any(run.errors.values())
        shares.append(run.share or 0.0)
        del run  # its models, and those in the tracebacks of its errors
        keras.backend.clear_session()
    print(
        f"{good} of {len(shares)} programs do all. Share with a posterior: "
        f"median {statistics.median(shares):.2f}, least {min(shares):.2f}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
