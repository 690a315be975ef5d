"""Information: closed forms against sampling, identities between the four, units, and what is refused."""

import math

import pyro.distributions as pyro_dist
import pytest
import torch
from checks import assert_close, assert_mean
from torch import distributions as td

from pyro_vae.base.errors import InputError
from pyro_vae.base.information import closed_form_kl, cross_entropy, entropy, kl, self_information


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(shift=0.0):
    return td.MixtureSameFamily(
        td.Categorical(doubles(0.3, 0.7)), td.Normal(doubles(-1.0, 2.0) + shift, doubles(1.0, 0.5))
    )


class Unclosed(td.Normal):
    """A normal of which torch knows no closed form."""

    def entropy(self):
        raise NotImplementedError


@td.register_kl(Unclosed, td.Normal)
def _none(p, q):
    raise NotImplementedError


PAIRS = {
    "normal": (td.Normal(doubles(0.0, 1.0), 1.0), td.Normal(doubles(0.5, -1.0), 2.0)),
    "vector": (
        pyro_dist.Normal(torch.zeros(4, 3).double(), 1.0).to_event(1),
        pyro_dist.Normal(torch.ones(3).double(), 2.0).to_event(1),
    ),
    "classes": (td.Categorical(doubles(0.2, 0.3, 0.5)), td.Categorical(doubles(0.6, 0.3, 0.1))),
    "coin": (pyro_dist.Bernoulli(doubles(0.2, 0.9)), pyro_dist.Bernoulli(doubles(0.5, 0.5))),
    "gamma": (td.Gamma(doubles(2.0), doubles(1.0)), td.Gamma(doubles(3.0), doubles(2.0))),
    "mixture": (mixture(), mixture(0.5)),
    "full": (
        pyro_dist.MultivariateNormal(doubles(0.3, -0.4), scale_tril=doubles([1.0, 0.0], [0.7, 0.5])),
        pyro_dist.Normal(doubles(1.0, 0.0), doubles(2.0, 0.8)).to_event(1),
    ),
    "low rank": (
        pyro_dist.LowRankMultivariateNormal(
            torch.zeros(4, 3).double(), torch.full((4, 3, 1), 0.6).double(), torch.full((4, 3), 0.5).double()
        ),
        pyro_dist.Normal(doubles(1.0, 0.0, 0.2), 2.0).to_event(1),
    ),
    "batch of the second": (
        td.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double()),
        pyro_dist.Normal(torch.ones(2, 3).double(), 2.0).to_event(1),
    ),
}


def within(found, reference, standard_errors=5):
    error = (found.value - reference).abs()
    assert (error <= standard_errors * found.standard_error + 1e-12).all(), f"{error / found.standard_error}"


@pytest.mark.parametrize("name", PAIRS)
def test_the_four_agree(name):
    p, q = PAIRS[name]
    divergence, crossed, own = kl(p, q), cross_entropy(p, q), entropy(p)
    assert (divergence.value >= 0).all()
    assert divergence.value.shape == torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    if crossed.exact:
        assert_close(crossed.value, own.value + divergence.value)
    else:
        errors = [part.standard_error if not part.exact else 0.0 for part in (crossed, divergence, own)]
        total = sum(torch.as_tensor(error) ** 2 for error in errors) ** 0.5
        assert ((crossed.value - own.value - divergence.value).abs() <= 5 * total).all()


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in ("mixture", "batch of the second")])
def test_closed_forms_are_the_means_of_self_information(name):
    p, q = PAIRS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = p.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape)).sample((20000,))
    for found, scored in ((entropy(p), p), (cross_entropy(p, q), q)):
        assert found.exact
        assert_mean(self_information(scored, x).value, found.value)


