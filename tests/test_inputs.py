"""Arrays that a network cannot take are refused before a backend meets them."""

import keras
import numpy as np
import pytest

import keras_bdl
from keras_bdl.core.inputs import check_inputs

X = np.ones((5, 4), "float32")


def network(*shapes, dtype="float32"):
    inputs = [keras.Input(s, dtype=dtype, name=f"in_{i}") for i, s in enumerate(shapes)]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], inputs)


@pytest.mark.parametrize(
    "x",
    [
        X[:, :3],
        np.ones((5, 5)),
        np.ones((5, 2, 4)),
        np.ones(5),
        X[:0],
        np.float32(3.0),
        [X, X],
    ],
)
def test_other_shapes_and_numbers_of_arrays_are_refused(x):
    with pytest.raises(ValueError, match="Expected.*Received"):
        check_inputs(network((4,)), x)


@pytest.mark.parametrize(
    "x",
    [
        np.full((5, 4), "a"),
        np.full((5, 4), None),
        np.full((5, 4), np.datetime64("2020-01-01")),
        X.astype("complex64"),
    ],
)
def test_other_kinds_of_values_are_refused(x):
    with pytest.raises(TypeError, match="real numbers.*Received"):
        check_inputs(network((4,)), x)


def test_what_keras_takes_passes():
    table = pytest.importorskip("pandas", reason="pandas is not installed").DataFrame
    for x in (X, X.astype("uint8"), X > 0, [X], keras.ops.convert_to_tensor(X)):
        check_inputs(network((4,)), x)
    check_inputs(network((4,)), table(X))
    check_inputs(network((4,)), X[..., None])  # Keras drops a last axis of one
    check_inputs(network((1,)), X[:, 0])  # and adds it
    check_inputs(network((None, 4)), np.ones((5, 7, 4)))
    check_inputs(network((1,), dtype="string"), np.full((5, 1), "a"))
    two = network((4,), (2,))
    for x in ([X, X[:, :2]], (X, X[:, :2]), {"in_1": X[:, :2], "in_0": X}):
        check_inputs(two, x)
    with pytest.raises(ValueError, match=r"\('n', 2\).*Received"):
        check_inputs(two, {"in_1": X, "in_0": X})
    tree = {"p": [keras.Input((4,)), keras.Input((2,))], "q": keras.Input((4,))}
    nested = keras.Model(tree, keras.tree.flatten(tree))
    check_inputs(nested, {"p": [X, X[:, :2]], "q": X})
    with pytest.raises(TypeError, match="dtype Int64"):
        check_inputs(network((4,)), table(X.astype(int)).astype("Int64"))
    for data in ((batch for batch in [X]), None, "data"):  # seen to elsewhere
        check_inputs(two, data)
    check_inputs(None, X)


def test_every_call_looks_at_its_arrays():
    classifier = keras_bdl.BayesianClassifier(
        keras.Sequential([keras.Input((4,)), keras_bdl.VariationalDense(2)]),
        num_samples=2,
    )
    classifier.compile()
    labels = np.zeros(5, "int32")
    for x in (X[:, :3], X[:0], np.full((5, 4), "a")):
        for call in (
            lambda x=x: classifier.fit(x, labels, verbose=0),
            lambda x=x: classifier.evaluate(x, labels, verbose=0),
            lambda x=x: classifier.train_on_batch(x, labels),
            lambda x=x: classifier.predict(x, verbose=0),
            lambda x=x: classifier.predict_uncertainty(x, verbose=0),
            lambda x=x: keras_bdl.predict(classifier.network, x, 2, verbose=0),
        ):
            with pytest.raises((ValueError, TypeError), match="Expected.*Received"):
                call()
