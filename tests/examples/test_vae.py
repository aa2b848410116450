"""The examples of generative models run as a new user runs them."""

import re

import pytest
from example_tools import run_example

plt = pytest.importorskip("matplotlib.pyplot", reason="the examples draw")
pytest.importorskip("sklearn", reason="the examples read scikit-learn's data")
pytest.importorskip("PIL", reason="a score is the length of a PNG file")

# A process each, as a new user runs them: on demand, by `-m slow`.
pytestmark = pytest.mark.slow


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


def test_semi_supervised(tmp_path):
    result = run_example("semi_supervised.py", "--smoke", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    row = r"^(supervised|M2|M1\+M2) +(\d+\.\d+) \+- 0\.00$"
    rows = re.findall(row, result.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == ["supervised", "M2", "M1+M2"]
    assert all(0.0 < float(error) < 100.0 for _, error in rows)
    for name in ("error", "classes"):
        picture = plt.imread(tmp_path / f"semi_supervised_{name}.png")
        assert picture.std() > 0.05
