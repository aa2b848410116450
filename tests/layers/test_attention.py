"""Groups of layers that sample: attention, whose projections have posteriors."""

import functools
import inspect
import json

import keras
import numpy as np
import pytest
from contract import (
    BACKEND,
    N,
    assert_moments,
    compile_zero_loss,
    evaluated_loss,
    randomize,
    set_stddev,
    to_numpy,
    traced,
)
from keras import layers, ops
from kl_oracles import kl_to_normal

import keras_bdl
from keras_bdl import VariationalGroupQueryAttention as GroupQuery
from keras_bdl import VariationalMultiHeadAttention as MultiHead
from keras_bdl.core import scopes, stochastic

# Programs of TensorFlow cost most: those marked `traced` are enough.
pytestmark = [pytest.mark.portable, pytest.mark.eager]
traced_too = pytest.mark.traced

# Keras on JAX compiles no attention of float16 for a CPU.
HALF = "mixed_bfloat16" if BACKEND == "jax" else "mixed_float16"

# Every group, with arguments of its constructor, for `test_contract_coverage`.
GROUPS = {MultiHead: (2, 3), GroupQuery: (3, 4, 2)}
WIDTH, STEPS = 6, 4
PREDICT = {"outputs": "mean", "seed": 0, "verbose": 0}

every_group = pytest.mark.parametrize("cls", GROUPS)


def plain_class(cls):
    return cls.keras_class


def sequences(rows=3, steps=STEPS, seed=0, width=WIDTH):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, steps, width)).astype("float32")


def built(cls, **options):
    """A group with weights that are not degenerate, built on self-attention."""
    layer = cls(*GROUPS[cls], **{"num_examples": N, **options})
    layer.build((None, STEPS, WIDTH), (None, STEPS, WIDTH))
    randomize_all(layer)
    return layer


def randomize_all(layer):
    for index, projection in enumerate(layer.projections):
        randomize(projection, seed=index)


def self_attention(layer, shape=(None, WIDTH), **call):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs, inputs, **call))


def samples(model, x, count=9, **options):
    return keras_bdl.predict(
        model, x, count, return_samples=True, **{**PREDICT, **options}
    )


# The layer of Keras


def mask_of_rows():
    return np.array([[True] * 3 + [False]] + [[True] * 4] * 2)


TABLE = {
    # name: class, arguments, options of constructor and call, other inputs
    "default": (MultiHead, (2, 3), {}, {}),
    # With the scores, because Keras on JAX fuses no heads of two sizes.
    "value-dim": (
        MultiHead,
        (2, 3, 5),
        {"use_bias": False},
        {"return_attention_scores": True},
    ),
    "output-shape": (MultiHead, (2, 3), {"output_shape": 5}, {}),
    "output-axes": (MultiHead, (2, 3), {"output_shape": (2, 3)}, {}),
    "causal": (MultiHead, (2, 3), {}, {"use_causal_mask": True}),
    "scores": (MultiHead, (2, 3), {}, {"return_attention_scores": True}),
    "masks": (
        MultiHead,
        (2, 3),
        {},
        {"query_mask": mask_of_rows(), "value_mask": mask_of_rows()},
    ),
    "attention-mask": (
        MultiHead,
        (2, 3),
        {},
        {"attention_mask": np.tril(np.ones((3, 4, 4), bool), 1)},
    ),
    "window-gate": (MultiHead, (2, 3), {"sliding_window": 2, "use_gate": True}, {}),
    "dropout": (MultiHead, (2, 3), {"dropout": 0.5, "seed": 3}, {}),
    "no-flash": (MultiHead, (2, 3), {"flash_attention": False}, {}),
    "query-groups": (GroupQuery, (3, 4, 2), {}, {}),
    "one-group": (GroupQuery, (3, 4, 1), {"use_bias": False}, {}),
    "causal-groups": (
        GroupQuery,
        (3, 4, 4),
        {"sliding_window": 3, "use_gate": True},
        {"use_causal_mask": True, "return_attention_scores": True},
    ),
    "dropout-groups": (
        GroupQuery,
        (3, 4, 2),
        {"dropout": 0.5, "seed": 3},
        {"value_mask": mask_of_rows()},
    ),
}


