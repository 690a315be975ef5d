"""Programs with labels: a conditional VAE, semi-supervised M2, and a classifier of cells with batch normalisation."""

from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn
from torch.nn.functional import softplus

from programs.case import Users

B, D, Z, Y = 4, 6, 2, 3
MANY = 40  # examples where a site needs a score term: their mean has less noise, and errors show


def network(*widths):
    """A small network with large weights: what a latent is changes the bound by nats, and errors show."""
    layers = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.Tanh()]
    return steep(nn.Sequential(*layers[:-1]))


@torch.no_grad()
def steep(net, gain=2.5):
    for parameter in net.parameters():
        parameter.mul_(gain)
    return net


def halves(output):
    """Location and positive scale."""
    loc, raw = output.chunk(2, -1)
    return loc, softplus(raw) + 0.1


def binary(*shape):
    return torch.bernoulli(torch.full(shape, 0.5))


def conditional_vae():
    """p(missing half | given half): the missing pixels, −1, are picked by a boolean mask; the plate has no size."""
    first_guess, prior, recognition = network(D, 4, D), network(D, 4, 2 * Z), network(D, 4, 2 * Z)
    first_guess.requires_grad_(False)
    decoder = network(Z, 4, D)

    def filled(x, y):
        both = x.clone()
        both[x == -1] = y[x == -1]
        return both

    def model(x, y=None):
        pyro.module("prior", prior)
        pyro.module("decoder", decoder)
        with pyro.plate("data"):
            guess = torch.sigmoid(first_guess(x))
            loc, scale = halves(prior(filled(x, guess)))
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            logits = decoder(z)
            missing = x == -1
            if y is not None:
                hidden = dist.Bernoulli(logits=logits[missing].view(len(x), -1)).to_event(1)
                pyro.sample("y", hidden, obs=y[missing].view(len(x), -1))

    def guide(x, y=None):
        pyro.module("recognition", recognition)
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(*halves(recognition(filled(x, y)))).to_event(1))

    y = binary(B, D)
    x = y.clone()
    x[:, D // 2 :] = -1
    return Users(model, guide, (x, y))


class M2(nn.Module):
    """Semi-supervised: style z, label y, one-hot."""

    def __init__(self, infer=None):
        super().__init__()
        self.label, self.style, self.decoder = network(D, 4, Y), network(D + Y, 4, 2 * Z), network(Z + Y, 4, D)
        self.infer = infer or {}

    @staticmethod
    def joined(*parts):
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)

    def model(self, x, y=None):
        pyro.module("m2", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(Y)), obs=y)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(self.joined(z, y))).to_event(1), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.label(x)), infer=self.infer)
            pyro.sample("z", dist.Normal(*halves(self.style(self.joined(x, y)))).to_event(1))


def m2_sampled():
    net = M2()
    return Users(net.model, net.guide, (binary(MANY, D),))


def m2_labelled():
    net = M2()
    return Users(net.model, net.guide, (binary(B, D), torch.eye(Y)[torch.arange(B) % Y]))


def m2_enumerated():
    """The label is summed over, not sampled: ``TraceEnum_ELBO``'s bound."""
    net = M2(infer={"enumerate": "parallel"})
    return Users(net.model, net.guide, (binary(MANY, D),))


def normalised(wide, hidden, narrow):
    layers = nn.Linear(wide, hidden), nn.BatchNorm1d(hidden), nn.Tanh(), nn.Linear(hidden, narrow)
    return steep(nn.Sequential(*layers))


class Cells(nn.Module):
    """Counts of genes by type of cell: batch normalisation in model and guide, a classification loss as a factor."""

    def __init__(self, genes=5, width=4):
        super().__init__()
        self.genes, self.width = genes, width
        self.to_z, self.to_x = normalised(Z + Y, width, 2 * Z), normalised(Z, width, genes)
        self.encoder, self.top = normalised(genes, width, 2 * Z + 2), normalised(Z + Y, width, 2 * Z)
        self.classifier = normalised(Z, width, Y)

    def model(self, x, y=None):
        pyro.module("cells", self)
        dispersion = pyro.param("dispersion", 2.0 * x.new_ones(self.genes), constraint=dist.constraints.positive)
        with pyro.plate("batch", len(x)), poutine.scale(scale=0.2):
            top = pyro.sample("top", dist.Normal(0.0, x.new_ones(Z)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(Y)), obs=y)
            z = pyro.sample("z", dist.Normal(*halves(self.to_z(torch.cat([top, y], -1)))).to_event(1))
            depth = pyro.sample("depth", dist.LogNormal(1.0, 0.5 * x.new_ones(1)).to_event(1))
            mean = depth * self.to_x(z).softmax(-1)
            logits = mean.log() - dispersion.log()
            pyro.sample("x", dist.NegativeBinomial(dispersion, logits=logits).to_event(1), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("batch", len(x)), poutine.scale(scale=0.2):
            loc, scale = halves(self.encoder(x.log1p()))
            pyro.sample("depth", dist.LogNormal(loc[..., -1:], scale[..., -1:]).to_event(1))
            z = pyro.sample("z", dist.Normal(loc[..., :-1], scale[..., :-1]).to_event(1))
            which = dist.OneHotCategorical(logits=self.classifier(z))
            if y is None:
                y = pyro.sample("y", which)
            else:
                pyro.factor("classification", -0.3 * which.log_prob(y), has_rsample=True)
            pyro.sample("top", dist.Normal(*halves(self.top(torch.cat([z, y], -1)))).to_event(1))


def cells(labelled, training, count, width=4):
    """Where ``count`` equals the width, a particle dimension would be taken for channels without a word."""

    def make():
        net = Cells(width=width).train(training)
        x = torch.poisson(torch.full((count, net.genes), 3.0))
        return Users(net.model, net.guide, (x, torch.eye(Y)[torch.arange(count) % Y]) if labelled else (x,))

    return make
