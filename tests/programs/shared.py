"""Programs with latents that the examples share: weights, components, regression, and Pyro's autoguides of them."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import autoguide
from torch.nn.functional import one_hot, softplus

from programs.case import Users
from programs.labels import binary, halves, network

N, B, D, Z = 12, 4, 3, 2


def loc_and_scale(name, *shape):
    loc = pyro.param(f"{name} loc", lambda: 0.3 * torch.randn(shape))
    return loc, pyro.param(f"{name} scale", lambda: torch.full(shape, 0.3), constraint=dist.constraints.positive)


def bayesian_decoder(scaled):
    """The decoder's weights are latent, outside the plate; a batch stands for N examples where the plate says so."""

    def make():
        encoder = network(D, 4, 2 * Z)

        def plate(x):
            return pyro.plate("data", N, subsample=torch.arange(B)) if scaled else pyro.plate("data", len(x))

        def model(x):
            weight = pyro.sample("weight", dist.Normal(x.new_zeros(Z, D), 1.0).to_event(2))
            with plate(x):
                z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
                logits = (z.unsqueeze(-2) @ weight).squeeze(-2)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(x):
            pyro.module("encoder", encoder)
            pyro.sample("weight", dist.Normal(*loc_and_scale("weight", Z, D)).to_event(2))
            with plate(x):
                pyro.sample("z", dist.Normal(*halves(encoder(x))).to_event(1))

        return Users(model, guide, (binary(B, D),))

    return make


def mixture(components):
    """Means of components in a plate at dim −1, of a size that may equal the batch; the assignment is sampled."""

    def make():
        assigner = network(D, 4, components)

        def model(x):
            with pyro.plate("components", components):
                means = pyro.sample("means", dist.Normal(x.new_zeros(D), 2.0).to_event(1))
            with pyro.plate("data", len(x)):
                which = pyro.sample("which", dist.Categorical(x.new_ones(components) / components))
                chosen = one_hot(which, components).to(x) @ means
                pyro.sample("x", dist.Normal(chosen, 1.0).to_event(1), obs=x)

        def guide(x):
            pyro.module("assigner", assigner)
            with pyro.plate("components", components):
                pyro.sample("means", dist.Normal(*loc_and_scale("means", components, D)).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("which", dist.Categorical(logits=assigner(x)))

        return Users(model, guide, (torch.randn(B, D),))

    return make


def component_weights():
    """Scalars of components at dim −1, as many as examples, beside local latents: sizes do not tell them apart."""

    def model(x):
        with pyro.plate("components", len(x)):
            level = pyro.sample("level", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + level.sum(-1, keepdim=True), 0.7), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("components", len(x)):
            pyro.sample("level", dist.Normal(*loc_and_scale("level", len(x))))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.6))

    return Users(model, guide, (torch.randn(B),))


def regression_model(subsample):
    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(x.new_tensor(-0.5), 0.3))
        with pyro.plate("data", len(x), subsample_size=subsample) as index:
            pyro.sample("y", dist.Normal((x[index] * slope).sum(-1), noise), obs=y[index])

    return model


def regression_data():
    x = torch.randn(N, D)
    return x, x @ torch.tensor([1.0, -0.5, 0.2]) + 0.5 * torch.randn(N)


def regression(subsample):
    """Slopes and noise; the plate of the model draws a subsample, and counts N / B."""

    def make():
        def guide(x, y):
            pyro.sample("slope", dist.Normal(*loc_and_scale("slope", D)).to_event(1))
            pyro.sample("noise", dist.LogNormal(*loc_and_scale("noise")))

        return Users(regression_model(subsample), guide, regression_data())

    return make


def correlated_model(x, y):
    """Two slopes of other shapes, one positive: the autoguides transform and join them."""
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
    noise = pyro.sample("noise", dist.Gamma(x.new_tensor(3.0), x.new_tensor(4.0)))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * slope).sum(-1), noise), obs=y)


def automatic(kind, **more):
    """An autoguide; its first call makes its parameters and draws, so that it is made before any comparison."""

    def make():
        data = regression_data()
        guide = getattr(autoguide, kind)(correlated_model, **more)
        guide(*data)
        return Users(correlated_model, guide, data)

    return make


def factor_model(decoder):
    """A latent with a factor of its own in the model."""

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.factor("smooth", -0.5 * z.pow(2).sum(-1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    return model


def factor():
    """A factor in model and guide: the guide's is a term of the loss, with its own derivative."""
    encoder, decoder = network(D, 4, 2 * Z), network(Z, 4, D)

    def guide(x):
        pyro.module("encoder", encoder)
        level = pyro.param("level", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            loc, scale = halves(encoder(x))
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            pyro.factor("penalty", softplus(level) * loc.pow(2).sum(-1) + 0.3 * z.sum(-1), has_rsample=True)

    return Users(factor_model(decoder), guide, (binary(B, D),))


def factor_by_score():
    """A draw outside ``pyro.sample``, whose log-probability the guide adds as a factor of the score."""
    encoder, decoder = network(D, 4, 2 * Z), network(Z, 4, D)

    def guide(x):
        pyro.module("encoder", encoder)
        coin = dist.Bernoulli(logits=pyro.param("level", torch.tensor(0.4)).expand(len(x)))
        with pyro.plate("data", len(x)):
            loc, scale = halves(encoder(x))
            side = coin.sample()
            pyro.factor("coin", coin.log_prob(side), has_rsample=False)
            pyro.sample("z", dist.Normal(loc + side[..., None], scale).to_event(1))

    return Users(factor_model(decoder), guide, (binary(B, D),))
