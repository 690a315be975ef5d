"""One battery for every prior: a new one is a new row."""

import math

import pytest
import torch
from families import assert_density_of_a_line, assert_elbo_and_gradient_are_pyros

from pyro_vae.models import StandardNormal

PRIOR_ROWS = {
    "standard_normal": StandardNormal,
}


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


def test_standard_normal_prior_density():
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    expected = [-math.log(2 * math.pi), -math.log(2 * math.pi) - 2.5]
    assert StandardNormal(2)().log_prob(z).tolist() == pytest.approx(expected)


def test_prior_follows_its_module_and_has_no_state(device):
    prior = StandardNormal(3).to(device, torch.float64)
    assert prior().sample().dtype == torch.float64
    assert prior().sample().device.type == device.type
    assert list(prior.state_dict()) == []