@pytest.mark.parametrize("name", ["full", "low rank"])
def test_a_covariance_against_a_diagonal_normal_is_torchs_of_two_full_ones(name):
    p, q = PAIRS[name]
    full = td.MultivariateNormal(p.mean, p.covariance_matrix)
    diagonal = td.MultivariateNormal(q.mean, torch.diag_embed(q.variance)).expand(p.batch_shape)
    assert_close(closed_form_kl(p, q), td.kl_divergence(full, diagonal))
    assert_close(cross_entropy(p, q).value, full.entropy() + td.kl_divergence(full, diagonal))
    with pytest.raises(NotImplementedError):  # torch has none of its own
        td.kl_divergence(p, q)


def test_sampled_values_are_within_their_errors():
    sampled, exact = Unclosed(doubles(0.0), doubles(1.5)), td.Normal(doubles(0.0), doubles(1.5))
    other = td.Normal(doubles(1.0), doubles(1.0))
    assert not any(found.exact for found in (entropy(sampled), kl(sampled, other), cross_entropy(sampled, other)))
    within(entropy(sampled), entropy(exact).value)
    within(kl(sampled, other), kl(exact, other).value)
    within(cross_entropy(sampled, other), cross_entropy(exact, other).value)
    with pytest.raises(AssertionError):  # planted: E_q in place of E_p
        within(kl(sampled, other), kl(other, exact).value)


def test_mixture_entropy_against_a_grid():
    grid = torch.linspace(-12, 12, 40001, dtype=torch.float64)
    log_p = mixture().log_prob(grid)
    within(entropy(mixture()), -torch.trapezoid(log_p.exp() * log_p, grid))


def test_units():
    p, q = mixture(), mixture(0.5)
    for function in (entropy, lambda p, **unit: kl(p, q, **unit), lambda p, **unit: cross_entropy(p, q, **unit)):
        nats, bits = function(p), function(p, unit="bits")
        assert_close(bits.value * math.log(2), nats.value)
        assert_close(bits.standard_error * math.log(2), nats.standard_error)
        assert bits.unit == "bits"
        assert_close(bits.to("nats").value, nats.value)
    assert self_information(td.Bernoulli(0.125), torch.tensor(1.0), unit="bits").value.item() == pytest.approx(3)


def test_sampling_is_seeded_and_has_no_side_effects():
    before = torch.get_rng_state()
    first, again, other = entropy(mixture()), entropy(mixture()), entropy(mixture(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.value, again.value)
    assert not torch.equal(first.value, other.value)


def test_more_samples_are_taken_as_asked():
    few, many = entropy(mixture(), num_samples=500), entropy(mixture(), num_samples=50_000)
    assert few.standard_error / many.standard_error == pytest.approx(10, rel=0.2)


def test_device_follows_the_distribution(device):
    p = td.Independent(Unclosed(torch.zeros(3, device=device), 1.0), 0)
    assert entropy(p).value.device.type == device.type


class Fixed(td.Normal):
    """A normal of one batch shape: it cannot be expanded."""

    def expand(self, batch_shape, _instance=None):
        raise NotImplementedError


def test_closed_forms_need_no_expansion_where_batch_shapes_agree():
    p, q = Fixed(doubles(0.0, 1.0), 1.0), td.Normal(doubles(2.0, 1.0), 1.0)
    assert_close(closed_form_kl(p, q), doubles(2.0, 0.0))
    assert kl(p, q).exact


def test_closed_forms_broadcast_or_are_none():
    p = td.MultivariateNormal(doubles(0.0, 0.0), torch.eye(2).double())
    q = p.expand((3,))
    assert_close(closed_form_kl(p, q), doubles(0.0, 0.0, 0.0))
    assert closed_form_kl(Unclosed(doubles(0.0), 1.0), td.Normal(doubles(0.0), 1.0)) is None


BAD = {
    "unit": (lambda: entropy(mixture(), unit="bit"), "Try 'bits'"),
    "one sample": (lambda: entropy(mixture(), num_samples=1), "num_samples of at least 2"),
    "events": (
        lambda: kl(td.Normal(torch.zeros(3), 1.0), td.MultivariateNormal(torch.zeros(3), torch.eye(3))),
        r"one event shape; got \(\) and \(3,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    make, message = BAD[name]
    with pytest.raises(InputError, match=message):
        make()
