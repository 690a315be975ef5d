"""How much noise has the gradient of Bernoulli latents under DisARM, REINFORCE and REBAR, in the course of training?

Published: DisARM's variance is below that of REINFORCE with a leave-one-out baseline at the same two particles,
throughout training a VAE of 200 binary units (Dong, Mnih and Tucker, arXiv 2006.10680, figure 5, on MNIST).

Here on the digits, 200 units, one linear layer each way, trained with DisARM by Adam at 1e-3 on batches of 100.
Expected: close at the start, DisARM below by a third and more after a few hundred steps.

Command, about two minutes on one core::

    python experiments/bernoulli_variance.py

Writes ``bernoulli_variance.json`` to ``--results``: variance of φ's gradient per example, with its standard error.
"""

import argparse
import platform
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import elbo, load
from pyro_vae.base.files import write_json
from pyro_vae.program import own_store
from pyro_vae.studies import compare_gradients

AT = (0, 300, 3000)
ESTIMATORS = {
    "reinforce": elbo.Reinforce(2),
    "disarm": elbo.DisARM(2),
    "rebar": elbo.Rebar(1),
    "concrete": elbo.Concrete(1),
}


class BinaryVAE(nn.Module):
    """p: d ~ Bernoulli, pixels ~ Bernoulli(decoder(2 d − 1)); q: d ~ Bernoulli(encoder(x))."""

    def __init__(self, pixels: int, units: int) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(pixels, units), nn.Linear(units, pixels)
        self.prior = nn.Parameter(torch.zeros(units))

    def model(self, x: Tensor) -> None:
        """p(x, d)."""
        pyro.module("binary_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(2 * d - 1)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(d|x)."""
        pyro.module("binary_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("d", dist.Bernoulli(logits=self.encoder(x)).to_event(1))


def main() -> None:
    """Train, compare at every point, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--draws", type=int, default=300)
    options = parser.parse_args()
    torch.manual_seed(0)
    x = load("digits").train.binarized(seed=0).flatten(1)
    program = BinaryVAE(x.shape[1], 200)
    optimizer = torch.optim.Adam(program.parameters(), 1e-3)
    points = []
    for step in range(max(AT) + 1):
        if step in AT:
            points.append({"step": step, "phi": variances(program, x[:20], options.draws)})
            print(points[-1])
        take_step(program, x[torch.randint(len(x), (100,))], optimizer)
    settings = {"data": "digits, binarized by seed 0", "units": 200, "draws": options.draws, "torch": torch.__version__}
    write_json(
        options.results / "bernoulli_variance.json",
        {
            **settings,
            "machine": platform.machine(),
            "command": "python experiments/bernoulli_variance.py",
            "at": points,
        },
    )


def variances(program: BinaryVAE, x: Tensor, draws: int) -> dict[str, str]:
    """Return the variance of φ's gradient under each estimator, with its standard error."""
    reports = compare_gradients(program, x, ESTIMATORS, draws, 20)
    return {report.estimator: str(g.variance) for report in reports for g in report.gradients if g.group == "phi"}


def take_step(program: BinaryVAE, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take a step with DisARM."""
    optimizer.zero_grad()
    with own_store(program):
        (elbo.DisARM(2).differentiable_loss(program.model, program.guide, x) / len(x)).backward()
    optimizer.step()


if __name__ == "__main__":
    main()
