"""A model and a guide for binarized images of 64 pixels, such as the 8 x 8 digits."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

LATENT = 5
decoder = nn.Sequential(nn.Linear(LATENT, 64), nn.Tanh(), nn.Linear(64, 64))
encoder = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2 * LATENT))


def model(x):
    """p(z) = N(0, s²I) with a learned s > 0; p(x|z) is Bernoulli."""
    pyro.module("decoder", decoder)
    scale = pyro.param("prior_scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), scale).to_event(1))
        logits = decoder(z).unflatten(-1, x.shape[1:])
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(x.ndim - 1), obs=x)


def guide(x):
    """q(z|x) is a diagonal normal."""
    pyro.module("encoder", encoder)
    loc, log_scale = encoder(x.flatten(1)).chunk(2, dim=-1)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
