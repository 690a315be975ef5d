"""The tables of a VAE's parts, name to constructor."""

from collections.abc import Callable

from torch import nn

from pyro_vae.models.likelihoods import Bernoulli, Gaussian, LearnedGaussian, Likelihood
from pyro_vae.models.networks import MLP
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
    StandardNormal,
    UniformSphere,
    VampPrior,
)

LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "learned_gaussian": LearnedGaussian,
}
"""Likelihoods p(x|z). Constructors may take ``event_shape``."""

PRIORS: dict[str, Callable[..., nn.Module]] = {
    "standard_normal": StandardNormal,
    "normal": NormalPrior,
    "learned_normal": LearnedNormal,
    "mixture": NormalMixturePrior,
    "vamp": VampPrior,
    "autoregressive_flow": AutoregressiveFlowPrior,
    "coupling_flow": CouplingFlowPrior,
    "uniform_sphere": UniformSphere,
}
"""Priors p(z). Constructors may take ``latent_dim`` and ``event_shape``."""

POSTERIORS: dict[str, Callable[..., Posterior]] = {
    "diagonal_normal": DiagonalNormal,
    "full_normal": FullNormal,
    "low_rank_normal": LowRankNormal,
    "iaf": InverseAutoregressiveFlow,
    "spline": SplineFlow,
    "planar": PlanarFlow,
    "normal_mixture": NormalMixture,
    "projected_normal": ProjectedNormal,
}
"""Variational families q(z|x). Constructors may take ``latent_dim``."""

NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": MLP}
"""Networks. Constructors take ``in_shape``, ``out_shape``, ``heads``; they may take ``hidden`` and ``activation``."""
