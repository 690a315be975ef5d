"""Every objective with every gradient strategy per site, on mixed latents, against exact gradients.

Two programs of a discrete and a continuous latent, each first in turn; the exact gradient of the expected bound over
two particles is an enumeration of the discrete values and a Gauss-Hermite quadrature of the noise.
"""

import itertools
import math
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import assert_mean
from torch import Tensor
from toys import gauss_hermite

from pyro_vae import elbo

DRAWS = 60_000
NODES = 24
X = 0.7


@dataclass(frozen=True, eq=False)
class Mixed:
    """A latent d in {0, 1} and a latent z in R; ``first`` says which the guide samples first.

    p: d ~ Bernoulli(1/2), z ~ N(u d, 1), x ~ N(θ z + d, 1). q: d first: d ~ Bernoulli(logit a), z ~ N(m + s d, 0.8); or
    z first: z ~ N(m, 0.8), d ~ Bernoulli(logit a + s z). Parameters (B,): every example has a gradient of its own.
    """

    first: str
    theta: Tensor
    u: Tensor
    a: Tensor
    m: Tensor
    s: Tensor
    strategy: tuple[tuple[str, str], ...] = ()

    @property
    def parameters(self):
        return [self.theta, self.u, self.a, self.m, self.s]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", dist.Bernoulli(torch.full_like(x, 0.5)))
            z = pyro.sample("z", dist.Normal(self.u * d, 1.0))
            pyro.sample("x", dist.Normal(self.theta * z + d, 1.0), obs=x)

    def guide(self, x):
        infer = {site: {"gradient": how} for site, how in self.strategy}
        with pyro.plate("data", len(x), dim=-1):
            if self.first == "d":
                d = pyro.sample("d", dist.Bernoulli(logits=self.a), infer=infer.get("d"))
                pyro.sample("z", dist.Normal(self.m + self.s * d, 0.8), infer=infer.get("z"))
            else:
                z = pyro.sample("z", dist.Normal(self.m, torch.tensor(0.8, dtype=x.dtype)), infer=infer.get("z"))
                pyro.sample("d", dist.Bernoulli(logits=self.a + self.s * z), infer=infer.get("d"))

    def at(self, d, noise):
        """Return log w and log of the probability of d, at d and at z = its mean + 0.8 noise."""
        normal, bernoulli = torch.distributions.Normal, torch.distributions.Bernoulli
        z = self.m + (self.s * d if self.first == "d" else 0.0) + 0.8 * noise
        log_qd = bernoulli(logits=self.a if self.first == "d" else self.a + self.s * z).log_prob(d)
        log_qz = normal(0.0, 0.8).log_prob(0.8 * noise)
        log_p = normal(self.u * d, 1.0).log_prob(z) + normal(self.theta * z + d, 1.0).log_prob(torch.tensor(X))
        return log_p + math.log(0.5) - log_qz - log_qd, log_qd


def mixed(first, batch, strategy=()):
    values = torch.tensor([0.9, 0.4, -0.3, 0.2, 0.5], dtype=torch.float64)
    return Mixed(first, *(v.expand(batch).clone().requires_grad_() for v in values), strategy=strategy)


def exact(first, objective):
    """Gradient of E[objective(log w (2, ·))] over two particles."""
    program = mixed(first, 1)
    nodes, log_weights = gauss_hermite(NODES)
    one, two = (each.reshape(-1, 1) for each in torch.meshgrid(nodes, nodes, indexing="ij"))
    weight = (log_weights[:, None] + log_weights).exp().reshape(-1, 1)
    total = 0.0
    for d in itertools.product([0.0, 1.0], repeat=2):
        pair = [
            program.at(torch.tensor(value, dtype=torch.float64), noise)
            for value, noise in zip(d, (one, two), strict=True)
        ]
        log_w, log_qd = (torch.stack(each) for each in zip(*pair, strict=True))
        total = total + (weight * log_qd.sum(0).exp() * objective(log_w)).sum()
    return torch.autograd.grad(total, program.parameters)