@pytest.mark.parametrize("with_key", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_without_variance_it_is_the_keras_layer(name, with_key):
    cls, args, options, call = TABLE[name]
    plain = plain_class(cls)(*args, **options)
    call = dict(call)
    query, value = sequences(seed=0), sequences(seed=1)
    if with_key:
        call["key"] = sequences(seed=2)
    plain(query, value, **call)
    for index, weight in enumerate(plain.trainable_weights):
        rng = np.random.default_rng(index)
        weight.assign(0.3 * rng.normal(size=weight.shape))
    layer = cls.from_keras(plain, num_examples=N)
    for projection in layer.projections:
        set_stddev(projection, 1e-9)
    for training in (False, True):
        # Dropout of equal seeds is equal.
        expected = plain(query, value, training=training, **call)
        outputs = layer(query, value, training=training, **call)
        keras.tree.assert_same_structure(outputs, expected)
        for one, other in zip(*map(keras.tree.flatten, (outputs, expected))):
            np.testing.assert_allclose(to_numpy(one), to_numpy(other), atol=2e-5)


@pytest.mark.parametrize("axes", [(1, 2), -1])
def test_attention_over_other_axes(axes):
    plain = layers.MultiHeadAttention(2, 3, attention_axes=axes, dropout=0.1)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, WIDTH)).astype("float32")
    expected = to_numpy(plain(x, x))
    layer = MultiHead.from_keras(plain, num_examples=N)
    np.testing.assert_allclose(to_numpy(layer(x, x)), expected, atol=1e-6)
    model = self_attention(layer, (3, 4, WIDTH))
    draws = samples(model, x)
    np.testing.assert_allclose(samples(model, x[1:])[:, 0], draws[:, 1], atol=1e-5)


def test_attention_across_rows_is_sampled_row_by_row():
    layer = MultiHead(2, 3, attention_axes=0, dropout=0.1, num_examples=N)
    x = sequences(rows=2)
    draws = samples(self_attention(layer), x, 3)
    for draw in range(3):
        alone = samples(self_attention(layer), x, draw + 1)[-1]
        np.testing.assert_allclose(alone, draws[draw], atol=1e-5)


