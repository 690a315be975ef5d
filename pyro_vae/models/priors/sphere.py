"""Priors on the circle and on the sphere."""

from typing import ClassVar

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.models.priors.prior import Encode, Prior
from pyro_vae.models.sphere import Directions, Space, check_flat_dims


class UniformSphere(Prior):
    r"""The uniform density on the unit circle (Z = 2) or sphere (Z = 3).

    Formula: p(z) = 1/(2π) on the circle, 1/(4π) on the sphere, with respect to length or area

    Use it with the posterior ``projected_normal``. What needs latents in real coordinates (annealing, local flows,
    Hamiltonian Monte Carlo) refuses.

    Source: standard; as a prior: Davidson et al., Hyperspherical Variational Auto-Encoders, 2018, arXiv 1804.00891

    Args:
        latent_dim: Z, 2 or 3.

    Raises:
        InputError: another latent_dim.

    Example:
        >>> import torch
        >>> from pyro_vae.models import UniformSphere
        >>> p = UniformSphere(3)()
        >>> round(p.log_prob(torch.tensor([0.0, 0.6, 0.8])).exp().item() * 4 * torch.pi, 4)
        1.0
    """

    space: ClassVar[Space | None] = "sphere"
    centre: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_flat_dims(latent_dim, "the posterior for it, a projected normal,")
        self.register_buffer("centre", torch.zeros(latent_dim), persistent=False)

    def forward(self, encode: Encode | None = None) -> dist.TorchDistribution:
        """Return the uniform density; event shape (Z,), on the module's device and in its dtype."""
        return Directions(self.centre)  # type: ignore[no-untyped-call]