def log_mean_exp(log_w):
    return log_w.logsumexp(0) - math.log(len(log_w))


OBJECTIVES = {
    "sampled_kl": (elbo.SampledKL(2), lambda w: w.mean(0)),
    "analytic_kl": (elbo.AnalyticKL(2), lambda w: w.mean(0)),
    "stl": (elbo.STL(2), lambda w: w.mean(0)),
    "reinforce": (elbo.Reinforce(2), lambda w: w.mean(0)),
    "iwae": (elbo.IWAE(2), log_mean_exp),
    "dreg": (elbo.DReG(2), log_mean_exp),
    "miwae": (elbo.MIWAE(2, 1), log_mean_exp),
    "piwae": (elbo.PIWAE(2, 1), log_mean_exp),
    "ciwae": (elbo.CIWAE(2, beta=0.3), lambda w: 0.3 * w.mean(0) + 0.7 * log_mean_exp(w)),
    "renyi": (elbo.Renyi(2, alpha=0.4), lambda w: log_mean_exp(0.6 * w) / 0.6),
    "vimco": (elbo.VIMCO(2), log_mean_exp),
    "by_autograd": (elbo.ByAutograd(elbo.IWAE(2)), log_mean_exp),
}
STRATEGIES = {"pathwise and score": (), "score for all": (("z", "score"),)}


def found(estimator, program):
    x = torch.full((len(program.theta),), X, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        loss = estimator.differentiable_loss(program.model, program.guide, x)
        return [-g for g in torch.autograd.grad(loss, program.parameters)]


def assert_exact(gradients, truths):
    for gradient, truth in zip(gradients, truths, strict=True):
        assert_mean(gradient, truth.item())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("name", "first"), [(n, f) for n in OBJECTIVES for f in "dz" if (n, f) != ("analytic_kl", "z")]
)
def test_the_gradient_is_exact_on_average(name, first, strategy):
    estimator, objective = OBJECTIVES[name]
    program = mixed(first, DRAWS, STRATEGIES[strategy])
    assert_exact(found(estimator, program), exact(first, objective))


@pytest.mark.parametrize("first", ["d", "z"])
def test_without_the_score_of_the_discrete_site_the_gradient_is_biased(first, monkeypatch):
    monkeypatch.setattr(elbo.IWAE, "advantage", lambda self, terms: torch.zeros_like(terms.log_qz))
    gradients = found(elbo.IWAE(2), mixed(first, DRAWS))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_exact(gradients, exact(first, log_mean_exp))


def test_dreg_without_its_correction_is_biased(monkeypatch):
    """The identity that replaces the score term leaves −w̃ log q of the discrete site beside its advantage."""
    plain = elbo.DReG.advantage
    monkeypatch.setattr(elbo.DReG, "advantage", lambda self, t: plain(self, t) + t.log_weight.softmax(0))
    gradients = found(elbo.DReG(2), mixed("z", DRAWS))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_exact(gradients, exact("z", log_mean_exp))


def test_a_leave_one_out_baseline_lowers_the_variance():
    spread = {}
    for name, estimator in {"with": elbo.IWAE(2), "without": elbo.IWAE(2)}.items():
        program = mixed("d", DRAWS)
        if name == "without":
            program = Mixed("d", *program.parameters)
            original = elbo.IWAE.advantage
            elbo.IWAE.advantage = lambda self, terms: self.weighting(terms).value.expand_as(terms.log_qz)
        try:
            spread[name] = found(estimator, program)[2].var()
        finally:
            if name == "without":
                elbo.IWAE.advantage = original
    assert spread["with"] < 0.5 * spread["without"]


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n != "by_autograd"])
def test_particles_one_by_one_have_the_same_expectation(name):
    estimator, objective = OBJECTIVES[name]
    program = mixed("d", DRAWS)
    assert_exact(found(replace(estimator, vectorize_particles=False), program), exact("d", objective))
