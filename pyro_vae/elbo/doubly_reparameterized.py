"""Doubly reparameterized forms of MIWAE, PIWAE and reweighted wake-sleep: φ's gradient without the score term."""

from dataclasses import dataclass
from typing import ClassVar

from pyro_vae.base.statistics import importance_weights, log_mean_exp, log_share_of_others
from pyro_vae.elbo.estimator import Estimator, Group
from pyro_vae.elbo.importance import IWAE, MIWAE, PIWAE
from pyro_vae.elbo.terms import Terms
from pyro_vae.elbo.wake_sleep import RWS
from pyro_vae.elbo.weighting import ThreeTerms, Weighting


@dataclass(frozen=True)
class MIWAEDReG(MIWAE):
    r"""The mean of M importance-weighted bounds of K particles each, doubly reparameterized.

    .. math:: \nabla_\varphi = \frac1M \sum_{mk} \tilde w_{mk}^2 \, \nabla_z \log w_{mk} \, \frac{dz_{mk}}{d\varphi}

    with w̃ normalised within a bound; θ as :class:`MIWAE`, and the same expectation. Sources: as :class:`DReG` and
    :class:`MIWAE`.
    """

    gradient: ClassVar[type[Weighting]] = ThreeTerms

    def weighting(self, terms: Terms) -> Weighting:
        """Return the mean bound; the pathwise term is weighted by w̃²/M."""
        weight = self._weights(terms)
        value = log_mean_exp(self._grouped(terms), dim=1).mean(0)
        return ThreeTerms(value, weight / self.num_bounds, weight**2 / self.num_bounds, None)


@dataclass(frozen=True)
class PIWAEDReG(PIWAE):
    r"""PIWAE, its φ doubly reparameterized: θ as the bound of all M K particles, φ as :class:`MIWAEDReG`.

    The expectations are those of :class:`PIWAE`. For reparameterized latents only. Sources: as :class:`DReG` and
    :class:`PIWAE`.

    Raises:
        InputError: when used, a site without reparameterization, or marked as ``score``.
    """

    mixed: ClassVar[bool] = False

    def weighting(self, terms: Terms) -> Weighting:
        """Return the bound of all particles; IWAE's weights for θ, w̃²/M within its bound for φ."""
        log_w = terms.log_weight
        path = self._weights(terms) ** 2 / self.num_bounds
        return ThreeTerms(log_mean_exp(log_w), importance_weights(log_w), path, None)


@dataclass(frozen=True)
class RWSDReG(RWS):
    r"""Reweighted wake-sleep, φ's wake phase doubly reparameterized.

    .. math:: \varphi: \ a \sum_k (\tilde w_k - \tilde w_k^2) \, \nabla_z \log w_k \, \frac{dz_k}{d\varphi}
        + b \, \nabla_\varphi \log q_\varphi(z'|x'), \ (x', z') \sim p_\theta

    It has the expectation of :class:`RWS`: :math:`E[\tilde w_k \nabla_\varphi \log q(z_k|x)]` is that of the derivative
    of w̃ in z along the path. At the posterior it is 0 on every draw. For reparameterized latents only.
    Source: Tucker, Lawson, Gu and Maddison, arXiv 1810.04152, section 6.

    Raises:
        InputError: when used, a site without reparameterization, or marked as ``score``.
    """

    gradient: ClassVar[type[Weighting]] = ThreeTerms
    mixed: ClassVar[bool] = False

    def weighting(self, terms: Terms) -> Weighting:
        """Return the wake phases; the pathwise term is weighted by a w̃ (1 − w̃)."""
        log_w = terms.log_weight
        weight = importance_weights(log_w)
        path = self.wake_phi * weight * log_share_of_others(log_w).exp() if self.wake_phi else None
        return ThreeTerms(log_mean_exp(log_w), weight, path, None)

    def reference(self, group: Group) -> Estimator:
        """Return the importance-weighted bound for θ, and reweighted wake-sleep itself for φ."""
        plain = RWS(self.num_particles, self.wake_phi, self.sleep_phi)
        return IWAE(self.num_particles) if group == "theta" else plain
