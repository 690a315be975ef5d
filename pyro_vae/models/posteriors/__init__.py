"""Variational families q(z|x): maps from the heads of an encoder to the distribution of a latent vector."""

from pyro_vae.models.posteriors.flow import InverseAutoregressiveFlow, PlanarFlow, SplineFlow
from pyro_vae.models.posteriors.mixture import NormalMixture
from pyro_vae.models.posteriors.normal import DiagonalNormal, FullNormal, LowRankNormal
from pyro_vae.models.posteriors.posterior import Posterior
from pyro_vae.models.posteriors.sphere import ProjectedNormal

__all__ = [
    "DiagonalNormal",
    "FullNormal",
    "InverseAutoregressiveFlow",
    "LowRankNormal",
    "NormalMixture",
    "PlanarFlow",
    "Posterior",
    "ProjectedNormal",
    "SplineFlow",
]
