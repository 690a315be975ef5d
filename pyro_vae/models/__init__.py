"""The variational autoencoder, its parts, and replicates of a program."""

from pyro_vae.models.catalogue import LIKELIHOODS, NETWORKS, POSTERIORS, PRIORS
from pyro_vae.models.likelihoods import Bernoulli, Gaussian, LearnedGaussian, Likelihood
from pyro_vae.models.networks import ACTIVATIONS, MLP, Network
from pyro_vae.models.posteriors import DiagonalNormal, Posterior
from pyro_vae.models.priors import Prior, StandardNormal
from pyro_vae.models.replicates import Replicates
from pyro_vae.models.vae import VAE

__all__ = [
    "ACTIVATIONS",
    "LIKELIHOODS",
    "MLP",
    "NETWORKS",
    "POSTERIORS",
    "PRIORS",
    "VAE",
    "Bernoulli",
    "DiagonalNormal",
    "Gaussian",
    "LearnedGaussian",
    "Likelihood",
    "Network",
    "Posterior",
    "Prior",
    "Replicates",
    "StandardNormal",
]
