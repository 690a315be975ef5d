"""Estimators that need no reparameterization: REINFORCE and VIMCO."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import log_mean_exp
from pyro_vae.elbo.draw import Draw
from pyro_vae.elbo.estimator import Bound, Estimator, EstimatorState, Group, at_least_one
from pyro_vae.elbo.importance import IWAE
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.elbo.terms import Terms
from pyro_vae.elbo.weighting import ScoreFunction, Weighting


@dataclass(frozen=True)
class Reinforce(Estimator):
    r"""The ELBO by the score function, with the other particles as baseline.

    .. math:: \nabla_\varphi = \frac1K \sum_k \Bigl(\log w_k - \frac1{K-1} \sum_{j \ne k} \log w_j\Bigr)
        \nabla_\varphi \log q(z_k|x)

    Unbiased; for discrete latents too. Sources: Williams, Machine Learning 8, 1992; the baseline: Salimans and Knowles,
    arXiv 1401.1022; Mnih and Rezende, arXiv 1602.06725; Kool, van Hoof and Welling, ICLR 2019 workshop.

    Args:
        num_particles: K, at least 2: the baseline of a particle is the mean of the others.

    Raises:
        InputError: fewer than two particles.
    """

    gradient: ClassVar[type[Weighting]] = ScoreFunction
    linear: ClassVar[bool] = True
    num_particles: int = 5

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        if self.num_particles < 2:
            raise InputError("num_particles of at least 2, one beside each", self.num_particles, "num_particles=5")

    def weighting(self, terms: Terms) -> Weighting:
        """Return the ELBO; the score term is weighted by log w minus the mean of the others."""
        log_w = terms.log_weight
        count = len(log_w)
        others = (log_w.sum(0) - log_w) / (count - 1)
        value = log_w.mean(0)
        return ScoreFunction(value, torch.full_like(log_w, 1 / count), (log_w - others) / count)

    def reference(self, group: Group) -> Estimator:
        """Return the ELBO by its total derivative."""
        return SampledKL(self.num_particles)


class MovingAverage:
    """The running mean of a signal: the state of a baseline, kept apart from the frozen estimator that uses it."""

    def __init__(self) -> None:
        self.mean: Tensor | float = 0.0  # from the first step on a scalar on the data's device: no step waits for it

    def update(self, value: Tensor, decay: float) -> None:
        """Move the mean towards a scalar."""
        self.mean = decay * self.mean + (1 - decay) * value


@dataclass(frozen=True)
class ReinforceMovingAverage(Estimator):
    r"""The ELBO by the score function, with the running mean of earlier steps as baseline.

    .. math:: \nabla_\varphi = \frac1K \sum_k (\log w_k - b) \nabla_\varphi \log q(z_k|x), \qquad
        b \leftarrow d\, b + (1 - d) \overline{\log w}

    Unbiased, because b comes from earlier steps; works with a single particle. b starts at 0 and is one number for all
    examples: the baseline of NVIL without its networks (Mnih and Gregor, arXiv 1402.0030). It is state of this object:
    give each run its own estimator.

    Args:
        num_particles: K.
        decay: d, from 0 to 1.

    Raises:
        InputError: values outside these ranges.
    """

    gradient: ClassVar[type[Weighting]] = ScoreFunction
    linear: ClassVar[bool] = True
    num_particles: int = 1
    decay: float = 0.9
    average: MovingAverage = field(default_factory=MovingAverage, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        if not 0 <= self.decay < 1:
            raise InputError("a decay of at least 0 and below 1", self.decay, "decay=0.9")

    def weighting(self, terms: Terms) -> Weighting:
        """Return the ELBO; the score term is weighted by log w minus the baseline."""
        log_w = terms.log_weight
        count = len(log_w)
        return ScoreFunction(log_w.mean(0), torch.full_like(log_w, 1 / count), (log_w - self.average.mean) / count)

    def reference(self, group: Group) -> Estimator:
        """Return the ELBO by its total derivative."""
        return SampledKL(self.num_particles)

    def of_draw(self, draw: Draw) -> Bound:
        """Use the baseline, then update it."""
        found = super().of_draw(draw)
        self.average.update(found.value.detach().mean().double(), self.decay)
        return found

    def state_dict(self) -> EstimatorState:
        """Return the baseline."""
        return {"baseline": self.average.mean}

    def load_state_dict(self, state: EstimatorState) -> None:
        """Restore the baseline."""
        self.average.mean = state["baseline"]


@dataclass(frozen=True)
class VIMCO(Reinforce):
    r"""The importance-weighted bound by the score function, each particle against the bound without it.

    .. math:: \nabla_\varphi = \sum_k \bigl(\mathcal L - \mathcal L_{-k} - \tilde w_k\bigr) \nabla_\varphi \log q(z_k|x)

    where :math:`\mathcal L = \log \frac1K \sum_j w_j` and :math:`\mathcal L_{-k}` is the same with :math:`w_k`
    replaced by the geometric mean of the others. Unbiased; for discrete latents too.
    Source: Mnih and Rezende, arXiv 1602.06725, equations 9 to 11.
    """

    linear: ClassVar[bool] = False

    def weighting(self, terms: Terms) -> Weighting:
        """Return the bound; the score term is weighted by what a particle adds to the bound, minus w̃."""
        log_w = terms.log_weight
        count = len(log_w)
        geometric = (log_w.sum(0) - log_w) / (count - 1)  # log of the geometric mean of the others, (K, B)
        replaced = torch.where(torch.eye(count, dtype=torch.bool, device=log_w.device)[..., None], geometric, log_w)
        without = log_mean_exp(replaced, dim=1)  # row k: particle k replaced
        weight = log_w.softmax(0)
        value = log_mean_exp(log_w)
        return ScoreFunction(value, weight, value - without - weight)

    def reference(self, group: Group) -> Estimator:
        """Return the importance-weighted bound by its total derivative."""
        return IWAE(self.num_particles)
