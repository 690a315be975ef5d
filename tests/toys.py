"""Programs with known answers, for estimators: Gaussian, hierarchical and discrete; and a row for every estimator.

Every example has its own parameters, tensors of shape (B,): one backward pass over B copies of an example gives B
independent samples of the gradient.
"""

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae import VAE, elbo

NOISE = 0.7  # σ of p(x|z)


@dataclass
class Gaussian:
    """z ~ N(0, 1), x ~ N(θ z, σ²); q(z|x) = N(a x + m, e^{2r}). All parameters (B,) or scalars, float64."""

    theta: Tensor
    a: Tensor
    m: Tensor
    r: Tensor

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(self.theta * z, NOISE), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.a * x + self.m, self.r.exp()))

    @property
    def model_parameters(self):
        return [self.theta]

    @property
    def guide_parameters(self):
        return [self.a, self.m, self.r]

    def log_joint(self, x, z):
        normal = torch.distributions.Normal
        return normal(0.0, 1.0).log_prob(z) + normal(self.theta * z, NOISE).log_prob(x)

    def log_q(self, x, z):
        return torch.distributions.Normal(self.a * x + self.m, self.r.exp()).log_prob(z)

    def log_evidence(self, x):
        return torch.distributions.Normal(0.0, (self.theta**2 + NOISE**2).sqrt()).log_prob(x)


def gaussian(batch, *, off=0.0, theta=0.9, device="cpu"):
    """Return the Gaussian toy; its guide is the posterior at ``off`` = 0, else mean and scale differ by ``off``."""
    precision = 1 + theta**2 / NOISE**2
    ones = torch.ones(batch, dtype=torch.float64, device=device)
    values = theta, theta / NOISE**2 / precision, off, -0.5 * math.log(precision) + off
    return Gaussian(*((value * ones).requires_grad_() for value in values))


@dataclass
class Hierarchy:
    """z1 ~ N(0, 1), z2 ~ N(θ z1, 1), x ~ N(z2, σ²); q: z2 ~ N(a x + m, s²) and then z1 ~ N(b z2 + c, t²)."""

    theta: Tensor
    a: Tensor
    m: Tensor
    b: Tensor
    c: Tensor
    s: float = 0.6
    t: float = 0.8

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros_like(x), 1.0))
            z2 = pyro.sample("z2", dist.Normal(self.theta * z1, 1.0))
            pyro.sample("x", dist.Normal(z2, NOISE), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(self.a * x + self.m, self.s))
            pyro.sample("z1", dist.Normal(self.b * z2 + self.c, self.t))

    @property
    def model_parameters(self):
        return [self.theta]

    @property
    def guide_parameters(self):
        return [self.a, self.m, self.b, self.c]

    def log_weight(self, x, noise):
        """Log w at given noise (..., 2), reparameterized by hand."""
        normal = torch.distributions.Normal
        q2 = normal(self.a * x + self.m, self.s)
        z2 = q2.mean + self.s * noise[..., 0]
        q1 = normal(self.b * z2 + self.c, self.t)
        z1 = q1.mean + self.t * noise[..., 1]
        log_p = (
            normal(0.0, 1.0).log_prob(z1) + normal(self.theta * z1, 1.0).log_prob(z2) + normal(z2, NOISE).log_prob(x)
        )
        return log_p - q2.log_prob(z2) - q1.log_prob(z1)


def hierarchy(batch):
    """Return the hierarchical toy; its guide is not the posterior."""
    ones = torch.ones(batch, dtype=torch.float64)
    return Hierarchy(*((value * ones).requires_grad_() for value in (0.8, 0.5, 0.1, 0.4, -0.1)))


@dataclass
class Discrete:
    """z one of C classes with logits θ; x ~ N(class mean, σ²); q(z|x) categorical with logits φ."""

    theta: Tensor  # (B, C)
    phi: Tensor  # (B, C)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(logits=self.theta))
            pyro.sample("x", dist.Normal(z.double() - 1.0, NOISE), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Categorical(logits=self.phi))

    @property
    def model_parameters(self):
        return [self.theta]

    @property
    def guide_parameters(self):
        return [self.phi]

    def log_table(self, x):
        """Log p(x, z) and log q(z|x) for every class, (B, C) each."""
        means = torch.arange(self.theta.shape[-1], dtype=torch.float64) - 1.0
        log_px_z = torch.distributions.Normal(means, NOISE).log_prob(x[:, None])
        return self.theta.log_softmax(-1) + log_px_z, self.phi.log_softmax(-1)


def discrete(batch, *, exact=False, x=0.4, classes=3):
    """Return the discrete toy; with ``exact`` its guide is the posterior of x."""
    theta = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)[:classes].expand(batch, classes)
    phi = torch.tensor([0.1, 0.6, -0.4], dtype=torch.float64)[:classes].expand(batch, classes)
    program = Discrete(theta.clone().requires_grad_(), phi.clone().requires_grad_())
    if exact:
        with torch.no_grad():
            log_joint, _ = program.log_table(torch.full((batch,), x, dtype=torch.float64))
        program.phi = log_joint.log_softmax(-1).requires_grad_()
    return program


def gauss_hermite(count):
    """Nodes and log-weights of the standard normal expectation."""
    nodes, weights = map(torch.from_numpy, __import__("numpy").polynomial.hermite_e.hermegauss(count))
    return nodes, weights.log() - 0.5 * math.log(2 * math.pi)


