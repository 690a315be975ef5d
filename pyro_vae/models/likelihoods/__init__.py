r"""Likelihoods p(x|z): maps from the heads of a decoder to a distribution of each pixel.

A likelihood defines its number of heads and maps them to a distribution of batch shape ``(..., *event_shape)``;
:class:`pyro_vae.VAE` applies ``.to_event``. Densities are normalised: no constant is dropped.
"""

from pyro_vae.models.likelihoods.binary import Bernoulli
from pyro_vae.models.likelihoods.gaussian import Gaussian, LearnedGaussian
from pyro_vae.models.likelihoods.likelihood import Likelihood

__all__ = ["Bernoulli", "Gaussian", "LearnedGaussian", "Likelihood"]
