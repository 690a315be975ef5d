"""Wake-sleep and reweighted wake-sleep: two objectives, and samples of the model's own."""

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
from pyro_vae.elbo.estimator import Bound, Estimator, Form, Weighting, at_least_one
from pyro_vae.program.handlers import Unobserve
from pyro_vae.program.predictive import as_observed
from pyro_vae.program.tracing import observed_site, sample_sites, total_log_prob


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
