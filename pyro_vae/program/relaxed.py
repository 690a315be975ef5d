"""Bernoulli latents relaxed to numbers between 0 and 1: distributions, and the messengers that sample them."""

import math
from collections.abc import Callable
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pyro.distributions import Bernoulli, TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.base.errors import InputError
from pyro_vae.program.bernoulli import Coupled, Flag, Numbers, bernoulli_of, rebuilt, uniform
from pyro_vae.program.handlers import SampleMessage

Density = Literal["concrete", "mass"]


class Soft(Bernoulli):  # type: ignore[misc]  # Pyro's have no types
    r"""A Bernoulli whose mass :math:`\sigma(\alpha)^b \sigma(-\alpha)^{1-b}` is read at any b from 0 to 1.

    No density there: a control variate may be any function.
    """

    has_rsample = True

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the mass."""
        mass: Tensor = value * self.logits - F.softplus(self.logits)
        return mass


class LogitConcrete(TorchDistribution):
    r"""The binary concrete distribution of :math:`s = \sigma(y)`, scored by the density of y.

    .. math:: y = (\alpha + \log u - \log(1 - u)) / \lambda, \qquad
        \log f(y) = \log \lambda + \alpha - \lambda y - 2 \log(1 + e^{\alpha - \lambda y})

    s is 1 in float32 from y = 17 on; y is exact. Between model and guide the Jacobian of s cancels.

    Args:
        logits: α.
        temperature: λ.
        y: of the sample that is scored.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float, y: Tensor) -> None:
        self.logits, self.temperature, self.y = logits, temperature, y
        super().__init__(logits.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of y, whatever s it is rounded to."""
        away = self.logits - self.temperature * self.y
        return away + math.log(self.temperature) - 2 * F.softplus(away)


class Relaxed(Coupled):
    """Samples Bernoulli latents of the guide as binary concrete ones, and scores them in model and guide.

    Args:
        count: the number of particles.
        temperature: λ.
        density: by the densities of the concrete distribution, or by the Bernoulli masses read at s.
    """

    def __init__(self, count: int, temperature: float, density: Density) -> None:
        super().__init__(count)
        self.temperature, self.density = temperature, density
        self._y: dict[str, Tensor] = {}

    def sampled(self, msg: SampleMessage, logits: Tensor) -> Tensor:
        """Sample s."""
        y = (logits + uniform(logits.detach()).logit()) / self.temperature
        self._y[str(msg["name"])] = y
        self.scored(msg)
        return y.sigmoid()

    def scored(self, msg: SampleMessage) -> None:
        """Replace the distribution."""
        y = self._y[str(msg["name"])]
        if self.density == "mass":
            _replace(msg, lambda fn: Soft(logits=fn.logits, validate_args=False))
        else:
            _replace(msg, lambda fn: LogitConcrete(fn.logits, self.temperature, y))


class HardAndRelaxed(Coupled):
    r"""Samples Bernoulli latents in groups of three: hard, relaxed at the same noise, and at the noise given the hard.

    .. math:: b = 1[z > 0], \ z = \alpha + \mathrm{logit}(u); \qquad \sigma(z / \lambda); \qquad
        \sigma(\tilde z / \lambda), \ \tilde z \sim p(z|b)

    The K hard particles come first, then K of each other kind. A relaxed particle sees relaxed values alone: its logits
    at a later latent are its own, and its noise given the hard values is that of the hard particle's logits.

    The record of a latent is log q(b) at hard particles, 0 at others.
    """

    def __init__(self, count: int, temperature: float) -> None:
        super().__init__(count)
        self.temperature = temperature

    @property
    def hard(self) -> int:
        """K."""
        return self.count // 3

    def leader(self, particle: Numbers) -> Numbers:
        """Return the hard particle of the group."""
        return particle % self.hard

    def shares(self, particle: Numbers) -> Flag | None:
        """What is sampled before the first Bernoulli latent is the same in a group."""
        return None if self.names else particle >= self.hard

    def sampled(self, msg: SampleMessage, logits: Tensor) -> Tensor:
        """Sample hard and relaxed values."""
        kind = self.particles(logits) // self.hard
        hard, first = (self.along(each, msg, logits) for each in (kind == 0, kind == 1))
        noise = uniform(logits.detach())
        of_hard, u = self.shared("logits", logits, msg), self.shared("noise", noise, msg).logit()
        b = (of_hard.detach() + u > 0).to(logits.dtype)
        given = logit_given(b, of_hard, noise)
        z = logits + torch.where(first, u, given)
        self.record(msg, torch.where(hard, b * logits - F.softplus(logits), 0.0))
        self.scored(msg)
        return torch.where(hard, b, (z / self.temperature).sigmoid())

    def scored(self, msg: SampleMessage) -> None:
        """Replace the distribution."""
        _replace(msg, lambda fn: Soft(logits=fn.logits, validate_args=False))


def logit_given(b: Tensor, logits: Tensor, v: Tensor) -> Tensor:
    r"""Return logit(u) of the uniform u given :math:`b = 1[\alpha + \mathrm{logit}(u) > 0]`, from uniform noise v.

    Given b = 1, u is uniform above 1 − θ, else below, θ = σ(α): :math:`u = 1 - \theta (1 - v)`, :math:`(1 - \theta) v`.
    """
    log_p, log_not_p = (F.logsigmoid(each) for each in (logits, -logits))
    one = torch.log1p(-log_p.exp() * (1 - v)) - log_p - torch.log1p(-v)
    zero = v.log() + log_not_p - torch.log1p(-log_not_p.exp() * v)
    return torch.where(b > 0, one, zero)


def _replace(msg: SampleMessage, make: Callable[[Bernoulli], TorchDistribution]) -> None:
    if bernoulli_of(msg["fn"]) is None:
        raise InputError(
            f"a Bernoulli distribution of latent {msg['name']!r} in model and guide (it is scored at relaxed values)",
            type(msg["fn"]).__name__,
            "disarm or reinforce",
        )
    msg["fn"] = rebuilt(cast(TorchDistribution, msg["fn"]), make)
