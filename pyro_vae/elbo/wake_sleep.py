"""Wake-sleep and reweighted wake-sleep: θ and φ follow two objectives; the sleep phase samples from the model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import importance_weights, log_mean_exp
from pyro_vae.base.types import PyroFunction
from pyro_vae.elbo.draw import Draw
from pyro_vae.elbo.estimator import Bound, Estimator, Group, at_least_one
from pyro_vae.elbo.importance import IWAE
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.elbo.sums import is_each, scaled_sum
from pyro_vae.elbo.terms import Terms
from pyro_vae.elbo.weighting import ScoreFunction, Weighting
from pyro_vae.program.handlers import Unobserve
from pyro_vae.program.particles import at_first_use
from pyro_vae.program.plates import summed
from pyro_vae.program.predictive import as_observed
from pyro_vae.program.tracing import log_density, sample_sites
from pyro_vae.program.trials import check_forgets_x


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
        InputError: when used, a model without an observed site, or with an observed value that is no argument.
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
        return Bound(wake.value, wake.surrogate + _weighed(draw, sleep_log_q(draw)))


@dataclass(frozen=True)
class RWS(Estimator):
    r"""Reweighted wake-sleep: θ and φ follow two different objectives, and no single bound is maximised.

    .. math:: \theta: \ \sum_k \tilde w_k \log p_\theta(x, z_k) \qquad
        \varphi: \ a \sum_k \tilde w_k \log q_\varphi(z_k|x) + b \log q_\varphi(z'|x'), \ (x', z') \sim p_\theta

    The wake phases are self-normalised estimates of ∇ log p(x) and −∇ KL(p(z|x) ‖ q), with bias of order 1/K. The
    value is the importance-weighted bound. For discrete latents too. Source: Bornschein and Bengio, arXiv 1406.2751.

    Args:
        num_particles: K, at least 2 without a sleep phase: the only particle would have weight 1 whatever it is, and
            φ's wake phase the mean 0.
        wake_phi: a, the weight of φ's wake phase.
        sleep_phi: b, the weight of φ's sleep phase.

    Raises:
        InputError: weights that are negative, or both 0; one particle and no sleep phase; with a sleep phase, when
            used, as :class:`WakeSleep`.
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
        if self.num_particles == 1 and not self.sleep_phi:
            expected = "several particles, or a sleep phase (the weight of a single particle teaches the guide nothing)"
            raise InputError(expected, "num_particles=1, sleep_phi=0", "num_particles=5")

    def weighting(self, terms: Terms) -> Weighting:
        """Return the wake phases."""
        log_w = terms.log_weight
        weight = importance_weights(log_w)
        return ScoreFunction(log_mean_exp(log_w), weight, self.wake_phi * weight if self.wake_phi else None)

    def reference(self, group: Group) -> Estimator | None:
        """Return the importance-weighted bound for θ, whose gradient is the same; none is known for φ."""
        return IWAE(self.num_particles) if group == "theta" else None

    def of_draw(self, draw: Draw) -> Bound:
        """Add the sleep phase, if it has a weight."""
        wake = super().of_draw(draw)
        if not self.sleep_phi:
            return wake
        return Bound(wake.value, wake.surrogate + self.sleep_phi * _weighed(draw, sleep_log_q(draw)))


def sleep_log_q(draw: Draw) -> Tensor:
    """Return ``log q(z'|x')``, (B,), of one detached sleep-phase sample (x', z') from the model for every example.

    Every observed value that is an argument of model and guide is replaced by its sample.

    Raises:
        InputError: an observed value that is no argument; a model that looks at x, whose samples are not of p(x, z).
    """
    at_first_use("simulates", _simulates, draw.model, draw.guide, draw.args, draw.kwargs)
    with torch.no_grad():
        sample = poutine.trace(Unobserve()(draw.model)).get_trace(*draw.args, **draw.kwargs)
    sleep = dict(sample_sites(as_observed(prune_subsample_sites(sample))))
    observed = {site["name"]: site["value"] for site in draw.runs[0].observed}
    pairs = [(value, sleep[name]["value"].expand(value.shape)) for name, value in observed.items()]
    args = tuple(_replaced(each, pairs) for each in draw.args)
    kwargs = {name: _replaced(each, pairs) for name, each in draw.kwargs.items()}
    lost = [n for n, v in observed.items() if not any(_same(v, a) for a in (*draw.args, *draw.kwargs.values()))]
    if lost or not observed:
        got = f"site {lost[0]!r}, whose value is none" if lost else "no observed site"
        expected = "observed values that are arguments of model and guide, for the sleep phase"
        raise InputError(expected, got, "rws:sleep_phi=0")
    guide_trace = poutine.trace(poutine.replay(draw.guide, trace=sample)).get_trace(*args, **kwargs)
    latents = [site for _, site in sample_sites(prune_subsample_sites(guide_trace)) if not site["is_observed"]]
    parts = [summed(log_density(site), draw.plates, None) for site in latents]
    return sum(parts[1:], parts[0]).reshape(-1) if parts else torch.zeros(())


def _simulates(model: PyroFunction, guide: PyroFunction, args: tuple[object, ...], kwargs: Mapping[str, object]) -> int:
    tensors = [each for each in args if isinstance(each, Tensor)]
    if tensors and tensors[0] is args[0]:
        check_forgets_x(model, tensors[0], *args[1:], **kwargs)
    else:
        name = next(name for name, each in kwargs.items() if isinstance(each, Tensor))
        rest = {n: value for n, value in kwargs.items() if n != name}
        check_forgets_x(lambda x: model(*args, **{name: x}, **rest), cast(Tensor, kwargs[name]))
    return 1


def _weighed(draw: Draw, log_q: Tensor) -> Tensor:
    """Sum over the examples, each times its scale, where the surrogate carries it; else it is left to the loss."""
    return scaled_sum(draw.scale, log_q) if is_each(draw.weight) else log_q.sum()


def _replaced(argument: object, pairs: Sequence[tuple[Tensor, Tensor]]) -> object:
    """Return the sample in place of an argument that is an observed value, and any other argument as it is."""
    for value, sample in pairs:
        if isinstance(argument, Tensor) and _same(value, argument):
            return sample.reshape(argument.shape)
    return argument


def _same(value: Tensor, argument: object) -> bool:
    """Whether an argument is the observed value, or a view of its data in another shape."""
    if value is argument:
        return True
    return (
        isinstance(argument, Tensor) and value.numel() == argument.numel() and value.data_ptr() == argument.data_ptr()
    )
