"""Priors p(z): modules that, when called, return the distribution of an example's latent vector."""

from pyro_vae.models.priors.normal import StandardNormal
from pyro_vae.models.priors.prior import Prior

__all__ = ["Prior", "StandardNormal"]
