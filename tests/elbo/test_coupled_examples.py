"""Examples that depend on each other: the gradient against enumeration, the score weighted by the bound of all."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_mean

from pyro_vae import InputError, elbo
from pyro_vae.elbo import estimator as estimators
from pyro_vae.program import particles
from pyro_vae.program.particles import are_coupled

X = torch.tensor([1.5, -0.5], dtype=torch.float64)
DRAWS = 800


def means(d):
    """What the model expects of both examples: each depends on both latents, as under batch normalisation."""
    return d - 2.0 * d.flip(-1)


def program(logits):
    def model(x):
        with pyro.plate("data", len(x)):
            d = pyro.sample("d", dist.Bernoulli(torch.full_like(x, 0.5)))
            pyro.sample("x", dist.Normal(means(d), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("d", dist.Bernoulli(logits=logits))

    return model, guide


def exact(objective):
    """Gradient of E[Σ_b objective(log w_1b, log w_2b)] over two particles of two examples: 16 states."""
    logits = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    normal, bernoulli = torch.distributions.Normal, torch.distributions.Bernoulli(logits=logits)
    total = 0.0
    for state in itertools.product([0.0, 1.0], repeat=4):
        d = torch.tensor(state, dtype=torch.float64).reshape(2, 2)  # particles, examples
        log_q = bernoulli.log_prob(d)
        log_w = normal(means(d), 1.0).log_prob(X) + math.log(0.5) - log_q
        total = total + log_q.sum().exp() * objective(log_w).sum()
    return torch.autograd.grad(total, logits)[0]


def drawn(estimator):
    logits = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    model, guide = program(logits)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        losses = (estimator.differentiable_loss(model, guide, X) for _ in range(DRAWS))
        return torch.stack([-torch.autograd.grad(loss, logits)[0] for loss in losses])


def assert_exact(estimator, objective):
    found = drawn(estimator)
    for gradient, truth in zip(found.T, exact(objective), strict=True):
        assert_mean(gradient, truth.item())


OBJECTIVES = {
    "sampled_kl": (elbo.SampledKL(2), lambda w: w.mean(0)),
    "analytic_kl": (elbo.AnalyticKL(2), lambda w: w.mean(0)),
    "stl": (elbo.STL(2), lambda w: w.mean(0)),
    "reinforce": (elbo.Reinforce(2), lambda w: w.mean(0)),
    "iwae": (elbo.IWAE(2), lambda w: w.logsumexp(0) - math.log(2)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_exact_on_average(name):
    assert_exact(*OBJECTIVES[name])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_score_weighted_by_its_own_bound_alone_is_biased(name, monkeypatch):
    for module in (estimators,):
        monkeypatch.setattr(module, "of_all_examples", lambda advantage: advantage)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_exact(*OBJECTIVES[name])


@pytest.mark.parametrize("kind", [elbo.VIMCO, elbo.DReG, elbo.RWS, elbo.TVO, elbo.OVIS])
def test_what_weights_each_example_by_its_own_bound_refuses(kind):
    model, guide = program(torch.zeros(2, dtype=torch.float64, requires_grad=True))
    with pytest.raises(InputError, match="whose log-densities change with the latents of other examples"):
        kind(3).differentiable_loss(model, guide, X)


def found_coupled():
    """Of ten programs at ten seeds, in how many the trial finds that examples depend on each other."""
    found = []
    for seed in range(10):
        functions = program(torch.zeros(2, dtype=torch.float64))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found.append(are_coupled(*functions, (X,), {}))
    return sum(found)


def test_the_trial_finds_dependence_through_discrete_latents_at_every_seed(monkeypatch):
    """A latent sampled anew is the same again at one time in two: a single trial would miss it."""
    assert found_coupled() == 10
    monkeypatch.setattr(particles, "REPLACED", 1)
    assert found_coupled() < 10
