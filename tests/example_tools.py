"""Running an example as a new user runs it."""

import contextlib
import io
import os
import pathlib
import runpy
import subprocess
import sys
from unittest import mock

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


def run_here(script, *options):
    """What it prints, run in this process, which has imported what takes longest."""
    import matplotlib

    matplotlib.use("Agg")
    path, output = str(ROOT / "examples" / script), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [path, *map(str, options)]),
        contextlib.redirect_stdout(output),
    ):
        runpy.run_path(path, run_name="__main__")
    return output.getvalue()