@every_group
def test_the_signature_is_that_of_keras(cls):
    ours = inspect.signature(cls.__init__).parameters.values()
    theirs = inspect.signature(plain_class(cls).__init__).parameters.values()
    positional = [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [p.name for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    defaults = {p.name: p.default for p in ours}
    assert all(defaults[p.name] == p.default for p in theirs if p.name in defaults)
    layer = cls(*GROUPS[cls])
    assert isinstance(layer, plain_class(cls))
    known = plain_class(cls)(*GROUPS[cls], name=layer.name).get_config()
    assert {name: layer.get_config()[name] for name in known} == known


@pytest.mark.one_backend
@every_group
@pytest.mark.parametrize("use_gate", [False, True])
def test_every_projection_that_keras_makes_has_a_posterior(cls, use_gate):
    layer = built(cls, use_gate=use_gate)
    assert len(layer.projections) == 4 + use_gate
    assert all(type(x) is keras_bdl.VariationalEinsumDense for x in layer.projections)
    of_posteriors = {id(v) for x in layer.projections for v in x.trainable_variables}
    assert {id(v) for v in layer.trainable_variables} == of_posteriors


# Noise


EQUATIONS = {
    "query": ("btd,dhk->bthk", (None, 2, 3), "hk"),
    "key": ("btd,dhk->bthk", (None, 2, 3), "hk"),
    "value": ("btd,dhk->bthk", (None, 2, 3), "hk"),
    "attention_output": ("bthk,hkd->btd", (None, WIDTH), "d"),
}


def separate(layer, **options):
    """Four layers with the weights and noise of a group's, and attention by hand."""
    parts = {}
    for old in layer.projections:
        equation, shape, axes = EQUATIONS[old.name]
        part = keras_bdl.VariationalEinsumDense(
            equation, shape, bias_axes=axes, num_examples=N, **options
        )
        part.build(old.get_build_config()["input_shape"])
        for name, variable in part.own_variables().items():
            variable.assign(old.own_variables()[name])
        part.noise.state.assign(old.noise.state)
        parts[old.name] = part

    def attend(query, value, training):
        heads = [
            ops.transpose(parts[name](x, training=training), (0, 2, 1, 3))
            for name, x in zip(EQUATIONS, (query, value, value))
        ]
        scores = ops.matmul(heads[0], ops.transpose(heads[1], (0, 1, 3, 2)))
        mixed = ops.matmul(ops.softmax(scores / 3.0**0.5), heads[2])
        mixed = ops.transpose(mixed, (0, 2, 1, 3))
        return parts["attention_output"](mixed, training=training)

    return attend


@pytest.mark.parametrize(
    "estimator", [None, "local_reparameterization", "reparameterization"]
)
def test_it_is_four_separate_layers(estimator):
    layer = built(MultiHead, estimator=estimator)
    attend = separate(layer, estimator=estimator)
    query, value = sequences(seed=0), sequences(seed=1)
    outputs = []
    for training in (False, True, True):
        outputs.append(to_numpy(layer(query, value, training=training)))
        expected = to_numpy(attend(query, value, training))
        np.testing.assert_allclose(outputs[-1], expected, atol=1e-5)
    assert np.abs(outputs[1] - outputs[0]).max() > 1e-3
    assert np.abs(outputs[1] - outputs[2]).max() > 1e-3


def test_options_reach_the_projections():
    prior = keras_bdl.priors.Laplace(0.1, 0.5)
    layer = built(
        MultiHead,
        prior=prior,
        posterior=keras_bdl.posteriors.LowRank(rank=3),
        kl_weight=0.5,
        estimator="reparameterization",
        bias_posterior=False,
        sample_at_inference=True,
    )
    for projection in layer.projections:
        assert projection.prior is prior
        assert projection.posterior.rank == 3
        assert projection.full_kl_weight == 0.5
        assert projection.estimator == "reparameterization"
        assert "bias" not in projection.posterior.shapes
        assert projection.trainable
    assert len({id(x.posterior) for x in layer.projections}) == 4
    x = sequences()
    assert np.abs(to_numpy(layer(x, x)) - to_numpy(layer(x, x))).max() > 1e-3
    start = built(MultiHead, initial_log_stddev=-3.0)
    assert start.get_config()["initial_log_stddev"] == -3.0


def test_groups_and_projections_of_one_seed_have_their_own_noise():
    names = [x.name for x in MultiHead(2, 3).projections]
    assert names == []  # before `build`
    groups = [built(MultiHead, seed=1, name=name) for name in ("one", "two", "one")]
    keys = [[int(to_numpy(x.noise.state)[0]) for x in g.projections] for g in groups]
    assert keys[0] == keys[2]
    assert len({*keys[0], *keys[1]}) == 8


@every_group
def test_rows_have_their_own_noise_and_positions_share_it(cls):
    layer = built(cls)
    x = np.ones((2, STEPS, WIDTH), "float32")
    outputs = to_numpy(layer(x, x, training=True))
    np.testing.assert_allclose(outputs, outputs[:, :1] + 0 * outputs, atol=1e-5)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


# KL


def kl_of(layer):
    return sum(kl_to_normal(0.0, 1.0)(x)[0] for x in layer.projections)


@every_group
def test_kl_is_the_sum_of_independent_terms(cls):
    layer = built(cls, use_gate=True)
    assert float(to_numpy(layer.kl())) == pytest.approx(kl_of(layer), rel=1e-5)
    assert keras.backend.standardize_dtype(layer.kl().dtype) == "float32"
    with pytest.raises(ValueError, match="built.*Received"):
        cls(*GROUPS[cls]).kl()


def pooled(x):
    return layers.Dense(1, trainable=False)(layers.GlobalAveragePooling1D()(x))


def use(layer, shape):
    """A model that uses a group in one of several ways, and inputs for it."""
    x = sequences()
    inputs = keras.Input((None, WIDTH))
    if shape == "self":
        return keras.Model(inputs, pooled(layer(inputs, inputs))), x
    if shape == "cross":
        other = keras.Input((None, WIDTH))
        outputs = layer(inputs, other, key=2.0 * other)
        return keras.Model([inputs, other], pooled(outputs)), [x, x[:, 1:]]
    if shape == "shared":
        outputs = layer(layer(inputs, inputs), inputs)
        return keras.Model(inputs, pooled(outputs)), x
    if shape == "nested":
        inner = keras.Model(inputs, layer(inputs, inputs))
        outer = keras.Input((None, WIDTH))
        return keras.Model(outer, pooled(inner(inner(outer)))), x
    if shape == "time":
        inner = keras.Model(inputs, pooled(layer(inputs, inputs)))
        outer = keras.Input((2, STEPS, WIDTH))
        outputs = layers.TimeDistributed(inner)(outer)
        return keras.Model(outer, outputs[:, 0]), np.stack([x, x], axis=1)

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.attention = layer

        def call(self, x, training=None):
            y = self.attention(x, x, training=training)
            return ops.mean(y, axis=(1, 2))[:, None]

    return Subclassed(), x


USES = [
    pytest.param(MultiHead, "self", marks=pytest.mark.every_backend),
    *((MultiHead, shape) for shape in ("cross", "nested", "subclassed")),
    pytest.param(MultiHead, "shared", marks=traced_too),
    pytest.param(MultiHead, "time", marks=[traced_too, pytest.mark.slow]),
    *((GroupQuery, shape) for shape in ("cross", "shared")),
]


@pytest.mark.parametrize("cls, shape", USES)
def test_kl_enters_the_loss_once(cls, shape):
    layer = cls(*GROUPS[cls], num_examples=N)
    model, x = use(layer, shape)
    compile_zero_loss(model)
    y = np.zeros((3, 1), "float32")
    loss = model.fit(x, y, verbose=0).history["loss"][0]
    expected = kl_of(layer) / N
    assert loss == pytest.approx(expected, rel=1e-5)
    assert evaluated_loss(model, x, y) == pytest.approx(expected, rel=1e-5)


@pytest.mark.one_backend
@every_group
def test_kl_is_weighted_and_left_out_of_frozen_groups(cls):
    layer = built(cls, kl_weight=0.25, num_examples=50)
    model = compile_zero_loss(self_attention(layer))
    x = sequences()
    y = np.zeros_like(x)
    kl = kl_of(layer)
    assert evaluated_loss(model, x, y) == pytest.approx(0.25 * kl / 50, rel=1e-5)
    keras_bdl.set_num_examples(model, 25)
    assert layer.num_examples == 25
    assert evaluated_loss(model, x, y) == pytest.approx(0.25 * kl / 25, rel=1e-5)
    layer.trainable = False
    compile_zero_loss(model)
    assert evaluated_loss(model, x, y) == 0.0
    frozen = cls(*GROUPS[cls], num_examples=50, trainable=False)
    model = compile_zero_loss(self_attention(frozen))  # frozen before it is built
    assert evaluated_loss(model, x, y) == 0.0
    frozen.trainable = True
    assert evaluated_loss(compile_zero_loss(model), x, y) > 0.0


@every_group
def test_unknown_num_examples_is_told_by_the_name_of_the_group(cls):
    layer = cls(*GROUPS[cls], name="attention")
    model = compile_zero_loss(self_attention(layer))
    x = sequences()
    message = f"'attention'.*{cls.__name__}.*set_num_examples"
    with pytest.raises(ValueError, match=message):
        model.fit(x, x, verbose=0)
    keras_bdl.set_num_examples(model, N)
    assert np.isfinite(model.fit(x, x, verbose=0).history["loss"]).all()


class Block(keras.Model):
    """A network that is built by its first call."""

    def __init__(self, attention=None, classes=2, **kwargs):
        super().__init__(**kwargs)
        self.attention = attention or MultiHead(2, 3)
        self.pool = layers.GlobalAveragePooling1D()
        self.head = layers.Dense(classes)

    def call(self, x, training=None):
        x = x + self.attention(x, x, training=training)
        return self.head(self.pool(x))


@pytest.mark.one_backend
def test_a_group_that_is_not_built_is_told_num_examples():
    network = keras_bdl.set_num_examples(Block(), 77)
    network(sequences())
    assert [x.num_examples for x in network.attention.projections] == [77] * 4
    classifier = keras_bdl.BayesianClassifier(Block(), num_examples=55)
    classifier.network(sequences())
    assert classifier.network.attention.projections[0].num_examples == 55
    classifier = keras_bdl.BayesianClassifier(Block())
    classifier.compile("sgd")
    x, y = sequences(rows=7), np.arange(7) % 2
    classifier.fit(x, y, batch_size=4, verbose=0)
    attention = classifier.network.attention
    assert attention.num_examples is None  # inferred
    assert [float(x._num_examples) for x in attention.projections] == [7.0] * 4


@every_group
def test_every_trainable_variable_gets_a_gradient(cls):
    layer = built(cls, use_gate=True)
    model = self_attention(layer)
    before = [to_numpy(v) for v in layer.trainable_variables]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = sequences(rows=8)
    model.fit(x, x + 1.0, batch_size=8, verbose=0)
    assert len(before) == 20
    for old, new in zip(before, layer.trainable_variables):
        assert (old != to_numpy(new)).mean() > 0.9


# Sampled predictions


def padded(cls, **options):
    """Self-attention on sequences that end early, with a layer that samples before."""
    inputs = keras.Input((None, WIDTH))
    x = layers.Masking(-9.0)(inputs)
    outputs = cls(*GROUPS[cls], initial_log_stddev=-1.0, **options)(x, x)
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize(
    "cls", [MultiHead, pytest.param(GroupQuery, marks=[traced_too, pytest.mark.slow])]
)
@pytest.mark.every_backend
def test_a_sample_is_one_function(cls):
    layer = built(cls)
    second = built(cls)
    inputs = keras.Input((None, WIDTH))
    outputs = layer(inputs, inputs, use_causal_mask=True)
    outputs = second(outputs, inputs)
    model = keras.Model(inputs, outputs)
    x = sequences(rows=5)
    x[3] = x[0]
    draws = samples(model, x)
    np.testing.assert_allclose(draws[:, 3], draws[:, 0], atol=1e-5)
    np.testing.assert_allclose(samples(model, x, batch_size=2), draws, atol=1e-5)
    np.testing.assert_allclose(samples(model, x[1:2])[:, 0], draws[:, 1], atol=1e-5)
    assert draws.std(axis=0).min() > 1e-3


def test_samples_are_those_of_networks_with_drawn_weights(rng):
    layer = built(MultiHead)
    x = sequences(rows=2)
    count = 200
    draws = samples(self_attention(layer), x, count)
    plain, others = layer.to_keras(), []
    for _ in range(count):
        dense = (plain.query_dense, plain.key_dense, plain.value_dense)
        for part, one in zip((*dense, plain.output_dense), layer.projections):
            for name, (mean, log_stddev) in one.gaussians().items():
                mean, stddev = to_numpy(mean), np.exp(to_numpy(log_stddev))
                getattr(part, name).assign(rng.normal(mean, stddev))
        others.append(to_numpy(plain(x, x)))
    others = np.stack(others)
    variance = draws.var(axis=0, ddof=1)
    # Both have errors, so the difference has twice the variance.
    difference = draws.mean(axis=0) - others.mean(axis=0)
    assert np.abs(difference / np.sqrt(2 * variance / count)).max() < 5.0
    ratio = np.log(others.var(axis=0, ddof=1) / variance)
    assert np.abs(ratio).max() < 5.0 * np.sqrt(2 * 6.0 / count)  # kurtosis up to 7


@every_group
def test_the_weights_of_a_sample_are_drawn_from_the_posterior(cls):
    layer = built(cls)
    plain = [layer.to_keras("sample", seed) for seed in range(60)]
    for index, projection in enumerate(layer.projections):
        name = f"{('query', 'key', 'value', 'output')[index]}_dense"
        draws = np.stack([to_numpy(getattr(x, f"_{name}").kernel) for x in plain])
        mean, log_stddev = projection.posterior.moments()["kernel"]
        assert_moments(draws, to_numpy(mean), np.exp(2 * to_numpy(log_stddev)))
    first = to_numpy(plain[0]._key_dense.kernel).ravel()
    second = to_numpy(plain[0]._value_dense.kernel).ravel()
    centres = [to_numpy(x.kernel).ravel() for x in layer.projections[1:3]]
    assert abs(np.corrcoef(first - centres[0], second - centres[1])[0, 1]) < 0.9


@every_group
def test_masks_are_respected_in_every_sample(cls):
    model = padded(cls)
    x = sequences()
    long = np.concatenate([x, np.full((3, 2, WIDTH), -9.0, "float32")], axis=1)
    long[1] = sequences(seed=5, steps=STEPS + 2)[1]  # a row without padding
    draws = samples(model, long)
    short = samples(model, x)
    for row in (0, 2):
        np.testing.assert_allclose(draws[:, row, :STEPS], short[:, row], atol=1e-5)
    assert np.abs(draws[:, 1, :STEPS] - short[:, 1]).max() > 1e-3


@every_group
def test_a_given_mask_has_the_rows_of_every_sample(cls):
    inputs, mask = keras.Input((STEPS, WIDTH)), keras.Input((STEPS, STEPS), dtype=bool)
    layer = built(cls)
    model = keras.Model([inputs, mask], layer(inputs, inputs, attention_mask=mask))
    x, seen = sequences(), np.ones((3, STEPS, STEPS), bool)
    seen[0, :, 2:] = False  # no position of the first row sees the last ones
    draws = samples(model, [x, seen])
    other = x.copy()
    other[0, 2:] += 1.0
    changed = samples(model, [other, seen])
    np.testing.assert_allclose(changed[:, 0, :2], draws[:, 0, :2], atol=1e-5)
    np.testing.assert_allclose(changed[:, 1:], draws[:, 1:], atol=1e-5)
    other[1, 2:] += 1.0  # which the second row does see
    changed = samples(model, [other, seen])
    assert np.abs(changed[:, 1, :2] - draws[:, 1, :2]).max() > 1e-3


@every_group
def test_the_scope_repeats_and_uses_up_no_noise(cls):
    layer = built(cls)
    x = sequences()
    states = [to_numpy(p.noise.state) for p in layer.projections]
    outputs = []
    for seed in (0, 0, 1):
        with scopes.SamplingScope(seed, 0, 1):
            outputs.append(to_numpy(layer(x, x)))
            assert not layer.losses
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-3
    for state, projection in zip(states, layer.projections):
        np.testing.assert_array_equal(state, to_numpy(projection.noise.state))


def test_dropout_of_the_attention_is_sampled_on_demand():
    layer = built(MultiHead, dropout=0.5)
    model = self_attention(layer)
    x = sequences()
    weights_only = samples(model, x)
    both = samples(model, x, mc_dropout=True)
    assert np.abs(both - weights_only).max() > 1e-3
    np.testing.assert_allclose(
        samples(model, x[1:], mc_dropout=True)[:, 0], both[:, 1], atol=1e-5
    )
    for projection in layer.projections:
        set_stddev(projection, 1e-9)
    still = samples(model, x, mc_dropout=False)
    np.testing.assert_allclose(still, still[:1] + 0 * still, atol=1e-5)
    assert samples(model, x, mc_dropout=True).std(axis=0).max() > 1e-3


# Files and copies


@pytest.mark.one_backend
@pytest.mark.parametrize("cls, policy", zip(GROUPS, ["float32", HALF]))
def test_saved_model_continues_exactly(cls, policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    layer = built(cls, seed=4)  # Keras does not save the state of dropout
    model = self_attention(layer, use_causal_mask=True)
    model.compile("adam", "mse")
    x = sequences()
    model.fit(x, x, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(*(m.predict(x, verbose=0) for m in (model, copy)))
    np.testing.assert_array_equal(samples(model, x, 2), samples(copy, x, 2))
    for m in (model, copy):
        m.fit(x, x, verbose=0, shuffle=False)
    for a, b in zip(model.weights, copy.weights, strict=True):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-6)


@every_group
def test_weights_go_to_an_equal_group_and_to_no_other(cls, tmp_path):
    layer = built(cls)
    model = self_attention(layer)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    clone = keras.models.clone_model(model)
    clone.load_weights(path)
    x = sequences()
    np.testing.assert_array_equal(to_numpy(clone(x)), to_numpy(model(x)))
    keras_bdl.to_keras(model).save_weights(path)
    with pytest.raises(ValueError, match="Received"):
        model.load_weights(path)


@every_group
def test_config_is_json_and_round_trips(cls):
    options = {"prior": keras_bdl.priors.Laplace(0.1), "posterior": "low_rank"}
    layer = built(cls, kl_weight=0.5, seed=3, use_gate=True, **options)
    config = json.loads(json.dumps(layer.get_config()))
    copy = cls.from_config(config)
    assert json.loads(json.dumps(copy.get_config())) == config
    copy.build((None, STEPS, WIDTH), (None, STEPS, WIDTH))
    assert [v.shape for v in copy.variables] == [v.shape for v in layer.variables]


@every_group
@traced_too
@pytest.mark.every_backend
def test_clone_and_export(cls, tmp_path):
    model = self_attention(built(cls))
    x = sequences()
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    expected = to_numpy(model(x))
    np.testing.assert_allclose(to_numpy(clone(x)), expected, atol=1e-6)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        model.export(str(tmp_path / "export"), verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / "export"))
        served = loaded.serve(x)
        np.testing.assert_allclose(served.numpy(), expected, atol=1e-5)


# Conversion


@every_group
def test_to_keras_and_back(cls):
    layer = built(cls, use_gate=True, dropout=0.1, seed=2)
    x = sequences()
    plain = layer.to_keras()
    assert type(plain) is plain_class(cls)
    assert "keras_bdl" not in json.dumps(plain.get_config())
    np.testing.assert_array_equal(to_numpy(plain(x, x)), to_numpy(layer(x, x)))
    again = cls.from_keras(plain, num_examples=N)
    np.testing.assert_array_equal(to_numpy(again(x, x)), to_numpy(layer(x, x)))
    repeated = [to_numpy(layer.to_keras("sample", 1)(x, x)) for _ in range(2)]
    np.testing.assert_array_equal(*repeated)
    with pytest.raises(ValueError, match="weights.*Received"):
        layer.to_keras("median")
    for wrong in (layers.Flatten(), plain_class(cls)(*GROUPS[cls])):
        with pytest.raises(ValueError, match="from_keras.*Received"):
            cls.from_keras(wrong)
    with pytest.raises(ValueError, match="built.*Received"):
        cls(*GROUPS[cls]).to_keras()


def transformer():
    """A small one of Keras: embedding, two kinds of attention, a feed-forward part."""
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(20, WIDTH, mask_zero=True, name="table")(inputs)
    attended = layers.MultiHeadAttention(2, 3, dropout=0.1, name="attention")(x, x)
    x = layers.LayerNormalization(name="norm")(x + attended)
    grouped = layers.GroupQueryAttention(3, 4, 2, name="grouped")
    x = x + grouped(x, x, use_causal_mask=True)
    x = x + layers.Dense(WIDTH, "relu", name="dense")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def words(rows=4):
    x = np.random.default_rng(0).integers(1, 20, (rows, 5))
    x[0, 3:] = 0
    return x


def test_a_transformer_converts_predicts_and_returns(tmp_path):
    plain, x = transformer(), words()
    model, report = keras_bdl.to_bayesian(plain, num_examples=10, return_report=True)
    assert report.replaced == ["table", "attention", "grouped", "dense", "head"]
    assert list(report.left) == ["norm"]
    assert type(model.get_layer("attention")) is MultiHead
    assert type(model.get_layer("grouped")) is GroupQuery
    expected = plain.predict(x, verbose=0)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    draws = samples(model, x)
    np.testing.assert_allclose(samples(model, x[:1])[:, 0], draws[:, 0], atol=1e-5)
    half = keras.Sequential([model.input, model, layers.Dense(2)])
    _, again = keras_bdl.to_bayesian(half, 10, return_report=True)
    assert again.left["attention"] == "is Bayesian already"
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(samples(loaded, x), draws, atol=1e-6)
    back = keras_bdl.to_keras(loaded)
    assert not stochastic.whole_layers(back)
    np.testing.assert_allclose(back.predict(x, verbose=0), expected, atol=1e-5)
    drawn = [keras_bdl.to_keras(model, "sample", 1).predict(x, verbose=0)] * 2
    np.testing.assert_array_equal(*drawn)
    assert np.abs(drawn[0] - expected).max() > 1e-4


def test_moped_starts_at_the_trained_weights():
    plain = transformer()
    model = keras_bdl.to_bayesian(plain, num_examples=10, moped=0.1)
    layer = model.get_layer("attention")
    for projection in layer.projections:
        mean, log_stddev = projection.posterior.moments()["kernel"]
        expected = 0.1 * np.abs(to_numpy(mean))
        np.testing.assert_allclose(np.exp(to_numpy(log_stddev)), expected, rtol=1e-3)


@every_group
def test_what_a_posterior_cannot_keep_is_an_obstacle(cls):
    x = sequences()
    bound = plain_class(cls)(*GROUPS[cls], bias_constraint="non_neg")
    bound(x, x)
    assert cls.obstacle(bound) == "has a bias_constraint"
    with pytest.raises(ValueError, match="has a bias_constraint.*Received"):
        cls.from_keras(bound)
    regular = plain_class(cls)(*GROUPS[cls], kernel_regularizer="l2")
    regular(x, x)
    assert cls.from_keras(regular).get_config()["kernel_regularizer"] is None
    changed = plain_class(cls)(*GROUPS[cls])
    changed(x, x)
    changed._key_dense.enable_lora(1)
    assert cls.obstacle(changed) == "holds 'key', which has LoRA weights"


@keras.saving.register_keras_serializable("test_attention")
class Encoder(keras.layers.Layer):
    """A user's layer, of the kind that examples of Keras have."""

    def __init__(self, heads=2, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads
        self.attention = layers.MultiHeadAttention(heads, 3)
        self.dense = layers.Dense(WIDTH)

    def call(self, x, training=None):
        x = x + self.attention(x, x, training=training)
        return x + self.dense(x)

    def get_config(self):
        return {**super().get_config(), "heads": self.heads}


def test_a_layer_of_the_user_that_holds_attention_converts(tmp_path):
    inputs = keras.Input((STEPS, WIDTH))
    encoder = Encoder()
    plain = keras.Model(inputs, encoder(inputs))
    model, report = keras_bdl.to_bayesian(plain, num_examples=N, return_report=True)
    assert sorted(report.replaced) == sorted(
        [encoder.attention.name, encoder.dense.name]
    )
    x = sequences()
    expected = plain.predict(x, verbose=0)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    draws = samples(model, x, 3)
    assert draws.std(axis=0).min() > 0.0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(samples(loaded, x, 3), draws, atol=1e-6)
    back = keras_bdl.to_keras(loaded)
    assert type(back.layers[1]) is Encoder
    np.testing.assert_allclose(back.predict(x, verbose=0), expected, atol=1e-5)
    updated = keras_bdl.prior_from_posterior(model)
    np.testing.assert_allclose(updated.predict(x, verbose=0), expected, atol=1e-5)


@every_group
def test_the_posterior_becomes_the_prior(cls):
    layer = built(cls)
    model = self_attention(layer)
    new = keras_bdl.prior_from_posterior(model).layers[-1]
    assert type(new) is cls and new.num_examples is None
    assert abs(float(to_numpy(new.kl()))) < 1e-3
    x = sequences()
    np.testing.assert_array_equal(to_numpy(new(x, x)), to_numpy(layer(x, x)))
    for old, projection in zip(layer.projections, new.projections):
        for name, (mean, log_stddev) in old.gaussians().items():
            prior = projection.prior.of(name, projection._prior_variables)
            np.testing.assert_allclose(to_numpy(prior["mean"]), to_numpy(mean))
            np.testing.assert_allclose(
                to_numpy(prior["log_stddev"]), to_numpy(log_stddev), atol=1e-6
            )
        old.kernel.assign(0.0 * old.kernel)  # they share no variable
    assert float(np.abs(to_numpy(new.projections[0].kernel)).max()) > 0.0
    low_rank = self_attention(built(cls, posterior="low_rank"))
    with pytest.raises(ValueError, match="cannot become the prior.*Received"):
        keras_bdl.prior_from_posterior(low_rank)


@every_group
def test_reports_count_the_weights_of_the_projections(cls):
    layer = built(cls, name="attention")
    model = self_attention(layer, (STEPS, WIDTH))
    rows = keras_bdl.sparsity_report(model).rows
    assert [row["layer"] for row in rows] == [
        f"attention/{name}" for name in ("query", "key", "value", "attention_output")
    ]
    kernels = [int(np.prod(x.kernel.shape)) for x in layer.projections]
    assert [row["weights"] for row in rows] == kernels
    report = keras_bdl.flops_report(model, sequences(), verbose=0)
    assert report.full == STEPS * sum(kernels)
    assert report.not_counted == []


# Numbers


@pytest.mark.one_backend
@every_group
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.every_backend
def test_half_precision(cls, policy):
    keras.config.set_dtype_policy(policy)
    layer = built(cls)
    for projection in layer.projections:
        set_stddev(projection, 1e-4)
        assert {v.dtype for v in projection.trainable_variables} == {"float32"}
    x = sequences()
    outputs = layer(x, x, training=True)
    dtype = keras.backend.standardize_dtype(outputs.dtype)
    assert dtype == policy.removeprefix("mixed_")
    assert np.isfinite(to_numpy(ops.cast(outputs, "float32"))).all()
    plain = layer.to_keras()
    difference = ops.cast(layer(x, x) - plain(x, x), "float32")
    np.testing.assert_allclose(to_numpy(difference), 0.0, atol=1e-6)
    assert float(to_numpy(layer.kl())) == pytest.approx(kl_of(layer), rel=1e-5)


@traced_too
def test_noise_in_a_program():
    layer = built(MultiHead)
    x = sequences()
    draw = traced(lambda: layer(x, x, training=True))
    draws = [to_numpy(draw()) for _ in range(3)]
    assert all(np.abs(draws[i] - draws[i - 1]).max() > 1e-3 for i in range(3))


# Refusals


@every_group
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"prior": "no such prior"}, ValueError, "prior"),
        ({"posterior": "no such posterior"}, ValueError, "posterior"),
        ({"posterior": 3}, TypeError, "posterior"),
        ({"num_examples": 0}, ValueError, "num_examples"),
        ({"num_examples": 2.5}, TypeError, "num_examples"),
        ({"kl_weight": -1.0}, ValueError, "kl_weight"),
        ({"estimator": "flip"}, ValueError, "estimator"),
        ({"initial_log_stddev": "low"}, TypeError, "initial_log_stddev"),
        ({"bias_posterior": 1}, TypeError, "bias_posterior"),
        ({"sample_at_inference": 1}, TypeError, "sample_at_inference"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"kernel_regularizer": "l2"}, ValueError, "takes no `kernel_regularizer`"),
        ({"bias_regularizer": "l2"}, ValueError, "takes no `bias_regularizer`"),
        ({"kernel_constraint": "non_neg"}, ValueError, "no `kernel_constraint`"),
        ({"bias_constraint": "non_neg"}, ValueError, "takes no `bias_constraint`"),
    ],
)
def test_bad_arguments_are_refused_by_the_constructor(cls, options, error, message):
    with pytest.raises(error, match=f"{message}.*Received"):
        cls(*GROUPS[cls], **options)


@every_group
def test_the_regularizer_of_activity_is_that_of_keras(cls):
    x = sequences()
    options = {"activity_regularizer": "l2"}
    plain = plain_class(cls)(*GROUPS[cls], **options)
    plain(x, x)
    layer = cls.from_keras(plain, num_examples=N, kl_weight=0.0)
    layer(x, x)
    assert layer.get_config()["activity_regularizer"] is not None
    expected = sum(float(to_numpy(loss)) for loss in plain.losses)
    found = sum(float(to_numpy(loss)) for loss in layer.losses)
    assert expected > 0.0 and found == pytest.approx(expected, rel=1e-5)


@every_group
def test_what_has_no_meaning_is_refused(cls):
    layer = built(cls)
    with pytest.raises(ValueError, match="to_keras.*Received"):
        layer.quantize("int8")
    with pytest.raises(ValueError, match="without keras_bdl layers.*Received"):
        keras_bdl.layers.BayesianWrapper(cls(*GROUPS[cls]))
    with pytest.raises(ValueError, match="num_examples.*Received"):
        layer.set_num_examples(0)
    given = functools.partial(layer.set_num_examples, 5, inferred=True)
    given()
    assert layer.num_examples == N  # what the user gave stays
