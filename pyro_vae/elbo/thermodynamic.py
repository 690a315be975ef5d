"""The thermodynamic variational objective."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae.base.errors import InputError
from pyro_vae.base.statistics import importance_weights
from pyro_vae.elbo.estimator import Estimator, Group, at_least_one
from pyro_vae.elbo.terms import Terms
from pyro_vae.elbo.weighting import ScoreFunction, Weighting


@dataclass(frozen=True)
class TVO(Estimator):
    r"""The thermodynamic variational objective: a left Riemann sum along the path from q to p.

    .. math:: \mathcal L = \sum_{i=0}^{S-1} (\beta_{i+1} - \beta_i)\, E_{\pi_{\beta_i}}[\log w] \le \log p(x), \qquad
        \pi_\beta \propto q^{1-\beta} p^\beta

    Each expectation is estimated from the same K particles with weights :math:`w_k^\beta` normalised, and its
    gradient by the covariance :math:`\nabla E_\pi[f] = E_\pi[\nabla f] + \mathrm{Cov}_\pi(\nabla \log \tilde\pi,
    f)`: no reparameterization. The covariance with :math:`\nabla_\varphi \log q` is multiplied by K/(K − 1), as in the
    authors' code: that of K particles is too small by as much, exactly so for equal weights. Biased for finite K; a
    single partition is the ELBO, without bias. Where a particle has p(x, z) = 0 the value is −∞, as for the ELBO, the
    first of its terms. Source: Masrani, Le and Wood, arXiv 1907.00031, equation 11.

    Args:
        num_particles: K.
        partitions: S.
        first_beta: β_1; the others are log-uniform from it to 1.

    Raises:
        InputError: fewer than one partition, a first_beta outside (0, 1), fewer than two particles.
    """

    gradient: ClassVar[type[Weighting]] = ScoreFunction
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
        """Return the objective and the weights summed over all partitions."""
        log_w = terms.log_weight
        betas = self.betas().to(log_w)
        value, theta, score = torch.zeros_like(log_w[0]), torch.zeros_like(log_w), torch.zeros_like(log_w)
        correction = len(log_w) / (len(log_w) - 1)
        for beta, width, weight in zip(betas[:-1], betas.diff(), _tempered(log_w, betas), strict=True):
            mean = _times(weight, log_w).sum(0)
            centred = _times(weight, log_w - mean)
            value = value + width * mean
            theta = theta + width * (weight + beta * centred)
            score = score + width * (correction * (1 - beta) * centred - weight)
        return ScoreFunction(value, theta, score)

    def reference(self, group: Group) -> Estimator | None:
        """Return none: no plain estimator with the same expectation is known."""
        return None


def _tempered(log_w: Tensor, betas: Tensor) -> list[Tensor]:
    """Return the normalised w^β of β_0 to β_{S−1}; at β_0 = 0 all are equal, those of w = 0 as well."""
    return [torch.full_like(log_w, 1 / len(log_w)), *(importance_weights(beta * log_w) for beta in betas[1:-1])]


def _times(weight: Tensor, values: Tensor) -> Tensor:
    """Return the product, 0 where the weight is 0: 0 times −∞ is no number."""
    return (weight * values).masked_fill(weight == 0, 0.0)
