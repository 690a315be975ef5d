"""Estimators that need no reparameterization: REINFORCE, VIMCO and OVIS."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import importance_weights, log_mean_exp, log_share_of_others, mean_of_others
from pyro_vae.elbo.draw import Draw
from pyro_vae.elbo.estimator import Bound, Estimator, EstimatorState, Group, at_least_one
from pyro_vae.elbo.importance import IWAE
from pyro_vae.elbo.pathwise import SampledKL
from pyro_vae.elbo.terms import Terms
from pyro_vae.elbo.weighting import ScoreFunction, Weighting, added_by_each, bounded_share


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
        score = (log_w - mean_of_others(log_w)) / count
        return ScoreFunction(log_w.mean(0), torch.full_like(log_w, 1 / count), score)

    def reference(self, group: Group) -> Estimator:
        """Return the ELBO by its total derivative."""
        return SampledKL(self.num_particles)


class MovingAverage:
    """The running mean of a signal: the state of a baseline, kept apart from the frozen estimator that uses it."""

    def __init__(self) -> None:
        self.mean: Tensor | float = 0.0  # from the first step on a scalar on the data's device: no step waits for it

    def update(self, value: Tensor, decay: float) -> None:
        """Move the mean towards a scalar; one that is not finite, the value of a step with w = 0, leaves it."""
        step = (1 - decay) * (value - self.mean)
        self.mean = self.mean + torch.where(step.isfinite(), step, 0.0)


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
    replaced by the geometric mean of the others. Unbiased; for discrete latents too. Of one particle whose w is not 0
    among others that are, the difference would be infinite; it is that of the smallest normal number.
    Source: Mnih and Rezende, arXiv 1602.06725, equations 9 to 11.
    """

    linear: ClassVar[bool] = False

    def weighting(self, terms: Terms) -> Weighting:
        """Return the bound; the score term is weighted by what a particle adds to the bound, minus w̃."""
        log_w = terms.log_weight
        weight = importance_weights(log_w)
        return ScoreFunction(log_mean_exp(log_w), weight, added_by_each(log_w) - weight)

    def reference(self, group: Group) -> Estimator:
        """Return the importance-weighted bound by its total derivative."""
        return IWAE(self.num_particles)


@dataclass(frozen=True)
class OVIS(VIMCO):
    r"""The importance-weighted bound by the score function, with the control variate that is best for large K.

    .. math:: \nabla_\varphi = \sum_k \Bigl(\log \frac{1 - 1/K}{1 - \tilde w_k}
        - (1 - \gamma) \bigl(\tilde w_k + \log(1 - 1/K)\bigr)\Bigr) \nabla_\varphi \log q(z_k|x)

    The first logarithm is :math:`\mathcal L` minus the same bound of the other particles. Unbiased for γ = 0, where
    each particle stands against the bound with 0 in place of its weight. For γ > 0 γ times the wake phase of
    :class:`RWS` for φ is added: **biased**; γ = 1 is what the authors train with. For discrete latents too.
    Source: Liévin, Dittadi, Christensen and Winther, arXiv 2008.01998, equation 17 as in the authors' code.

    Args:
        num_particles: K, at least 2.
        gamma: γ, from 0 to 1.

    Raises:
        InputError: values outside these ranges.

    Example:
        >>> import torch
        >>> OVIS(2).weighting(Terms(torch.tensor([[0.0], [0.0]]), torch.zeros(2, 1), torch.zeros(2, 1))).score
        tensor([[0.1931],
                [0.1931]])
    """

    gamma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma <= 1:
            raise InputError("a gamma from 0 to 1", self.gamma, "gamma=0")

    def weighting(self, terms: Terms) -> Weighting:
        """Return the bound; the score term is weighted by the bound minus that of the other particles."""
        log_w = terms.log_weight
        weight, even = importance_weights(log_w), math.log1p(-1 / len(log_w))
        added = even - bounded_share(log_share_of_others(log_w))
        return ScoreFunction(log_mean_exp(log_w), weight, added - (1 - self.gamma) * (weight + even))


@dataclass(frozen=True)
class OVISMonteCarlo(Estimator):
    r"""The importance-weighted bound by the score function, with the optimal control variate from S further particles.

    .. math:: \nabla_\varphi = \sum_k \Bigl(d_k - \frac1S \sum_s d_k^{(s)}\Bigr) \nabla_\varphi \log q(z_k|x), \qquad
        d_k = \mathcal L - \tilde w_k

    where :math:`d_k^{(s)}` is :math:`d_k` with :math:`z_k` replaced by :math:`z^{(s)} \sim q(z|x)`. The bound is that
    of the first K particles; the S others serve φ alone. Unbiased; for discrete latents too.
    Source: Liévin, Dittadi, Christensen and Winther, arXiv 2008.01998, equation 12.

    Args:
        num_particles: K.
        num_auxiliary: S.
    """

    gradient: ClassVar[type[Weighting]] = ScoreFunction
    num_particles: int = 5
    num_auxiliary: int = 1

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        at_least_one("num_auxiliary", self.num_auxiliary)

    @property
    def total_particles(self) -> int:
        """K + S."""
        return self.num_particles + self.num_auxiliary

    def weighting(self, terms: Terms) -> Weighting:
        """Return the bound of the first K; the score term is weighted by d minus its mean over replacements."""
        log_w, further = terms.log_weight.split([self.num_particles, self.num_auxiliary])
        weight = importance_weights(log_w)
        share = further - log_w.logsumexp(0)  # of each replacement, log, (S, B)
        total = bounded_share(torch.logaddexp(log_share_of_others(log_w), share[:, None]))  # replaced, (S, K, B)
        score = ((share[:, None] - total).exp() - total).mean(0) - weight
        none = torch.zeros_like(further)
        return ScoreFunction(log_mean_exp(log_w), torch.cat([weight, none]), torch.cat([score, none]))

    def reference(self, group: Group) -> Estimator:
        """Return the importance-weighted bound by its total derivative."""
        return IWAE(self.num_particles)
