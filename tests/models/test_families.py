"""One battery for every family of likelihoods, priors and posteriors: a new family is a new row."""

import math

import pytest
import torch
from checks import assert_close, assert_mean
from torch import distributions as td

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import bounded_below, estimate
from pyro_vae.elbo.catalogue import trace_elbo
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.models.likelihoods import LIKELIHOODS, Bernoulli, Gaussian, LearnedGaussian
from pyro_vae.models.posteriors import DiagonalNormal
from pyro_vae.models.priors import StandardNormal
from pyro_vae.models.vae import VAE
from pyro_vae.program.contexts import own_store

LIKELIHOOD_ROWS = {
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(scale=0.3),
    "gaussian, sigmoid": Gaussian(scale=0.3, mean_link="sigmoid"),
    "learned_gaussian": LearnedGaussian(min_scale=0.05),
    "learned_gaussian, sigmoid": LearnedGaussian(min_scale=0.05, mean_link="sigmoid"),
}


def heads_of(family, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(family.heads)]


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


# --- priors and posteriors --------------------------------------------------------------------------------

PRIOR_ROWS = {
    "standard_normal": StandardNormal,
}
POSTERIOR_ROWS = {
    "diagonal_normal": DiagonalNormal(),
}


def assert_density_of_a_line(distribution):
    """A density of event shape (1,) has total probability 1 on the real line."""
    grid = torch.linspace(-400, 400, 800_001, dtype=torch.float64)
    shape = (-1, *[1] * len(distribution.batch_shape), 1)
    density = distribution.log_prob(grid.reshape(shape)).exp()
    total = torch.trapezoid(density, grid, dim=0)
    assert_close(total, torch.ones_like(total), tolerance=1e-6)


@pytest.mark.parametrize("name", PRIOR_ROWS)
class TestPrior:
    def test_is_normalised(self, name):
        assert_density_of_a_line(PRIOR_ROWS[name](1).double()())

    def test_keeps_shape_dtype_and_device(self, name, device):
        prior = PRIOR_ROWS[name](3).to(device, torch.float64)()
        draw = prior.sample((5,))
        assert (prior.batch_shape, prior.event_shape, draw.shape) == ((), (3,), (5, 3))
        assert draw.dtype == prior.log_prob(draw).dtype == torch.float64
        assert draw.device.type == device.type

    def test_its_vae_is_checked_against_pyro(self, name):
        assert_elbo_and_gradient_are_pyros(prior=PRIOR_ROWS[name](2))


@pytest.mark.parametrize("name", POSTERIOR_ROWS)
class TestPosterior:
    def test_is_normalised(self, name):
        family = POSTERIOR_ROWS[name]
        assert_density_of_a_line(family(*heads_of(family, 4, 1)))

    def test_mean_is_the_mean_of_its_draws(self, name):
        family = POSTERIOR_ROWS[name]
        distribution = family(*heads_of(family, 3, 2))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert_mean(distribution.sample((20000,)), distribution.mean)

    def test_every_head_has_the_gradient_of_its_draws(self, name):
        """Reparameterized: the derivative of a draw at fixed noise equals finite differences, for every head."""
        family = POSTERIOR_ROWS[name]
        heads = [head.requires_grad_() for head in heads_of(family, 4, 3)]

        def drawn(values):
            with torch.random.fork_rng():
                torch.manual_seed(1)
                return family(*values).rsample().sum()

        gradients = torch.autograd.grad(drawn(heads), heads, materialize_grads=True)
        for which, gradient in enumerate(gradients):
            ends = []
            for sign in (1, -1):
                moved = [h.detach() + (sign * 1e-5 if i == which else 0) for i, h in enumerate(heads)]
                ends.append(drawn(moved))
            assert_close(gradient.sum(), (ends[0] - ends[1]) / 2e-5, tolerance=1e-7)

    def test_keeps_shape_dtype_and_device(self, name, device):
        family = POSTERIOR_ROWS[name]
        distribution = family(*(head.float().to(device) for head in heads_of(family, 5, 2)))
        draw = distribution.rsample((7,))
        assert (distribution.batch_shape, distribution.event_shape, draw.shape) == ((5,), (2,), (7, 5, 2))
        assert draw.dtype == torch.float32
        assert draw.device.type == device.type

    def test_its_vae_is_checked_against_pyro(self, name):
        assert_elbo_and_gradient_are_pyros(posterior=POSTERIOR_ROWS[name])


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


def test_standard_normal_prior_density():
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    expected = [-math.log(2 * math.pi), -math.log(2 * math.pi) - 2.5]
    assert StandardNormal(2)().log_prob(z).tolist() == pytest.approx(expected)


def test_prior_follows_its_module_and_has_no_state(device):
    prior = StandardNormal(3).to(device, torch.float64)
    assert prior().sample().dtype == torch.float64
    assert prior().sample().device.type == device.type
    assert list(prior.state_dict()) == []


def test_diagonal_normal_density_and_gradient():
    loc, log_scale = heads_of(DiagonalNormal(), 4, 3)
    posterior = DiagonalNormal()(loc, log_scale)
    z = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    assert posterior.batch_shape == (4,)
    assert_close(posterior.log_prob(z), td.Normal(loc, log_scale.exp()).log_prob(z).sum(-1))
    assert posterior.has_rsample


def test_estimate_is_mean_and_standard_error():
    result = estimate(torch.tensor([1.0, 2.0, 4.0]))
    assert result.value == pytest.approx(7 / 3)
    assert result.standard_error == pytest.approx(math.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2 / 3))
    assert math.isnan(estimate(torch.ones(1)).standard_error)
