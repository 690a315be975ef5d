"""Doubly reparameterized forms: the expectation of the plain form, with less variance."""

import dataclasses

import pytest
import torch
from checks import assert_close, assert_mean
from toys import gauss_hermite, gaussian, hierarchy, repeated, seeded

from pyro_vae import elbo

DRAWS = 200_000
PAIRS = {
    "dreg": (elbo.DReG(2), elbo.IWAE(2)),
    "miwae_dreg": (elbo.MIWAEDReG(2, 3), elbo.MIWAE(2, 3)),
    "piwae_dreg": (elbo.PIWAEDReG(2, 3), elbo.PIWAE(2, 3)),
    "rws_dreg": (elbo.RWSDReG(2), elbo.RWS(2)),
    "rws_dreg, both phases": (elbo.RWSDReG(3, 0.3, 0.7), elbo.RWS(3, 0.3, 0.7)),
}


def gradients(estimator, program, x, seed=0):
    """Gradients of the bound per example: (model's, guide's), each (parameters, B)."""
    loss = seeded(estimator.differentiable_loss, program.model, program.guide, x, seed=seed)
    parameters = [*program.model_parameters, *program.guide_parameters]
    found = -torch.stack(torch.autograd.grad(loss, parameters, materialize_grads=True))
    return found[: len(program.model_parameters)], found[len(program.model_parameters) :]


def quadrature(objective, count=80):
    """φ's gradient of E[objective(log w, log q at fixed z)] over two particles, by Gauss-Hermite quadrature."""
    program, x = gaussian(1, off=0.35), repeated(1)
    nodes, log_weights = gauss_hermite(count)
    noise = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij")).reshape(2, -1)
    weight = (log_weights[:, None] + log_weights).exp().flatten()
    z = program.a * x + program.m + program.r.exp() * noise
    log_w = program.log_joint(x, z) - program.log_q(x, z)
    total = (weight * objective(log_w, program.log_q(x, z.detach()))).sum()
    return torch.stack(torch.autograd.grad(total, program.guide_parameters)).flatten()


def wake_phi(log_w, log_q):
    """Of reweighted wake-sleep: the particles' log q, weighted by constants."""
    return (log_w.detach().softmax(0) * log_q).sum(0)


def importance(log_w, _):
    return log_w.logsumexp(0)


@pytest.mark.parametrize(
    ("estimator", "objective"),
    [
        (elbo.RWS(2), wake_phi),
        (elbo.RWSDReG(2), wake_phi),
        (elbo.PIWAE(2, 2), importance),
        (elbo.PIWAEDReG(2, 2), importance),
        (elbo.MIWAEDReG(2, 2), importance),
    ],
    ids=lambda value: str(value) if isinstance(value, elbo.Estimator) else "",
)
def test_the_gradient_of_the_guide_is_that_of_its_objective(estimator, objective):
    program, x = gaussian(DRAWS, off=0.35), repeated(DRAWS)
    assert_mean(gradients(estimator, program, x)[1].T, quadrature(objective))


@dataclasses.dataclass(frozen=True)
class Descending(elbo.RWSDReG):
    """Reweighted wake-sleep with the sign of the published loss, which is minimised."""

    def weighting(self, terms):
        right = super().weighting(terms)
        return dataclasses.replace(right, path=-right.path)


@dataclasses.dataclass(frozen=True)
class Unsquared(elbo.PIWAEDReG):
    """The score term dropped without the square: sticking the landing."""

    def weighting(self, terms):
        right = super().weighting(terms)
        return dataclasses.replace(right, path=self._weights(terms) / self.num_bounds)


@pytest.mark.parametrize(
    ("wrong", "objective"), [(Descending(2), wake_phi), (Unsquared(2, 2), importance)], ids=["descending", "unsquared"]
)
def test_a_wrong_weight_is_found(wrong, objective):
    program, x = gaussian(DRAWS, off=0.35), repeated(DRAWS)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(gradients(wrong, program, x)[1].T, quadrature(objective))


@pytest.mark.parametrize("make", [gaussian, hierarchy], ids=["one latent", "two latents"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_plain_form_has_the_same_expectation(name, make):
    """On the same noise: θ draw by draw, φ on average; in a hierarchy, too."""
    program, x = make(100_000), repeated(100_000)
    (theta, phi), (plain_theta, plain_phi) = (gradients(e, program, x) for e in PAIRS[name])
    assert_close(theta, plain_theta)
    assert_mean((phi - plain_phi).T, 0.0)


@pytest.mark.parametrize(
    ("doubly", "plain", "factor"),
    [
        (elbo.MIWAEDReG(8, 8), elbo.MIWAE(8, 8), 100),
        (elbo.PIWAEDReG(8, 8), elbo.PIWAE(8, 8), 100),
        (elbo.RWSDReG(8), elbo.RWS(8), 1.5),
    ],
    ids=str,
)
def test_variance_is_lower_by_a_factor(doubly, plain, factor):
    """Measured 192, 192 and 1.8."""
    assert factor * variance(doubly, 0.35) < variance(plain, 0.35)


def variance(estimator, off):
    program, x = gaussian(20_000, off=off), repeated(20_000)
    return gradients(estimator, program, x)[1].var(1).sum().item()


def test_far_from_the_posterior_reweighted_wake_sleep_has_less_variance_in_its_plain_form():
    """As the documentation says: measured, 14 times less at K = 20."""
    assert variance(elbo.RWSDReG(20), 1.0) > 5 * variance(elbo.RWS(20), 1.0)


@pytest.mark.parametrize("name", ["miwae_dreg", "piwae_dreg", "rws_dreg"])
def test_there_is_no_noise_at_the_posterior(name):
    program, x = gaussian(200, off=0.0), repeated(200)
    doubly, plain = (gradients(e, program, x)[1] for e in PAIRS[name])
    assert doubly.abs().max() < 1e-12
    assert plain.std(1).min() > 0.1


def test_references_are_the_plain_forms():
    assert elbo.RWSDReG(3, 0.2, 0.8).reference("phi") == elbo.RWS(3, 0.2, 0.8)
    assert elbo.RWSDReG(3).reference("theta") == elbo.IWAE(3)
    assert elbo.MIWAEDReG(3, 2).reference("phi") == elbo.IWAE(3)
    assert [elbo.PIWAEDReG(3, 2).reference(g) for g in ("theta", "phi")] == [elbo.IWAE(6), elbo.IWAE(3)]


def test_the_weight_of_a_dominant_particle_keeps_its_digits():
    """W̃ − w̃² of a particle that has all but 1e-20 of the weight is 1e-20, and not 0."""
    zero = torch.zeros(2, 1, dtype=torch.float64)
    terms = elbo.Terms(torch.tensor([[0.0], [-46.0]], dtype=torch.float64), zero, zero)
    expected = torch.tensor([[-46.0], [-46.0]], dtype=torch.float64).exp()
    assert_close(elbo.RWSDReG(2).weighting(terms).path, expected, tolerance=1e-12)
