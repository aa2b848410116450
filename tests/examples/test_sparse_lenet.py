"""The sparse examples run from end to end and write what they promise."""

import pytest
from example_tools import run_example

pytest.importorskip("sklearn", reason="the examples' digits come with scikit-learn")
plt = pytest.importorskip("matplotlib.pyplot", reason="the examples draw")

# A process each, as a new user runs them: on demand, by `-m slow`.
pytestmark = pytest.mark.slow


def output_of(script, folder, *options):
    result = run_example(script, "--smoke", "--output", folder, *options)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("network", ["lenet_300_100", "lenet5_caffe"])
def test_sparse_lenet(network, tmp_path):
    output = output_of("sparse_lenet.py", tmp_path, "--network", network)
    assert {"lenet_300_100": "68x", "lenet5_caffe": "280x"}[network] in output
    before, after = next(
        line.split()[-2:] for line in output.splitlines() if "test error" in line
    )
    assert before == after  # the smaller model says the same
    for name in ("sparsity.png", "first_layer.png"):
        assert plt.imread(tmp_path / name).std() > 0.05


def test_random_labels(tmp_path):
    output = output_of("random_labels.py", tmp_path)
    rows = [line for line in output.splitlines() if "labels, " in line]
    assert len(rows) == 4 and sum("%" in row for row in rows) == 2
    assert plt.imread(tmp_path / "random_labels.png").std() > 0.05
