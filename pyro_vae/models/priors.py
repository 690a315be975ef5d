"""Priors p(z): each a module that, when called, returns the distribution of one datum's latent vector."""

import torch
from pyro import distributions as dist
from torch import Tensor, nn


class StandardNormal(nn.Module):
    r"""The standard normal prior :math:`p(z) = N(0, I)` over a vector of ``latent_dim``.

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return N(0, I); event shape (Z,), on the module's device and in its dtype."""
        normal: dist.TorchDistribution = dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
        return normal
