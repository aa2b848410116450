"""Early exit: the contract, the rules, skipped units, gradients by every estimator."""

import dataclasses

import keras
import numpy as np
import pytest
from backend_tools import gradients
from contract import BACKEND, Case, LayerContract, assert_moments, slow, to_numpy
from early_exit_tools import (
    ResidualStack,
    block_logits,
    halting_probs,
    numeric_gradients,
    numpy_network,
    randomize_heads,
)
from keras import ops
from scipy import special

import keras_bdl
from keras_bdl.core import latents, scopes

pytestmark = pytest.mark.portable

# The contract


@dataclasses.dataclass
class EarlyExitCase(Case):
    def built(self, **options):
        # Named and seeded: two draws of a depth may be equal by chance.
        layer = super().built(**{"name": "block", "seed": 5, **options})
        self.randomize(layer)
        return layer

    def randomize(self, layer, seed=0):
        randomize_heads(layer, seed, scale=0.5)

    def remove_noise(self, layer):
        for head in layer.halting_heads:
            kernel, bias = head.get_weights()
            head.set_weights([0 * kernel, 0 * bias - 60.0])

    def copy_means(self, layer, plain, kernel=None):
        plain.take(layer, self.input_shape)

    def moments(self, layer, x):
        plain = self.plain()
        plain.take(layer, self.input_shape)
        states = np.stack([to_numpy(state) for state in plain.states(x)])
        q = halting_probs(block_logits(layer, states)).T
        q = q.reshape(*q.shape, *[1] * (x.ndim - 1))
        mean = (q * states).sum(axis=0)
        return mean, (q * states**2).sum(axis=0) - mean**2


def case(name, unit, input_shape, thorough=False, **fixed):
    def make(activation=None, **options):
        units = [unit() for _ in range(3)]
        # Nearly hard draws, so that training has the moments of q.
        options = {"temperature": 1e-3, **fixed, **options}
        return keras_bdl.EarlyExitResBlock(units, 0.1, **options)

    def plain(activation=None):
        objective = fixed.get("objective", "map")
        return ResidualStack([unit() for _ in range(3)], objective)

    return EarlyExitCase(
        name=name,
        make=make,
        plain=plain,
        input_shape=input_shape,
        oracle_kl=None,
        has_kl=False,
        drop_in=False,
        about=("layer", "noise") if input_shape == (6,) else ("layer",),
        also=("noise",),
        thorough=thorough,
        family=thorough,
    )


def dense():
    return keras.layers.Dense(6, activation="tanh")


def conv():
    return keras.layers.Conv2D(3, 3, padding="same", activation="tanh")


class TestEarlyExitResBlock(LayerContract):
    cases = [
        case("dense", dense, (6,), thorough=True),
        case("masked", dense, (6,), objective="elbo", skip=False),
        case("positions", dense, (4, 6), objective="elbo"),
        case("conv2d", conv, (4, 5, 3)),
    ]

    def test_noise_differs_between_calls_and_layers(self, case):
        x = np.ones((60, *case.input_shape), "float32")
        draws = []
        for seed in (0, 1, 0):
            layer = case.built(seed=seed)
            case.randomize(layer)
            draws += [to_numpy(layer(x, training=True)) for _ in range(3)]
        for i in range(len(draws)):
            for j in range(i):
                assert np.abs(draws[i] - draws[j]).max() > 1e-6

    @pytest.mark.eager
    def test_every_trainable_variable_moves(self, case):
        model, layer = case.model(temperature=0.5)
        case.randomize(layer)
        before = [to_numpy(v) for v in model.trainable_variables]
        assert len(before) == 10
        model.compile(keras.optimizers.SGD(0.1), "mse")
        x = case.inputs(rows=8)
        model.fit(x, x + 1.0, batch_size=8, verbose=0)
        for old, new in zip(before, model.trainable_variables):
            new = to_numpy(new)
            assert np.isfinite(new).all()
            assert (old != new).mean() > 0.9


# Stopping


