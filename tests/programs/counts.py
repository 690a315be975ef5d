"""Programs of counts: topics with a decoder that counts dimensions from the left, and layers of gamma variables."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.testing.rejection_gamma import RejectionStandardGamma, ShapeAugmentedGamma
from torch import nn
from torch.nn import functional
from torch.nn.functional import softplus

from programs.case import Users
from programs.labels import MANY

B, WORDS, TOPICS = 4, 6, 2


class Topics(nn.Module):
    """Dropout, batch normalisation and softmax(dim=1) in the decoder."""

    def __init__(self, dropout=0.2):
        super().__init__()
        self.drop, self.topics = nn.Dropout(dropout), nn.Linear(TOPICS, WORDS, bias=False)
        self.normal = nn.BatchNorm1d(WORDS, affine=False)
        self.encoder = nn.Linear(WORDS, 2 * TOPICS)
        self.of_loc, self.of_scale = (nn.BatchNorm1d(TOPICS, affine=False) for _ in range(2))

    def decode(self, weights):
        return functional.softmax(self.normal(self.topics(self.drop(weights))), dim=1)

    def model(self, x):
        pyro.module("topics", self.topics)
        with pyro.plate("documents", x.shape[0]):
            prior = dist.Normal(x.new_zeros(x.shape[0], TOPICS), x.new_ones(x.shape[0], TOPICS))
            weights = functional.softmax(pyro.sample("log_weights", prior.to_event(1)), -1)
            pyro.sample("x", dist.Multinomial(int(x.sum(-1).max()), self.decode(weights)), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("documents", x.shape[0]):
            loc, log_variance = self.drop(self.encoder(x)).chunk(2, -1)
            q = dist.Normal(self.of_loc(loc), (0.5 * self.of_scale(log_variance)).exp())
            pyro.sample("log_weights", q.to_event(1))


def topics(training, dropout=0.2):
    def make():
        net = Topics(dropout).train(training)
        return Users(net.model, net.guide, (torch.poisson(torch.full((B, WORDS), 2.0)),))

    return make


class SoftmaxOnly(Topics):
    """A decoder without normalisation whose softmax(dim=1) is over words here and over documents under particles."""

    def decode(self, weights):
        return functional.softmax(self.topics(weights), dim=1)


def topics_from_the_left():
    net = SoftmaxOnly(0.0).eval()
    return Users(net.model, net.guide, (torch.poisson(torch.full((B, WORDS), 2.0)),))


def positive(name, *shape):
    return softplus(pyro.param(name, lambda: 0.6 + 0.1 * torch.randn(*shape))) + 0.2


def gamma_family():
    """Two layers of gamma variables, the weights outside the plate of examples."""
    top, bottom, pixels = 2, 3, 4
    weights, latents = dist.Gamma(0.8, 0.5), (torch.tensor(0.9), torch.tensor(0.5))

    def model(x):
        with pyro.plate("top weights", top * bottom):
            upper = pyro.sample("upper", weights)
        with pyro.plate("bottom weights", bottom * pixels):
            lower = pyro.sample("lower", weights)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z_top", dist.Gamma(*latents).expand([top]).to_event(1))
            mean = z @ upper.reshape(*upper.shape[:-1], top, bottom)
            z = pyro.sample("z_bottom", dist.Gamma(latents[0], 0.9 / mean).to_event(1))
            mean = z @ lower.reshape(*lower.shape[:-1], bottom, pixels)
            pyro.sample("x", dist.Poisson(mean).to_event(1), obs=x)

    def guide(x):
        def sample(name, *shape, dims=0):
            shape_, mean = positive(f"{name} shape", *shape), positive(f"{name} mean", *shape)
            pyro.sample(name, dist.Gamma(3.0 * shape_, 3.0 * shape_ / mean).to_event(dims))

        with pyro.plate("top weights", top * bottom):
            sample("upper", top * bottom)
        with pyro.plate("bottom weights", bottom * pixels):
            sample("lower", bottom * pixels)
        with pyro.plate("data", len(x)):
            sample("z_top", len(x), top, dims=1)
            sample("z_bottom", len(x), bottom, dims=1)

    return Users(model, guide, (torch.poisson(torch.full((B, pixels), 3.0)),))


def rejected(distribution):
    """A gamma latent sampled by rejection: pathwise and score term of one site."""

    def make():
        def model(x):
            rate = pyro.param("rate", torch.tensor(3.0), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), x.new_tensor(1.0)))
                pyro.sample("x", dist.Poisson(rate * z), obs=x)

        def guide(x):
            shape = 1.0 + 0.1 * positive("shape", 1).expand(len(x))
            with pyro.plate("data", len(x)):
                pyro.sample("z", distribution(shape))

        return Users(model, guide, (torch.poisson(torch.full((MANY,), 3.0)),))

    return make


standard = rejected(RejectionStandardGamma)
augmented = rejected(lambda shape: ShapeAugmentedGamma(shape, torch.ones(()).expand_as(shape), boost=1))
