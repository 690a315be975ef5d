"""Programs in steps: a deep Markov model with lengths and masks, and attend-infer-repeat with discrete presence."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn
from torch.nn.functional import softplus

from programs.case import Users
from programs.labels import MANY, binary, halves, network

B, D, Z, T, H = 4, 3, 2, 3, 4


class DeepMarkov(nn.Module):
    """One latent for each time step; sequences have lengths, and what lies beyond is masked."""

    def __init__(self, layers=1, dropout=0.0):
        super().__init__()
        self.transition, self.emission = network(Z, H, 2 * Z), network(Z, H, D)
        self.rnn = nn.RNN(D, H, batch_first=True, num_layers=layers, dropout=dropout)
        self.combine, self.first = network(Z + H, H, 2 * Z), nn.Parameter(torch.zeros(Z))

    def model(self, x, lengths, weight=1.0):
        pyro.module("markov", self)
        z = self.first
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    with poutine.scale(scale=weight):
                        z = pyro.sample(f"z_{t}", dist.Normal(*halves(self.transition(z))).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=self.emission(z)).to_event(1), obs=x[:, t])

    def guide(self, x, lengths, weight=1.0):
        pyro.module("markov", self)
        hidden = self.rnn(x.flip(1))[0].flip(1)
        z = self.first
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                before = z.expand(*z.shape[:-2], len(x), Z)
                q = dist.Normal(
                    *halves(self.combine(torch.cat([before, hidden[:, t].expand(*before.shape[:-1], H)], -1)))
                )
                with poutine.scale(scale=weight):
                    z = pyro.sample(f"z_{t}", q.mask((t < lengths)[:, None]).to_event(1))


def deep_markov():
    net = DeepMarkov()
    return Users(net.model, net.guide, (binary(B, T, D), torch.tensor([3, 1, 2, 3])))


def deep_markov_annealed():
    """A scale on the latents alone, as users anneal the KL."""
    net = DeepMarkov()
    return Users(net.model, net.guide, (binary(B, T, D), torch.tensor([3, 1, 2, 3])), {"weight": 0.5})


def deep_markov_dropout():
    """Noise of its own in a guide with several latents: two layers of the recurrence with dropout between."""
    net = DeepMarkov(layers=2, dropout=0.5)
    return Users(net.model, net.guide, (binary(B, T, D), torch.tensor([3, 1, 2, 3])))


class Objects(nn.Module):
    """Steps add objects until one is not present; it counts dimensions from the left, as a user's program may."""

    def __init__(self, size=4, steps=2):
        super().__init__()
        self.size, self.steps = size, steps
        self.rnn = nn.GRUCell(size + 1 + Z, H)
        self.predict, self.encode, self.decode = network(H, 4, 3), network(size + 1, 4, 2 * Z), network(Z, 4, size)

    def model(self, x):
        pyro.module("decode", self.decode)
        with pyro.plate("data", len(x)):
            present, canvas = x.new_ones(len(x), 1), x.new_zeros(len(x), self.size)
            for t in range(self.steps):
                present = pyro.sample(f"present_{t}", dist.Bernoulli(0.6 * present).to_event(1))
                where = pyro.sample(f"where_{t}", dist.Normal(0.0, x.new_ones(len(x), 1)).mask(present).to_event(1))
                what = pyro.sample(f"what_{t}", dist.Normal(0.0, x.new_ones(len(x), Z)).mask(present).to_event(1))
                canvas = canvas + self.decode(what) * torch.sigmoid(where) * present.view(-1, 1)
            pyro.sample("x", dist.Normal(canvas.view(len(x), -1), 0.5).to_event(1), obs=x.view(len(x), -1))

    def guide(self, x):
        for name in ("rnn", "predict", "encode"):
            pyro.module(name, getattr(self, name))
        with pyro.plate("data", len(x)):
            state, present, what = x.new_zeros(len(x), H), x.new_ones(len(x), 1), x.new_zeros(len(x), Z)
            for t in range(self.steps):
                state = self.rnn(torch.cat((x, present, what), 1), state)
                probability, loc, raw = self.predict(state).split(1, 1)
                present = pyro.sample(f"present_{t}", dist.Bernoulli(torch.sigmoid(probability) * present).to_event(1))
                q = dist.Normal(loc, softplus(raw) + 0.1).mask(present).to_event(1)
                where = pyro.sample(f"where_{t}", q)
                q = dist.Normal(*halves(self.encode(torch.cat((x, where), 1)))).mask(present).to_event(1)
                what = pyro.sample(f"what_{t}", q)


def attend_infer_repeat():
    net = Objects()
    return Users(net.model, net.guide, (torch.randn(MANY, net.size),))
