"""Running an example as a new user runs it."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def run_example(script, *options):
    """The finished process of `python examples/<script> <options>`."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *map(str, options)],
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=600,
    )
