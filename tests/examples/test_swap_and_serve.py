"""The example of conversion and serving runs as a new user runs it."""

import re

import keras
import pytest
from example_tools import run_example

plt = pytest.importorskip("matplotlib.pyplot", reason="the examples draw")
pytest.importorskip("sklearn", reason="the examples read scikit-learn's data")

# A process each, as a new user runs them: on demand, by `-m slow`.
pytestmark = pytest.mark.slow


def test_swap_and_serve(tmp_path):
    result = run_example("swap_and_serve.py", "--smoke", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    table = re.findall(r"^(\w.*?)  +(\d\.\d+) +(\d\.\d+)$", result.stdout, re.MULTILINE)
    names = [name for name, *_ in table]
    assert names == ["accuracy", "NLL (nats)", "ECE (15 bins)", "AUROC letters"]
    assert result.stdout.count("VariationalConv2D") == 2
    if keras.backend.backend() == "tensorflow":
        answers = re.findall(
            r"^(digit|letter): class \d, probability (\d\.\d+)", result.stdout, re.M
        )
        assert [kind for kind, _ in answers] == ["digit"] * 3 + ["letter"] * 3
        assert all(0.1 <= float(p) <= 1.0 for _, p in answers)
    assert plt.imread(tmp_path / "swap_and_serve.png").std() > 0.05
