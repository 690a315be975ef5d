"""Priors p(z): modules that, when called, return the distribution of an example's latent vector."""

from pyro_vae.models.priors.flow import AutoregressiveFlowPrior, CouplingFlowPrior
from pyro_vae.models.priors.mixture import Mixture, NormalMixturePrior
from pyro_vae.models.priors.normal import LearnedNormal, NormalPrior, StandardNormal
from pyro_vae.models.priors.prior import Prior
from pyro_vae.models.priors.sphere import UniformSphere
from pyro_vae.models.priors.vamp import VampPrior

__all__ = [
    "AutoregressiveFlowPrior",
    "CouplingFlowPrior",
    "LearnedNormal",
    "Mixture",
    "NormalMixturePrior",
    "NormalPrior",
    "Prior",
    "StandardNormal",
    "UniformSphere",
    "VampPrior",
]
