"""One battery for every likelihood: a new one is a new row."""

import math

import pytest
import torch
from checks import assert_close, assert_mean
from families import heads_of
from torch import distributions as td

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import bounded_below
from pyro_vae.models import LIKELIHOODS, Bernoulli, Gaussian, LearnedGaussian

LIKELIHOOD_ROWS = {
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(scale=0.3),
    "gaussian, sigmoid": Gaussian(scale=0.3, mean_link="sigmoid"),
    "learned_gaussian": LearnedGaussian(min_scale=0.05),
    "learned_gaussian, sigmoid": LearnedGaussian(min_scale=0.05, mean_link="sigmoid"),
}


def total_probability(distribution):
    """Sum over {0, 1}, or integrate over the real line."""
    if isinstance(distribution.support, type(td.constraints.boolean)):
        values = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, *[1] * len(distribution.batch_shape))
        return distribution.log_prob(values.expand(2, *distribution.batch_shape)).exp().sum(0)
    grid = torch.linspace(-30, 30, 60001, dtype=torch.float64).reshape(-1, *[1] * len(distribution.batch_shape))
    density = distribution.log_prob(grid.expand(-1, *distribution.batch_shape)).exp()
    return torch.trapezoid(density, grid.flatten(), dim=0)


@pytest.mark.parametrize("name", LIKELIHOOD_ROWS)
class TestLikelihood:
    def test_is_normalised(self, name):
        family = LIKELIHOOD_ROWS[name]
        total = total_probability(family(*heads_of(family, 4)))
        assert_close(total, torch.ones(4, dtype=torch.float64))

    def test_mean_is_the_mean_of_its_draws(self, name):
        family = LIKELIHOOD_ROWS[name]
        distribution = family(*heads_of(family, 3, 2))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            draws = distribution.sample((20000,))
        assert_mean(draws, distribution.mean)

    def test_gradient_equals_finite_differences(self, name):
        family = LIKELIHOOD_ROWS[name]
        heads = [head.requires_grad_() for head in heads_of(family, 5)]
        x = (torch.arange(5) % 2).double()
        gradients = torch.autograd.grad(family(*heads).log_prob(x).sum(), heads)
        for which, gradient in enumerate(gradients):
            ends = []
            for sign in (1, -1):
                moved = [h.detach() + (sign * 1e-5 if i == which else 0) for i, h in enumerate(heads)]
                ends.append(family(*moved).log_prob(x))
            assert_close(gradient, (ends[0] - ends[1]) / 2e-5, tolerance=1e-7)

    def test_keeps_shape_dtype_and_device(self, name, device):
        family = LIKELIHOOD_ROWS[name].to(device)
        heads = [head.float().to(device) for head in heads_of(family, 2, 3, 8, 8)]
        distribution = family(*heads)
        assert distribution.batch_shape == (2, 3, 8, 8)
        assert distribution.mean.dtype == torch.float32
        assert distribution.mean.device.type == device.type


def test_every_likelihood_of_the_table_is_in_the_battery():
    assert {type(make()) for make in LIKELIHOODS.values()} == {type(row) for row in LIKELIHOOD_ROWS.values()}


def test_gaussian_density_on_paper():
    log_prob = Gaussian(scale=0.5)(torch.tensor([1.0])).log_prob(torch.tensor([2.0]))
    assert log_prob.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - math.log(0.5) - 2.0)


def test_sigmoid_link_keeps_means_inside():
    mean = Gaussian(mean_link="sigmoid")(torch.tensor([-100.0, 0.0, 3.0])).mean
    assert mean.tolist() == pytest.approx([0.0, 0.5, 1 / (1 + math.exp(-3))])


def test_learned_scale_never_falls_below_its_floor_and_is_free_above():
    log_scale = torch.tensor([-1e4, -10.0, 5.0], dtype=torch.float64, requires_grad=True)
    scale = LearnedGaussian(min_scale=0.01)(torch.zeros(3), log_scale).stddev
    assert (scale >= 0.01).all()
    assert scale[2].item() == pytest.approx(math.exp(5) + 0.01, rel=1e-12)  # log f + softplus(s − log f) = log(f + e^s)
    assert bounded_below(torch.tensor([0.0]), 1e-9).item() == pytest.approx(0.0, abs=1e-6)


BAD_FAMILIES = {
    "zero scale": (lambda: Gaussian(scale=0), "Expected a finite scale above 0; got 0"),
    "negative scale": (lambda: Gaussian(scale=-1.0), "Expected a finite scale above 0; got -1.0"),
    "nan scale": (lambda: Gaussian(scale=math.nan), "above 0; got nan"),
    "scale no number": (lambda: Gaussian(scale="wide"), "above 0; got 'wide'"),
    "zero floor": (lambda: LearnedGaussian(min_scale=0.0), "Expected a finite min_scale above 0"),
    "infinite scale": (lambda: Gaussian(scale=math.inf), "above 0; got inf"),
    "unknown link": (lambda: Gaussian(mean_link="sigmod"), "Try 'sigmoid'"),
}


@pytest.mark.parametrize("name", BAD_FAMILIES)
def test_bad_family_is_refused(name):
    make, message = BAD_FAMILIES[name]
    with pytest.raises(InputError, match=message):
        make()