def make_block(num_units=4, size=6, scale=2.0, seed=0, **options):
    """A block whose rows stop at different units."""
    units = [
        keras.layers.Dense(
            size,
            activation="tanh",
            kernel_initializer=keras.initializers.RandomNormal(
                stddev=0.7, seed=10 * seed + index
            ),
        )
        for index in range(num_units)
    ]
    block = keras_bdl.EarlyExitResBlock(units, 0.1, **options)
    block.build((None, size))
    randomize_heads(block, seed, scale=scale)
    return block


def as_model(block, shape=(6,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, block(inputs))


def brute_force(block, x):
    """Outputs and depths by running everything."""
    stack = ResidualStack(block.units, block.objective, block.exit_threshold)
    stack.block = block
    states = stack.states(ops.convert_to_tensor(x))
    depths = stack.depths(states)
    chosen = np.stack([to_numpy(s) for s in states])[depths - 1, np.arange(len(x))]
    return chosen, depths


def inputs(rows=200, size=6, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, size)).astype("float32")


@pytest.mark.parametrize(
    "objective, threshold",
    [
        ("map", 0.2),
        pytest.param("elbo", 0.8, marks=pytest.mark.every_backend),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in (("map", 0.5), ("elbo", 0.5), ("map", 0.8), ("elbo", 0.2))
        ),
    ],
)
def test_rows_stop_where_the_rule_says(objective, threshold):
    block = make_block(objective=objective, exit_threshold=threshold)
    x = inputs()
    outputs, depths = brute_force(block, x)
    assert len(set(depths)) >= 3  # rows stop at different units
    one_of_each = [list(depths).index(depth) for depth in set(depths)]
    model = as_model(block)
    np.testing.assert_array_equal(keras_bdl.depth(model, x, verbose=0)[:, 0], depths)
    for skip in (True, False):
        block.skip = skip
        model = as_model(block)
        np.testing.assert_allclose(
            model.predict(x, batch_size=64, verbose=0), outputs, atol=1e-5
        )
        np.testing.assert_allclose(to_numpy(block(x)), outputs, atol=1e-5)
        one_by_one = np.concatenate(
            [to_numpy(block(row[None])) for row in x[one_of_each]]
        )
        np.testing.assert_allclose(one_by_one, outputs[one_of_each], atol=1e-5)
        shuffled = np.random.default_rng(0).permutation(len(x))
        np.testing.assert_allclose(
            to_numpy(block(x[shuffled])), outputs[shuffled], atol=1e-5
        )
    with latents.LatentScope():  # as `evaluate` of the model classes and `depth` do
        np.testing.assert_allclose(to_numpy(block(x)), outputs, atol=1e-5)


def test_the_term_of_q_takes_no_second_run_of_the_units():
    block = make_block()
    calls = []
    for unit in block.units:
        call = unit.call
        unit.call = lambda x, call=call: calls.append(1) or call(x)
    with latents.LatentScope():
        block(inputs())
    assert len(calls) == 4


@pytest.mark.every_backend
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("bias, expected", [(50.0, 1), (-50.0, 4)])
def test_all_rows_stop_at_the_first_unit_or_none(skip, bias, expected):
    block = make_block(skip=skip)
    randomize_heads(block, scale=0.0, bias=bias)
    x = inputs(rows=7)
    states = ResidualStack(block.units).states(ops.convert_to_tensor(x))
    np.testing.assert_allclose(
        to_numpy(block(x)), to_numpy(states[expected - 1]), atol=1e-6
    )
    assert (keras_bdl.depth(as_model(block), x, verbose=0) == expected).all()
    assert tuple(block(x[:0]).shape) == (0, 6)
    np.testing.assert_allclose(
        to_numpy(block(x[:1])), to_numpy(block(x))[:1], atol=1e-6
    )


def test_a_price_of_zero_and_heads_that_never_stop_are_the_plain_stack():
    block = make_block()
    block.prior_rate = 0.0
    randomize_heads(block, scale=0.0, bias=-60.0)
    x = inputs(rows=9)
    plain = to_numpy(ResidualStack(block.units)(ops.convert_to_tensor(x)))
    for training in (True, False):
        np.testing.assert_allclose(
            to_numpy(block(x, training=training)), plain, atol=1e-5
        )
    assert all(float(to_numpy(loss)) == 0.0 for loss in block.losses)


