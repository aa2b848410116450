"""`BayesianLastLayer`: the contract, its covariance, and the probit logits."""

import dataclasses

import keras
import numpy as np
import pytest
from contract import Case, LayerContract, to_numpy

import keras_bdl
from keras_bdl.layers import last_layer

pytestmark = pytest.mark.portable


def joint_covariance(layer):
    """Of all weights, output by output with the bias last, `(units d, units d)`."""
    factors = to_numpy(layer.factor).astype("float64")
    covariances = factors @ factors.transpose(0, 2, 1)
    blocks, size, _ = covariances.shape
    joint = np.zeros((blocks * size, blocks * size))
    for index, block in enumerate(covariances):
        rows = slice(index * size, (index + 1) * size)
        joint[rows, rows] = block
    return joint


@dataclasses.dataclass
class LastLayerCase(Case):
    """A layer whose weights depend on each other."""

    def randomize(self, layer, seed=0):
        super().randomize(layer, seed)
        rng = np.random.default_rng(seed)
        factor = np.tril(0.2 * rng.normal(size=layer.factor.shape))
        layer.factor.assign(factor)

    def set_stddev(self, layer, stddev):
        blocks, size, _ = layer.factor.shape
        layer.factor.assign(np.tile(stddev * np.eye(size), (blocks, 1, 1)))

    def moments(self, layer, x):
        plain = self.plain(activation=None)
        self.copy_means(layer, plain)
        if layer.bias is not None:
            x = np.concatenate([x, np.ones_like(x[..., :1])], axis=-1)
            mean = to_numpy(plain(x[..., :-1]))
        else:
            mean = to_numpy(plain(x))
        joint = joint_covariance(layer)
        size = x.shape[-1]
        blocks = [
            joint[i * size : (i + 1) * size, i * size : (i + 1) * size]
            for i in range(layer.units)
        ]
        variance = [np.einsum("...i,ij,...j->...", x, block, x) for block in blocks]
        return mean, np.stack(variance, axis=-1)

    def kernel_moments(self, layer):
        variances = np.diag(joint_covariance(layer)).reshape(layer.units, -1).T
        return to_numpy(layer.kernel), variances[: layer.kernel.shape[0]]


def case(name, covariance, use_bias=True, thorough=False):
    def make(**options):
        options = {"use_bias": use_bias, "covariance": covariance, **options}
        return keras_bdl.BayesianLastLayer(3, **options)

    def plain(**options):
        return keras.layers.Dense(3, use_bias=use_bias, **options)

    return LastLayerCase(
        name,
        make,
        plain,
        (4,),
        oracle_kl=None,
        has_kl=False,
        drop_in=False,
        about=("layer", "noise") if use_bias else ("layer",),
        also=("noise",),
        thorough=thorough,
        family=thorough,
    )


class TestBayesianLastLayer(LayerContract):
    cases = [
        case("per_output", "per_output"),
        case("full", "full", thorough=True),
        case("without_bias", "full", use_bias=False),
    ]


# What the layer says of its outputs


@pytest.mark.parametrize("covariance", ["per_output", "full"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_output_covariance(covariance, use_bias):
    one = case("", covariance, use_bias)
    layer = one.built()
    one.randomize(layer)
    x = one.inputs(5)
    phi = np.hstack([x, np.ones((5, 1))]) if use_bias else x
    joint = joint_covariance(layer).reshape(3, phi.shape[1], 3, phi.shape[1])
    expected = np.einsum("ni,kilj,nj->nkl", phi, joint, phi)
    np.testing.assert_allclose(to_numpy(layer.output_covariance(x)), expected, 1e-5)


def test_outputs_of_a_draw_have_the_joint_covariance():
    one = case("", "full")
    layer = one.built(seed=0)
    one.randomize(layer)
    x = one.inputs(1)
    weights = layer.posterior.draw(keras.random.SeedGenerator(0), 50_000)
    draws = np.einsum("i,sik->sk", x[0], to_numpy(weights["kernel"]))
    draws = draws + to_numpy(weights["bias"])
    expected = to_numpy(layer.output_covariance(x))[0]
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    error = (np.cov(draws.T) - expected) / scale
    assert np.abs(error).max() < 5.0 * np.sqrt(2.0 / len(draws))


@pytest.mark.parametrize("classes", [2, 4])
def test_probit_logits_are_near_the_mean_of_the_softmax(classes):
    rng = np.random.default_rng(classes)
    mean = rng.normal(size=(20, classes))
    root = 0.7 * rng.normal(size=(20, classes, classes))
    covariance = root @ root.transpose(0, 2, 1)
    noise = rng.normal(size=(20_000, 20, classes, 1))
    draws = mean + (root @ noise)[..., 0]

    def softmax(a):
        a = np.exp(a - a.max(-1, keepdims=True))
        return a / a.sum(-1, keepdims=True)

    exact = softmax(draws).mean(axis=0)
    logits = to_numpy(
        last_layer.probit_logits(mean.astype("float32"), covariance.astype("float32"))
    )

    def divergence(p):
        return (exact * np.log(exact / p)).sum(axis=-1).mean()

    gain = divergence(softmax(logits)) / divergence(softmax(mean))
    assert gain < (0.02 if classes == 2 else 0.3)
    # What all logits share changes nothing.
    shared = (covariance + 7.0).astype("float32")
    again = to_numpy(last_layer.probit_logits(mean.astype("float32"), shared))
    np.testing.assert_allclose(softmax(again), softmax(logits), atol=1e-4)


def test_probit_layer():
    layer = keras_bdl.BayesianLastLayer(3, covariance="full", probit=True)
    layer.build((None, 4))
    one = case("", "full")
    one.randomize(layer)
    x = one.inputs(6)
    mean, _ = one.moments(layer, x)
    expected = last_layer.probit_logits(mean, to_numpy(layer.output_covariance(x)))
    np.testing.assert_allclose(to_numpy(layer(x)), to_numpy(expected), rtol=1e-5)
    with pytest.raises(ValueError, match="probit=True.*Received: layer="):
        layer.to_keras()


@pytest.mark.parametrize(
    "options, match",
    [
        ({"activation": "relu"}, "linear.*Received: activation"),
        ({"covariance": "diagonal"}, "Received: covariance='diagonal'"),
        ({"probit": 1}, "Received: probit=1"),
    ],
)
def test_bad_arguments_are_refused(options, match):
    with pytest.raises((TypeError, ValueError), match=match):
        keras_bdl.BayesianLastLayer(3, **options)


def test_inputs_with_positions_are_refused():
    with pytest.raises(ValueError, match="Received: input_shape"):
        keras_bdl.BayesianLastLayer(3)(np.ones((2, 5, 4), "float32"))


def test_a_second_argument_that_is_an_activation_is_refused():
    with pytest.raises(TypeError, match="no `activation`.*Received: use_bias='relu'"):
        keras_bdl.BayesianLastLayer(3, "relu")
