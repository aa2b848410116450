"""The examples of the exact models run as a new user runs them."""

import re

import pytest
from example_tools import run_here

plt = pytest.importorskip("matplotlib.pyplot", reason="the examples draw")

NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]\d+)?")


def numbers(pattern, text):
    """Those of the line that starts with a pattern."""
    line = re.search(rf"^{pattern}.*$", text, re.MULTILINE)[0]
    return [float(value) for value in NUMBER.findall(line)]


def test_coin_tossing(tmp_path):
    output = run_here("coin_tossing.py", "--smoke", "--output", tmp_path)
    first, overconfidence = output.split("over-confidence")
    assert [int(n) for n in re.findall(r"^ +(\d+) +\d+ ", first, re.MULTILINE)] == [
        *(0, 1, 5, 50, 500)
    ]
    assert max(numbers("against Bayes' rule", first)) < 1e-7
    by_count = [numbers(f" +{n} ", overconfidence) for n in (1, 2, 5, 10, 20)]
    assert all(full == 0.0 < mode < mle for full, mode, mle in by_count)
    for column in (1, 2):  # both fade
        values = [row[column] for row in by_count]
        assert values == sorted(values, reverse=True)
    # After one toss, prior Beta(2, 2): it says 1, and 2/3, where 3/5 is right.
    assert by_count[0] == pytest.approx([0.0, 100 * (2 / 3 - 3 / 5), 40.0], abs=1e-3)
    for name in ("coin_posterior", "coin_overconfidence"):
        assert plt.imread(tmp_path / f"{name}.png").std() > 0.05


def test_bayesian_linear_regression(tmp_path):
    output = run_here("bayesian_linear_regression.py", "--smoke", "--output", tmp_path)
    assert max(numbers("against the closed form", output)) < 1e-12
    for name in ("slope", "intercept"):
        row = numbers(f"{name} ", output)
        exact_mean, mean, marginal, best, stddev = row
        assert mean == pytest.approx(exact_mean, abs=0.01)
        assert stddev == pytest.approx(best, rel=0.1)
        assert marginal > 2 * best
    for name in ("line_posterior", "mean_field"):
        assert plt.imread(tmp_path / f"{name}.png").std() > 0.05
