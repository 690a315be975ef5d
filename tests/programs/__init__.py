"""Programs as users write them: functions, modules, plain objects, several latents."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from pyro_vae import VAE

D, Z = 6, 2


def data(n=20, seed=0):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def make_functions():
    """A pair of functions over plain networks and one constrained parameter."""
    decoder = nn.Linear(Z, D)
    encoder = nn.Sequential(nn.Linear(D, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2 * Z))

    def model(x):
        pyro.module("decoder", decoder)
        scale = pyro.param("noise.scale", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


class ModuleProgram(nn.Module):
    """A class with model and guide."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(Z, D), nn.Linear(D, Z)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


class PlainProgram:
    """Neither a module nor functions: an object with two methods."""

    def __init__(self):
        self.inner = ModuleProgram()

    def model(self, x):
        return self.inner.model(x)

    def guide(self, x):
        return self.inner.guide(x)


class Model(PyroModule):
    def __init__(self):
        super().__init__("model")
        self.decoder = PyroModule[nn.Linear](Z, D)
        self.scale = PyroParam(torch.tensor(0.5), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self):
        super().__init__("guide")
        self.encoder = PyroModule[nn.Linear](D, Z)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def two_latents():
    """A hierarchy of two latent sites."""
    first, second = nn.Linear(1, Z), nn.Linear(Z, D)
    down = nn.Linear(D, Z)

    def model(x):
        pyro.module("first", first)
        pyro.module("second", second)
        with pyro.plate("data", len(x), dim=-1):
            top = pyro.sample("top", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(first(top), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(second(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("down", down)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(down(x), 1.0).to_event(1))
            pyro.sample("top", dist.Normal(z[..., :1], 1.0).to_event(1))

    return model, guide


def shapes_differ():
    net = nn.Linear(3, 1)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :1].expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    return model, guide


PROGRAMS = {
    "functions": make_functions,
    "module": ModuleProgram,
    "object": PlainProgram,
    "pyro modules": lambda: (Model(), Guide()),
    "hierarchy": two_latents,
    "vae": lambda: VAE((D,), Z, (4,), "gaussian:scale=0.5"),
}
