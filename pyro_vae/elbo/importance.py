"""Importance-weighted bounds and their gradients: IWAE, STL and DReG forms, MIWAE, PIWAE, CIWAE, Rényi."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import importance_weights, log_mean_exp
from pyro_vae.elbo.autograd import ByAutograd
from pyro_vae.elbo.estimator import Estimator, Group, at_least_one
from pyro_vae.elbo.terms import Terms
from pyro_vae.elbo.weighting import PathDerivative, ThreeTerms, Weighting, added_by_each


@dataclass(frozen=True)
class IWAE(Estimator):
    r"""The importance-weighted bound.

    .. math:: \mathcal L_K = \log \frac1K \sum_k w_k, \qquad
        \nabla = \sum_k \tilde w_k \nabla \log w_k, \quad \tilde w_k = w_k / \sum_j w_j

    Unbiased for the gradient of :math:`\mathcal L_K`; the signal-to-noise ratio of its φ-gradient falls as
    :math:`1/\sqrt K`. Sources: Burda, Grosse and Salakhutdinov, arXiv 1509.00519; Rainforth et al., arXiv 1802.04537.

    Args:
        num_particles: K.

    Raises:
        InputError: K is not positive; when used, scales that differ between sites, but for one of all latents beside
            one of the data.

    Example:
        >>> import torch
        >>> IWAE(2).weighting(Terms(torch.tensor([[0.0], [0.0]]), torch.zeros(2, 1), torch.zeros(2, 1))).theta
        tensor([[0.5000],
                [0.5000]])
    """

    kl_weightable: ClassVar[bool] = True
    num_particles: int = 5

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)

    def weighting(self, terms: Terms) -> Weighting:
        """Return the bound; every particle has weight w̃."""
        log_w = terms.log_weight
        return self.gradient.of(log_mean_exp(log_w), importance_weights(log_w))

    def advantage(self, terms: Terms) -> Tensor:
        """Return what each particle adds to the bound, (K, B)."""
        log_w = terms.log_weight
        return added_by_each(log_w) if len(log_w) > 1 else log_mean_exp(log_w).unsqueeze(0)

    def reference(self, group: Group) -> Estimator:
        """Return the importance-weighted bound by its total derivative."""
        return IWAE(self.num_particles)


@dataclass(frozen=True)
class IWAESTL(IWAE):
    r"""The importance-weighted bound, its gradient without the score term: **biased** for K > 1.

    .. math:: \nabla_\varphi = \sum_k \tilde w_k \nabla_z \log w_k \, \frac{dz_k}{d\varphi}

    The dropped term, :math:`\sum_k \tilde w_k \nabla_\varphi \log q(z_k|x)`, does not have mean zero because the
    weights depend on z; :class:`DReG` is the unbiased form. It is here for comparison. Source: Roeder, Wu and Duvenaud,
    arXiv 1703.09194, section 4; the bias: Tucker et al., arXiv 1810.04152.
    """

    gradient: ClassVar[type[Weighting]] = PathDerivative


@dataclass(frozen=True)
class DReG(IWAE):
    r"""The importance-weighted bound, doubly reparameterized.

    .. math:: \nabla_\varphi = \sum_k \tilde w_k^2 \, \nabla_z \log w_k \, \frac{dz_k}{d\varphi}, \qquad
        \nabla_\theta = \sum_k \tilde w_k \nabla_\theta \log p(x, z_k)

    Unbiased, and the signal-to-noise ratio of the φ-gradient does not fall with K. The score term is that of the joint
    log q(z|x) of all latent sites, and every path through earlier latents is kept, so the estimator holds for
    hierarchies of latents. Sites without reparameterization beside others keep their score, weighted by their advantage
    minus w̃. Sources: Tucker, Lawson, Gu and Maddison, arXiv 1810.04152; for hierarchies: Bauer and Mnih, Generalized
    Doubly Reparameterized Gradient Estimators, ICML 2021.

    Raises:
        InputError: when used, two scales; a ``Delta`` of the guide's own parameters, a straight-through site or a flow
            without an inverse in the guide; a model whose examples depend on each other's latents.
    """

    gradient: ClassVar[type[Weighting]] = ThreeTerms

    def weighting(self, terms: Terms) -> Weighting:
        """Return the bound; the pathwise term is weighted by w̃², w̃ the self-normalised importance weights."""
        log_w = terms.log_weight
        weight = importance_weights(log_w)
        return ThreeTerms(log_mean_exp(log_w), theta=weight, path=weight**2, score=None)


@dataclass(frozen=True)
class MIWAE(Estimator):
    r"""The mean of M importance-weighted bounds of K particles each.

    .. math:: \mathcal L = \frac1M \sum_m \log \frac1K \sum_k w_{mk}

    Source: Rainforth et al., arXiv 1802.04537.

    Args:
        num_particles: K, within a bound.
        num_bounds: M.
    """

    kl_weightable: ClassVar[bool] = True
    num_particles: int = 8
    num_bounds: int = 8

    def __post_init__(self) -> None:
        at_least_one("num_particles", self.num_particles)
        at_least_one("num_bounds", self.num_bounds)

    @property
    def total_particles(self) -> int:
        """M K."""
        return self.num_particles * self.num_bounds

    def weighting(self, terms: Terms) -> Weighting:
        """Return the mean bound; every particle has weight w̃/M, normalised within its bound."""
        return self.gradient.of(
            log_mean_exp(self._grouped(terms), dim=1).mean(0), self._weights(terms) / self.num_bounds
        )

    def _grouped(self, terms: Terms) -> Tensor:
        """Log w by bound, (M, K, B)."""
        log_w: Tensor = terms.log_weight.unflatten(0, (self.num_bounds, self.num_particles))
        return log_w

    def _weights(self, terms: Terms) -> Tensor:
        """The weights normalised within their bound, (M K, B)."""
        return importance_weights(self._grouped(terms), dim=1).flatten(0, 1)

    def reference(self, group: Group) -> Estimator:
        """Return one bound of K particles: its gradient has the same expectation."""
        return IWAE(self.num_particles)


@dataclass(frozen=True)
class PIWAE(MIWAE):
    r"""Two objectives: θ follows the bound of all M K particles, φ the mean of M bounds of K.

    .. math:: \theta: \ \log \frac1{MK} \sum_{mk} w_{mk}, \qquad
        \varphi: \ \frac1M \sum_m \log \frac1K \sum_k w_{mk}

    The value is the first: a tight bound for the model, a gradient of good signal-to-noise ratio for the guide.
    Source: Rainforth et al., arXiv 1802.04537.
    """

    gradient: ClassVar[type[Weighting]] = ThreeTerms

    def weighting(self, terms: Terms) -> Weighting:
        """Return the bound of all particles; IWAE's weights for θ, MIWAE's for φ."""
        log_w = terms.log_weight
        weight = self._weights(terms) / self.num_bounds
        return ThreeTerms(log_mean_exp(log_w), theta=importance_weights(log_w), path=weight, score=-weight)

    def advantage(self, terms: Terms) -> Tensor:
        """Return what each particle adds to the bound that φ follows."""
        return self.followed.advantage(terms)

    @property
    def followed(self) -> Estimator:
        """The mean of the bounds, which φ follows."""
        return MIWAE(self.num_particles, self.num_bounds)

    def reference(self, group: Group) -> Estimator:
        """Return the bound that each group of parameters follows."""
        return IWAE(self.total_particles if group == "theta" else self.num_particles)


@dataclass(frozen=True)
class CIWAE(IWAE):
    r"""A convex combination of ELBO and importance-weighted bound.

    .. math:: \mathcal L = \beta \frac1K \sum_k \log w_k + (1 - \beta) \log \frac1K \sum_k w_k

    Source: Rainforth et al., arXiv 1802.04537.

    Args:
        num_particles: K.
        beta: the ELBO's weight, from 0 (IWAE) to 1 (ELBO).
    """

    kl_weightable: ClassVar[bool] = True
    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise InputError("a beta from 0 to 1", self.beta, "beta=0.5")

    def weighting(self, terms: Terms) -> Weighting:
        """Return the combination; every particle has weight β/K + (1 − β) w̃."""
        log_w = terms.log_weight
        if self.beta == 0:  # 0 times an ELBO of −∞ is no number
            return super().weighting(terms)
        value = self.beta * log_w.mean(0) + (1 - self.beta) * log_mean_exp(log_w)
        return self.gradient.of(value, self.beta / len(log_w) + (1 - self.beta) * importance_weights(log_w))

    def advantage(self, terms: Terms) -> Tensor:
        """Return what each particle adds to this bound, (K, B)."""
        return Estimator.advantage(self, terms)

    def reference(self, group: Group) -> Estimator:
        """Return the derivative of the value by autograd: no other estimator maximises this bound."""
        return ByAutograd(self)


@dataclass(frozen=True)
class Renyi(IWAE):
    r"""The variational Rényi bound of any order α.

    .. math:: \mathcal L_\alpha = \frac1{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}

    α → 1 is the ELBO, α = 0 is IWAE. For α < 0 it estimates an upper bound on log p(x), but its estimate from K
    particles is biased downwards. Source: Li and Turner, arXiv 1602.02311.

    Args:
        num_particles: K.
        alpha: α, any finite number.
    """

    kl_weightable: ClassVar[bool] = True
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.alpha, int | float) or not math.isfinite(self.alpha):
            raise InputError("a finite alpha", self.alpha, "alpha=0.5")

    def weighting(self, terms: Terms) -> Weighting:
        """Return the bound; every particle has weight w^(1−α), normalised."""
        log_w = terms.log_weight
        if self.alpha == 1:
            return self.gradient.of(log_w.mean(0), torch.full_like(log_w, 1 / len(log_w)))
        order = 1 - self.alpha
        largest, tempered = log_w.detach().amax(0), order * log_w
        spread = order * (log_w - largest)
        # near α = 1 log_mean_exp is near 0 and loses every digit when divided by 1 − α
        close = largest + spread.clamp(-1, 1).expm1().mean(0).log1p() / order
        value = torch.where(spread.abs().amax(0) < 1, close, log_mean_exp(tempered) / order)
        return self.gradient.of(value, importance_weights(tempered))

    def advantage(self, terms: Terms) -> Tensor:
        """Return what each particle adds to this bound, (K, B)."""
        return Estimator.advantage(self, terms)

    def reference(self, group: Group) -> Estimator:
        """Return the derivative of the value by autograd: no other estimator maximises this bound."""
        return ByAutograd(self)
