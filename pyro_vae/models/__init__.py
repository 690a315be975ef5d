"""The variational autoencoder, its parts, and replicates of a program."""

from pyro_vae.models.catalogue import LIKELIHOODS, NETWORKS, POSTERIORS, PRIORS
from pyro_vae.models.likelihoods import Bernoulli, Gaussian, LearnedGaussian, Likelihood
from pyro_vae.models.networks import ACTIVATIONS, MLP, Network
from pyro_vae.models.posteriors import (
    DiagonalNormal,
    FullNormal,
    InverseAutoregressiveFlow,
    LowRankNormal,
    NormalMixture,
    PlanarFlow,
    Posterior,
    ProjectedNormal,
    SplineFlow,
)
from pyro_vae.models.priors import (
    AutoregressiveFlowPrior,
    CouplingFlowPrior,
    LearnedNormal,
    NormalMixturePrior,
    NormalPrior,
    Prior,
    StandardNormal,
    UniformSphere,
    VampPrior,
)
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
    "AutoregressiveFlowPrior",
    "Bernoulli",
    "CouplingFlowPrior",
    "DiagonalNormal",
    "FullNormal",
    "Gaussian",
    "InverseAutoregressiveFlow",
    "LearnedGaussian",
    "LearnedNormal",
    "Likelihood",
    "LowRankNormal",
    "Network",
    "NormalMixture",
    "NormalMixturePrior",
    "NormalPrior",
    "PlanarFlow",
    "Posterior",
    "Prior",
    "ProjectedNormal",
    "Replicates",
    "SplineFlow",
    "StandardNormal",
    "UniformSphere",
    "VampPrior",
]
