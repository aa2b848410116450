"""The examples of workflow, few data and features run as a new user runs them."""

import re

import pytest
from example_tools import run_example

plt = pytest.importorskip("matplotlib.pyplot", reason="the examples draw")
pytest.importorskip("sklearn", reason="the examples read scikit-learn's data")

# A process each, as a new user runs them: on demand, by `-m slow`.
pytestmark = pytest.mark.slow

CELL = re.compile(r"(\d+\.\d+) ± (\d+\.\d+)")


def run(script, tmp_path, *pictures):
    """What the example printed."""
    result = run_example(script, "--smoke", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    for name in pictures:
        assert plt.imread(tmp_path / f"{name}.png").std() > 0.05
    return result.stdout


def rows(text, name):
    """Values and errors of each row of a name."""
    found = re.findall(rf"^.*\b{name}\b.* ± .*$", text, re.MULTILINE)
    return [[tuple(map(float, c)) for c in CELL.findall(line)] for line in found]


def test_bayesian_workflow(tmp_path):
    pictures = ("prior_predictive", "workflow", "more_data", "model_comparison")
    text = run("bayesian_workflow.py", tmp_path, *pictures)
    gaps = re.search(r"^against the closed form.*$", text, re.MULTILINE)[0]
    assert max(map(float, re.findall(r"\d\.\de[-+]\d+", gaps))) < 1e-10
    p_values = re.findall(r"^(?:polynomial 1|fourier 2) .* (\d\.\d{3})$", text, re.M)
    line, curve = map(float, p_values[:2])
    assert line < 0.01 < 0.1 < curve
    assert "best by evidence: fourier 2; best on held-out rows: fourier 2" in text


def test_data_per_parameter(tmp_path):
    text = run("data_per_parameter.py", tmp_path, "data_per_parameter", "day_by_day")
    for name in ("weight decay", "Bayesian"):
        nll, ece, accuracy = rows(text, name)
        assert nll[-1][0] < nll[0][0]  # more rows are better
        assert 0.0 <= ece[-1][0] < 0.5 and 20.0 < accuracy[-1][0] <= 100.0
    prior, alone = rows(text, "posterior as prior")[0], rows(text, "new day alone")[0]
    assert prior[0] == rows(text, "all days at once")[0][0]  # the first day is the same
    assert prior[1][0] < alone[1][0]


def test_representation(tmp_path):
    text = run("representation.py", tmp_path, "representation")
    for name in ("pixels", "principal components", "VAE codes"):
        (accuracies,) = rows(text, name)
        assert len(accuracies) == 2
        assert 20.0 < accuracies[0][0] < accuracies[1][0] <= 100.0