class Counting(keras.layers.Layer):
    """A unit that counts its rows where it is not traced."""

    rows = 0

    def call(self, inputs):
        Counting.rows += inputs.shape[0] or 0
        return 0.1 * ops.tanh(inputs)


@pytest.mark.every_backend
def test_units_do_not_run_on_rows_that_have_stopped():
    if BACKEND == "jax":
        pytest.skip("JAX traces what it runs: benchmarks/early_exit.py times it")
    block = keras_bdl.EarlyExitResBlock([Counting() for _ in range(4)])
    block.build((None, 6))
    randomize_heads(block, scale=3.0)
    x = inputs()
    depths = keras_bdl.depth(as_model(block), x, verbose=0)[:, 0]
    Counting.rows = 0
    block(x)
    if BACKEND == "tensorflow":
        assert Counting.rows == depths.sum()
    else:  # whole units are skipped
        assert Counting.rows == len(x) * depths.max()
    for row, depth in zip(x[:10], depths):
        Counting.rows = 0
        block(row[None])
        assert Counting.rows == depth


@pytest.mark.every_backend
def test_gradients_of_inputs_do_not_depend_on_skipping():
    x = inputs()
    weights = np.random.default_rng(0).normal(size=x.shape).astype("float32")

    def gradient(skip):
        block = make_block(skip=skip)

        def total(x):
            return ops.sum(block(x) * ops.convert_to_tensor(weights))

        return gradients(total, [x])[0]

    np.testing.assert_allclose(gradient(True), gradient(False), atol=1e-5)


