"""The examples of early exit and of estimators run as a new user runs them."""

import re

import numpy as np
import pytest
from example_tools import ROOT, run_example

plt = pytest.importorskip("matplotlib.pyplot", reason="the examples draw")
pytest.importorskip("sklearn", reason="the examples read scikit-learn's data")

# A process each, as a new user runs them: on demand, by `-m slow`.
pytestmark = pytest.mark.slow


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


def test_units_without_normalization_give_the_same(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import early_exit as example

    settings = example.Settings(units=2, channels=3)
    body = example.Body(settings, settings.units)
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype("float32")
    for network in (body.network((8, 8, 1)), body.early_exit_network((8, 8, 1), 0.1)):
        rng = np.random.default_rng(1)
        for unit in body.units:
            for weights in unit.weights:
                weights.assign(rng.uniform(0.5, 1.5, weights.shape))
        faster = example.for_inference(network)
        assert len(faster.variables) < len(network.variables)
        expected = network.predict(x, verbose=0)
        np.testing.assert_allclose(
            faster.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-4
        )


def test_gradient_estimators(tmp_path):
    result = run_example("gradient_estimators.py", "--smoke", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    row = r"^[a-z- ]+ +\d\.\d +\d+ +([\d.]+) +([\d.]+)$"
    rows = re.findall(row, result.stdout, re.MULTILINE)
    assert len(rows) == 40
    for measured, exact in rows:
        assert abs(float(measured) / float(exact) - 1.0) < 0.5
    assert plt.imread(tmp_path / "gradient_variance.png").std() > 0.05
