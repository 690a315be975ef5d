"""Programs by their guides: implicit, hierarchical, straight-through, with noise of their own, or empty."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from programs.case import Users
from programs.labels import MANY, binary, halves, network

B, D, Z = 4, 3, 2


def plain_model(decoder):
    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    return model


def implicit_delta():
    """The latent is computed from noise outside Pyro; a Delta carries log q, as injected flows do."""
    encoder = network(D, 4, 2 * Z)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, scale = halves(encoder(x))
        z = loc + scale * torch.randn_like(loc)
        log_q = dist.Normal(loc, scale).to_event(1).log_prob(z)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(z, log_density=log_q, event_dim=1))

    return Users(plain_model(network(Z, 4, D)), guide, (binary(B, D),))


def hierarchical():
    """Hierarchical VI: the guide has an auxiliary latent, and the model a reverse density for it."""
    encoder, auxiliary, reverse = network(D + 1, 4, 2 * Z), network(D, 4, 2), network(Z, 4, 2)
    decoder = network(Z, 4, D)

    def model(x):
        pyro.module("decoder", decoder)
        pyro.module("reverse", reverse)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("side", dist.Normal(*halves(reverse(z))).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        pyro.module("auxiliary", auxiliary)
        with pyro.plate("data", len(x)):
            side = pyro.sample("side", dist.Normal(*halves(auxiliary(x))).to_event(1))
            both = torch.cat([x.expand(*side.shape[:-1], D), side], -1)
            pyro.sample("z", dist.Normal(*halves(encoder(both))).to_event(1))

    return Users(model, guide, (binary(B, D),))


def guide_auxiliary():
    """A latent of the guide alone, marked auxiliary: its density counts, and the model lacks it."""
    encoder = network(D + 1, 4, 2 * Z)

    def guide(x):
        pyro.module("encoder", encoder)
        centre = pyro.param("centre", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            side = pyro.sample("side", dist.Normal(centre, x.new_ones(1)).to_event(1), infer={"is_auxiliary": True})
            both = torch.cat([x.expand(*side.shape[:-1], D), side.expand(*side.shape[:-2], len(x), 1)], -1)
            pyro.sample("z", dist.Normal(*halves(encoder(both))).to_event(1))

    return Users(plain_model(network(Z, 4, D)), guide, (binary(B, D),))


def one_hot(distribution):
    """A one-hot latent; straight-through sites carry an unquantized value for their gradient."""

    def make():
        encoder, decoder = network(D, 4, 3), network(3, 4, D)

        def model(x):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.OneHotCategorical(logits=x.new_zeros(3)))
                pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

        def guide(x):
            pyro.module("encoder", encoder)
            with pyro.plate("data", len(x)):
                pyro.sample("z", distribution(logits=encoder(x)))

        return Users(model, guide, (binary(MANY, D),))

    return make


def dropout_of_two():
    """Dropout in a guide with two latents: to run it again is to use another mask."""
    encoder = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2 * Z))
    lower, decoder = network(Z, 4, 2), network(1, 4, D)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            low = pyro.sample("low", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("z", dist.Normal(low.expand(*low.shape[:-1], Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(low)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        pyro.module("lower", lower)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(*halves(encoder(x))).to_event(1))
            pyro.sample("low", dist.Normal(*halves(lower(z))).to_event(1))

    return Users(model, guide, (binary(B, D),))


def supervised(guide):
    """A model without latents: its bound is the likelihood, and its guide is empty."""

    def make():
        decoder = network(D, 4, 1)

        def model(x, y):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(decoder(x).squeeze(-1), 0.5), obs=y)

        return Users(model, guide, (torch.randn(B, D), torch.randn(B)))

    return make


def nothing(x, y):
    """An empty guide."""


def plate_alone(x, y):
    """A guide that runs, and samples nothing."""
    with pyro.plate("data", len(x)):
        pass
