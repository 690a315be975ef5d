"""Programs by their plates and masks: nested pixels, examples at dim −2, missing pixels, a plate without a size."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from programs.case import Users
from programs.labels import binary, halves, network

B, D, Z = 4, 3, 2


def gaussian_latent(x, name="z"):
    return pyro.sample(name, dist.Normal(x.new_zeros(Z), 1.0).to_event(1))


def nested_pixels():
    """Pixels are a plate inside that of the examples: examples at dim −2, pixels at −1; a latent in each."""
    encoder, decoder = network(D, 4, 2 * Z), network(Z, 4, D)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            with pyro.plate("pixels", D, dim=-1):
                level = pyro.sample("level", dist.Normal(decoder(z).squeeze(-2), 0.8))
                pyro.sample("x", dist.Normal(level, 0.5), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        slope = pyro.param("slope", torch.full((D,), 0.5))
        with pyro.plate("data", len(x), dim=-2):
            loc, scale = halves(encoder(x).unsqueeze(-2))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            with pyro.plate("pixels", D, dim=-1):
                pyro.sample("level", dist.Normal(slope * x, 0.4))

    return Users(model, guide, (torch.randn(B, D),))


def examples_at_minus_two():
    """The plate of the examples is at dim −2, and nothing is at −1."""
    encoder, decoder = network(D, 4, 2 * Z), network(Z, 4, D)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1, Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x.unsqueeze(1))

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-2):
            loc, scale = halves(encoder(x.unsqueeze(1)))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Users(model, guide, (binary(B, D),))


def missing_pixels():
    """Pixels that were not seen, by ``obs_mask``: Pyro samples them in the model and takes a latent of the guide."""
    encoder, decoder = network(D, 4, 2 * Z), network(Z, 4, D)

    def model(x, seen):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1, Z), 1.0).to_event(1))
            with pyro.plate("pixels", D, dim=-1):
                pyro.sample("x", dist.Normal(decoder(z).squeeze(-2), 0.6), obs=x, obs_mask=seen)

    def guide(x, seen):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-2):
            loc, scale = halves(encoder(x * seen).unsqueeze(-2))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            with pyro.plate("pixels", D, dim=-1):
                q = dist.Normal(pyro.param("filled", torch.zeros(D)), 0.7)
                pyro.sample("x_unobserved", q.mask(~seen))

    seen = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 1], [1, 1, 1]]).bool()
    return Users(model, guide, (), {"x": torch.randn(B, D), "seen": seen})


def masked_examples():
    """Some examples do not count; the masks of model and guide are one."""
    encoder, decoder = network(D, 4, 2 * Z), network(Z, 4, D)

    def model(x, counts):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)), poutine.mask(mask=counts):
            z = gaussian_latent(x)
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x, counts):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)), poutine.mask(mask=counts):
            pyro.sample("z", dist.Normal(*halves(encoder(x))).to_event(1))

    return Users(model, guide, (binary(B, D), torch.tensor([True, False, True, True])))


def plate_without_size(shared):
    """``pyro.plate("data")``; with ``shared`` a latent inside it is one number for all examples, counted once."""

    def make():
        encoder, decoder = network(D, 4, 2 * Z), network(Z, 4, D)

        def model(x):
            pyro.module("decoder", decoder)
            with pyro.plate("data"):
                level = pyro.sample("level", dist.Normal(x.new_tensor(0.0), 1.0)) if shared else x.new_tensor(0.3)
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), Z), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(decoder(z) + level.unsqueeze(-1), 0.7).to_event(1), obs=x)

        def guide(x):
            pyro.module("encoder", encoder)
            with pyro.plate("data"):
                if shared:
                    pyro.sample("level", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.5))
                pyro.sample("z", dist.Normal(*halves(encoder(x))).to_event(1))

        return Users(model, guide, (torch.randn(B, D),))

    return make


def subsampled_plate():
    """Local latents alone, in a plate that takes B of N examples: N / B scales the whole bound."""
    encoder, decoder = network(D, 4, 2 * Z), network(Z, 4, D)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), subsample_size=2) as index:
            z = gaussian_latent(x)
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x[index])

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), subsample_size=2) as index:
            pyro.sample("z", dist.Normal(*halves(encoder(x[index]))).to_event(1))

    return Users(model, guide, (binary(6, D),))
