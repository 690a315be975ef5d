"""What the batteries of likelihoods, priors and posteriors share."""

import math

import numpy as np
import pytest
import torch
from checks import assert_close, assert_mean

from pyro_vae.base.errors import InputError
from pyro_vae.elbo.catalogue import trace_elbo
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.models.vae import VAE
from pyro_vae.program.contexts import own_store

SIDE = 501  # nodes along each of two dimensions
NORMALISED = 1e-4  # of a grid across the kinks of splines


def heads_of(family, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(family.heads)]


def seeded(function, *args, seed=0):
    """Call with a seed; the random state is restored."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return function(*args)


def shaken(module, seed=0, by=0.3):
    """Return a module in float64 whose parameters are moved from where they start, which may be special."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def smallest(make):
    """Return a family of as few latents as it takes."""
    for size in (1, 2):
        try:
            return make(size)
        except InputError:
            pass
    raise AssertionError("no family of one or two latents")


def nodes_of(distribution):
    """Return nodes (N, Z) and weights (N,) that integrate over the support of a density of few dimensions."""
    drawn = seeded(distribution.sample, (2000,))
    if (drawn.square().sum(-1) - 1).abs().max() < 1e-10:
        return circle() if drawn.shape[-1] == 2 else sphere()
    axes = [line(values, SIDE if drawn.shape[-1] > 1 else 40 * SIDE) for values in drawn.unbind(-1)]
    nodes, weights = (torch.cartesian_prod(*each).reshape(-1, len(axes)) for each in zip(*axes, strict=True))
    return nodes, weights.prod(-1)


def line(values, count):
    """Return nodes and weights about draws of one latent: dense where most are, and far beyond the last."""
    centre, spread = values.median(), (values - values.median()).abs().median()
    most = torch.asinh(3 * (values - centre).abs().max() / spread)
    steps = torch.linspace(-float(most), float(most), count, dtype=torch.float64)
    return centre + spread * steps.sinh(), spread * steps.cosh() * (steps[1] - steps[0])


def circle(count=4000):
    """Return nodes and weights of the uniform rule on the unit circle."""
    angles = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    return torch.stack([angles.cos(), angles.sin()], -1), torch.full((count,), 2 * math.pi / count, dtype=torch.float64)


def sphere(count=120):
    """Return nodes and weights on the unit sphere: Gauss-Legendre in the height, uniform in the angle."""
    heights, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(count))
    around, _ = circle(2 * count)
    radius = (1 - heights.square()).sqrt()
    nodes = torch.cat([radius[:, None, None] * around, heights[:, None, None].expand(-1, len(around), 1)], -1)
    return nodes.reshape(-1, 3), (weights * math.pi / count).repeat_interleave(len(around))


def features(z):
    """Return functions of latents whose means tell densities apart, (..., 4)."""
    first, last = z[..., 0], z[..., -1]
    return torch.stack(
        [first.sin(), (last - 0.3).cos(), torch.tanh(first * last), torch.sigmoid(9 * (first - 0.4))], -1
    )


def assert_normalised(distribution):
    """The density of a single distribution has total probability 1."""
    nodes, weights = nodes_of(distribution)
    with torch.no_grad():
        total = (distribution.log_prob(nodes).exp() * weights).sum()
    assert_close(total, torch.ones_like(total), tolerance=NORMALISED)


def assert_draws_are_of_the_density(distribution, count=20_000):
    """Means of functions of draws equal those by quadrature."""
    nodes, weights = nodes_of(distribution)
    with torch.no_grad():
        density = distribution.log_prob(nodes).exp() * weights
    drawn = seeded(distribution.sample, (count,))
    assert_mean(features(drawn), (density.unsqueeze(-1) * features(nodes)).sum(0) / density.sum())


def assert_mean_is_that_of_draws(distribution, count=20_000):
    """The mean of a distribution, and its variance, are those of its draws; False where it has none."""
    try:
        mean = distribution.mean
    except NotImplementedError:
        return False
    drawn = seeded(distribution.sample, (count,)).detach()
    assert_mean(drawn, mean.detach())
    try:
        variance = distribution.variance
    except NotImplementedError:
        return True
    assert_mean((drawn - mean.detach()).square(), variance.detach())
    return True


def assert_gradient(function, tensors, tolerance=1e-6, moves=True):
    """The gradient of a scalar function of tensors equals finite differences, along one direction of each.

    Args:
        function: of nothing; it reads the tensors.
        tensors: by name, leaves.
        tolerance: relative.
        moves: whether every tensor must move the function.
    """
    found = torch.autograd.grad(function(), list(tensors.values()), materialize_grads=True)
    for number, ((name, tensor), gradient) in enumerate(zip(tensors.items(), found, strict=True)):
        generator = torch.Generator().manual_seed(number)
        direction = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        ends, start = [], tensor.detach().clone()
        with torch.no_grad():
            for step in (-2e-5, -1e-5, 1e-5, 2e-5):
                tensor.copy_(start + step * direction)
                ends.append(function())
            tensor.copy_(start)
        expected = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / 12e-5  # of fourth order: splines are steep
        along = (gradient * direction).sum()
        assert (along - expected).abs() <= tolerance * max(1.0, float(expected.abs())), (name, along, expected)
        assert not moves or expected.abs() > 1e-9, f"{name} moves nothing"


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