def test_an_exported_model_stops_where_the_rule_says(tmp_path):
    if BACKEND != "tensorflow":
        pytest.skip("SavedModel needs TensorFlow")
    import tensorflow as tf

    block = make_block()
    model = as_model(block)
    x = inputs()
    model.export(str(tmp_path / "model"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    served = loaded.serve
    expected, depths = brute_force(block, x)
    assert len(set(depths)) == 4
    np.testing.assert_allclose(served(x).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(served(x[:1]).numpy(), expected[:1], atol=1e-5)
    assert served(x[:0]).shape == (0, 6)


@pytest.mark.parametrize("training", [True, False])
def test_masked_blocks_compile_with_xla(training):
    if BACKEND != "tensorflow":
        pytest.skip("the ruling is about TensorFlow")
    import tensorflow as tf

    block = make_block(skip=False)
    x = inputs()
    compiled = tf.function(lambda x: block(x, training=training), jit_compile=True)
    outputs = compiled(x).numpy()
    if not training:
        np.testing.assert_allclose(outputs, brute_force(block, x)[0], atol=1e-5)
    assert np.isfinite(outputs).all()
    assert block.supports_jit
    assert not make_block(skip=True).supports_jit


def test_masked_blocks_convert_to_litert(tmp_path):
    if BACKEND != "tensorflow":
        pytest.skip("LiteRT needs TensorFlow")
    import tensorflow as tf

    block = make_block(skip=False)
    as_model(block).export(str(tmp_path / "model.tflite"), format="litert")
    interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    x = inputs()
    interpreter.resize_tensor_input(0, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    outputs = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(outputs, brute_force(block, x)[0], atol=1e-4)


def test_sampled_prediction_draws_from_q():
    block = make_block(scale=1.0)
    x = inputs(rows=5)
    draws = keras_bdl.predict(
        as_model(block), x, num_samples=400, return_samples=True, seed=0, verbose=0
    )
    stack = ResidualStack(block.units)
    states = np.stack([to_numpy(s) for s in stack.states(ops.convert_to_tensor(x))])
    q = halting_probs(block_logits(block, states)).T[..., None]
    mean = (q * states).sum(axis=0)
    assert_moments(draws, mean, (q * states**2).sum(axis=0) - mean**2)


@pytest.mark.parametrize("make", [keras.layers.Dropout, slow(keras_bdl.MCDropout)])
def test_rows_share_the_masks_of_a_sample(make):
    units = [
        keras.Sequential([keras.layers.Dense(6, activation="tanh"), make(0.5)])
        for _ in range(3)
    ]
    block = keras_bdl.EarlyExitResBlock(units)
    model = as_model(block)
    randomize_heads(block, scale=2.0)
    x = inputs(rows=30)
    draws = [
        keras_bdl.predict(
            model, x, num_samples=9, return_samples=True, mc_dropout=True,
            batch_size=size, seed=0, verbose=0,
        )
        for size in (30, 7)
    ]  # fmt: skip
    np.testing.assert_allclose(draws[0], draws[1], atol=1e-5)


# The term of the objective


@pytest.mark.parametrize("objective", ["map", "elbo"])
@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
def test_the_term_is_averaged_over_rows(objective, kl_weight):
    block = make_block(objective=objective, kl_weight=kl_weight)
    x = inputs(rows=11)
    stack = ResidualStack(block.units)
    states = [to_numpy(s) for s in stack.states(ops.convert_to_tensor(x))]
    q = halting_probs(block_logits(block, states))
    depth = np.arange(1, 5)
    prior = special.softmax(-0.1 * depth)
    if objective == "map":
        expected = 0.1 * (q @ depth).mean()
    else:
        expected = (q * np.log(q / prior)).sum(axis=1).mean()
    block(x, training=True)
    (loss,) = block.losses
    assert float(to_numpy(loss)) == pytest.approx(kl_weight * expected, rel=1e-5)
    # Inference pays for what it ran.
    depths = brute_force(block, x)[1]
    paid = 0.1 * depths if objective == "map" else -np.log(prior[depths - 1])
    block(x, training=False)
    (loss,) = block.losses
    assert float(to_numpy(loss)) == pytest.approx(kl_weight * paid.mean(), rel=1e-5)
    block.trainable = False
    block(x, training=True)
    assert not block.losses


def test_a_shared_block_pays_for_each_call():
    block = make_block()
    x = inputs(rows=8)
    a = keras.Input((6,))
    model = keras.Model(a, block(a) + block(2.0 * a))
    model(x, training=True)
    assert len(model.losses) == 2


@pytest.mark.parametrize("skip", [True, False])
def test_kl_of_weights_in_units_counts_once(skip):
    units = [keras_bdl.VariationalDense(6, num_examples=50) for _ in range(3)]
    block = keras_bdl.EarlyExitResBlock(units, prior_rate=0.0, skip=skip)
    model = as_model(block)
    randomize_heads(block, scale=3.0)
    model.compile("sgd", lambda y, p: 0.0 * ops.sum(p, axis=-1))
    x = inputs(rows=16)
    loss = model.evaluate(x, x, batch_size=16, verbose=0)
    expected = sum(float(to_numpy(unit.kl())) for unit in units) / 50
    assert loss == pytest.approx(expected, rel=1e-5)
    history = model.fit(x, x, batch_size=16, verbose=0).history["loss"]
    assert history[0] == pytest.approx(expected, rel=1e-5)
    draws = keras_bdl.predict(model, x, num_samples=5, return_samples=True, verbose=0)
    assert np.abs(draws[0] - draws[1]).max() > 0


def test_activity_regularisers_in_units_reach_the_loss():
    units = [keras.layers.Dense(6, activity_regularizer="l2") for _ in range(2)]
    model = as_model(keras_bdl.EarlyExitResBlock(units, prior_rate=0.0))
    model.compile("sgd", lambda y, p: 0.0 * ops.sum(p, axis=-1))
    assert model.evaluate(inputs(8), inputs(8), verbose=0) > 0


# Gradients


class Linear(keras.losses.Loss):
    """A loss that is affine in the prediction."""

    def call(self, y_true, y_pred):
        return ops.sum(y_pred * ops.convert_to_tensor([0.7, -1.3]), axis=-1)


def small_network(estimator, temperature=2 / 3, objective="map"):
    units = [
        keras.layers.Dense(
            3,
            activation="tanh",
            kernel_initializer=keras.initializers.RandomNormal(0.0, 1.0, i),
        )
        for i in range(3)
    ]
    block = keras_bdl.EarlyExitResBlock(
        units, 0.3, estimator=estimator, temperature=temperature, objective=objective
    )
    network = keras.Sequential(
        [
            keras.Input((3,)),
            block,
            keras.layers.Dense(
                2, kernel_initializer=keras.initializers.RandomNormal(0.0, 1.0, 9)
            ),
        ]
    )
    randomize_heads(block, seed=1, scale=0.7)
    return network, block


def ordered_variables(network, block):
    layers = [*block.units, *block.halting_heads, network.layers[-1]]
    return [v for layer in layers for v in layer.trainable_variables]


def exact_loss(weights, x, y, objective="map", affine=False):
    """E_q of the loss, and the term, by enumeration in NumPy."""
    outputs, q = numpy_network(weights, x.astype("float64"), 3)
    if affine:
        losses = outputs @ np.array([0.7, -1.3])
    else:
        losses = -special.log_softmax(outputs, axis=-1)[:, np.arange(len(y)), y]
    depth = np.arange(1, 4)
    if objective == "map":
        term = 0.3 * q @ depth
    else:
        term = (q * np.log(q / special.softmax(-0.3 * depth))).sum(axis=1)
    return ((q.T * losses).sum(axis=0) + term).mean()


def steps(model, variables, x, y, count):
    """Gradients of single steps from the same weights, as SGD takes them."""
    start = [to_numpy(v) for v in variables]
    gradients = []
    for _ in range(count):
        for variable, value in zip(variables, start):
            variable.assign(value)
        model.train_on_batch(x, y)
        gradients.append([a - to_numpy(v) for a, v in zip(start, variables)])
    for variable, value in zip(variables, start):
        variable.assign(value)
    return [np.stack(g) for g in zip(*gradients)]


def exact_gradients(variables, *args, **options):
    weights = [to_numpy(v).astype("float64") for v in variables]
    return numeric_gradients(lambda w: exact_loss(w, *args, **options), weights)


def labelled(rows):
    x = inputs(rows, size=3, seed=3)
    return x, (x[:, 0] + x[:, 1] > 0).astype("int64")


@pytest.mark.parametrize(
    "objective", ["map", pytest.param("elbo", marks=pytest.mark.every_backend)]
)
def test_enumeration_has_the_exact_gradient(objective):
    network, block = small_network("enumerate", objective=objective)
    classifier = keras_bdl.BayesianClassifier(network)
    classifier.compile(keras.optimizers.SGD(1.0))
    x, y = labelled(10)
    variables = ordered_variables(network, block)
    expected = exact_gradients(variables, x, y, objective)
    value = exact_loss([to_numpy(v) for v in variables], x, y, objective)
    assert classifier.train_on_batch(x, y, return_dict=True)["loss"] == pytest.approx(
        value, rel=1e-4
    )
    network, block = small_network("enumerate", objective=objective)
    classifier = keras_bdl.BayesianClassifier(network)
    classifier.compile(keras.optimizers.SGD(1.0))
    variables = ordered_variables(network, block)
    for got, exact in zip(steps(classifier, variables, x, y, 1), expected):
        np.testing.assert_allclose(got[0], exact, atol=2e-5)


def test_the_score_function_is_unbiased():
    network, block = small_network("score_function")
    classifier = keras_bdl.BayesianClassifier(network)
    classifier.compile(keras.optimizers.SGD(1.0))
    x, y = labelled(3)
    variables = ordered_variables(network, block)
    expected = exact_gradients(variables, x, y)
    many = np.tile(x, (300, 1)), np.tile(y, 300)
    for got, exact in zip(steps(classifier, variables, *many, 25), expected):
        error = got.std(axis=0, ddof=1) / np.sqrt(len(got)) + 1e-6
        assert np.abs((got.mean(axis=0) - exact) / error).max() < 5


def test_expected_states_are_exact_where_all_that_follows_is_affine():
    network, block = small_network("expected")
    network.compile(keras.optimizers.SGD(1.0), Linear())
    x, y = labelled(10)
    variables = ordered_variables(network, block)
    expected = exact_gradients(variables, x, y, affine=True)
    for got, exact in zip(steps(network, variables, x, y, 1), expected):
        np.testing.assert_allclose(got[0], exact, atol=2e-5)


def test_the_concrete_bias_shrinks_with_temperature():
    biases = []
    x, y = labelled(3)
    many = np.tile(x, (1500, 1)), np.tile(y, 1500)
    for temperature in (2.0, 0.1):
        network, block = small_network("concrete", temperature)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile(keras.optimizers.SGD(1.0), loss)
        heads = [v for head in block.halting_heads for v in head.trainable_variables]
        variables = ordered_variables(network, block)
        expected = exact_gradients(variables, x, y)
        got = steps(network, variables, *many, 8)
        pairs = [
            (g.mean(axis=0), e)
            for g, e, v in zip(got, expected, variables)
            if any(v is head for head in heads)
        ]
        biases.append(sum(np.square(g - e).sum() for g, e in pairs) ** 0.5)
    assert biases[1] < 0.4 * biases[0]


# Use


def test_masks_of_sequences_reach_units_and_heads():
    class Sum(keras.layers.Layer):
        """A unit that shows whether it was given the mask."""

        def __init__(self):
            super().__init__()
            self.supports_masking = True

        def call(self, inputs, mask=None):
            if mask is None:
                return inputs
            return inputs * ops.cast(ops.expand_dims(mask, -1), inputs.dtype)

    tokens = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [1, 2, 3, 4]])
    inner = keras.Input((4,))
    embedded = keras.layers.Embedding(5, 6, mask_zero=True)(inner)
    block = keras_bdl.EarlyExitResBlock([Sum(), Sum()], 0.1)
    model = keras.Model(inner, block(embedded))
    table = to_numpy(model.layers[1].embeddings)
    randomize_heads(block, scale=200.0)
    kernel, bias = block.halting_heads[0].get_weights()
    x = table[tokens]
    mask = (tokens != 0)[..., None]
    first = x + x * mask
    pooled = (first * mask).sum(axis=1) / mask.sum(axis=1)
    stop = (pooled @ kernel + bias)[:, 0] > 0
    expected = np.where(stop[:, None, None], first, first + first * mask)
    np.testing.assert_allclose(model.predict(tokens, verbose=0), expected, atol=1e-5)


@pytest.mark.eager
def test_own_heads_and_unit_models_are_saved(tmp_path):
    def unit():
        return keras.Sequential(
            [
                keras.Input((4, 4, 3)),
                keras.layers.Conv2D(3, 3, padding="same", use_bias=False),
                keras.layers.BatchNormalization(),
                keras.layers.ReLU(),
            ]
        )

    def head():
        return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])

    block = keras_bdl.EarlyExitResBlock(
        [unit() for _ in range(3)], 0.05, halting_heads=[head(), head()]
    )
    model = as_model(block, (4, 4, 3))
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(32, 4, 4, 3)).astype("float32")
    model.fit(x, x, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        model.predict(x, verbose=0), copy.predict(x, verbose=0), atol=1e-6
    )
    copy.fit(x, x, verbose=0)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.eager
