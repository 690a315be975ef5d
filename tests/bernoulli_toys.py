"""One Bernoulli latent with a known ELBO, and estimators of such latents given their uniform noise by quadrature."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import elbo
from pyro_vae.program import bernoulli, relaxed

OURS = {"disarm": elbo.DisARM(2), "rebar": elbo.Rebar(1), "concrete": elbo.Concrete(1)}
X = 0.7


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


class Noise:
    """Uniform noise from a list, a tensor for each Bernoulli latent, in the order of sampling."""

    def __init__(self, *noise):
        self.noise = noise
        self.next = 0

    def __call__(self, like):
        found = self.noise[self.next % len(self.noise)]
        self.next += 1
        return found.to(like.dtype).expand(like.shape)


def given(monkeypatch, *noise):
    """Have the messengers take noise from tensors in place of the random generator."""
    for module in (bernoulli, relaxed):
        monkeypatch.setattr(module, "uniform", Noise(*noise))


def cells(*thresholds):
    """Midpoints and lengths of the intervals between 0, thresholds and 1."""
    ends = torch.tensor(sorted({0.0, *thresholds, 1.0}), dtype=torch.float64)
    return (ends[1:] + ends[:-1]) / 2, ends[1:] - ends[:-1]


def product(*pairs):
    """Nodes (nodes, dimensions) and weights of a product of rules."""
    nodes = torch.cartesian_prod(*(nodes for nodes, _ in pairs)).reshape(-1, len(pairs))
    weights = torch.cartesian_prod(*(weights for _, weights in pairs)).reshape(-1, len(pairs)).prod(1)
    return nodes, weights


def smooth(low=0.0, high=1.0, step=0.25, limit=34.0):
    """The trapezoidal rule for u = low + (high − low) σ(t) on the line of t."""
    t = torch.arange(-limit, limit + step, step, dtype=torch.float64)
    return low + (high - low) * t.sigmoid(), step * (high - low) * t.sigmoid() * (-t).sigmoid()


# ---- one Bernoulli latent


@dataclass(frozen=True, eq=False)
class Coin:
    """d ~ Bernoulli(logit m), x ~ N(θ d, 1); q: d ~ Bernoulli(logit a). Parameters (B,)."""

    theta: Tensor
    m: Tensor
    a: Tensor

    @property
    def parameters(self):
        return [self.theta, self.m, self.a]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            d = pyro.sample("d", dist.Bernoulli(logits=self.m))
            pyro.sample("x", dist.Normal(self.theta * d, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("d", dist.Bernoulli(logits=self.a))

    def log_w(self, d):
        return log_mass(d, self.m) + normal(self.theta * d, X) - log_mass(d, self.a)

    def bound(self):
        """The ELBO, exactly, (B,)."""
        p = self.a.sigmoid()
        return p * self.log_w(torch.ones_like(p)) + (1 - p) * self.log_w(torch.zeros_like(p))


def log_mass(d, logits):
    return d * logits - torch.nn.functional.softplus(logits)


def normal(mean, x, scale=1.0):
    return torch.distributions.Normal(mean, scale).log_prob(torch.as_tensor(x, dtype=torch.float64))


def coin(batch, a=0.8):
    values = torch.tensor([0.9, -0.4, a], dtype=torch.float64)
    return Coin(*(v.expand(batch).clone().requires_grad_() for v in values))


def gradients(estimator, program, x):
    loss = estimator.differentiable_loss(program.model, program.guide, x)
    return [-g for g in torch.autograd.grad(loss, program.parameters, materialize_grads=True)]


def expected(estimator, nodes, weights, a=0.8):
    """The expectation of the estimator's gradients over its noise, one example for each node, (3,)."""
    program = coin(len(nodes), a)
    found = gradients(estimator, program, torch.full((len(nodes),), X, dtype=torch.float64))
    return torch.stack([(weights * each).sum() for each in found])


def exact_coin(a=0.8):
    program = coin(1, a)
    return torch.stack(torch.autograd.grad(program.bound().sum(), program.parameters)).flatten()
