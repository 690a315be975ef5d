"""Variational families on the circle and on the sphere."""

from typing import ClassVar

from pyro import distributions as dist
from torch import Tensor

from pyro_vae.models.posteriors.posterior import Posterior
from pyro_vae.models.sphere import Directions, Space, check_flat_dims


class ProjectedNormal(Posterior):
    r"""The direction of a normal vector: a density on the unit circle (Z = 2) or sphere (Z = 3).

    Formula: z = y / ‖y‖, y ~ N(c, I);  q(z|x) = ∫₀^∞ r^(Z−1) N(r z; c, I) dr, with respect to length or area

    The head is c, (..., Z): its direction is that of z, its length the concentration; c = 0 is the uniform density. Use
    it with the prior ``uniform_sphere``. Pyro computes log q in other dimensions not at all, and below the rounding of
    the largest density (about −16 nats in single, −36 in double precision) as a constant. Its von Mises-Fisher
    distribution (``VonMises3D``) has no sampler, so that there is no family of that name here.

    Source: Hernandez-Stumpfhauser, Breidt, van der Woerd, The General Projected Normal Distribution of Arbitrary
    Dimension, 2017, Bayesian Analysis 12(1)

    Args:
        latent_dim: Z, 2 or 3.

    Raises:
        InputError: another latent_dim.

    Example:
        >>> import torch
        >>> from pyro_vae.models import ProjectedNormal
        >>> q = ProjectedNormal(3)(torch.tensor([[0.0, 0.0, 9.0]]))
        >>> bool((q.rsample((100,))[..., 2] > 0.8).all())
        True
    """

    heads = 1
    space: ClassVar[Space] = "sphere"

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_flat_dims(latent_dim, "a projected normal")

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return the distribution; batch shape (...), event shape (Z,)."""
        (concentration,) = heads
        return Directions(concentration)  # type: ignore[no-untyped-call]
