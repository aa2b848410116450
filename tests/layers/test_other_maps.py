"""Embeddings, depthwise convolutions and einsums: the contract, and their own."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import scipy.stats
from contract import BACKEND, Case, LayerContract, fit_long, to_numpy
from keras import ops
from kl_oracles import kl_to_normal

import keras_bdl
from keras_bdl.ops import estimators

pytestmark = pytest.mark.portable

INPUT_DIM = 400  # above the largest input of the contract


@dataclasses.dataclass
class EmbeddingCase(Case):
    def inputs(self, rows=4, seed=0, scale=1.0):
        rng = np.random.default_rng(seed)
        return rng.integers(0, 9, (rows, *self.input_shape)).astype("float32")

    def square(self, x):
        return x


@dataclasses.dataclass
class SummedCase(Case):
    """An einsum that sums an axis of the inputs that the kernel does not have."""

    def square(self, x):
        return x.sum(axis=1, keepdims=True) ** 2


def make(cls, *args, drop=(), **fixed):
    def made(**options):
        options = {name: v for name, v in options.items() if name not in drop}
        return cls(*args, **{**fixed, **options})

    return made


def case(
    name, bayesian, plain, args, shape, kind=Case, drop=(), estimator=None, **fixed
):
    return kind(
        name=name,
        make=make(bayesian, *args, drop=drop, estimator=estimator, **fixed),
        plain=make(plain, *args, drop=drop, **fixed),
        input_shape=shape,
        oracle_kl=kl_to_normal(0.0, 1.0),
        about=("layer",) if estimator is None else ("noise",),
        thorough=estimator is None and "thorough" in name,
    )


class TestVariationalEmbedding(LayerContract):
    cases = [
        case(
            name,
            keras_bdl.VariationalEmbedding,
            keras.layers.Embedding,
            (INPUT_DIM, 3),
            shape,
            EmbeddingCase,
            ("activation",),
            estimator,
        )
        for name, shape, estimator in (
            ("thorough", (4,), None),
            ("no-positions", (), None),
            ("local", (4,), "local_reparameterization"),
            ("one-draw", (4,), "reparameterization"),
        )
    ]


class TestVariationalDepthwiseConv1D(LayerContract):
    cases = [
        case(
            "default",
            keras_bdl.VariationalDepthwiseConv1D,
            keras.layers.DepthwiseConv1D,
            (2,),
            (6, 3),
            depth_multiplier=2,
        )
    ]


class TestVariationalDepthwiseConv2D(LayerContract):
    cases = [
        case(
            name,
            keras_bdl.VariationalDepthwiseConv2D,
            keras.layers.DepthwiseConv2D,
            (2,),
            (5, 6, 3),
            estimator=estimator,
            **fixed,
        )
        for name, estimator, fixed in (
            ("thorough", None, {"depth_multiplier": 2, "padding": "same"}),
            ("local", "local_reparameterization", {"strides": 2, "use_bias": False}),
        )
    ]


class TestVariationalEinsumDense(LayerContract):
    cases = [
        case(
            name,
            keras_bdl.VariationalEinsumDense,
            keras.layers.EinsumDense,
            (equation, output_shape),
            shape,
            kind,
            estimator=estimator,
            bias_axes=bias_axes,
        )
        for name, equation, output_shape, bias_axes, shape, kind, estimator in (
            ("thorough", "ab,bcd->acd", (2, 3), "cd", (4,), Case, None),
            ("heads", "abc,cde->abde", (None, 2, 3), "de", (4, 5), Case, None),
            ("dots", "...x,xy->...y", 3, "y", (4, 5), Case, "flipout"),
            ("by-position", "abc,bcd->abd", (4, 3), "bd", (4, 5), Case, None),
            ("summed", "abc,cd->ad", 3, "d", (4, 5), SummedCase, None),
            ("summed-flipout", "abc,cd->ad", 3, None, (4, 5), SummedCase, "flipout"),
        )
    ]


def test_rows_share_weights():
    layer = keras_bdl.VariationalEinsumDense("ab,abc->ac", 3)
    with pytest.raises(ValueError, match="axis of the rows.*Received: equation"):
        layer.build((4, 5))


def test_rows_come_first():
    layer = keras_bdl.VariationalEinsumDense("ba,bc->ac", 3)
    with pytest.raises(ValueError, match="start with.*Received: equation"):
        layer.build((5, 5))


@pytest.mark.parametrize("estimator", [None, "flipout"])
def test_equal_indices_of_a_row_share_their_draw(estimator):
    layer = keras_bdl.VariationalEmbedding(
        9, 3, num_examples=10, seed=0, estimator=estimator
    )
    x = np.array([[1, 2, 1], [1, 1, 2]])
    outputs = to_numpy(layer(x, training=True))
    np.testing.assert_array_equal(outputs[0, 0], outputs[0, 2])
    np.testing.assert_array_equal(outputs[1, 0], outputs[1, 1])
    assert np.abs(outputs[0, 0] - outputs[1, 0]).max() > 0  # rows differ


def test_a_row_of_the_batch_looks_up_one_table():
    layer = keras_bdl.VariationalEmbedding(7, 2, num_examples=10, seed=0)
    rng = np.random.default_rng(0)
    layer.build()
    layer.embeddings.assign(rng.normal(size=(7, 2)))
    layer.embeddings_log_stddev.assign(rng.normal(size=(7, 2)) / 2.0 - 1.0)
    # As a Dense posterior over one-hot words, in mean and covariance.
    words = np.array([[4, 1], [4, 6]]) if BACKEND == "torch" else [[4, 1], [-3, 6]]
    rows = 20_000
    x = np.tile(np.array(words)[None], (rows, 1, 1))
    outputs = to_numpy(layer(x, training=True))
    one_hot = np.eye(7)[np.array([4, 1, 4, 6])]
    flat = outputs.reshape(rows, 4, 2)
    for unit in range(2):
        mean = one_hot @ to_numpy(layer.embeddings)[:, unit]
        variance = np.exp(2.0 * to_numpy(layer.embeddings_log_stddev)[:, unit])
        covariance = one_hot @ np.diag(variance) @ one_hot.T
        scale = np.sqrt(np.diag(covariance))
        errors = np.abs(flat[..., unit].mean(axis=0) - mean) / scale
        assert errors.max() < 5.0 / rows**0.5
        measured = np.cov(flat[..., unit].T) / np.outer(scale, scale)
        expected = covariance / np.outer(scale, scale)
        np.testing.assert_allclose(measured, expected, atol=5 * (2.0 / rows) ** 0.5)
    assert abs(np.corrcoef(flat[:, 0, 0], flat[:, 0, 1])[0, 1]) < 5.0 / rows**0.5


def test_large_tables_are_drawn_where_they_are_looked_up():
    size, width = 600_000, 2
    inputs = keras.Input((3,), dtype="int32")
    layer = keras_bdl.VariationalEmbedding(size, width, initial_log_stddev=0.0)
    model = keras.Model(inputs, [layer(inputs), layer(inputs + 1)])
    rng = np.random.default_rng(0)
    layer.embeddings_log_stddev.assign(rng.normal(size=(size, width)) / 3.0)
    x = rng.integers(0, size - 1, (40, 3))
    x[:, 1] = x[:, 0]
    x[-1] = [5, 6, 7]
    if BACKEND != "torch":
        x[-1] = [5, 6 - size, 7]
    options = {"return_samples": True, "outputs": "mean", "seed": 3, "verbose": 0}
    first, second = keras_bdl.predict(model, x, 60, **options)
    # A draw is one function, in every batch, call and place.
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    same(first[:, :-1, 0], first[:, :-1, 1])
    same(first[:, -1, 1:], second[:, -1, :2])
    alone, _ = keras_bdl.predict(model, x[7:9], 60, batch_size=1, **options)
    same(alone, first[:, 7:9])
    stddev = np.exp(to_numpy(layer.embeddings_log_stddev))[x]
    noise = (first - to_numpy(layer.embeddings)[x]) / stddev
    distinct = np.delete(noise, 1, axis=2).ravel()
    assert scipy.stats.kstest(distinct, "norm").pvalue > 1e-4
    other = keras_bdl.predict(model, x, 60, **{**options, "seed": 4})[0]
    assert np.abs(other - first).min(initial=1.0, where=first != 0) > 0


@pytest.mark.parametrize("prior", ["normal", keras_bdl.priors.NormalPerWeight(0.3)])
def test_training_estimates_the_kl_of_a_large_table_without_bias(prior):
    layer = keras_bdl.VariationalEmbedding(600_003, 2, prior=prior, num_examples=1)
    layer.build()
    rng = np.random.default_rng(0)
    layer.embeddings_log_stddev.assign(rng.normal(size=(600_003, 2)))
    layer.embeddings.assign(np.linspace(0.0, 3.0, 1_200_006).reshape(600_003, 2))
    # Each part of the rows stands for all of them with equal probability.
    values = {float(to_numpy(layer.training_kl())) for _ in range(100)}
    assert len(values) == 8
    np.testing.assert_allclose(np.mean(list(values)), to_numpy(layer.kl()), rtol=1e-5)
    # Neighbours are in different parts, which are therefore alike.
    assert np.std(list(values)) < 0.03 * np.mean(list(values))


def test_embeddings_start_at_given_weights_and_mask():
    table = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")
    layer = keras_bdl.VariationalEmbedding(5, 2, mask_zero=True, weights=table)
    x = np.array([[0, 3]])
    np.testing.assert_array_equal(to_numpy(layer(x))[0], table[[0, 3]])
    assert to_numpy(layer.compute_mask(x)).tolist() == [[False, True]]


def test_an_embedding_learns_what_it_sees_and_keeps_the_prior_elsewhere():
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="int32"),
            keras_bdl.VariationalEmbedding(
                6,
                1,
                initial_log_stddev=-1.0,
                estimator="local_reparameterization",
                seed=0,
            ),
            keras.layers.Flatten(),
        ]
    )
    rows = 3 * 100
    keras_bdl.set_num_examples(model, rows)
    noise = 0.5
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 400)
    model.compile(keras.optimizers.Adam(schedule), keras_bdl.losses.GaussianNLL(noise))
    x = np.repeat([0, 1, 2], rows // 3)[:, None]
    y = np.array([-1.0, 0.0, 1.0])[x[:, 0], None]
    fit_long(model, x, y, epochs=400)
    layer = model.layers[0]
    # Conjugate: precision 1 + n / noise^2 where there are n observations.
    exact = np.ones(6)
    exact[:3] = (1.0 + rows / 3 / noise**2) ** -0.5
    stddev = np.exp(to_numpy(layer.embeddings_log_stddev))[:, 0]
    np.testing.assert_allclose(stddev, exact, rtol=0.1)
    np.testing.assert_allclose(to_numpy(layer.embeddings)[:3, 0], y[::100, 0], atol=0.1)


@pytest.mark.parametrize("method", ["flipout", "local_reparameterization"])
def test_depthwise_kernels_are_not_those_of_a_convolution(method):
    layer = keras_bdl.VariationalDepthwiseConv2D(
        2, use_bias=False, estimator=method, num_examples=10
    )
    x = np.zeros((1, 3, 3, 2), "float32")
    x[..., 0] = 1.0  # the other channel has no input, and so no noise
    outputs = to_numpy(layer(x, training=True))
    tiny = estimators.TINY_VARIANCE**0.5
    assert np.abs(outputs[..., 1]).max() <= 10 * tiny
    assert np.abs(outputs[..., 0]).max() > 1e-3


@pytest.mark.every_backend
def test_a_model_of_all_of_them_converts_predicts_and_returns(tmp_path):
    layers = keras.layers
    inputs = keras.Input((8,), dtype="int32")
    x = layers.Embedding(20, 6)(inputs)
    x = layers.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d")(x)
    x = layers.DepthwiseConv1D(3, activation="relu")(x)
    x = layers.GlobalAveragePooling1D()(x)
    plain = keras.Model(inputs, layers.Dense(3)(x))
    data = np.random.default_rng(0).integers(0, 20, (5, 8))
    model, report = keras_bdl.to_bayesian(plain, num_examples=10, return_report=True)
    assert len(report.replaced) == 4 and not report.left
    expected = plain.predict(data, verbose=0)
    np.testing.assert_allclose(model.predict(data, verbose=0), expected, atol=1e-6)
    draws = keras_bdl.predict(
        model, data, 9, return_samples=True, outputs="mean", seed=0, verbose=0
    )
    assert draws.shape == (9, 5, 3) and draws.std(axis=0).min() > 0.0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = keras_bdl.predict(
        loaded, data, 9, return_samples=True, outputs="mean", seed=0, verbose=0
    )
    np.testing.assert_allclose(again, draws, atol=1e-6)
    back = keras_bdl.to_keras(loaded)
    np.testing.assert_allclose(back.predict(data, verbose=0), expected, atol=1e-6)
    assert not any(isinstance(x, keras_bdl.VariationalDense) for x in back.layers)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "make_layer, shape",
    [
        (lambda: keras.layers.Embedding(7, 3), (5, 4)),
        (lambda: keras.layers.DepthwiseConv1D(2, depth_multiplier=2), (5, 6, 3)),
        (
            lambda: keras.layers.DepthwiseConv2D((2, 3), strides=2, padding="same"),
            (5, 6, 7, 3),
        ),
        (
            lambda: keras.layers.EinsumDense("...x,xy->...y", 4, bias_axes="y"),
            (5, 2, 3),
        ),
        (lambda: keras.layers.EinsumDense("abc,cd->ad", 4, bias_axes="d"), (5, 2, 3)),
        (
            lambda: keras.layers.EinsumDense("abc,bcd->abd", (2, 4), bias_axes="bd"),
            (5, 2, 3),
        ),
    ],
)
def test_each_sample_has_its_own_weights(make_layer, shape, shared):
    layer, rng = make_layer(), np.random.default_rng(0)
    layer.build(shape)
    weight_map = {
        keras.layers.Embedding: keras_bdl.maps.Embedding,
        keras.layers.EinsumDense: keras_bdl.maps.Einsum,
    }.get(type(layer), keras_bdl.maps.Depthwise)()
    variables = weight_map.variables(layer)
    num_samples = 3
    weights = {
        name: rng.normal(size=(num_samples, *v.shape)).astype("float32")
        for name, v in variables.items()
    }
    x = rng.integers(0, 7, (num_samples, *shape)).astype("float32")
    if shared:
        x[:] = x[0]
    expected = []
    for sample in range(num_samples):
        for name, variable in variables.items():
            variable.assign(weights[name][sample])
        expected.append(to_numpy(layer(x[sample])))
    given = ops.convert_to_tensor(x[0] if shared else x.reshape(-1, *shape[1:]))
    outputs = weight_map.apply_per_sample(
        layer,
        weight_map.prepare(layer, given),
        {name: ops.convert_to_tensor(w) for name, w in weights.items()},
        shared,
    )
    np.testing.assert_allclose(
        to_numpy(outputs), np.concatenate(expected), atol=1e-4, rtol=1e-5
    )


def test_one_index_per_row_is_predicted_by_its_moments():
    inputs = keras.Input((), dtype="int32")
    layer = keras_bdl.VariationalEmbedding(3000, 2, initial_log_stddev=0.0)
    model = keras.Model(inputs, layer(inputs))
    layer.embeddings.assign(np.random.default_rng(0).normal(size=(3000, 2)))
    x = np.array([0, 1, 2999])
    options = {"outputs": "mean", "seed": 0, "verbose": 0}
    uncertainty = keras_bdl.predict_uncertainty(model, x, 2000, **options)
    expected = to_numpy(layer.embeddings)[x]
    np.testing.assert_allclose(uncertainty.mean, expected, atol=5 / 2000**0.5)
    np.testing.assert_allclose(uncertainty.epistemic_stddev, 1.0, rtol=0.1)


def test_a_mask_has_the_rows_of_all_samples():
    inputs = keras.Input((6,), dtype="int32")
    x = keras_bdl.VariationalEmbedding(9, 4, mask_zero=True)(inputs)
    model = keras.Model(inputs, keras.layers.Attention()([x, x]))
    data = np.array([[1, 2, 3, 0, 0, 0], [4, 0, 5, 0, 0, 0]])
    options = {"outputs": "mean", "seed": 0, "verbose": 0}
    draws = keras_bdl.predict(model, data, 9, return_samples=True, **options)
    mean = keras_bdl.predict(model, data, 9, **options)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=1e-5)
    alone = keras_bdl.predict(model, data[:1], 9, return_samples=True, **options)
    np.testing.assert_allclose(alone[:, 0], draws[:, 0], atol=1e-6)


def test_indices_from_the_end_are_those_of_one_sample():
    inputs = keras.Input((2,), dtype="int32")
    layer = keras_bdl.VariationalEmbedding(5, 1, initial_log_stddev=0.0)
    model = keras.Model(inputs, layer(inputs))
    plain = keras.layers.Embedding(5, 1)
    plain.build()
    x = np.array([[-1, 4]])
    same = to_numpy(plain(x))
    assert same[0, 0] == same[0, 1] or BACKEND == "torch"
    if BACKEND != "torch":  # which has no such indices
        draws = keras_bdl.predict(
            model, x, 3, return_samples=True, outputs="mean", seed=0, verbose=0
        )
        np.testing.assert_array_equal(draws[:, 0, 0], draws[:, 0, 1])


@pytest.mark.parametrize("estimator", ["flipout", "local_reparameterization"])
def test_outputs_that_share_a_bias_share_its_noise(estimator):
    layer = keras_bdl.VariationalEinsumDense(
        "abc,cde->abde",
        (None, 2, 3),
        bias_axes="e",
        estimator=estimator,
        initial_log_stddev=0.0,
        num_examples=10,
    )
    x = np.zeros((50, 4, 5), "float32")  # of the kernel nothing is seen
    outputs = to_numpy(layer(x, training=True))
    tiny = 10 * estimators.TINY_VARIANCE**0.5
    np.testing.assert_allclose(outputs, outputs[:, :1, :1] + 0 * outputs, atol=tiny)
    assert 0.8 < outputs[:, 0, 0].std() < 1.2  # rows have draws of their own


def test_a_shared_bias_is_not_drawn_by_moments():
    inputs = keras.Input((4,))
    layer = keras_bdl.VariationalEinsumDense(
        "ab,bcd->acd", (2, 1), bias_axes="d", initial_log_stddev=-20.0
    )
    difference = keras.layers.Dense(1, use_bias=False, activation=ops.square)
    model = keras.Model(inputs, difference(keras.layers.Flatten()(layer(inputs))))
    layer.bias_log_stddev.assign([0.0])
    difference.kernel.assign([[1.0], [-1.0]])
    layer.kernel.assign(0.0 * layer.kernel)
    x = np.zeros((2, 4), "float32")
    mean = keras_bdl.predict(model, x, 50, outputs="mean", seed=0, verbose=0)
    np.testing.assert_allclose(mean, 0.0, atol=1e-6)


@pytest.mark.parametrize("how", ["weights", "build"])
def test_an_embedding_that_was_built_before_it_was_called_converts(how):
    table = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")
    inputs = keras.Input((3,), dtype="int32")
    plain = keras.layers.Embedding(5, 2, weights=[table] if how == "weights" else None)
    if how == "build":
        plain.build()
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(plain(inputs)))
    model = keras.Model(inputs, outputs)
    converted = keras_bdl.to_bayesian(model, num_examples=3)
    x = np.array([[0, 1, 4]])
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(converted.predict(x, verbose=0), expected, atol=1e-6)
    back = keras_bdl.to_keras(converted)
    np.testing.assert_allclose(back.predict(x, verbose=0), expected, atol=1e-6)


def test_the_constructor_of_an_embedding_is_that_of_keras():
    table = np.zeros((5, 2), "float32")
    for layer in (
        keras_bdl.VariationalEmbedding(5, 2, weights=[table]),
        keras_bdl.VariationalEmbedding(5, 2, "uniform", None, None, False, table),
    ):
        layer.build((None, 3))
        np.testing.assert_array_equal(to_numpy(layer.embeddings), table)
    with pytest.raises(ValueError, match=r"table \(5, 2\).*Received: weights of shape"):
        keras_bdl.VariationalEmbedding(5, 2, weights=table.T)


def test_the_estimator_is_that_of_the_call():
    layer = keras_bdl.VariationalEmbedding(5, 2, num_examples=3)
    layer(np.array([1, 2]))  # one index per row, before a history of each
    outputs = to_numpy(layer(np.array([[2, 2, 2, 2]]), training=True))
    np.testing.assert_array_equal(outputs, outputs[:, :1] + 0 * outputs)


def test_a_prior_of_each_number_of_a_table_is_not_lost(tmp_path):
    def model(prior):
        inputs = keras.Input((3,), dtype="int32")
        layer = keras_bdl.VariationalEmbedding(5, 2, prior=prior)
        return keras.Model(inputs, layer(inputs))

    path = tmp_path / "own.weights.h5"
    model(keras_bdl.priors.NormalPerWeight()).save_weights(path)
    with pytest.raises(ValueError, match="prior of its own.*Received"):
        model("normal").load_weights(path)


@pytest.mark.parametrize("equation", ["ab,bc", "abc", "ab,bc->a->c"])
def test_malformed_equations_end_as_in_keras(equation):
    messages = []
    for cls in (keras.layers.EinsumDense, keras_bdl.VariationalEinsumDense):
        with pytest.raises(ValueError) as error:
            cls(equation, 3).build((None, 5))
        messages.append(str(error.value))
    assert messages[0] == messages[1]
