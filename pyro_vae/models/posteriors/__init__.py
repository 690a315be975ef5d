"""Variational families q(z|x): maps from the heads of an encoder to the distribution of a latent vector."""

from pyro_vae.models.posteriors.normal import DiagonalNormal
from pyro_vae.models.posteriors.posterior import Posterior

__all__ = ["DiagonalNormal", "Posterior"]