class Module(nn.Module):
    """Any toy with ``model`` and ``guide`` as a program."""

    def __init__(self, toy):
        super().__init__()
        self.toy = toy

    def model(self, x):
        return self.toy.model(x)

    def guide(self, x):
        return self.toy.guide(x)


def scalar_gaussian(theta=0.9, off=0.0, scale=1.0):
    """The Gaussian toy with scalar parameters; the guide is the posterior where ``off`` = 0 and ``scale`` = 1."""
    precision = 1 + theta**2 / NOISE**2
    values = theta, theta / NOISE**2 / precision, off, math.log(scale) - 0.5 * math.log(precision)
    return Module(Gaussian(*(torch.tensor(value, dtype=torch.float64) for value in values)))


class TwoUnits(nn.Module):
    """Two latents, prior N(0, 1): the mean of the first is a x with scale s, the second stays at the prior."""

    def __init__(self, sampled=False, a=0.5, s=0.8):
        super().__init__()
        self.sampled, self.a, self.s = sampled, a, s

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.standard(2, x))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def standard(self, size, x):
        return dist.Normal(torch.zeros(size, dtype=x.dtype, device=x.device), 1.0).to_event(1)

    def guide(self, x):
        loc = torch.stack([self.a * x, 0 * x], -1)
        scale = torch.tensor([self.s, 1.0], dtype=x.dtype, device=x.device)
        q = dist.Normal(loc, scale).to_event(1)
        if self.sampled:  # the same distribution, whose mean and KL have no closed form
            q = dist.TransformedDistribution(q, [dist.transforms.AffineTransform(0.0, 1.0, event_dim=1)])
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q)


# One row per estimator, each of 3 particles (MIWAE and PIWAE of 3 times 2, OVIS by Monte Carlo with 2 more); functions,
# since some keep a state.
MAKE = {
    "sampled_kl": lambda: elbo.SampledKL(3),
    "analytic_kl": lambda: elbo.AnalyticKL(3),
    "stl": lambda: elbo.STL(3),
    "iwae": lambda: elbo.IWAE(3),
    "iwae_stl": lambda: elbo.IWAESTL(3),
    "dreg": lambda: elbo.DReG(3),
    "miwae": lambda: elbo.MIWAE(3, 2),
    "miwae_dreg": lambda: elbo.MIWAEDReG(3, 2),
    "piwae": lambda: elbo.PIWAE(3, 2),
    "piwae_dreg": lambda: elbo.PIWAEDReG(3, 2),
    "local_iwae": lambda: elbo.LocalIWAE(3),
    "ciwae": lambda: elbo.CIWAE(3, beta=0.3),
    "renyi": lambda: elbo.Renyi(3, alpha=0.4),
    "disarm": lambda: elbo.DisARM(3),
    "rebar": lambda: elbo.Rebar(3),
    "concrete": lambda: elbo.Concrete(3),
    "reinforce": lambda: elbo.Reinforce(3),
    "reinforce_moving_average": lambda: elbo.ReinforceMovingAverage(3),
    "vimco": lambda: elbo.VIMCO(3),
    "ovis": lambda: elbo.OVIS(3),
    "ovis_mc": lambda: elbo.OVISMonteCarlo(3, 2),
    "wake_sleep": lambda: elbo.WakeSleep(3),
    "rws": lambda: elbo.RWS(3, sleep_phi=0.5),
    "rws_dreg": lambda: elbo.RWSDReG(3, sleep_phi=0.5),
    "tvo": lambda: elbo.TVO(3, partitions=3),
    "beta": lambda: elbo.beta_vae(beta=0.5, num_particles=3),
}
SAMPLED = [name for name in MAKE if name not in ("analytic_kl", "beta")]  # no KL in closed form


def seeded(function, *args, seed=0):
    """Call with a seed; the random state is restored."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return function(*args)


def repeated(batch, x=0.4):
    return torch.full((batch,), x, dtype=torch.float64)


def values(estimator, program, x, seed=0):
    """Bounds per example, (B,)."""
    draw = seeded(estimator.draw, program.model, program.guide, (x,), {}, "fixed", seed=seed)
    return estimator.value(draw).detach()


def small_vae(**options):
    return seeded(lambda: VAE((6,), 2, (4,), **options).double())


def binary(batch=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.bernoulli(torch.full((batch, 6), 0.5, dtype=torch.float64), generator=generator)


def subsampled(size, subsample=None):
    """The Gaussian toy in a plate of ``size`` examples, 4 of them subsampled; also their indices, one row per run."""
    program, seen = gaussian(4, off=0.4), []

    def model(x):
        with pyro.plate("data", size, subsample_size=4, subsample=subsample, dim=-1) as index:
            seen.append(index.tolist())
            z = pyro.sample("z", dist.Normal(torch.zeros(4, dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(program.theta * z, NOISE), obs=x[index])

    def guide(x):
        with pyro.plate("data", size, subsample_size=4, subsample=subsample, dim=-1) as index:
            seen.append(index.tolist())
            pyro.sample("z", dist.Normal(program.a * x[index] + program.m, program.r.exp()))

    return program, model, guide, seen


class Counted(Messenger):
    """Record the values of latent site z, one per run."""

    def __init__(self):
        super().__init__()
        self.values = []

    def _pyro_post_sample(self, msg):
        if msg["name"] == "z":
            self.values.append(msg["value"].detach())
