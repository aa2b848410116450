"""Training on several devices gives what one device gives, where that is known.

Twice the KL, or the noise of one replica on both, would show in the variances: see
`test_exact_posterior.test_the_oracle_tells_the_candidates_apart`.
"""

import json
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import test_exact_posterior as exact
from contract import BACKEND

SCRIPT = pathlib.Path(__file__).with_name("distributed_training.py")
KINDS = {
    "tensorflow": [
        pytest.param("mirrored", marks=pytest.mark.slow),
        pytest.param("tensorflow_processes", marks=pytest.mark.slow),
    ],
    "jax": ["jax_devices", "jax_processes"],
    "torch": [],
}


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def run(script, kind, num_processes):
    """What each process prints in its last line, read as JSON."""
    ports = free_ports(num_processes) if num_processes > 1 else []
    processes = [
        subprocess.Popen(
            [sys.executable, script, kind, *([str(rank), *ports] if ports else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=SCRIPT.parent,
        )
        for rank in range(num_processes)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs):
        assert process.returncode == 0, errors[-2000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no distribution for PyTorch")
@pytest.mark.parametrize("kind", KINDS[BACKEND])
def test_several_devices_reach_the_exact_posterior(kind):
    num_processes = 2 if kind.endswith("processes") else 1
    results = run(SCRIPT, kind, num_processes)
    regression = exact.make_regression()
    scale = np.abs(regression.mean).max()
    for result in results:
        np.testing.assert_allclose(
            result["mean"], regression.mean, rtol=0, atol=0.02 * scale
        )
        np.testing.assert_allclose(
            result["variance"], regression.mean_field_variance, rtol=0.05
        )
        assert result["spread"] > 0  # units have noise of their own
    assert results == results[:1] * num_processes
