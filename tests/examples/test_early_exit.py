"""The examples of early exit and of estimators run as a new user runs them."""

import re

import pytest
from example_tools import run_example

plt = pytest.importorskip("matplotlib.pyplot", reason="the examples draw")
pytest.importorskip("sklearn", reason="the examples read scikit-learn's data")


def test_early_exit(tmp_path):
    result = run_example("early_exit.py", "--smoke", "--mixed", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    row = r"^(fixed|early).* (0\.\d+) +([\d,]+) +(\d+\.\d+)$"
    rows = re.findall(row, result.stdout, re.MULTILINE)
    assert [kind for kind, *_ in rows] == ["fixed", "fixed", "early"]
    one, full, early = (int(flops.replace(",", "")) for _, _, flops, _ in rows)
    assert one < full and one < early <= 1.01 * full
    assert "joint posterior of label and depth" in result.stdout
    for name in ("curve", "images", "classes"):
        assert plt.imread(tmp_path / f"early_exit_{name}.png").std() > 0.05


def test_gradient_estimators(tmp_path):
    result = run_example("gradient_estimators.py", "--smoke", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    row = r"^[a-z- ]+ +\d\.\d +\d+ +([\d.]+) +([\d.]+)$"
    rows = re.findall(row, result.stdout, re.MULTILINE)
    assert len(rows) == 40
    for measured, exact in rows:
        assert abs(float(measured) / float(exact) - 1.0) < 0.5
    assert plt.imread(tmp_path / "gradient_variance.png").std() > 0.05
