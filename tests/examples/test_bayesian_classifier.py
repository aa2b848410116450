"""The example runs as a new user runs it, and its data are what it says."""

import re

import numpy as np
import pytest
from example_tools import run_here

pytest.importorskip("matplotlib", reason="the example draws pictures")
pytest.importorskip("sklearn", reason="the example reads scikit-learn's digits")

SCRIPT = "bayesian_classifier.py"
PICTURES = ("reliability", "certainty", "rotation", "out_of_domain")
ROW = re.compile(r"^(.+?)\s{2,}([\d.]+|-)\s+([\d.]+|-)$", re.MULTILINE)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    return folder, run_here(SCRIPT, "--smoke", "--num-samples", 8, "--output", folder)


@pytest.mark.slow
def test_table_has_sane_numbers(smoke):
    rows = {name: cells for name, *cells in ROW.findall(smoke[1])}
    assert list(rows)[:3] == ["accuracy", "NLL (nats)", "ECE (15 bins)"]
    assert sum(name.startswith("AUROC") for name in rows) == 4
    for name, (bayesian, deterministic) in rows.items():
        assert bayesian != "-"
        assert (deterministic == "-") == name.endswith("mutual information")
        for cell in (bayesian, deterministic):
            if cell != "-":
                assert 0.0 <= float(cell) <= (10.0 if "NLL" in name else 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_pictures(smoke, name):
    from matplotlib import image

    picture = image.imread(smoke[0] / f"{name}.png")
    assert min(picture.shape[:2]) >= 300
    colors = np.unique(picture[::5, ::5].reshape(-1, picture.shape[-1]), axis=0)
    assert len(colors) > 10
    assert 0.05 < np.mean(np.all(picture[..., :3] == 1.0, axis=-1)) < 0.99


def test_missing_mnist_says_what_to_do(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(FileNotFoundError, match="MNIST is not prepared.*--data-dir"):
        run_here(SCRIPT, "--dataset", "mnist", "--data-dir", tmp_path)


def test_unknown_data_set():
    import data

    with pytest.raises(ValueError, match=r"one of .*digits.*Received: name='letters'"):
        data.load("letters")


def test_digits_are_split_alike_every_time():
    import data

    (x_train, y_train), (x_test, y_test) = data.load("digits")
    assert x_train.shape == (1347, 8, 8, 1)
    assert x_test.shape == (450, 8, 8, 1)
    assert x_train.dtype == x_test.dtype == np.float32
    assert x_train.min() == 0.0
    assert x_train.max() == 1.0
    assert np.bincount(y_test).min() >= 40
    again = data.load("digits")[1]
    np.testing.assert_array_equal(again[0], x_test)
    np.testing.assert_array_equal(again[1], y_test)
    train = {image.tobytes() for image in x_train}
    assert not any(image.tobytes() in train for image in x_test)


def test_rotation_turns_counter_clockwise():
    import data

    images = data.load("digits")[1][0][:5]
    np.testing.assert_allclose(data.rotate(images, 0), images, atol=1e-6)
    turned = data.rotate(images, 90)
    np.testing.assert_allclose(turned, np.rot90(images, axes=(1, 2)), atol=1e-6)
    assert turned.dtype == np.float32


@pytest.mark.parametrize("size", [8, 28])
def test_letters_are_bright_on_dark_and_repeatable(size):
    import data

    images = data.letters(size, 20, seed=0)
    assert images.shape == (20, size, size, 1)
    assert images.dtype == np.float32
    assert images.min() >= 0.0
    assert images.max() <= 1.0
    assert np.all(images.max(axis=(1, 2, 3)) > 0.4)
    assert np.all(images.mean(axis=(1, 2, 3)) < 0.6)
    np.testing.assert_array_equal(images, data.letters(size, 20, seed=0))
    assert not np.array_equal(images, data.letters(size, 20, seed=1))


def test_letters_leave_out_what_looks_like_a_digit():
    import data

    assert not set(data.LETTERS) & set("OoQDIilLjJtTzZsSbBPgqYy")
