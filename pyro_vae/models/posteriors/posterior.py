"""The interface of a variational family."""

from typing import ClassVar

from pyro import distributions as dist
from torch import Tensor, nn

from pyro_vae.models.sphere import Space


class Posterior(nn.Module):
    """The interface of a variational family: ``heads``, and a call on that many tensors (..., Z).

    Attributes:
        heads: parameters of each latent, which the encoder computes.
        space: where its latents live: ``real`` vectors, or unit vectors on a ``sphere``. A prior has the same.
    """

    heads: int
    space: ClassVar[Space] = "real"

    def forward(self, *heads: Tensor) -> dist.TorchDistribution:
        """Return q(z|x); batch shape (...), event shape (Z,)."""
        raise TypeError(f"{type(self).__name__} does not define its distribution")
