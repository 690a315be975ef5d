"""Deterministic sites are neither latents nor observations."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import fit
from pyro_vae.program.predictive import sample_prior

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def with_deterministic():
    net, back = nn.Linear(3, 2), nn.Linear(2, 3)

    def model(x):
        pyro.module("back", back)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = pyro.deterministic("mean", back(z), event_dim=1)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)
        pyro.deterministic("total", mean.sum())

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    return model, guide


@pytest.mark.parametrize("estimator", ["trace_elbo", "iwae", "dreg", "wake_sleep", "analytic_kl"])
def test_deterministic_sites_are_no_sites(estimator):
    result = fit(with_deterministic(), X, validation=X, estimator=estimator, epochs=1, batch_size=4, device="cpu")
    assert math.isfinite(result.history[0].bound)
    assert sample_prior(result.program, X).mean.shape == X.shape
