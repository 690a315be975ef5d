"""DReG in stock Pyro: a model and a guide of one's own, pyro.infer.SVI, and one import from pyro_vae."""

import pyro
import pyro.distributions as dist
import torch

from pyro_vae.elbo import DReG

torch.manual_seed(0)
x = torch.randn(1000, 2) @ torch.randn(2, 8) + 0.5 * torch.randn(1000, 8)
encoder, decoder = torch.nn.Linear(8, 4), torch.nn.Linear(2, 8)


def model(x):
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    loc, log_scale = encoder(x).chunk(2, dim=-1)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=DReG(num_particles=5))
losses = [svi.step(x) / len(x) for _ in range(500)]
print(f"{losses[-1]:.3f} nats per example")
