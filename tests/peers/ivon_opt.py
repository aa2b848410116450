"""Writes ivon_opt.json: the steps of ivon-opt for a linear regression.

Run in an environment of its own, with `ivon-opt==0.1.3`. That package is GPL: it
runs here as a black box, and nothing else imports it.

    python tests/peers/ivon_opt.py
"""

import json
import pathlib

import ivon
import torch

OPTIONS = {"rate": 0.2, "h": 2.0, "delta": 0.05, "b1": 0.8, "b2": 0.9}
ESS, ROWS, STEPS, NOISE = 60.0, 60, 12, 0.5


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x = torch.randn(ROWS, 3)
    y = x @ torch.tensor([[1.0], [-0.5], [0.3]]) + NOISE * torch.randn(ROWS, 1)
    weights = torch.nn.Parameter(torch.tensor([[0.2], [0.1], [-0.4]]))
    start = weights.detach().clone()
    cases = {}
    for name, clip in (("free", float("inf")), ("clipped", 0.2)):
        with torch.no_grad():
            weights.copy_(start)
        optimizer = ivon.IVON(
            [weights],
            lr=OPTIONS["rate"],
            ess=ESS,
            hess_init=OPTIONS["h"],
            beta1=OPTIONS["b1"],
            beta2=OPTIONS["b2"],
            weight_decay=OPTIONS["delta"],
            clip_radius=clip,
        )
        draws, means, hessians = [], [], []
        for _ in range(STEPS):
            with optimizer.sampled_params(train=True):
                draws.append(weights.detach().tolist())
                optimizer.zero_grad()
                loss = ((x @ weights - y) ** 2).mean() / (2 * NOISE**2)
                loss.backward()
            optimizer.step()
            means.append(weights.detach().tolist())
            hessians.append(optimizer.param_groups[0]["hess"].tolist())
        cases[name] = {
            "clip": min(clip, 1e30),
            "draws": draws,
            "means": means,
            "hessians": hessians,
        }
    content = {
        "options": {**OPTIONS, "ess": ESS},
        "noise": NOISE,
        "x": x.tolist(),
        "y": y.tolist(),
        "start": start.tolist(),
        "cases": cases,
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
