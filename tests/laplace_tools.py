"""What tests read off a fit of Laplace's approximation."""

import numpy as np
from contract import to_numpy
from scipy import linalg

import keras_bdl


def layer_of(bayesian):
    """The layer with the posterior."""
    if hasattr(bayesian, "posterior"):
        return bayesian
    return keras_bdl.layers.bayesian.bayesian_layers(bayesian)[0]


def covariance_of(bayesian):
    """Covariance of the weights, in the order of their names, from the variables."""
    posterior = layer_of(bayesian).posterior
    variables = {n: to_numpy(v) for n, v in posterior.variables().items()}
    if "factor" in variables:
        return variables["factor"] @ variables["factor"].T
    if any(name.endswith("log_stddev") for name in variables):
        flat = [variables[f"{n}_log_stddev"].ravel() for n in posterior.shapes]
        return np.diag(np.exp(2 * np.concatenate(flat)))
    blocks = []
    for name in posterior.matrices():
        parts = [variables[f"{name}_{p}"] for p in ("rows", "units", "scale")]
        vectors = np.kron(parts[0], parts[1]) * parts[2].ravel()
        blocks.append(vectors @ vectors.T)
    return linalg.block_diag(*blocks)
