"""What the batteries of likelihoods, priors and posteriors share."""

import pytest
import torch
from checks import assert_close

from pyro_vae.elbo.catalogue import trace_elbo
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.models.vae import VAE
from pyro_vae.program.contexts import own_store


def heads_of(family, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(family.heads)]


def assert_density_of_a_line(distribution):
    """A density of event shape (1,) has total probability 1 on the real line."""
    grid = torch.linspace(-400, 400, 800_001, dtype=torch.float64)
    shape = (-1, *[1] * len(distribution.batch_shape), 1)
    density = distribution.log_prob(grid.reshape(shape)).exp()
    total = torch.trapezoid(density, grid, dim=0)
    assert_close(total, torch.ones_like(total), tolerance=1e-6)


def assert_elbo_and_gradient_are_pyros(**parts):
    """``sampled_kl`` equals Pyro's ``Trace_ELBO`` on the same noise, in value and gradient of every parameter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE((6,), 2, (5,), "gaussian", **parts).double()
        x = torch.randn(8, 6, dtype=torch.float64)
    found = []
    for elbo in (SampledKL(4), trace_elbo(4)):
        vae.zero_grad()
        with own_store(vae), torch.random.fork_rng():
            torch.manual_seed(1)
            loss = elbo.loss_and_grads(vae.model, vae.guide, x)
        found.append((loss, {n: p.grad.clone() for n, p in vae.named_parameters()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for parameter, gradient in found[0][1].items():
        assert_close(gradient, found[1][1][parameter])
