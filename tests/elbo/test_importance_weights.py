"""Importance weights: per example, normalised over particles, detached, with every constant."""

import math

import pytest
import torch
from checks import assert_close, assert_mean
from pyro.infer.importance import vectorized_importance_weights
from toys import MAKE, SAMPLED, gaussian, repeated, seeded, values

from pyro_vae import InputError, elbo


def test_weights_are_normalised_over_particles_per_example():
    """Pyro's ``vectorized_importance_weights(normalized=True)`` calls ``torch.logsumexp`` without a dimension."""
    program, x = gaussian(6, off=0.4), torch.linspace(-1, 1, 6, dtype=torch.float64)
    with pytest.raises(TypeError, match="logsumexp"):
        vectorized_importance_weights(
            program.model, program.guide, x, num_samples=4, max_plate_nesting=1, normalized=True
        )
    terms = seeded(elbo.IWAE(4).draw, program.model, program.guide, (x,), {}).terms.detach()
    for estimator in (elbo.IWAE(4), elbo.DReG(4), elbo.Renyi(4), elbo.VIMCO(4), elbo.RWS(4), elbo.CIWAE(4)):
        assert_close(estimator.weighting(terms).theta.sum(0), torch.ones(6, dtype=torch.float64))
    assert_close(elbo.MIWAE(2, 2).weighting(terms).theta.sum(0), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("name", MAKE)
def test_every_example_has_its_own_bound(name):
    """breze averages over examples before the logarithm of the mean weight, so that examples share their weights."""
    program, x = gaussian(6, off=0.4), torch.linspace(-1, 1, 6, dtype=torch.float64)
    changed = torch.cat([x[:1], x[1:] + 5])
    first, second = (values(MAKE[name](), program, data) for data in (x, changed))
    assert first.shape == (6,)
    assert first[0] == second[0]
    assert (first[1:] != second[1:]).all()
    gradients = []
    for data in (x, changed):
        estimator = MAKE[name]()
        loss = seeded(estimator.differentiable_loss, program.model, program.guide, data)
        parameters = [program.theta, program.a, program.m, program.r]
        gradients.append(torch.stack(torch.autograd.grad(loss, parameters, materialize_grads=True)))
    assert torch.equal(gradients[0][:, 0], gradients[1][:, 0])


def test_averaging_over_examples_first_gives_another_value():
    program, x = gaussian(2000, off=0.4), repeated(2000)
    log_w = seeded(elbo.IWAE(5).draw, program.model, program.guide, (x,), {}, "fixed").terms.log_weight.detach()
    averaged_first = log_w.mean(1).logsumexp(0) - math.log(5)
    difference = values(elbo.IWAE(5), program, x) - averaged_first
    assert difference.mean() > 5 * difference.std() / len(x) ** 0.5


@pytest.mark.parametrize("name", SAMPLED)
def test_no_constant_is_dropped(name):
    """At the posterior every bound is log p(x), whose exponential integrates to 1 over x."""
    grid = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    density = values(MAKE[name](), gaussian(len(grid), off=0.0), grid).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=1e-10)


def test_importance_weights_are_constants_and_of_the_bound():
    """PyTorch-VAE takes the softmax of the loss, and does not detach it.

    The gradient of the bound, by autograd through the logarithm of the mean weight, is ours to the last digit; the
    other two are off in expectation.
    """
    batch = 20_000
    program, x = gaussian(batch, off=0.35), repeated(batch)
    estimator = elbo.IWAE(5)
    draw = seeded(estimator.draw, program.model, program.guide, (x,), {})
    log_w = draw.terms.log_weight

    def gradient(objective):
        return torch.autograd.grad(objective.sum(), program.m, retain_graph=True)[0]

    right = gradient(log_w.logsumexp(0) - math.log(5))
    assert_close(gradient(estimator.of_draw(draw).surrogate), right)
    for wrong in ((log_w.softmax(0) * log_w).sum(0), ((-log_w).softmax(0).detach() * log_w).sum(0)):
        with pytest.raises(AssertionError, match="standard errors"):
            assert_mean(gradient(wrong) - right, 0.0)


def test_a_closed_kl_has_no_place_in_an_importance_weight():
    """At the posterior log w is log p(x) for each z; with the closed KL in place of log q − log p it is not.

    The logarithm of the mean of such "weights" then lies above log p(x): log E_q p(x|z) − KL is no bound.
    """
    program, x = gaussian(20_000, off=0.0), repeated(20_000)
    evidence = program.log_evidence(x).detach()
    draw = seeded(elbo.IWAE(20).draw, program.model, program.guide, (x,), {}, "fixed")
    fn, log_px_z = draw.guide_trace.nodes["z"]["fn"], draw.terms.log_px_z.detach()
    kl = torch.distributions.kl_divergence(fn, torch.distributions.Normal(0.0, 1.0)).detach()
    wrong = (log_px_z - kl).logsumexp(0) - math.log(20)
    excess = wrong - evidence
    assert excess.mean() > 5 * excess.std() / len(x) ** 0.5
    assert_close(values(elbo.IWAE(20), program, x), evidence)
    with pytest.raises(InputError, match="arguments that estimator iwae takes"):
        elbo.beta_vae(estimator="iwae", num_particles=5, free_bits=1.0)  # free bits need the closed form


def test_beta_above_one_is_no_bound_under_importance_weights():
    """Where x does not depend on z, log p(x) is log p(x|z), and E (p/q)^β above 1 for β > 1; the ELBO stays below."""
    batch = 20_000
    program, x = gaussian(batch, off=0.0, theta=0.0), repeated(batch)
    program.m = torch.full_like(program.m, 0.3)  # away from the prior, which is the posterior here
    evidence = program.log_evidence(x).detach()
    excess = values(elbo.Weighted(elbo.IWAE(50), beta=3.0), program, x) - evidence
    assert excess.mean() > 5 * excess.std() / batch**0.5
    below = evidence - values(elbo.Weighted(elbo.SampledKL(50), beta=3.0), program, x)
    assert below.mean() > 5 * below.std() / batch**0.5


def test_the_weighting_of_a_weighted_estimator_is_that_of_the_one_inside():
    """The terms are weighted already when they are drawn; weighting them again would weight the KL twice."""
    noise = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    terms = elbo.Terms(*noise)
    inner, whole = (e.weighting(terms) for e in (elbo.IWAE(4), elbo.Weighted(elbo.IWAE(4), beta=0.5)))
    assert torch.equal(inner.value, whole.value)
    assert torch.equal(inner.theta, whole.theta)
