"""Writes laplace_torch.json: what laplace-torch makes of two small networks.

Run in an environment of its own, with `laplace-torch==0.3` (MIT) and a torchvision
that fits its torch:

    python tests/peers/laplace_torch.py
"""

import json
import pathlib
import warnings

import torch
from laplace import Laplace
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

PRIOR_PRECISION, NOISE_PRECISION = 2.0, 3.0
ROWS, TEST_ROWS = 20, 5
CLASSES, VALUES = "classification", "regression"
STRUCTURES = {
    "full": ("all", "full"),
    "diagonal": ("all", "diag"),
    "kronecker": ("all", "kron"),
    "last_layer": ("last_layer", "full"),
}


def network(has_bias):
    return nn.Sequential(
        nn.Linear(4, 5, bias=has_bias), nn.Tanh(), nn.Linear(5, 3, bias=has_bias)
    )


def case(kind, structure, seed):
    torch.manual_seed(seed)
    # The peer's Kronecker products leave out what a kernel and its bias share, and
    # ours has a flat prior for the biases of a regression by its last layer.
    differs = structure == "kronecker" or (structure, kind) == ("last_layer", VALUES)
    model = network(has_bias=not differs)
    x, x_test = torch.randn(ROWS, 4), torch.randn(TEST_ROWS, 4)
    if kind == CLASSES:
        y = torch.arange(ROWS) % 3
        options = {}
    else:
        y = torch.randn(ROWS, 3)
        options = {"sigma_noise": NOISE_PRECISION**-0.5}
    subset, form = STRUCTURES[structure]
    fit = Laplace(
        model,
        kind,
        subset_of_weights=subset,
        hessian_structure=form,
        prior_precision=PRIOR_PRECISION,
        **options,
    )
    fit.fit(DataLoader(TensorDataset(x, y), batch_size=ROWS))
    precision = fit.posterior_precision
    if structure == "kronecker":
        precision = precision.to_matrix()
    elif structure == "diagonal":
        precision = torch.diag(precision)
    mean, covariance = fit._glm_predictive_distribution(x_test)
    parts = {
        "weights": [p.detach() for p in model.parameters()],
        "x": x,
        "y": y,
        "x_test": x_test,
        "precision": precision.detach(),
        "log_marginal_likelihood": fit.log_marginal_likelihood().detach(),
        "mean": mean.detach(),
        "covariance": covariance.detach(),
    }
    if kind == CLASSES:
        parts["probit"] = fit(x_test, link_approx="probit").detach()
    found = {
        name: [p.tolist() for p in part] if name == "weights" else part.tolist()
        for name, part in parts.items()
    }
    return {"kind": kind, "structure": structure, **found}


def main():
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)
    pairs = [
        (kind, structure) for kind in (CLASSES, VALUES) for structure in STRUCTURES
    ]
    cases = [case(*pair, seed) for seed, pair in enumerate(pairs)]
    path = pathlib.Path(__file__).with_suffix(".json")
    content = {
        "prior_precision": PRIOR_PRECISION,
        "noise_precision": NOISE_PRECISION,
        "cases": cases,
    }
    # Ten digits are enough for tests.
    rounded = json.loads(
        json.dumps(content), parse_float=lambda t: float(f"{float(t):.10g}")
    )
    path.write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    main()
