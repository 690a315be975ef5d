"""Wake-sleep and reweighted wake-sleep: θ and φ follow two objectives; the sleep phase samples from the model."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import log_mean_exp
from pyro_vae.elbo.draw import Draw, Terms
from pyro_vae.elbo.estimator import Bound, Estimator, Group, ScoreFunction, Weighting, at_least_one
from pyro_vae.elbo.importance import IWAE
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.program.handlers import Unobserve
from pyro_vae.program.predictive import as_observed
from pyro_vae.program.tracing import observed_site, sample_sites, total_log_prob


@dataclass(frozen=True)
class WakeSleep(Estimator):
    r"""Wake-sleep: θ and φ follow two different objectives, and no single bound is maximised.

    .. math:: \theta: \ \frac1K \sum_k \log p_\theta(x, z_k), \ z_k \sim q \qquad
        \varphi: \ \log q_\varphi(z'|x'), \ (x', z') \sim p_\theta

    The value is the ELBO. One sleep-phase sample (x', z') is taken from the model for every example. AEVB's baseline.
    Source: Hinton, Dayan, Frey and Neal, Science 268, 1995.

    Args:
        num_particles: K, of the wake phase.

    Raises:
        InputError: when used, a model without one observed site of the shape of its first argument.
    """

    gradient: ClassVar[type[Weighting]] = ScoreFunction
    num_particles: int = 1

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)

    def weighting(self, terms: Terms) -> Weighting:
        """Return the wake phase: the θ term alone."""
        log_w = terms.log_weight
        return ScoreFunction(log_w.mean(0), torch.full_like(log_w, 1 / len(log_w)))

    def reference(self, group: Group) -> Estimator | None:
        """Return the ELBO for θ; none is known for the sleep phase."""
        return SampledKL(self.num_particles) if group == "theta" else None

    def of_draw(self, draw: Draw) -> Bound:
        """Add the sleep phase."""
        wake = super().of_draw(draw)
        return Bound(wake.value, wake.surrogate + sleep_log_q(draw).sum())


@dataclass(frozen=True)
class RWS(Estimator):
    r"""Reweighted wake-sleep: θ and φ follow two different objectives, and no single bound is maximised.

    .. math:: \theta: \ \sum_k \tilde w_k \log p_\theta(x, z_k) \qquad
        \varphi: \ a \sum_k \tilde w_k \log q_\varphi(z_k|x) + b \log q_\varphi(z'|x'), \ (x', z') \sim p_\theta

    The wake phases are self-normalised estimates of ∇ log p(x) and −∇ KL(p(z|x) ‖ q), with bias of order 1/K. The
    value is the importance-weighted bound. For discrete latents too. Source: Bornschein and Bengio, arXiv 1406.2751.

    Args:
        num_particles: K.
        wake_phi: a, the weight of φ's wake phase.
        sleep_phi: b, the weight of φ's sleep phase.

    Raises:
        InputError: weights that are negative, or both 0.
    """

    gradient: ClassVar[type[Weighting]] = ScoreFunction
    num_particles: int = 5
    wake_phi: float = 1.0
    sleep_phi: float = 0.0

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        if not (min(self.wake_phi, self.sleep_phi) >= 0 and 0 < self.wake_phi + self.sleep_phi < math.inf):
            got = f"wake_phi={self.wake_phi}, sleep_phi={self.sleep_phi}"
            raise InputError("finite weights of at least 0, not both 0", got, "wake_phi=1,sleep_phi=0")

    def weighting(self, terms: Terms) -> Weighting:
        """Return the wake phases."""
        log_w = terms.log_weight
        weight = log_w.softmax(0)
        return ScoreFunction(log_mean_exp(log_w), weight, self.wake_phi * weight if self.wake_phi else None)

    def reference(self, group: Group) -> Estimator | None:
        """Return the importance-weighted bound for θ, whose gradient is the same; none is known for φ."""
        return IWAE(self.num_particles) if group == "theta" else None

    def of_draw(self, draw: Draw) -> Bound:
        """Add the sleep phase, if it has a weight."""
        wake = super().of_draw(draw)
        if not self.sleep_phi:
            return wake
        return Bound(wake.value, wake.surrogate + self.sleep_phi * sleep_log_q(draw).sum())


def sleep_log_q(draw: Draw) -> Tensor:
    """Return ``log q(z'|x')``, (B,), of one detached sleep-phase sample (x', z') from the model for every example.

    Raises:
        InputError: the first argument is not the data of one observed site.
    """
    x = _data(draw)
    with torch.no_grad():
        sample = poutine.trace(Unobserve()(draw.model)).get_trace(x, *draw.args[1:], **draw.kwargs)
    sleep = as_observed(prune_subsample_sites(sample))
    seen = sleep.nodes[observed_site(sleep, x)]["value"]
    guide_trace = poutine.trace(poutine.replay(draw.guide, trace=sample)).get_trace(seen, *draw.args[1:], **draw.kwargs)
    return total_log_prob([site for _, site in sample_sites(prune_subsample_sites(guide_trace))])


def _data(draw: Draw) -> Tensor:
    """Return the first argument of the model, if it is the data of its one observed site."""
    observed = [name for name, site in sample_sites(draw.model_trace) if site["is_observed"]]
    if draw.args and isinstance(draw.args[0], Tensor) and len(observed) == 1:
        return draw.args[0]
    several = "several observed sites, of which one alone would be sampled"
    got = several if len(observed) > 1 and draw.args else "no tensor as positional argument"
    expected = "data as first argument, and one observed site of them, for the sleep phase"
    raise InputError(expected, got, "rws:sleep_phi=0")
