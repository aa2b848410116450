"""The halting distribution: values, KL and gradients against enumeration."""

import numpy as np
import pytest
from backend_tools import gradients
from contract import to_numpy
from early_exit_tools import halting_probs, numeric_gradients
from keras import ops
from scipy import special, stats

from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.ops import halting


def tensor(x):
    return ops.convert_to_tensor(np.asarray(x, "float32"))


def random_logits(rows=50, units=8, scale=2.0, seed=0):
    return scale * np.random.default_rng(seed).normal(size=(rows, units - 1))


def test_published_values():
    logits = special.logit([0.01, 0.5, 0.6, 0.7])
    q = np.exp(to_numpy(halting.log_probs(tensor(logits))))
    np.testing.assert_allclose(q, [0.01, 0.495, 0.297, 0.1386, 0.0594], rtol=1e-5)


@pytest.mark.parametrize("units", [1, 2, 8, 20])
def test_q_against_products(units):
    logits = random_logits(units=units)
    q = np.exp(to_numpy(halting.log_probs(tensor(logits))))
    np.testing.assert_allclose(q, halting_probs(logits), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(q.sum(axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        to_numpy(halting.expected_depth(tensor(logits))),
        halting_probs(logits) @ np.arange(1, units + 1),
        rtol=1e-5,
    )


@pytest.mark.parametrize("rate", [0.0, 0.1, 2.0, 50.0])
def test_the_prior_is_a_truncated_geometric(rate):
    p = np.exp(halting.prior_log_probs(6, rate))
    np.testing.assert_allclose(p, special.softmax(-rate * np.arange(1, 7)))
    assert np.log(p[:-1] / p[1:]) == pytest.approx(rate)


@pytest.mark.parametrize("rate", [0.0, 0.3, 4.0])
def test_kl_against_enumeration(rate):
    logits = random_logits()
    q = halting_probs(logits)
    p = np.exp(halting.prior_log_probs(8, rate))
    np.testing.assert_allclose(
        to_numpy(halting.kl_to_prior(tensor(logits), rate)),
        stats.entropy(q, np.broadcast_to(p, q.shape), axis=1),
        rtol=1e-4,
        atol=1e-5,
    )


def test_gradient_of_the_kl():
    logits = random_logits(rows=3, units=5)

    def kl(weights):
        q = halting_probs(weights[0])
        return (q * (np.log(q) - halting.prior_log_probs(5, 0.3))).sum()

    (expected,) = numeric_gradients(kl, [logits.copy()])
    (got,) = gradients(lambda x: ops.sum(halting.kl_to_prior(x, 0.3)), [logits])
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_extreme_logits_are_finite():
    logits = np.array([[-80.0, 80.0, -80.0], [80.0, 80.0, 80.0]])
    for function in (halting.log_probs, halting.expected_depth):
        assert np.isfinite(to_numpy(function(tensor(logits)))).all()
    (gradient,) = gradients(lambda x: ops.sum(halting.kl_to_prior(x, 0.1)), [logits])
    assert np.isfinite(gradient).all()


def test_logistic_noise_halts_with_probability_h():
    noise = to_numpy(halting.logistic_noise((200_000,), "float32", NoiseGenerator(0)))
    for logit in (-3.0, 0.0, 1.5):
        p = special.expit(logit)
        error = np.sqrt(p * (1 - p) / len(noise))
        assert abs((logit + noise > 0).mean() - p) < 5 * error


def test_a_cold_relaxation_is_a_draw_of_survival():
    logits = np.tile(random_logits(1, 5, scale=1.0), (100_000, 1))
    noise = NoiseGenerator(0)
    relaxed = to_numpy(halting.relaxed_survival(tensor(logits), 1e-3, noise))
    survival = 1 - np.cumsum(halting_probs(logits[:1]), axis=1)[0, :-1]
    error = np.sqrt(survival * (1 - survival) / len(relaxed))
    assert (np.abs(relaxed.mean(axis=0) - survival) < 5 * error + 1e-3).all()
    assert ((relaxed < 0.01) | (relaxed > 0.99)).mean() > 0.99
