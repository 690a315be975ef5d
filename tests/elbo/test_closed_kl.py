"""The KL in closed form: refused where it has none, or where it would be another quantity."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_close
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from toys import NOISE, gaussian, repeated, seeded, values

from pyro_vae import InputError, elbo

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def test_a_kl_without_a_closed_form_is_refused():
    """Pyro's ``TraceMeanField_ELBO`` samples that term without a warning."""
    program, x = gaussian(30, off=0.4), repeated(30)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.StudentT(torch.full_like(x, 3.0), 0.0, 1.0))
            pyro.sample("x", dist.Normal(program.theta * z, NOISE), obs=x)

    closed, sampled = (kind(max_plate_nesting=1) for kind in (TraceMeanField_ELBO, Trace_ELBO))
    silent = float(seeded(closed.loss, model, program.guide, x))
    assert silent == pytest.approx(seeded(sampled.loss, model, program.guide, x), rel=1e-12)
    with pytest.raises(InputError, match=r"closed form at site 'z'; got none for Normal and StudentT\. Try sampled"):
        elbo.AnalyticKL().loss(model, program.guide, x)


def test_masks_that_differ_are_refused_where_the_kl_is_closed():
    """``TraceMeanField_ELBO`` reads the guide's mask alone too; a mask on both counts."""
    program, x = gaussian(4, off=0.4), repeated(4)
    mask = torch.tensor([True, True, False, False])
    model, guide = pyro.poutine.mask(program.model, mask), pyro.poutine.mask(program.guide, mask)
    for pair in ((model, program.guide), (program.model, guide)):
        with pytest.raises(InputError, match="one mask for model and guide at site 'z'"):
            elbo.AnalyticKL().loss(*pair, x)
    everything = pyro.poutine.mask(program.model, torch.tensor([True] * 4))
    assert seeded(elbo.AnalyticKL().loss, everything, program.guide, x) > 0  # no mask and a mask of nothing are one
    for estimator in (elbo.AnalyticKL(3), elbo.SampledKL(3), elbo.IWAE(3), elbo.STL(3)):
        found = estimator.value(seeded(estimator.draw, model, guide, (x,), {})).detach()
        assert_close(found, values(estimator, program, x) * mask)


def bottom_up():
    """A model z2 → z1 → x with a guide that samples z1 first: an ordinary deep VAE."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(2 * z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1.expand(*z1.shape[:-1], 3), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(x[..., :1], 0.5).to_event(1))
            pyro.sample("z2", dist.Normal(0.4 * z1, 0.5).to_event(1))

    return model, guide


def test_closed_kl_is_refused_where_the_guide_samples_in_another_order():
    """Each closed KL would be taken against a prior that depends on latents not yet sampled: another quantity."""
    with pytest.raises(InputError, match=r"latents in the model's order, .* got z1, z2 in place of z2, z1"):
        elbo.AnalyticKL(2).loss(*bottom_up(), X)
    assert math.isfinite(elbo.SampledKL(2).loss(*bottom_up(), X))
