"""Decompositions of the ELBO, on programs with known terms and against double loops by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close, assert_mean
from toys import NOISE, Module, TwoUnits, discrete, hierarchy, scalar_gaussian

from pyro_vae import VAE, InputError
from pyro_vae.elbo.draw import draw_terms
from pyro_vae.evaluation.methods import elbo_decomposition as surgery
from pyro_vae.evaluation.methods.elbo_decomposition import elbo_parts, elbo_surgery
from pyro_vae.program.contexts import evaluating


def data(number, theta=0.9, seed=101):  # not the seed of the noise: that would be the same stream
    """Examples from the Gaussian toy's marginal."""
    noise = torch.randn(number, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * math.sqrt(theta**2 + NOISE**2)


def test_parts_of_a_gaussian_program():
    program, x = scalar_gaussian(off=0.3), torch.full((3000,), 0.7, dtype=torch.float64)
    toy = program.toy
    mean, scale = toy.a * 0.7 + toy.m, toy.r.exp()
    parts = elbo_parts(program, x, num_particles=5)
    log_2pi = math.log(2 * math.pi)
    squared_residual = (0.7 - toy.theta * mean) ** 2 + toy.theta**2 * scale**2
    assert_mean(parts.reconstruction, -0.5 * log_2pi - math.log(NOISE) - 0.5 * squared_residual / NOISE**2)
    assert_mean(parts.cross_entropy, 0.5 * (log_2pi + mean**2 + scale**2))
    assert_mean(parts.entropy, 0.5 * (log_2pi + 1) + scale.log())
    assert_mean(parts.kl, 0.5 * (mean**2 + scale**2 - 1) - scale.log())


def test_parts_add_up_to_the_elbo_of_the_same_particles(device):
    vae, x = VAE((4,), latent_dim=2).to(device).double(), torch.ones(30, 4, dtype=torch.float64, device=device)
    parts = elbo_parts(vae, x, num_particles=100, seed=3)
    with evaluating(vae, x.device, 3):
        assert_close(parts.elbo, draw_terms(vae, x, 100).log_weight.mean(0).detach())
    assert_close(parts.kl, parts.cross_entropy - parts.entropy)


@pytest.mark.parametrize("make", ["gaussian", "hierarchy", "discrete", "vae"])
def test_the_kl_is_information_plus_marginal_kl(make):
    program, x = {
        "gaussian": lambda: (scalar_gaussian(off=0.2), data(130)),
        "hierarchy": lambda: (Module(hierarchy(1)), data(130)),
        "discrete": lambda: (Module(discrete(1)), data(130)),
        "vae": lambda: (VAE((4,), latent_dim=2).double(), torch.rand(130, 4).double().round()),
    }[make]()
    found = elbo_surgery(program, x, num_particles=3)
    assert_close(found.mutual_information + found.marginal_kl, found.parts.kl)
    assert found.mutual_information.shape == x.shape[:1]
    assert found.mutual_information.mean() < found.log_n


def by_hand(program, x, num_particles, seed=0):
    """Mutual information of the Gaussian toy from a double loop over codes and examples."""
    toy, q = program.toy, torch.distributions.Normal
    with evaluating(program, x.device, seed):
        codes, _ = surgery._codes(program, x, num_particles)
    found = torch.zeros_like(x)
    for k in range(num_particles):
        for n, z in enumerate(codes["z"][k]):
            densities = torch.stack([q(toy.a * other + toy.m, toy.r.exp()).log_prob(z).exp() for other in x])
            found[n] += (densities[n] / densities.mean()).log() / num_particles
    return found


def check_against_hand(program, x):
    assert_close(elbo_surgery(program, x, num_particles=2).mutual_information, by_hand(program, x, 2))


def test_the_aggregate_posterior_is_a_mixture_over_all_examples(monkeypatch):
    program, x = scalar_gaussian(), data(40)
    check_against_hand(program, x)
    monkeypatch.setattr(surgery, "EXAMPLES_AT_ONCE", 7)
    monkeypatch.setattr(surgery, "PAIRS_AT_ONCE", 90)
    check_against_hand(program, x)


def _mean_of_logs(program, x, codes):
    return surgery._log_q_of_pairs(program, x, codes).mean(1)


def _without_log_n(program, x, codes):
    return surgery._log_q_of_pairs(program, x, codes).logsumexp(1)


def _last_chunk_only(program, x, codes):
    return surgery._log_q_of_pairs(program, x[-20:], codes).logsumexp(1) - math.log(20)


@pytest.mark.parametrize("planted", [_mean_of_logs, _without_log_n, _last_chunk_only])
def test_a_wrong_mixture_is_caught_though_the_identity_still_holds(planted, monkeypatch):
    program, x = scalar_gaussian(), data(40)
    monkeypatch.setattr(surgery, "_log_aggregate", planted)
    found = elbo_surgery(program, x, num_particles=2)
    assert_close(found.mutual_information + found.marginal_kl, found.parts.kl)
    with pytest.raises(AssertionError, match="relative error"):
        check_against_hand(program, x)


def test_several_sites_are_one_code():
    toy, x = hierarchy(1), data(25)
    program, q = Module(toy), torch.distributions.Normal
    with evaluating(program, x.device, 0):
        codes, _ = surgery._codes(program, x, 1)
    z1, z2 = codes["z1"][0, :, None], codes["z2"][0, :, None]
    pairs = q(toy.a * x + toy.m, toy.s).log_prob(z2) + q(toy.b * z2 + toy.c, toy.t).log_prob(z1)
    expected = pairs.diagonal() - pairs.logsumexp(1) + math.log(25)
    assert_close(elbo_surgery(program, x).mutual_information, expected.detach())


def test_information_of_the_exact_posterior():
    """q(z) is p(z) up to the finite sample, and I(x; z) = ½ log(1 + θ²/σ²)."""
    found = elbo_surgery(scalar_gaussian(), data(3000))
    assert_mean(found.mutual_information, 0.5 * math.log(1 + 0.9**2 / NOISE**2))
    assert_mean(found.marginal_kl, 0.0)
    assert not found.saturated
    assert abs(found.index_entropy.value - (found.log_n - found.mutual_information.mean())) < 1e-10


def test_codes_that_never_overlap_saturate_at_log_n():
    x = torch.linspace(-1e4, 1e4, 60, dtype=torch.float64)
    found = elbo_surgery(TwoUnits(), x)
    assert_close(found.mutual_information, torch.full_like(x, math.log(60)))
    assert found.saturated
    assert abs(found.index_entropy.value) < 1e-10


def test_a_guide_that_ignores_its_data_tells_nothing():
    found = elbo_surgery(TwoUnits(a=0.0, s=1.0), data(50))
    assert_close(1 + found.mutual_information, torch.ones(50, dtype=torch.float64))
    assert_close(1 + found.marginal_kl, torch.ones(50, dtype=torch.float64))


class PlanarGuide(TwoUnits):
    """A flow that cannot be inverted."""

    def __init__(self):
        super().__init__()
        self.planar = dist.transforms.planar(2)

    def guide(self, x):
        q = dist.Normal(torch.stack([x, x], -1), 1.0).to_event(1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.TransformedDistribution(q, [self.planar]))


def test_a_flow_without_an_inverse():
    x = data(10).float()
    assert elbo_parts(PlanarGuide(), x).entropy.isfinite().all()
    with pytest.raises(InputError, match="flow without an inverse"):
        elbo_surgery(PlanarGuide(), x)
