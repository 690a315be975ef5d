"""The tables of a VAE's parts, name to constructor."""

from collections.abc import Callable

from torch import nn

from pyro_vae.models.likelihoods import Bernoulli, Gaussian, LearnedGaussian, Likelihood
from pyro_vae.models.networks import MLP
from pyro_vae.models.posteriors import DiagonalNormal, Posterior
from pyro_vae.models.priors import StandardNormal

LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "learned_gaussian": LearnedGaussian,
}
"""Likelihoods p(x|z). Constructors may take ``event_shape``."""

PRIORS: dict[str, Callable[..., nn.Module]] = {"standard_normal": StandardNormal}
"""Priors p(z). Constructors may take ``latent_dim`` and ``event_shape``."""

POSTERIORS: dict[str, Callable[..., Posterior]] = {"diagonal_normal": DiagonalNormal}
"""Variational families q(z|x). Constructors may take ``latent_dim``."""

NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": MLP}
"""Networks. Constructors take ``in_shape``, ``out_shape``, ``heads``; they may take ``hidden`` and ``activation``."""
