"""The examples of dropout and regression run as a new user runs them."""

import re

import numpy as np
import pytest
from example_tools import run_example

plt = pytest.importorskip("matplotlib.pyplot", reason="the examples draw")
pytest.importorskip("sklearn", reason="the examples read scikit-learn's data")

# A process each, as a new user runs them: on demand, by `-m slow`.
pytestmark = pytest.mark.slow

NUMBER = re.compile(r"-?\d+\.\d+")


def test_concrete_dropout(tmp_path):
    result = run_example(
        "concrete_dropout.py", "--smoke", "--num-samples", 8, "--output", tmp_path
    )
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^ +(10|40) +(.*)$", result.stdout, re.MULTILINE)
    assert [n for n, _ in rows] == ["10", "40"]
    for _, cells in rows:
        aleatoric, epistemic, *rates = map(float, NUMBER.findall(cells))
        assert aleatoric > 0.0 and epistemic > 0.0 and len(rates) == 4
        assert all(0.0 < rate < 1.0 for rate in rates)
    for name in ("toy_uncertainty", "toy_rates", "image_rates"):
        assert plt.imread(tmp_path / f"{name}.png").std() > 0.05


def make_table():
    table = np.random.default_rng(0).normal(size=(60, 3))
    table[:, 1] = 5.0 + table[:, 0] - 2.0 * table[:, 2]
    return table


def test_regression_of_a_csv(tmp_path):
    csv = tmp_path / "t.csv"
    np.savetxt(csv, make_table(), delimiter=",", header="a,y,b", comments="")
    result = run_example(
        "uci_regression.py",
        *("--data", csv, "--target", "y", "--smoke", "--output", tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert "60 rows of 2 inputs, 2 splits" in result.stdout
    for name in ("variational", "MC dropout", "deterministic"):
        line = re.search(rf"^{name} .*$", result.stdout, re.MULTILINE)[0]
        rmse, _, log_likelihood, _, inside, _ = map(float, NUMBER.findall(line))
        assert 0.0 < rmse < 10.0 and -10.0 < log_likelihood < 0.0
        assert 0.0 <= inside <= 1.0
    for name in ("predictions", "calibration"):
        assert plt.imread(tmp_path / f"{name}.png").std() > 0.05


def test_regression_takes_the_splits_in_a_file(tmp_path):
    import uci_regression

    table = make_table()
    order = np.random.default_rng(1).permutation(60)
    test_idx = np.stack([order[:6], order[6:12]])
    train_idx = np.stack([np.setdiff1d(order, rows) for rows in test_idx])
    padded = np.pad(train_idx, [[0, 0], [0, 2]], constant_values=-1)
    path = tmp_path / "t.npz"
    x, y = table[:, [0, 2]], table[:, 1]
    np.savez(path, x=x, y=y, train_idx=padded, test_idx=test_idx)
    found_x, found_y, splits = uci_regression.load(path, None, 2)
    np.testing.assert_array_equal(found_x, x)
    np.testing.assert_array_equal(found_y, y)
    for (train, test), *expected in zip(splits, train_idx, test_idx, strict=True):
        np.testing.assert_array_equal(train, expected[0])
        np.testing.assert_array_equal(test, expected[1])


def test_regression_refuses_a_csv_that_is_not_of_numbers(tmp_path):
    import uci_regression

    csv = tmp_path / "t.csv"
    csv.write_text("a,b\n1,x\n2,3\n")
    with pytest.raises(ValueError, match=r"Received: not a number in \['b'\]"):
        uci_regression.load(csv, "a", 2)
    with pytest.raises(ValueError, match="--target.*Received: target='c'"):
        uci_regression.load(csv, "c", 2)
