"""One battery for every variational family: a new one is a new row."""

import pytest
import torch
from checks import assert_close, assert_mean
from families import assert_density_of_a_line, assert_elbo_and_gradient_are_pyros, heads_of
from torch import distributions as td

from pyro_vae.models import DiagonalNormal

POSTERIOR_ROWS = {
    "diagonal_normal": DiagonalNormal(),
}


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


def test_diagonal_normal_density_and_gradient():
    loc, log_scale = heads_of(DiagonalNormal(), 4, 3)
    posterior = DiagonalNormal()(loc, log_scale)
    z = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    assert posterior.batch_shape == (4,)
    assert_close(posterior.log_prob(z), td.Normal(loc, log_scale.exp()).log_prob(z).sum(-1))
    assert posterior.has_rsample
