"""Estimators that need no reparameterization: REINFORCE and VIMCO, wake-sleep, and the thermodynamic objective."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.elbo.base import Bound, Estimator, Form, Weighting, at_least_one
from pyro_vae.elbo.draw import Draw, Terms
from pyro_vae.elbo.importance import log_mean_exp
from pyro_vae.errors import InputError
from pyro_vae.joint import total_log_prob
from pyro_vae.predictive import Unobserve, as_observed
from pyro_vae.program import observed_site, sample_sites


@dataclass(frozen=True)
class Reinforce(Estimator):
    r"""The ELBO by the score function, with the other particles as baseline.

    .. math:: \nabla_\varphi = \frac1K \sum_k \Bigl(\log w_k - \frac1{K-1} \sum_{j \ne k} \log w_j\Bigr)
        \nabla_\varphi \log q(z_k|x)

    Unbiased; for discrete latents too. Sources: Williams, Machine Learning 8, 1992; the baseline: Salimans and Knowles,
    arXiv 1401.1022; Mnih and Rezende, arXiv 1602.06725; Kool, van Hoof and Welling, ICLR 2019 workshop.

    Args:
        num_particles: K, at least 2: a particle's baseline is the mean of the others.

    Raises:
        InputError: fewer than two particles.
    """

    form: ClassVar[Form] = "fixed"
    num_particles: int = 5

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        if self.num_particles < 2:
            raise InputError("num_particles of at least 2, one beside each", self.num_particles, "num_particles=5")

    def weighting(self, terms: Terms) -> Weighting:
        """The score weighs what a particle is above the others."""
        log_w = terms.log_weight
        count = len(log_w)
        others = (log_w.sum(0) - log_w) / (count - 1)
        value = log_w.mean(0)
        return Weighting(value, torch.full_like(log_w, 1 / count), None, (log_w - others) / count)


class MovingAverage:
    """The running mean of a signal: the state of a baseline, kept apart from the frozen estimator that uses it."""

    def __init__(self) -> None:
        self.mean: Tensor | float = 0.0  # from the first step on a scalar where the data are: no step waits for it

    def update(self, value: Tensor, decay: float) -> None:
        """Take a scalar in."""
        self.mean = decay * self.mean + (1 - decay) * value


@dataclass(frozen=True)
class ReinforceMovingAverage(Estimator):
    r"""The ELBO by the score function, with the running mean of earlier steps as baseline.

    .. math:: \nabla_\varphi = \frac1K \sum_k (\log w_k - b) \nabla_\varphi \log q(z_k|x), \qquad
        b \leftarrow d\, b + (1 - d) \overline{\log w}

    Unbiased, since b comes from earlier steps alone; works with a single particle. b starts at 0 and is one number
    for all data: the baseline of NVIL without its networks (Mnih and Gregor, arXiv 1402.0030). It is state, of this
    object: give each run an estimator of its own.

    Args:
        num_particles: K.
        decay: d, from 0 to 1.

    Raises:
        InputError: values outside these ranges.
    """

    form: ClassVar[Form] = "fixed"
    num_particles: int = 1
    decay: float = 0.9
    average: MovingAverage = field(default_factory=MovingAverage, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        if not 0 <= self.decay < 1:
            raise InputError("a decay of at least 0 and below 1", self.decay, "decay=0.9")

    def weighting(self, terms: Terms) -> Weighting:
        """The score weighs what a particle is above the baseline."""
        log_w = terms.log_weight
        count = len(log_w)
        return Weighting(log_w.mean(0), torch.full_like(log_w, 1 / count), None, (log_w - self.average.mean) / count)

    def of_draw(self, draw: Draw) -> Bound:
        """Use the baseline, then move it."""
        found = super().of_draw(draw)
        self.average.update(found.value.detach().mean().double(), self.decay)
        return found

    def state_dict(self) -> dict[str, Tensor | float]:
        """Return the baseline."""
        return {"baseline": self.average.mean}

    def load_state_dict(self, state: dict[str, Tensor | float]) -> None:
        """Put the baseline back."""
        self.average.mean = state["baseline"]


@dataclass(frozen=True)
class VIMCO(Reinforce):
    r"""The importance-weighted bound by the score function, each particle against the bound without it.

    .. math:: \nabla_\varphi = \sum_k \bigl(\mathcal L - \mathcal L_{-k} - \tilde w_k\bigr) \nabla_\varphi \log q(z_k|x)

    where :math:`\mathcal L = \log \frac1K \sum_j w_j` and :math:`\mathcal L_{-k}` is the same with :math:`w_k`
    replaced by the geometric mean of the others. Unbiased; for discrete latents too.
    Source: Mnih and Rezende, arXiv 1602.06725, equations 9 to 11.
    """

    def weighting(self, terms: Terms) -> Weighting:
        """The score weighs what a particle adds to the bound, less its share."""
        log_w = terms.log_weight
        count = len(log_w)
        geometric = (log_w.sum(0) - log_w) / (count - 1)  # log of the geometric mean of the others, (K, B)
        replaced = torch.where(torch.eye(count, dtype=torch.bool, device=log_w.device)[..., None], geometric, log_w)
        without = log_mean_exp(replaced, dim=1)  # row k: particle k replaced
        weight = log_w.softmax(0)
        value = log_mean_exp(log_w)
        return Weighting(value, weight, None, value - without - weight)


@dataclass(frozen=True)
class WakeSleep(Estimator):
    r"""Wake-sleep: θ and φ follow two different objectives, and no single bound is maximised.

    .. math:: \theta: \ \frac1K \sum_k \log p_\theta(x, z_k), \ z_k \sim q \qquad
        \varphi: \ \log q_\varphi(z'|x'), \ (x', z') \sim p_\theta

    The value is the ELBO. One dream (x', z') is drawn for every datum. AEVB's baseline. Source: Hinton, Dayan, Frey and
    Neal, Science 268, 1995.

    Args:
        num_particles: K, of the wake phase.

    Raises:
        InputError: when used, a model without one observed site of the shape of its first argument.
    """

    form: ClassVar[Form] = "fixed"
    num_particles: int = 1

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)

    def weighting(self, terms: Terms) -> Weighting:
        """The wake phase: θ alone."""
        log_w = terms.log_weight
        return Weighting(log_w.mean(0), torch.full_like(log_w, 1 / len(log_w)), None, None)

    def of_draw(self, draw: Draw) -> Bound:
        """Add the sleep phase."""
        wake = super().of_draw(draw)
        return Bound(wake.value, wake.surrogate + dreamt_log_q(draw).sum())


@dataclass(frozen=True)
class RWS(Estimator):
    r"""Reweighted wake-sleep: θ and φ follow two different objectives, and no single bound is maximised.

    .. math:: \theta: \ \sum_k \tilde w_k \log p_\theta(x, z_k) \qquad
        \varphi: \ a \sum_k \tilde w_k \log q_\varphi(z_k|x) + b \log q_\varphi(z'|x'), \ (x', z') \sim p_\theta

    The wake phases are self-normalised estimates of ∇ log p(x) and of the descent of KL(p(z|x) ‖ q), biased as 1/K; the
    value is the importance-weighted bound. For discrete latents too. Source: Bornschein and Bengio, arXiv 1406.2751.

    Args:
        num_particles: K.
        wake_phi: a, the weight of φ's wake phase.
        sleep_phi: b, the weight of φ's sleep phase.

    Raises:
        InputError: weights that are negative, or both 0.
    """

    form: ClassVar[Form] = "fixed"
    num_particles: int = 5
    wake_phi: float = 1.0
    sleep_phi: float = 0.0

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        if not (min(self.wake_phi, self.sleep_phi) >= 0 and 0 < self.wake_phi + self.sleep_phi < math.inf):
            got = f"wake_phi={self.wake_phi}, sleep_phi={self.sleep_phi}"
            raise InputError("finite weights of at least 0, not both 0", got, "wake_phi=1,sleep_phi=0")

    def weighting(self, terms: Terms) -> Weighting:
        """The wake phases."""
        log_w = terms.log_weight
        weight = log_w.softmax(0)
        return Weighting(log_mean_exp(log_w), weight, None, self.wake_phi * weight if self.wake_phi else None)

    def of_draw(self, draw: Draw) -> Bound:
        """Add the sleep phase, if it has a weight."""
        wake = super().of_draw(draw)
        if not self.sleep_phi:
            return wake
        return Bound(wake.value, wake.surrogate + self.sleep_phi * dreamt_log_q(draw).sum())


@dataclass(frozen=True)
class TVO(Estimator):
    r"""The thermodynamic variational objective: a left Riemann sum along the path from q to p.

    .. math:: \mathcal L = \sum_{i=0}^{S-1} (\beta_{i+1} - \beta_i)\, E_{\pi_{\beta_i}}[\log w] \le \log p(x), \qquad
        \pi_\beta \propto q^{1-\beta} p^\beta

    Each expectation is estimated from the same K particles with weights :math:`w_k^\beta` normalised, and its
    gradient by the covariance :math:`\nabla E_\pi[f] = E_\pi[\nabla f] + \mathrm{Cov}_\pi(\nabla \log \tilde\pi,
    f)`: no reparameterization. Biased for finite K. A single partition is the ELBO, with a φ-gradient that is too small
    by the factor (K − 1)/K. Source: Masrani, Le and Wood, arXiv 1907.00031.

    Args:
        num_particles: K.
        partitions: S.
        first_beta: β_1; the others are log-uniform from it to 1.

    Raises:
        InputError: fewer than one partition, a first_beta outside (0, 1), fewer than two particles.
    """

    form: ClassVar[Form] = "fixed"
    num_particles: int = 10
    partitions: int = 2
    first_beta: float = 0.025

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        at_least_one("partitions", self.partitions)
        if self.num_particles < 2:
            raise InputError("num_particles of at least 2", self.num_particles, "num_particles=10")
        if not 0 < self.first_beta < 1:
            raise InputError("a first_beta between 0 and 1", self.first_beta, "first_beta=0.025")

    def betas(self) -> Tensor:
        """Return β_0 = 0, …, β_S = 1, (S + 1,).

        Example:
            >>> TVO(partitions=3, first_beta=0.01).betas()
            tensor([0.0000, 0.0100, 0.1000, 1.0000], dtype=torch.float64)
        """
        if self.partitions == 1:
            return torch.tensor([0.0, 1.0], dtype=torch.float64)
        inner = torch.logspace(math.log10(self.first_beta), 0, self.partitions, dtype=torch.float64)
        return torch.cat([inner.new_zeros(1), inner])

    def weighting(self, terms: Terms) -> Weighting:
        """Sum the gradients of all partitions."""
        log_w = terms.log_weight
        betas = self.betas().to(log_w)
        value, theta, score = torch.zeros_like(log_w[0]), torch.zeros_like(log_w), torch.zeros_like(log_w)
        for beta, width in zip(betas[:-1], betas.diff(), strict=True):
            share = (beta * log_w).softmax(0)
            mean = (share * log_w).sum(0)
            centred = share * (log_w - mean)
            value = value + width * mean
            theta = theta + width * (share + beta * centred)
            score = score + width * ((1 - beta) * centred - share)
        return Weighting(value, theta, None, score)


def dreamt_log_q(draw: Draw) -> Tensor:
    """Return ``log q(z'|x')``, (B,), for one dream (x', z') of the model for every datum; the dream is cut off.

    Raises:
        InputError: the first argument is not the data of one observed site.
    """
    if not draw.args or len([1 for _, site in sample_sites(draw.model_trace) if site["is_observed"]]) > 1:
        got = (
            "no positional argument" if not draw.args else "several observed sites, of which one alone would be dreamt"
        )
        raise InputError("data as first argument, and one observed site of them, to dream of", got, "rws:sleep_phi=0")
    x, *others = draw.args
    with torch.no_grad():
        dream = poutine.trace(Unobserve()(draw.model)).get_trace(x, *others, **draw.kwargs)
    dreamt = as_observed(prune_subsample_sites(dream))
    seen = dreamt.nodes[observed_site(dreamt, x)]["value"]
    asleep = poutine.trace(poutine.replay(draw.guide, trace=dream)).get_trace(seen, *others, **draw.kwargs)
    return total_log_prob([site for _, site in sample_sites(prune_subsample_sites(asleep))])
