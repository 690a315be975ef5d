"""The variational autoencoder, its parts, and replicates of a program."""

from pyro_vae.models.likelihoods import LIKELIHOODS, Bernoulli, Gaussian, LearnedGaussian, Likelihood
from pyro_vae.models.networks import ACTIVATIONS, MLP
from pyro_vae.models.posteriors import DiagonalNormal, Posterior
from pyro_vae.models.priors import StandardNormal
from pyro_vae.models.replicates import Replicates
from pyro_vae.models.vae import VAE

__all__ = [
    "ACTIVATIONS",
    "LIKELIHOODS",
    "MLP",
    "VAE",
    "Bernoulli",
    "DiagonalNormal",
    "Gaussian",
    "LearnedGaussian",
    "Likelihood",
    "Posterior",
    "Replicates",
    "StandardNormal",
]
