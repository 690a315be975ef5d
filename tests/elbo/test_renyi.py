"""The Rényi bound: scales, α near and at 1, the sign of its bias; against Pyro's ``RenyiELBO``."""

import math

import pytest
import torch
from checks import assert_close
from pyro.infer import RenyiELBO
from toys import binary, gaussian, repeated, seeded, small_vae, subsampled, values

from pyro_vae import elbo
from pyro_vae.program.contexts import own_store


def test_a_subsampled_plate_does_not_temper_the_weights():
    """Pyro's ``RenyiELBO`` exponentiates scaled log-densities (issue 2220): w to the power N/B. Ours divides first."""
    program, model, guide, _ = subsampled(40, torch.arange(4))
    x = torch.linspace(-1.5, 1.5, 40, dtype=torch.float64)
    draw = seeded(elbo.IWAE(5).draw, program.model, program.guide, (x[:4],), {}, "fixed")
    log_w = draw.terms.log_weight.detach()

    def renyi(log_w):
        return ((0.6 * log_w).logsumexp(0) - math.log(5)).sum().item() / 0.6

    theirs = seeded(
        RenyiELBO(alpha=0.4, num_particles=5, max_plate_nesting=1, vectorize_particles=True).loss, model, guide, x
    )
    assert theirs == pytest.approx(-renyi(10 * log_w), rel=1e-12)  # tempered
    ours = seeded(elbo.Renyi(5, alpha=0.4).loss, model, guide, x)
    assert ours == pytest.approx(-10 * renyi(log_w), rel=1e-12)
    assert ours > theirs + 1  # a "bound" that is too high by more than a nat


def test_renyi_has_a_differentiable_loss():
    """Pyro's ``RenyiELBO`` has none, so no ``ELBOModule``."""
    vae, x = small_vae(), binary()
    with own_store(vae):
        with pytest.raises(AttributeError, match="differentiable_loss"):
            RenyiELBO(alpha=0.5, num_particles=3)(vae.model, vae.guide)(x)
        elbo.Renyi(3, alpha=0.5)(vae.model, vae.guide)(x).backward()
    assert all(p.grad.abs().sum() > 0 for p in vae.parameters())


def test_renyi_of_order_one_is_the_elbo():
    """Pyro's ``RenyiELBO`` refuses α = 1."""
    with pytest.raises(ValueError, match="alpha should not be equal to 1"):
        RenyiELBO(alpha=1.0)
    program, x = gaussian(20, off=0.4), repeated(20)
    assert_close(values(elbo.Renyi(3, alpha=1.0), program, x), values(elbo.SampledKL(3), program, x))


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, -1e-9])
def test_renyi_near_one_is_the_elbo_in_single_precision(distance):
    noise = 30 * torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0))
    single = elbo.Renyi(5, alpha=1 - distance).weighting(elbo.Terms(*noise)).value
    double = elbo.Renyi(5, alpha=1 - distance).weighting(elbo.Terms(*noise.double())).value
    assert (single - double).abs().max() < 1e-3
    mean = elbo.Terms(*noise.double()).log_weight.mean(0)
    assert (double - mean).abs().max() <= 2e4 * abs(distance)


def test_the_bias_of_renyis_estimate_has_the_sign_that_li_and_turner_prove():
    """Theorem 2: from K particles it is too low for α < 1 and too high for α > 1, and less so for larger K."""
    program, x = gaussian(20_000, off=0.3), repeated(20_000)
    for alpha, sign in ((-0.5, 1), (0.5, 1), (1.8, -1)):
        pairs, all_of_them = elbo.Renyi(2, alpha=alpha), elbo.Renyi(10, alpha=alpha)
        draw = seeded(all_of_them.draw, program.model, program.guide, (x,), {}, "fixed")
        terms = draw.terms.detach()
        first = type(terms)(terms.log_px_z[:2], terms.log_pz[:2], terms.log_qz[:2])
        gained = sign * (all_of_them.weighting(terms).value - pairs.weighting(first).value)
        assert gained.mean() > 5 * gained.std() / len(x) ** 0.5
