"""The example of generative models runs as a new user runs it."""

import re

import pytest
from example_tools import run_example

plt = pytest.importorskip("matplotlib.pyplot", reason="the example draws")
pytest.importorskip("sklearn", reason="the example reads scikit-learn's data")
pytest.importorskip("PIL", reason="a score is the length of a PNG file")


def test_vae(tmp_path):
    result = run_example("vae.py", "--smoke", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    bounds = re.search(r"-ELBO ([\d.]+) nats, -log p\(x\) ([\d.]+)", result.stdout)
    elbo, log_prob = map(float, bounds.groups())
    assert log_prob < elbo + 1.0
    row = r"^(8 and 9|letters) +(\d\.\d+) +(\d\.\d+) +(\d\.\d+)$"
    rows = re.findall(row, result.stdout, re.MULTILINE)
    assert [name for name, *_ in rows] == ["8 and 9", "letters"]
    assert all(0.0 <= float(value) <= 1.0 for _, *values in rows for value in values)
    names = ("samples", "reconstructions", "interpolation", "map", "out_of_domain")
    for name in names:
        assert plt.imread(tmp_path / f"vae_{name}.png").std() > 0.05
