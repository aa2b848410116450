"""`fit_laplace` beside what laplace-torch makes of the same networks and rows.

`tests/peers/laplace_torch.py` wrote its figures.
"""

import json
import pathlib

import keras
import numpy as np
import pytest
from contract import to_numpy
from keras import layers
from laplace_tools import covariance_of, layer_of
from scipy import special, stats

import keras_bdl
from keras_bdl.layers.last_layer import probit_logits

pytestmark = pytest.mark.portable

PEERS = pathlib.Path(__file__).parents[1] / "peers"
FIGURES = json.loads((PEERS / "laplace_torch.json").read_text())
ALPHA, BETA = FIGURES["prior_precision"], FIGURES["noise_precision"]


def network_of(case):
    """The peer's network, and for each weight of ours its place in the peer's."""
    weights = list(map(np.array, case["weights"]))
    has_bias = len(weights) == 4
    inputs = keras.Input((weights[0].shape[1],))
    hidden = layers.Dense(len(weights[0]), "tanh", use_bias=has_bias)(inputs)
    outputs = layers.Dense(len(weights[-1]), use_bias=has_bias)(hidden)
    network = keras.Model(inputs, outputs)
    network.set_weights([w.T for w in weights])
    places, start = [], 0
    for weight in weights:
        places.append(np.arange(start, start + weight.size).reshape(weight.shape).T)
        start += weight.size
    return network, np.concatenate([p.ravel() for p in places])


def fitted(case, network):
    options = {"noise_precision": BETA} if case["kind"] == "regression" else {}
    return keras_bdl.fit_laplace(
        network,
        np.array(case["x"], "float32"),
        np.array(case["y"]),
        structure=case["structure"],
        kind=case["kind"],
        prior_precision=ALPHA,
        verbose=0,
        **options,
    )


def log_marginal_likelihood(case, covariance):
    """log p(y | w) + log N(w; 0, 1 / alpha) + log of the volume of the posterior."""
    outputs, y = to_numpy(network_of(case)[0](np.array(case["x"]))), np.array(case["y"])
    if case["kind"] == "classification":
        fit = special.log_softmax(outputs, axis=-1)[np.arange(len(y)), y].sum()
    else:
        fit = stats.norm(outputs, BETA**-0.5).logpdf(y).sum()
    squares = sum(np.square(w).sum() for w in case["weights"])
    log_det = np.linalg.slogdet(ALPHA * covariance)[1]
    return fit + 0.5 * (log_det - ALPHA * squares)


def case_named(case):
    return f"{case['kind']}-{case['structure']}"


@pytest.mark.parametrize(
    "case",
    [c for c in FIGURES["cases"] if c["structure"] != "last_layer"],
    ids=case_named,
)
def test_posterior_and_moments_are_those_of_laplace_torch(case):
    network, places = network_of(case)
    bayesian = fitted(case, network)
    layer = layer_of(bayesian)
    found = covariance_of(layer)
    expected = np.linalg.inv(case["precision"])[np.ix_(places, places)]
    np.testing.assert_allclose(
        found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )
    assert log_marginal_likelihood(case, found) == pytest.approx(
        case["log_marginal_likelihood"], rel=1e-4
    )
    x = np.array(case["x_test"], "float32")
    mean, factor = map(to_numpy, layer.moments(x))
    np.testing.assert_allclose(mean, case["mean"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        factor @ factor.swapaxes(1, 2), case["covariance"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "case",
    [c for c in FIGURES["cases"] if c["structure"] == "last_layer"],
    ids=case_named,
)
def test_a_last_layer_is_that_of_laplace_torch(case):
    network, _ = network_of(case)
    bayesian = fitted(case, network)
    (layer,) = (
        layer
        for layer in bayesian.network.layers
        if isinstance(layer, keras_bdl.BayesianLastLayer)
    )
    x = np.array(case["x_test"], "float32")
    features = network.layers[1](x)
    np.testing.assert_allclose(to_numpy(network(x)), case["mean"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        to_numpy(layer.output_covariance(features)),
        case["covariance"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_probit_is_nearer_to_the_integral_than_that_of_laplace_torch():
    # The peer's leaves out how the outputs vary together.
    noise = np.random.default_rng(0).normal(size=(20_000, 3))
    ours, theirs = [], []
    for case in FIGURES["cases"]:
        if "probit" not in case:
            continue
        mean, covariance = np.array(case["mean"]), np.array(case["covariance"])
        factors = np.linalg.cholesky(covariance)
        draws = mean + np.einsum("bcd,sd->sbc", factors, noise)
        exact = special.softmax(draws, axis=-1).mean(axis=0)
        logits = to_numpy(
            probit_logits(mean.astype("float32"), covariance.astype("float32"))
        )
        ours.append(np.abs(special.softmax(logits, axis=-1) - exact).max())
        theirs.append(np.abs(np.array(case["probit"]) - exact).max())
    assert max(ours) < 0.012 < max(theirs)