def test_dtype_policies(policy):
    if policy == "float64" and BACKEND == "jax":
        pytest.skip("JAX has no float64 unless it is enabled for the process")
    keras.config.set_dtype_policy(policy)
    model = as_model(make_block())
    model.compile("adam", "mse")
    x = inputs(32)
    assert np.isfinite(model.fit(x, x, verbose=0).history["loss"]).all()
    full, alone = model.predict(x, verbose=0), model.predict(x[:1], verbose=0)
    np.testing.assert_allclose(full[:1], alone, atol=2e-2)


@pytest.mark.eager
def test_a_block_of_one_unit():
    block = keras_bdl.EarlyExitResBlock([dense()], 0.1)
    model = as_model(block)
    model.compile("adam", "mse")
    x = inputs(16)
    model.fit(x, x, verbose=0)
    assert (keras_bdl.depth(model, x, verbose=0) == 1).all()
    assert model.evaluate(x, x, verbose=0) > 0.1


@pytest.mark.eager
def test_training_depth_is_logged():
    block = make_block(seed=4)
    model = as_model(block)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = inputs(64)
    states = ResidualStack(block.units).states(ops.convert_to_tensor(x))
    q = halting_probs(block_logits(block, [to_numpy(s) for s in states]))
    expected = (q @ np.arange(1, 5)).mean()
    logger = keras_bdl.callbacks.DepthLogger()
    history = model.fit(x, x, epochs=2, verbose=0, callbacks=[logger]).history
    (name,) = [n for n in history if n.startswith("depth")]
    np.testing.assert_allclose(history[name], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: keras_bdl.EarlyExitResBlock([]), TypeError, "units"),
        (lambda: keras_bdl.EarlyExitResBlock(dense()), TypeError, "units"),
        (lambda: keras_bdl.EarlyExitResBlock([dense(), 3]), TypeError, "units"),
        (lambda: keras_bdl.EarlyExitResBlock([dense()], -1.0), ValueError, "rate"),
        (lambda: keras_bdl.EarlyExitResBlock([dense()], "a"), TypeError, "rate"),
        (
            lambda: keras_bdl.EarlyExitResBlock([dense()], estimator="none"),
            ValueError,
            "estimator",
        ),
        (
            lambda: keras_bdl.EarlyExitResBlock([dense()], objective=3),
            TypeError,
            "objective",
        ),
        (
            lambda: keras_bdl.EarlyExitResBlock([dense()], temperature=0.0),
            ValueError,
            "temperature",
        ),
        (
            lambda: keras_bdl.EarlyExitResBlock([dense()], exit_threshold=1.0),
            ValueError,
            "exit_threshold",
        ),
        (
            lambda: keras_bdl.EarlyExitResBlock(
                [dense(), dense()], halting_heads=[dense(), dense()]
            ),
            ValueError,
            "halting_heads",
        ),
        (
            lambda: keras_bdl.EarlyExitResBlock(
                [keras_bdl.EarlyExitResBlock([dense()])]
            ),
            ValueError,
            "latent",
        ),
        (
            lambda: keras_bdl.EarlyExitResBlock([keras.layers.Dense(5)])(
                keras.Input((6,))
            ),
            ValueError,
            "shape",
        ),
        (
            lambda: keras_bdl.EarlyExitResBlock(
                [dense(), dense()], halting_heads=[dense()]
            )(keras.Input((6,))),
            ValueError,
            "logit",
        ),
        (lambda: make_block().to_keras(), ValueError, "counterpart"),
        (
            lambda: keras_bdl.depth(as_model(keras.layers.Dense(2)), inputs()),
            ValueError,
            "EarlyExit",
        ),
        (
            lambda: keras_bdl.flops_report(as_model(make_block()), "a"),
            TypeError,
            "array",
        ),
        (lambda: keras_bdl.flops_report("a", inputs()), TypeError, "Keras model"),
        (
            lambda: keras_bdl.flops_report(as_model(make_block()), []),
            TypeError,
            "array",
        ),
        (
            lambda: keras_bdl.flops_report(as_model(make_block()), np.float32(3)),
            ValueError,
            "rows",
        ),
        (
            lambda: keras_bdl.flops_report(as_model(make_block()), inputs()[:0]),
            ValueError,
            "rows",
        ),
        (
            lambda: keras_bdl.flops_report(as_model(make_block()), inputs(), 0),
            ValueError,
            "batch_size",
        ),
        (lambda: keras_bdl.depth(as_model(make_block()), None), TypeError, "inputs"),
        (
            lambda: keras_bdl.depth(as_model(make_block()), inputs(), "a"),
            TypeError,
            "batch_size",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=f"(?s){match}.*Received"):
        make()


@pytest.mark.parametrize("estimator", ["score_function", "enumerate"])
def test_discrete_estimators_refuse_a_plain_model(estimator):
    model = as_model(make_block(estimator=estimator))
    model.compile("adam", "mse")
    x = inputs(8)
    assert np.isfinite(model.predict(x, verbose=0)).all()
    with pytest.raises(ValueError, match="BayesianClassifier.*Received"):
        model.fit(x, x, verbose=0)


def test_in_the_scope_outputs_differ_by_seed():
    block = make_block(scale=0.5)
    x = inputs(4)
    outputs = []
    for seed in range(6):
        with scopes.SamplingScope(seed, 0, 1):
            outputs.append(to_numpy(block(x)))
    assert len({o.tobytes() for o in outputs}) > 1
