"""Guides whose flow has no inverse: what can train and evaluate them, and what refuses them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys import MAKE, gaussian, repeated, seeded

from pyro_vae import InputError, elbo
from pyro_vae.data import as_images
from pyro_vae.evaluation.methods.bounds import held_out_elbo
from pyro_vae.program.contexts import own_store


@pytest.mark.parametrize("name", ["sampled_kl", "iwae", "miwae", "ciwae", "renyi"])
def test_what_trains_a_flow_without_an_inverse_can_evaluate_it(name):
    """A planar flow scores only the very tensor that it drew; ``Trace_ELBO`` evaluates it too."""
    planar = seeded(dist.transforms.planar, 2)

    class Flow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.planar = planar

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("flow", self)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.TransformedDistribution(dist.Normal(x, 1.0).to_event(1), [self.planar]))

    program, x = Flow(), torch.linspace(-1, 1, 10).view(5, 2)
    estimator = MAKE[name]()
    with own_store(program):
        evaluated = seeded(estimator.loss, program.model, program.guide, x)
        trained = seeded(estimator.loss_and_grads, program.model, program.guide, x)
    assert evaluated == pytest.approx(trained, rel=1e-6)
    assert held_out_elbo(program, as_images(x.clamp(0, 1)), num_particles=2).isfinite().all()


class NoInverse(torch.distributions.Transform):
    """A torch transform without an inverse: it raises another error than Pyro's."""

    domain = codomain = torch.distributions.constraints.real
    bijective = True

    def _call(self, x):
        return x + 0.5 * torch.tanh(x)

    def log_abs_det_jacobian(self, x, y):
        return torch.log1p(0.5 / torch.cosh(x) ** 2)


def test_a_transform_of_torchs_without_an_inverse_is_refused_in_words():
    program, x = gaussian(4, off=0.3), repeated(4)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(program.a * x + program.m, 1.0)
            pyro.sample("z", dist.TransformedDistribution(base, [NoInverse(cache_size=1)]))

    assert math.isfinite(elbo.IWAE(3).loss_and_grads(program.model, guide, x))
    with pytest.raises(InputError, match="got a flow without an inverse"):
        elbo.DReG(3).loss_and_grads(program.model, guide, x)
