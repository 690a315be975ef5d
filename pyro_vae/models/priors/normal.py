"""Normal priors."""

import torch
from pyro import distributions as dist
from torch import Tensor

from pyro_vae.models.priors.prior import Encode, Prior


class StandardNormal(Prior):
    r"""The standard normal prior :math:`p(z) = N(0, I)` of a latent vector of ``latent_dim`` numbers.

    Example:
        >>> from pyro_vae.models import StandardNormal
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self, encode: Encode | None = None) -> dist.TorchDistribution:
        """Return N(0, I); event shape (Z,), on the module's device and in its dtype."""
        normal: dist.TorchDistribution = dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
        return normal
